"""What a function does on the way, is recorded right: views, writes in place, transforms, stopped gradients."""

import math

import pytest
import torch
from jacobian_checks import F64, assert_same, check_jacobian, judged, quiet_judge, randn
from torch import nn
from torch.nn import functional

from torch_jvpvjp.accumulation import jacobian, plan_jacobian


def _written(v):
    y = v.clone()
    y[0] = y[1] * 2
    y.mul_(v)
    y[1:].add_(v[:-1].sin())
    return y


def _filled(v):
    out = torch.zeros(4, 4, dtype=F64)
    for row in range(4):
        out[row] = v * v[row]
    return out


def _masked(v):
    y = v.sin()
    y[y > 0.3] = 0
    return y.clamp_(-0.5, 0.25) * v


def _stopped(v):
    with torch.no_grad():
        weight = v.sin()
    return weight * v + v.detach() * v.exp()


def _stopped_in_place(v):
    y = v.clone()
    with torch.no_grad():
        weight = v.sin() * 3
    y.mul_(weight)
    y.add_(v.detach())
    return y * v


def _stopped_then_written(v):
    buffer = v.detach().clone()
    buffer[1:] = v[:-1].square()
    return buffer * v


def _rows(v):
    return torch.stack([chunk.flip(0) * chunk.roll(1) for chunk in v.chunk(2, 1)]).movedim(0, -1).squeeze()


