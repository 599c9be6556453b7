"""The ops: each gated linear unit of two tensors, and of the halves of one."""

from ...registration import DifferentiableOp
from ..pointwise import table
from .halves import Halves
from .kernels import register_kernels
from .rules import declare


def _op(name: str, function: table.Pointwise, packed: str | None = None) -> DifferentiableOp:
    halves = Halves(packed)
    op = declare(name, function, halves)
    register_kernels(op, function, halves)
    return op


swiglu = _op("swiglu", table.SILU)
swiglu_packed = _op("swiglu_packed", table.SILU, "gate first")
geglu = _op("geglu", table.GELU)
geglu_packed = _op("geglu_packed", table.GELU, "gate first")
glu = _op("glu", table.SIGMOID, "gate last")
