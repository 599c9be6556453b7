"""PyTorch ops with fused kernels for every derivative, and optimal accumulation of whole Jacobians."""

from . import ops
from ._version import __version__
from .registration import DifferentiableOp, differentiable_op

__all__ = ["DifferentiableOp", "__version__", "differentiable_op", "ops"]
