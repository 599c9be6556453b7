"""How one declaration becomes an op with all its derivatives."""

from .declare import differentiable_op
from .op import DifferentiableOp
from .registry import find_op, registered_ops
from .slot import DerivativeSlot
from .vmap import broadcasting_rule, expanding_rule

__all__ = [
    "DerivativeSlot",
    "DifferentiableOp",
    "broadcasting_rule",
    "differentiable_op",
    "expanding_rule",
    "find_op",
    "registered_ops",
]
