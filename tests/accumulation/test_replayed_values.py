"""Replayed programs give what was recorded, wherever their values lie in memory, and calls that once raised do not."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, moved, randn
from torch import Tensor
from torch.nn import functional as F

from torch_jvpvjp.accumulation import jacobian, plan_jacobian, program
from torch_jvpvjp.accumulation.calls import ProgramCall
from torch_jvpvjp.accumulation.replay import Layouts, layout_of
from torch_jvpvjp.accumulation.replay.together import _laid_out
from torch_jvpvjp.accumulation.tracing.tape import Ref

ATEN = torch.ops.aten


def copied_pieces(x: Tensor) -> Tensor:
    return torch.cat([piece.squeeze(0).clone().view(1) for piece in x.split(1)]).sin().cos()


def copied_rows(x: Tensor) -> Tensor:
    return torch.cat([row.contiguous().view(2, 2).t().reshape(-1) for row in x.view(-1, 4).unbind()]).tanh()


@pytest.mark.parametrize("strategy", ["dynamic_programming", "forward", "reverse"])
@pytest.mark.parametrize(("function", "n"), [(copied_pieces, 5), (copied_rows, 8)])
def test_views_of_copies_that_are_gone_are_views_of_the_piece(function, n, strategy):
    x = randn(n)
    plan = plan_jacobian(function, x, strategy=strategy)
    for by in (0.0, 0.0, 0.3):
        assert_same(plan(moved(x, by)), judged(function, moved(x, by)))
    assert plan.runtime.tracing(x).replayable


def gelu_of_rows(x: Tensor) -> Tensor:
    return torch.stack([F.gelu(row @ WEIGHT).sum() for row in x.unbind()])


WEIGHT = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))


def test_the_derivative_of_a_gelu_is_not_broadcast():
    x = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1))
    plan = plan_jacobian(gelu_of_rows, x)
    for _ in range(2):
        assert_same(plan(x), judged(gelu_of_rows, x), 1e-5)
    assert plan.runtime.tracing(x).replayable


def test_a_view_of_a_member_of_a_stack_that_lies_otherwise_is_a_reshape():
    stack, layouts = torch.randn(5, 4, 3).transpose(1, 2), Layouts()
    layouts[0], layouts[1], layouts[2] = layout_of(stack), layout_of(stack[2].contiguous()), layout_of(torch.ones(12))
    calls = [
        ProgramCall(ATEN.select.int, (Ref(0), 0, 2), {}, [1]),
        ProgramCall(ATEN.view.default, (Ref(1), [12]), {}, [2]),
    ]
    assert [call.target for call in _laid_out(calls, layouts)] == [ATEN.select.int, ATEN.reshape.default]
    assert layouts[1] == layout_of(stack[2])


def test_the_first_jacobian_can_be_written_into():
    x = randn(2, 3)
    for _ in range(2):
        found = jacobian(lambda v: v.sum(1), x)
        found += 1.0
        assert_same(found, judged(lambda v: v.sum(1), x) + 1.0)


def written(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[1:] = x[:-1] ** 3
    return y * x


def test_gradients_flow_through_what_is_copied_into_a_slice():
    x = randn(4).requires_grad_()
    plan = plan_jacobian(written, x, create_graph=True)
    (expected,) = torch.autograd.grad(torch.func.jacrev(written)(x).sin().sum(), x)
    for _ in range(2):
        (found,) = torch.autograd.grad(plan(x).sin().sum(), x)
        assert_same(found, expected)


def counted(x: Tensor) -> Tensor:
    """Return squares, written into what `vmap` sees as one tensor for all samples."""
    rows = []
    for row in x.unbind():
        y = torch.zeros(3, dtype=F64)
        y += row**2
        rows.append(y)
    return torch.stack(rows)


def test_samples_that_vmap_does_not_take_are_taken_one_by_one():
    x = randn(4, 3)
    plan = plan_jacobian(counted, x, batch_dims=1)
    for _ in range(2):
        assert_same(plan(x), torch.diag_embed(2 * x))


@pytest.mark.parametrize("sparse", [True, "auto"])
def test_a_sparse_jacobian_of_a_number_in_a_number(sparse):
    x = randn(1)[0]
    for _ in range(2):
        found = plan_jacobian(torch.sin, x, sparse=sparse)(x)
        assert_same(found.to_dense() if found.is_sparse else found, x.cos())


def test_a_replay_that_rounds_otherwise_than_what_was_recorded_is_done_as_it_was(monkeypatch):
    def joined_wrongly(calls, numbers, layouts):
        return [
            ProgramCall(call.target, call.args, {"alpha": 2}, call.outputs) if call.target is ATEN.add.Tensor else call
            for call in calls
        ]

    monkeypatch.setattr(program, "joined", joined_wrongly)
    x = randn(3)
    plan = plan_jacobian(lambda v: v.sin() * v + v.exp() * v, x)
    expected = plan(x)
    assert plan.runtime is not None
    tracing = plan.runtime.tracing(x)
    assert tracing.replayable
    assert tracing.program is not None
    assert any(call.target is ATEN.add.Tensor for call in tracing.program.calls)
    assert_same(plan(x), expected)
    assert_same(expected, judged(lambda v: v.sin() * v + v.exp() * v, x))


@pytest.mark.parametrize("f", [lambda v: v.logsumexp(0), lambda v: v.logcumsumexp(0)[-1]], ids=["at once", "running"])
def test_sums_of_exponentials_that_are_infinite_have_no_finite_slope_but_zero(f):
    plan = plan_jacobian(f, torch.zeros(3, dtype=F64))
    for point, expected in (
        ([0.5, torch.inf, 1.0], [0.0, torch.nan, 0.0]),
        ([-torch.inf, 0.5, 0.5], [0.0, 0.5, 0.5]),
        ([-torch.inf] * 3, [torch.nan] * 3),
    ):
        found = plan(torch.tensor(point, dtype=F64))
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), equal_nan=True)
