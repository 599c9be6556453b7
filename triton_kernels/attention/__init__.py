"""Attention: value, tangents, pullback, and everything of the second order."""

from .arguments import Blocks, Operands, Scores
from .config import second_order_fits
from .pullback import attention_second_order, attention_vjp
from .value import attention_forward
from .variants import aot_variants

__all__ = [
    "Blocks",
    "Operands",
    "Scores",
    "aot_variants",
    "attention_forward",
    "attention_second_order",
    "attention_vjp",
    "second_order_fits",
]
