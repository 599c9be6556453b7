"""What networks as users write them do on the way: recorded, and right in their second derivatives as well."""

from dataclasses import dataclass

import pytest
import torch
from jacobian_checks import F64, assert_same, check_jacobian, judged, parameters_judged, quiet_judge, randn
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from torch_jvpvjp.accumulation import Plan, jacobian, plan_jacobian

_CLASSES, _ROWS = torch.tensor([1, 0, -100]), torch.tensor([1, 1, 3])


def _weighted_unseen(v):
    with torch.no_grad():
        weight = v * 2
    return v * v * weight


def _clamped_unseen(v):
    y = v.exp().clone()
    with torch.no_grad():
        y.clamp_(max=1.0).mul_(v)
    return y * v * v


def _written_by_indices(v):
    y = torch.zeros(4, 4, dtype=F64).index_add_(0, _ROWS, v * v)
    y.mul_(torch.arange(4))
    return y.masked_fill_(y > 1, 2.0)


def _entropy(v):
    return functional.cross_entropy(v, _CLASSES, reduction="none", label_smoothing=0.1)


FUNCTIONS = {
    "a factor made under no_grad": _weighted_unseen,
    "written into under no_grad": _clamped_unseen,
    "written into by indices": _written_by_indices,
    "cosine_similarity": lambda v: functional.cosine_similarity(v, v.sin() * torch.arange(4), dim=-1),
    "cross_entropy, labels smoothed": _entropy,
    "pad, circular": lambda v: functional.pad(v.sin()[None, None], (3, 1, 0, 2), mode="circular") ** 2,
    "rrelu": lambda v: functional.rrelu(v) * v,
    "glu": lambda v: functional.glu(v * v),
}


@quiet_judge
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_it_is_recorded(f):
    x = randn(3, 4)
    check_jacobian(f, x)
    plan = plan_jacobian(f, x)
    assert plan.runtime is not None
    assert not plan.runtime.refusals()
    assert plan.peak_bytes is not None  # told without data


@quiet_judge
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_its_jacobian_has_the_gradient_of_jacrev(f):
    x = randn(3, 4).requires_grad_()
    plan = plan_jacobian(f, x, create_graph=True)
    expected = torch.autograd.grad(torch.func.jacrev(f, chunk_size=1)(x).sin().sum(), x)
    for found in (plan(x), jacobian(f, x, create_graph=True)):
        assert_same(torch.autograd.grad(found.sin().sum(), x), expected)


@pytest.mark.parametrize("ends", [(5, 0), (-1, 2), (1, 1, 1, 1)], ids=str)
def test_circular_padding_that_pytorch_refuses_or_crops_is_left_to_it(ends):
    def f(v):
        return functional.pad(v, ends, mode="circular").sin()

    x = randn(1, 2, 4)
    try:
        expected = judged(f, x)
    except (RuntimeError, NotImplementedError) as refusal:
        with pytest.raises((RuntimeError, ValueError, NotImplementedError), match=str(refusal).split("\n")[0][:20]):
            plan_jacobian(f, x)(x)
        return
    assert_same(plan_jacobian(f, x)(x), expected)


def test_attention_has_a_jacobian_that_is_differentiated():
    def f(v):
        return functional.scaled_dot_product_attention(v, v.sin(), v * v)

    def formula(v):
        return (v @ v.sin().mT / 2).softmax(-1) @ (v * v)

    def branching(v):
        return f(v) if float(v.detach().sum()) > -1e9 else v

    x = randn(1, 1, 3, 4).requires_grad_()
    expected = torch.autograd.grad(judged(formula, x).sin().sum(), x)
    for function in (f, branching):  # one that is recorded, and one that is not
        for found in (jacobian(function, x, create_graph=True), plan_jacobian(function, x, create_graph=True)(x)):
            assert_same(torch.autograd.grad(found.sin().sum(), x), expected)


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(2, 3, batch_first=True, bidirectional=True), nn.Linear(6, 2)

    def forward(self, v):
        return self.head(self.gru(v)[0][:, -1])


def test_a_recurrent_network_is_recorded_in_its_parameters():
    net, x = _Recurrent().to(F64), randn(1, 4, 2)
    check_jacobian(net, x, judge=lambda point: parameters_judged(net, point), wrt="parameters")
    plan = plan_jacobian(net, x, wrt="parameters")
    assert plan.runtime is not None
    assert not plan.runtime.refusals()
    listed = net.gru._flat_weights
    jacobian(net, x, wrt="parameters")
    assert net.gru._flat_weights is listed


