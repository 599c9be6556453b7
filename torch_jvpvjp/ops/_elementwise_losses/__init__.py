"""What mse_loss, huber_loss, kl_div and js_div share: their ops, rules and kernels."""

from .cpu import native_huber, native_mse, watched_huber, watched_mse
from .face import checked_operands, reduced, weighted
from .ops import huber, js, kl, mse

__all__ = [
    "checked_operands",
    "huber",
    "js",
    "kl",
    "mse",
    "native_huber",
    "native_mse",
    "reduced",
    "watched_huber",
    "watched_mse",
    "weighted",
]
