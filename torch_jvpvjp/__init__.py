"""PyTorch ops with fused kernels for every derivative, and optimal accumulation of whole Jacobians."""

from . import nn, ops, testing
from ._version import __version__
from .accumulation import Chain, InfeasiblePlanError, Plan, gauss_newton, jacobian, plan_jacobian
from .accumulation.tracing.composites import record_within
from .checkpoint import checkpoint
from .registration import DifferentiableOp, differentiable_op
from .registration.composite import as_formulas

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

record_within(as_formulas)  # so that the accumulator knows the structure of our ops