def test_a_plan_for_a_recurrent_network_outlives_a_call_of_it_with_other_weights():
    net, x = _Recurrent().to(F64), randn(1, 4, 2)
    plan = plan_jacobian(net, x)
    assert plan.runtime is not None
    plan(x)
    tracing = plan.runtime.tracing(x)
    torch.func.functional_call(net, {name: 2 * weight.detach() for name, weight in net.named_parameters()}, (x,))
    assert plan.runtime.tracing(x) is tracing
    assert_same(plan(x), judged(net, x))


def test_a_tall_gated_unit_has_a_jacobian_that_is_differentiated():
    def f(v):
        return functional.glu(v).repeat(9)

    x = randn(4).requires_grad_()
    expected = torch.autograd.grad(torch.func.jacrev(f)(x).sin().sum(), x)
    for found in (jacobian(f, x, create_graph=True), plan_jacobian(f, x, create_graph=True)(x)):
        assert_same(torch.autograd.grad(found.sin().sum(), x), expected)


class _LastOfLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 3)

    def forward(self, v):
        return self.lstm(v)[0][-1]


@pytest.mark.parametrize("sign", [1, -1], ids=["recorded", "called as it stands"])
@pytest.mark.parametrize("no_grad", [False, True], ids=["grad", "no_grad"])
def test_an_lstm_in_single_precision(sign, no_grad):
    net, x = _LastOfLSTM(), torch.randn(4, 1, 2)
    expected = judged(net.double(), x.double()).float()
    net.float()

    def f(v):
        return net(v) if sign > 0 or float(v.detach().sum()) > -1e9 else v

    with torch.set_grad_enabled(not no_grad):
        plan = plan_jacobian(f, x)
        assert plan.runtime is not None
        assert bool(plan.runtime.refusals()) == (sign < 0)
        for found in (plan(x), plan(x), jacobian(f, x)):
            assert_same(found, expected, 1e-5)


def test_rows_that_autograd_does_not_take_at_once_go_one_by_one():
    matrix = randn(5, 4).relu()
    edges = matrix.to_sparse()

    def f(v):
        return torch.sparse.mm(edges, v.sin())

    x = randn(4, 3)
    assert_same(jacobian(f, x), judged(lambda v: matrix @ v.sin(), x))


def test_an_op_that_does_not_run_without_data_is_not_logged(caplog):
    edges = randn(5, 4).to_sparse()
    plan_jacobian(lambda v: torch.sparse.mm(edges, v), randn(4, 3))
    assert not caplog.records


@dataclass
class _Output:
    logits: torch.Tensor


def test_an_output_of_a_class_that_is_no_tree_is_refused_with_a_way_out():
    with pytest.raises(TypeError, match="_Output; register the class by torch.export.register_dataclass"):
        jacobian(lambda v: _Output(v), randn(3))


@dataclass
class _Registered:
    logits: torch.Tensor
    loss: torch.Tensor


torch.export.register_dataclass(_Registered)


def test_a_registered_dataclass_is_a_tree():
    def f(v):
        return _Registered(v.sin(), v.sum())

    x = randn(3)
    plan = plan_jacobian(f, x)
    for found in (jacobian(f, x), plan(x), plan(x)):
        assert isinstance(found, _Registered)
        assert_same(found, judged(f, x))


def test_complex_arithmetic_is_counted():
    def f(v):
        return torch.fft.rfft(v, n=2).abs() if float(v.detach().sum()) > -1e9 else v

    plan = plan_jacobian(f, randn(8), objective="time")
    (factor,) = plan.factors
    assert factor.jvp_cost
    assert factor.vjp_cost
    assert factor.pull_launches is not None
    assert Plan.from_json(plan.to_json()).factors == plan.factors


class _Products(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in {torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.mv.default}
        return func(*args, **(kwargs or {}))


def test_what_cannot_be_recorded_is_pulled_back_once():
    weight = randn(5, 4)

    def f(v):
        return (weight @ v).sin() if float(v.detach().sum()) > -1e9 else v[:5]

    x = randn(4)
    plan = plan_jacobian(f, x, strategy="reverse")
    with _Products() as products:
        found = plan(x)
    assert products.count == 2  # one of the primal, one of all rows
    assert_same(found, judged(f, x))
