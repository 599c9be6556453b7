"""PyTorch ops with fused kernels for every derivative, and optimal accumulation of whole Jacobians."""

from . import ops, testing
from ._version import __version__
from .accumulation import Chain, Plan, jacobian, plan_jacobian
from .registration import DifferentiableOp, differentiable_op

__all__ = [
    "Chain",
    "DifferentiableOp",
    "Plan",
    "__version__",
    "differentiable_op",
    "jacobian",
    "ops",
    "plan_jacobian",
    "testing",
]
