"""Recorded programs are replayed as they would be written by hand, and give what the recording gave."""

import pytest
import torch
from jacobian_checks import F64, assert_same, check_jacobian, judged, randn
from replay_checks import program_of, recorded, values_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.replay.spelling import BINDINGS, METHODS
from torch_jvpvjp.accumulation.tracing.tape import flat_outputs

ATEN = torch.ops.aten
V, M, INDEX = torch.rand(4) / 2 + 0.5, torch.rand(4, 4) / 2 + 0.5, torch.tensor([0, 2, 1, 3])
SPECIAL = {
    ATEN.addcmul.default: (V, V, V),
    ATEN.addmm.default: (V, M, M),
    ATEN.addmv.default: (V, M, V),
    ATEN.baddbmm.default: (M[None], M[None], M[None]),
    ATEN.bmm.default: (M[None], M[None]),
    ATEN.cat.default: ([V, V],),
    ATEN.clamp.default: (V, 0.6, 0.7),
    ATEN.cumsum.default: (M, 1),
    ATEN.diag_embed.default: (M,),
    ATEN.diagonal.default: (M, 0, 0, 1),
    ATEN.expand.default: (V, [3, 4]),
    ATEN.flip.default: (M, [1]),
    ATEN.gather.default: (M, 1, INDEX[None]),
    ATEN.index_add.default: (M, 1, INDEX, M),
    ATEN.index_select.default: (M, 1, INDEX),
    ATEN.logical_not.default: (V > 1,),
    ATEN.mean.dim: (M, [1], True),
    ATEN.mm.default: (M, M),
    ATEN.mv.default: (M, V),
    ATEN.native_layer_norm.default: (M, [4], V, V, 1e-5),
    ATEN.permute.default: (M, [1, 0]),
    ATEN.reshape.default: (M, [2, 8]),
    ATEN.scatter_add.default: (M, 1, INDEX[None], M),
    ATEN.select.int: (M, 1, 2),
    ATEN.split_with_sizes.default: (M, [1, 3], 1),
    ATEN.squeeze.dim: (M[None], 0),
    ATEN.stack.default: ([V, V], 1),
    ATEN.sum.dim_IntList: (M, [1], True),
    ATEN.t.default: (M,),
    ATEN.transpose.int: (M, 0, 1),
    ATEN.tril.default: (M, -1),
    ATEN.triu.default: (M,),
    ATEN.unbind.int: (M, 1),
    ATEN.unsqueeze.default: (V, 1),
    ATEN.view.default: (M, [2, 8]),
    ATEN.where.self: (V > 1, V, V),
}
PAIRS = ("Tensor", "Tensor_Tensor")
PAIRED = {ATEN.atan2.default, ATEN.maximum.default, ATEN.minimum.default}


def arguments_of(op):
    """Return arguments for an op of the tables."""
    if op in SPECIAL:
        return SPECIAL[op]
    if op._overloadname in PAIRS or op in PAIRED:
        return (V, V)
    return (V, 2.0) if "Scalar" in op._overloadname else (V,)


