"""The ops of the table, with their kernels."""

from ...registration import DifferentiableOp
from . import table
from .kernels import register_kernels
from .rules import declare


def _op(function: table.Pointwise) -> DifferentiableOp:
    op = declare(function)
    register_kernels(op, function)
    return op


gelu = _op(table.GELU)
silu = _op(table.SILU)
tanh = _op(table.TANH)
sin = _op(table.SIN)
softplus = _op(table.SOFTPLUS)
mish = _op(table.MISH)
sigmoid = _op(table.SIGMOID)
relu = _op(table.RELU)
