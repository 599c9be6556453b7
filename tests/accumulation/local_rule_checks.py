"""What the tests of local derivatives share: a call on real tensors, and its Jacobian by PyTorch's own autograd."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from torch_jvpvjp.accumulation.reals import in_pairs
from torch_jvpvjp.accumulation.rules import Call, Local, Meta, Operand, local_derivatives
from torch_jvpvjp.accumulation.rules.arguments import fill

aten = torch.ops.aten


class Case(NamedTuple):
    """An op on arguments; `active` are the operands whose derivative must be known, `unknown` those left out."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}
    active: tuple[int, ...] = (0,)
    kind: Any = None  # the structure in the first active operand
    output: int = 0


class Taken(NamedTuple):
    call: Call
    operands: list[Tensor]
    outputs: list[Tensor]
    locals: dict[int, Local]


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def positive(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed).abs() + 0.3


def meta(tensor: Tensor) -> Meta:
    return Meta(tensor.shape, tensor.dtype, tensor.device)


def take(case: Case) -> Taken:
    """Plan from sizes, and the values of whole numbers."""
    operands: list[Tensor] = []

    def place(tensor: Tensor) -> Operand:
        operands.append(tensor)
        return Operand(len(operands) - 1)

    args, kwargs = tree_map_only(Tensor, place, case.args), tree_map_only(Tensor, place, case.kwargs)
    outputs = results(case.op(*case.args, **case.kwargs))
    known = {place: one for place, one in enumerate(operands) if not one.is_floating_point() and not one.is_complex()}
    metas = tuple(map(meta, operands))
    call = Call(case.op, args, kwargs, metas, meta(outputs[case.output]), case.active, case.output, known)
    return Taken(call, operands, outputs, dict(local_derivatives(call)))


def results(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def primal(taken: Taken, position: int):
    """The function of one operand."""
    call = taken.call

    def function(x: Tensor) -> Tensor:
        filled = [x if place == position else other for place, other in enumerate(taken.operands)]
        return results(call.target(*fill(call.args, filled), **fill(call.kwargs, filled)))[call.output_index]

    return function


def dense(local: Local, operands: list[Tensor], outputs: list[Tensor]) -> Tensor:
    return local.structure.dense(local.values(operands, outputs), like=in_pairs(outputs[0]))


def autograd(taken: Taken, position: int) -> Tensor:
    """The Jacobian by reverse mode; a complex entry stands for two real numbers."""
    x, function = taken.operands[position], primal(taken, position)
    if x.is_complex():
        jacobian = torch.autograd.functional.jacobian(
            lambda pairs: in_pairs(function(torch.view_as_complex(pairs))), in_pairs(x).clone()
        )
    else:
        jacobian = torch.autograd.functional.jacobian(lambda real: in_pairs(function(real)), x)
    return jacobian.reshape(taken.call.output.numel, in_pairs(x).numel())


def check(case: Case) -> None:
    taken = take(case)
    assert set(taken.locals) == set(case.active)
    for position, local in taken.locals.items():
        sizes = taken.call.output.numel, taken.call.operands[position].numel
        assert (local.structure.m, local.structure.n) == sizes
        found = dense(local, taken.operands, taken.outputs)
        expected = autograd(taken, position)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12, equal_nan=True)
        if local.through is not None:
            _check_through(local, taken, expected)
    if case.kind is not None:
        assert type(taken.locals[case.active[0]].structure) is case.kind


def _check_through(local: Local, taken: Taken, jacobian: Tensor) -> None:
    """Vectors go through as a product with the Jacobian carries them."""
    assert local.through is not None
    m, n = jacobian.shape
    for through in filter(None, (local.through, local.through.final)):
        for carry, vectors, expected in (
            (through.push, (v := randn(3, n)), v @ jacobian.T),
            (through.pull, (v := randn(3, m)), v @ jacobian),
        ):
            found = carry(taken.operands, taken.outputs, vectors)
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