class Seen(TorchDispatchMode):
    """Notes the ops that run, those that others are made of aside."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", [*BINDINGS, *METHODS], ids=str)
def test_what_is_written_runs_the_very_op(op):
    args = arguments_of(op)
    function = getattr(torch, BINDINGS[op]) if op in BINDINGS else getattr(torch.Tensor, METHODS[op])
    with Seen() as seen:
        out = function(*args)
    # `reshape` is made of others, a view where it can be one.
    assert seen.ops == ([ATEN.view.default] if op is ATEN.reshape.default else [op])
    for one, other in zip(flat_outputs(out), flat_outputs(op(*args)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_numbers_beside_tensors_keep_value_and_dtype(dtype):
    def f(x):
        return 2 / (3 - torch.tanh(0.1 * x + 1) / 7) - 5

    x = randn(6).to(dtype)
    plan = plan_jacobian(f, x)
    first, again = plan(x), plan(x)
    assert first.dtype == again.dtype == dtype
    assert torch.equal(first, again)
    assert_same(first.double(), judged(f, x.double()), 1e-10 if dtype == F64 else 10 * torch.finfo(dtype).eps)


def test_a_number_beside_integers_is_not_rounded():
    steps = torch.arange(4)
    check_jacobian(lambda x: torch.tanh(x) * (steps * 0.5), randn(4))


def test_layers_at_one_sample_are_products_with_a_vector():
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 7)).double()
    check_jacobian(net, randn(6))
    check_jacobian(net, randn(1, 6))  # the row is the user's own
    calls = program_of(plan_jacobian(net, x := randn(6)), x).calls
    assert not [call for call in calls if call.target in {ATEN.addmm.default, ATEN.t.default, ATEN.view.default}]


def test_moves_that_change_nothing_are_gone():
    def f(x):
        return torch.tanh(x.mT.mT.expand(3, 3)[:].permute(1, 0).permute(1, 0).contiguous()).clone()

    check_jacobian(f, x := randn(3, 3))
    program = program_of(plan_jacobian(f, x), x)
    assert program.calls[0].target is ATEN.tanh.default
    assert program.calls[0].operands == program.inputs


def test_copies_that_are_looked_at_by_memory_stay():
    x = torch.randn(10, generator=torch.Generator().manual_seed(0))

    def function(x):
        return 1.5 * ATEN.as_strided_scatter(x[2:8].clone(), x[:2], [2], [2], 1)

    assert torch.equal(recorded(function, x)(x)[0], function(x))


@pytest.mark.parametrize(
    "function",
    [lambda x: x, lambda x: WEIGHT @ x, lambda x: x.flip(0), lambda x: WEIGHT.mT.contiguous().mT @ x, lambda x: x[:2]],
    ids=["identity", "weight", "permutation", "copied weight", "slice"],
)
def test_a_result_shares_memory_with_nothing(function):
    x = randn(4)
    plan = plan_jacobian(function, x)
    expected = judged(function, x)
    for _ in range(3):
        found = plan(x)
        assert_same(found, expected)
        found.zero_()
    assert_same(WEIGHT, SAVED)


WEIGHT = torch.randn(4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
SAVED = WEIGHT.clone()


def test_conjugates_are_told_from_what_they_are_conjugates_of():
    def f(x):
        z = torch.complex(x, x * x)
        return (z * z.conj() * z.mH.mH).real.sum(-1)

    check_jacobian(f, randn(3, 3))


@pytest.mark.parametrize("layout", ["transposed", "strided", "offset"])
def test_x_may_lie_in_memory_otherwise_than_it_did(layout):
    def f(x):
        return torch.tanh(x).reshape(-1) * x.reshape(-1).cumsum(0)

    x = randn(3, 4)
    other = {"transposed": randn(4, 3).mT, "strided": randn(3, 8)[:, ::2], "offset": randn(5, 4)[2:]}[layout]
    for first, second in ((x, other), (other, x)):
        plan = plan_jacobian(f, first)
        for point in (first, first, second, first):
            assert_same(plan(point), judged(f, point))


def test_gradients_are_on_afterwards_as_they_were():
    plan = plan_jacobian(torch.tanh, x := randn(3))
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            for _ in range(3):
                assert not plan(x).requires_grad
                assert torch.is_grad_enabled() is enabled


def test_the_program_is_the_recording():
    net = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4)).double()
    plan, x = plan_jacobian(net, x := randn(6)), x
    program = program_of(plan, x)
    (matrix,) = (values_of(program, [x, *(p.detach() for p in constants_of(plan, x))])[i] for i in program.results)
    assert_same(matrix, plan(x))


def constants_of(plan, x):
    """Return the constants that a program takes, in order."""
    return plan.runtime.tracing(x).constants.values()