# name: (function, shape of x)
FUNCTIONS = {
    "writes in place": (_written, (4,)),
    "writes rows": (_filled, (4,)),
    "writes where": (_masked, (6,)),
    "no grad": (_stopped, (4,)),
    "no grad and in place": (_stopped_in_place, (4,)),
    "a detached buffer written": (_stopped_then_written, (4,)),
    "all detached": (lambda v: v.detach() * 2, (3,)),
    "grad inside": (lambda v: torch.func.grad(lambda u: (u.sin() * v).sum())(v), (3,)),
    "vmap inside": (lambda v: torch.func.vmap(lambda u: u.sin() * v.sum())(v), (3,)),
    "jvp inside": (lambda v: torch.func.jvp(lambda u: u.sin() * v, (v,), (v,))[1], (3,)),
    "vjp inside": (lambda v: torch.func.vjp(lambda u: u.sin() * v, v)[1](v.exp())[0], (3,)),
    "jacrev inside": (lambda v: torch.func.jacrev(lambda u: u**3 * v[0])(v).sum(0), (3,)),
    "jacfwd inside": (lambda v: torch.func.jacfwd(lambda u: u**3 * v[0])(v).sum(0), (3,)),
    "hessian inside": (lambda v: torch.func.hessian(lambda u: (u**3).prod())(v), (3,)),
    "cat of views": (
        lambda v: torch.cat([v.view(2, 3).T.reshape(-1)[1:4], v.split(2)[1], torch.stack(v.unbind())[::2]]),
        (6,),
    ),
    "chunks of rows": (_rows, (2, 4)),
    "one chunk": (lambda v: torch.cat([c.sin() for c in v.chunk(1)] + [u for u in v.split([4])]), (4,)),
    "windows": (lambda v: v.unfold(0, 3, 2).sum(-1).expand(2, -1), (7,)),
    "strides": (lambda v: torch.as_strided(v, (3, 2), (1, 1)) * 2, (4,)),
    "diagonals": (lambda v: torch.diag(v) @ torch.diagonal(torch.outer(v, v)), (3,)),
    "gathers": (lambda v: v.gather(0, torch.tensor([2, 0, 0])) * v[torch.tensor([1, 1, 2])], (3,)),
    "scatters": (lambda v: torch.zeros(3, dtype=F64).index_add(0, torch.tensor([0, 0, 2, 1]), v.sin()) * v[:3], (4,)),
    "einsum": (lambda v: torch.einsum("ij,kj->ik", v, v), (2, 3)),
    "products of a batch": (lambda v: torch.bmm(v, v.transpose(1, 2)).logsumexp(-1), (2, 3, 2)),
    "linear algebra": (lambda v: torch.linalg.solve(v @ v.T + torch.eye(3, dtype=F64), v[:, 0]), (3, 3)),
    "sorted": (lambda v: v.sort().values * v.argsort(), (4,)),
    "branches by where": (lambda v: torch.where(v > 0, v.sin(), v**2), (5,)),
    "extrema": (lambda v: torch.stack([v.max(), v.amin(), v.max(0).values.sum(), v.median()]), (2, 3)),
    "products along": (lambda v: v.cumprod(0) + v.cumsum(0) + v.logcumsumexp(0), (4,)),
    "norms": (lambda v: torch.stack([v.norm(), v.norm(1), v.std(), v.var(unbiased=False)]), (4,)),
    "remainders": (lambda v: v / v.sum() + v.remainder(0.7) + torch.fmod(v, 0.7) + v.floor() * v, (3,)),
    "padded": (lambda v: functional.pad(v, (1, 2), mode="reflect") + functional.pad(v, (1, 2)), (1, 4)),
    "complex on the way": (lambda v: (v * (1 + 2j)).exp().real, (3,)),
    "a spectrum": (lambda v: torch.fft.rfft(v).abs(), (5,)),
    "the identity": (lambda v: v, (3,)),
    "the identity by a module": (nn.Dropout(0.5).eval(), (3,)),
    "a view": (lambda v: v.view(3, 1), (3,)),
    "a constant": (lambda v: torch.ones(2, 3, dtype=F64), (3,)),
    "0-dim": (lambda v: v.sin() * v, ()),
    "0-dim to three": (lambda v: v * torch.arange(3.0, dtype=F64) + v**2, ()),
    "nothing in": (lambda v: v.sum() + v.sin().sum(), (0,)),
    "nothing out": (lambda v: v[:0].sin(), (3,)),
    "an op without forward mode": (lambda v: torch.cdist(v, v + 1.5, p=math.inf), (3, 2)),
    "distances": (lambda v: torch.cdist(v, v.square() + 2).sin(), (2, 3, 2)),
    "distances of many": (lambda v: torch.cdist(v, v.square() + 2), (30, 2)),  # by a product of matrices
    "distances from a point": (lambda v: torch.cdist(v[:1], v.exp(), p=3), (4, 2)),
    "values read": (lambda v: v * 2 if v.sum() > 0 else v.square(), (3,)),
}


REVERSE_ONLY = {"an op without forward mode"}


@quiet_judge
@pytest.mark.parametrize("strategy", ["dynamic_programming", "forward", "reverse"])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_recorded_function_has_the_jacobian_of_jacrev(name, strategy):
    function, shape = FUNCTIONS[name]
    if strategy == "forward" and name in REVERSE_ONLY:
        with pytest.raises(ValueError, match="must have a tangent evaluation"):
            plan_jacobian(function, torch.randn(shape, dtype=F64), strategy="forward")
        return
    check_jacobian(function, torch.randn(shape, dtype=F64) + 1.7, strategy=strategy)


def test_an_op_that_pytorch_pulls_back_wrongly_in_a_batch_is_pulled_back_row_by_row():
    x = randn(4, 2)

    def distances(v):
        return torch.cdist(v, v + 1, p=math.inf)

    expected = torch.autograd.functional.jacobian(distances, x)  # row by row
    for strategy in ("reverse", "dynamic_programming"):
        plan = plan_jacobian(distances, x, strategy=strategy)
        for _ in range(2):
            torch.testing.assert_close(plan(x), expected)
    torch.testing.assert_close(jacobian(distances, x), expected)


