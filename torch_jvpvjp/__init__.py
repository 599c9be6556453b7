"""PyTorch ops with fused kernels for every derivative, and optimal accumulation of whole Jacobians."""

from . import nn, ops, testing
from ._version import __version__
from .accumulation import Chain, InfeasiblePlanError, Plan, gauss_newton, jacobian, plan_jacobian
from .checkpoint import checkpoint
from .registration import DifferentiableOp, differentiable_op

__all__ = [
    "Chain",
    "DifferentiableOp",
    "InfeasiblePlanError",
    "Plan",
    "__version__",
    "checkpoint",
    "differentiable_op",
    "gauss_newton",
    "jacobian",
    "nn",
    "ops",
    "plan_jacobian",
    "testing",
]