def test_results_that_are_remembered_are_those_of_each_call():
    weight = randn(5, 3)

    def function(v):
        first = weight @ v  # a matrix times a vector, twice with one kind of arguments
        second = weight @ (v * 2)
        wide = torch.outer(first, second)
        return (wide.mT @ wide[:, 1] + wide.sum(0)).tanh() * first.double() + second.sum(0, keepdim=True)

    check_jacobian(function, randn(3))


def test_a_product_that_does_not_fit_is_not_recorded():
    with pytest.raises((ValueError, RuntimeError), match=r"size mismatch|shape|must take a tensor"):
        plan_jacobian(lambda v: randn(5, 4) @ v, randn(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_result_has_the_dtype_of_its_own_operands(dtype):
    function = lambda v: (v.to(dtype).sin() + 1).to(F64) * v.sin()  # noqa: E731
    check_jacobian(function, randn(4), tolerance=1e-5 if dtype is torch.float32 else 1e-10)


RECURRENT = {
    "RNNCell": (lambda: nn.RNNCell(4, 3), (4,)),
    "GRUCell": (lambda: nn.GRUCell(4, 3), (2, 4)),
    "LSTMCell": (lambda: nn.LSTMCell(4, 3), (4,)),
    "RNN": (lambda: nn.RNN(4, 3, num_layers=2), (5, 4)),
    "GRU": (lambda: nn.GRU(4, 3, num_layers=2), (5, 2, 4)),
    "GRU both ways": (lambda: nn.GRU(4, 3, bidirectional=True, batch_first=True), (2, 3, 4)),
}


@pytest.mark.parametrize(("make", "shape"), RECURRENT.values(), ids=RECURRENT)
def test_recurrent_layers_are_recorded_though_they_write_into_pieces(make, shape):
    net = make().to(F64).requires_grad_(False)

    def function(v):
        y = net(v)
        return y if isinstance(y, torch.Tensor) else y[0]

    plan = plan_jacobian(function, randn(*shape))
    assert not plan.runtime.refusals()
    check_jacobian(function, randn(*shape))


def _pieces(v):
    first, second = torch.unsafe_chunk(v.sin(), 2)
    whole = first.add_(second).tanh_()
    return second.neg_() * whole + first


def _written_twice(v):
    first, second = torch.unsafe_chunk(v.exp(), 2)
    seen = first[1:]  # looks at what is then written
    first.mul_(2)
    return torch.cat([seen, second.add_(1)])


@pytest.mark.parametrize("function", [_pieces, _written_twice])
def test_pieces_that_are_written_into(function):
    check_jacobian(function, randn(6))


def test_planning_leaves_forward_mode_as_it_is():
    """The JVP of batch normalisation fails on tensors without data, and leaves the thread without autograd."""
    x = randn(1, 2, 4, 4)
    plan = plan_jacobian(nn.InstanceNorm2d(2, affine=True).to(F64), x)
    torch.func.jvp(torch.sin, (x,), (x,))
    assert_same(plan(x), judged(nn.InstanceNorm2d(2, affine=True).to(F64), x))


def test_a_constant_of_one_entry_may_have_any_strides():
    def function(v):
        return v * v.new_ones(1).expand(3)[:1] + v.new_zeros(()).expand(1)

    check_jacobian(function, randn(1))


def test_ldexp_by_a_constant_does_not_end_the_process():
    # PyTorch's own JVP of it crashes under a dispatch mode, as a recording is one.
    plan, x = plan_jacobian(lambda v: torch.ldexp(v, torch.tensor(2)), randn(3)), randn(3)
    for _ in range(2):
        assert_same(plan(x), 4 * torch.eye(3, dtype=F64))


def test_a_function_is_recorded_in_inference_mode_as_outside():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), randn(3)
    outside = plan_jacobian(net, x)
    with torch.inference_mode():
        plan = plan_jacobian(net, x.clone())
        assert len(plan.factors) == len(outside.factors)
        for _ in range(2):
            assert_same(plan(x), outside(x))
    assert_same(plan(x), judged(net, x))
