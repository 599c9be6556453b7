"""Large float32 products of replayed programs by oneDNN: which they are, and that they stay what they were."""

import pytest
import torch
from jacobian_checks import F64
from replay_checks import program_of, recorded
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torch_jvpvjp import _onednn
from torch_jvpvjp._onednn import (
    onednn_is_quicker,
    onednn_is_quicker_by_head,
    onednn_is_quicker_in_rows,
    onednn_products,
)
from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.replay import quick_products

pytestmark = pytest.mark.skipif(onednn_products() is None, reason="PyTorch was built without oneDNN")
GENERATOR = torch.Generator().manual_seed(0)


def _randn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=GENERATOR, dtype=F64).to(dtype)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(quick_products, "onednn_is_quicker", lambda threads: True)


def _products(program) -> list[str]:
    """The products that a program runs."""
    calls = program._quickened(program.calls)
    names = [str(call.target) for call in calls]
    return [name for name in names if "mm" in name or "_linear_pointwise" in name]


def _wide_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 192), nn.Tanh(), nn.Linear(192, 96), nn.Tanh(), nn.Linear(96, 256))


ALONE, ADDED = "mkldnn._linear_pointwise.default", "mkldnn._linear_pointwise.binary"
PLAIN, PLAIN_SUM = "aten.mm.default", "aten.addmm.default"
A, B, BIAS, TERM = _randn(192, 128), _randn(128, 192), _randn(192), _randn(192, 192)
CASES = {  # what is done with A, B, a row and a matrix, and by which ops
    "a product": (lambda a, b, row, c: a @ b, [ALONE]),
    "transposed": (lambda a, b, row, c: b.t() @ a.t(), [ALONE]),
    "a transposed copy": (lambda a, b, row, c: a.t().contiguous().t() @ b, [ALONE]),
    "every other row": (lambda a, b, row, c: torch.cat([a, a])[::2] @ b, [ALONE]),
    "some columns": (lambda a, b, row, c: (torch.cat([a, a], 1)[:, 5:133]) @ b, [ALONE]),
    "every other row of the second": (lambda a, b, row, c: a @ torch.cat([b, b])[::2], [PLAIN]),
    "some columns of the second": (lambda a, b, row, c: a @ torch.cat([b, b], 1)[:, 5:197], [PLAIN]),
    "transposed with gaps": (lambda a, b, row, c: a @ torch.cat([b.t(), b.t()], 1)[:, 5:133].t(), [PLAIN]),
    "the second is one row, repeated": (lambda a, b, row, c: a @ row.expand(128, 192), [PLAIN]),
    "a row is added": (lambda a, b, row, c: torch.addmm(row, a, b), [ALONE]),
    "a matrix is added": (lambda a, b, row, c: torch.addmm(c, a, b), [ADDED]),
    "a result is added": (lambda a, b, row, c: torch.addmm(c.sin(), a, b), [ADDED]),
    "its own factor is added": (lambda a, b, row, c: torch.addmm(c, c @ c.t()[:, :128], b), [ALONE, ADDED]),
    "every other entry is added": (lambda a, b, row, c: torch.addmm(torch.cat([row, row])[::2], a, b), [PLAIN_SUM]),
    "a transposed matrix is added": (lambda a, b, row, c: torch.addmm(c.t().contiguous().t(), a, b), [PLAIN_SUM]),
    "a multiple is added": (lambda a, b, row, c: torch.addmm(c, a, b, alpha=0.5), [PLAIN_SUM]),
    "one row": (lambda a, b, row, c: torch.ones(1, 128) @ b.repeat(1, 200), [PLAIN]),
    "an outer product": (lambda a, b, row, c: a.reshape(-1, 1) @ row[None], [PLAIN]),
    "small": (lambda a, b, row, c: a[:100] @ b[:, :100], [PLAIN]),
    "negated lazily": (lambda a, b, row, c: torch._neg_view(a) @ b, [ALONE]),
    "float64": (lambda a, b, row, c: a.double() @ b.double(), [PLAIN]),
    "bfloat16": (lambda a, b, row, c: a.bfloat16() @ b.bfloat16(), [PLAIN]),
}  # fmt: skip


@pytest.mark.parametrize(("function", "ops"), CASES.values(), ids=CASES)
def test_large_products_of_float32_are_made_by_onednn(quick, function, ops):
    inputs = [A, B, BIAS, TERM]
    kept = [one.clone() for one in inputs]
    program = recorded(function, *inputs)
    assert _products(program) == ops
    result = program(*inputs)[0]
    expected = function(*(one.double() for one in inputs)) if ops[0] != PLAIN else function(*inputs)
    expected = expected.double()
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()))
    assert result.stride() == function(*inputs).stride()
    assert all(torch.equal(one, other) for one, other in zip(inputs, kept, strict=True))


LONG, LONG_RIGHT, LONG_ROW, LONG_TERM = _randn(320, 1100), _randn(1100, 320), _randn(320), _randn(320, 320)
LONG_CASES = {
    "a product": (lambda a, b, row, c: a @ b, [ALONE, ADDED, ADDED]),
    "transposed": (lambda a, b, row, c: b.t() @ a.t(), [ALONE, ADDED, ADDED]),
    "a row is added": (lambda a, b, row, c: torch.addmm(row, a, b), [ALONE, ADDED, ADDED]),
    "a matrix is added": (lambda a, b, row, c: torch.addmm(c, a, b), [ADDED, ADDED, ADDED]),
    "small": (lambda a, b, row, c: a[:24] @ b, [ALONE]),
}


@pytest.mark.parametrize(("function", "ops"), LONG_CASES.values(), ids=LONG_CASES)
def test_long_sums_go_piece_by_piece_and_err_no_more_than_those_of_pytorch(quick, function, ops):
    inputs = [LONG, LONG_RIGHT, LONG_ROW, LONG_TERM]
    program = recorded(function, *inputs)
    assert _products(program) == ops
    exact, plain = function(*(one.double() for one in inputs)), function(*inputs)
    errors = [float((found.double() - exact).norm()) for found in (program(*inputs)[0], plain)]
    assert errors[0] <= (1.6 if len(ops) > 1 else 3.0) * errors[1]


def test_each_machine_has_the_products_that_are_quicker_there(monkeypatch):
    program = recorded(lambda a, b: a @ b, A, B)
    for quicker, op in ((True, ALONE), (False, PLAIN)):
        monkeypatch.setattr(quick_products, "onednn_is_quicker", lambda threads, quicker=quicker: quicker)
        assert _products(program) == [op]


def test_special_values_pass_through(quick):
    a = A.clone()
    a[3, 4], a[5, 6] = float("nan"), float("inf")
    program = recorded(lambda a, b: a @ b, a, B)
    assert torch.equal(program(a, B)[0].isfinite(), (a @ B).isfinite())


def test_a_jacobian_replayed_with_them_is_right(quick):
    net = _wide_net()
    plan, x = plan_jacobian(net, torch.zeros(256)), _randn(256)
    assert ALONE in _products(program_of(plan, x))
    expected = torch.func.jacrev(net.double())(x.double())
    net.float()
    for _ in range(3):
        torch.testing.assert_close(plan(x).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.compiled
def test_a_compiled_program_has_them_too(quick):
    def f(a, b, row, c):
        return torch.addmm(c, torch.addmm(row, a, b).tanh(), (b.t() @ a.t()) @ c)

    inputs = [A, B, BIAS, TERM]
    program = recorded(f, *inputs)
    assert sorted(_products(program)) == [ADDED, ALONE, ALONE, ALONE]
    compiled = program.compiled(None)
    targets = [str(node.target) for node in compiled._graph.graph.nodes]
    assert sum("onednn" in target for target in targets) == 4
    with torch.no_grad():
        result = compiled(*inputs)[0]
    expected = f(*(one.double() for one in inputs))
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()))


QUESTIONS = (onednn_is_quicker, onednn_is_quicker_in_rows, onednn_is_quicker_by_head)


@pytest.fixture(params=QUESTIONS, ids=lambda question: question.__name__)
def question(request):
    for each in QUESTIONS:
        each.cache_clear()
    yield request.param
    for each in QUESTIONS:
        each.cache_clear()


def test_asking_which_is_quicker_leaves_no_trace(question):
    state = torch.get_rng_state()
    with FlopCounterMode(display=False) as counter:
        first = question(1)
    assert counter.get_total_flops() == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert question(1) is first


def test_no_onednn_no_such_products(monkeypatch, question):
    monkeypatch.setattr(_onednn, "onednn_products", lambda: None)
    assert not question(1)
    assert _products(recorded(lambda a, b: a @ b, A, B)) == [PLAIN]


def test_where_onednn_is_turned_off_later_it_is_not_called(quick):
    program = recorded(lambda a, b: a @ b, A, B)
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        assert _products(program) == [PLAIN]
        assert _products(recorded(lambda a, b: a @ b, A, B)) == [PLAIN]
    finally:
        torch._C._set_mkldnn_enabled(enabled)
    assert _products(program) == [ALONE]


def test_what_a_plan_holds_counts_the_code_that_onednn_keeps(monkeypatch):
    peaks, x = {}, torch.zeros(256)
    for quicker in (False, True):
        monkeypatch.setattr(quick_products, "onednn_is_quicker", lambda threads, quicker=quicker: quicker)
        plan = plan_jacobian(_wide_net(), x)
        peaks[quicker] = plan.peak_bytes
        kernels = len([name for name in _products(program_of(plan, x)) if name in {ALONE, ADDED}])
        assert (kernels > 0) == quicker
    code = kernels * quick_products._KERNEL_BYTES  # all shapes differ in this one
    assert abs(peaks[True] - peaks[False] - code) < 4096  # some small values are made in another order


def test_what_a_plan_of_long_sums_holds_is_told(quick):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 300)), torch.zeros(1024)
    plan = plan_jacobian(net, x)
    assert ADDED in _products(program_of(plan, x))
    held = 2 * 4 * 1024 * 300 + 3 * quick_products._KERNEL_BYTES  # the result, and what its last piece is added to
    assert plan.peak_bytes is not None
    assert held <= plan.peak_bytes <= 1.5 * held


def test_a_large_result_is_held_once(quick):
    program = recorded(lambda a, b: a @ b, _randn(1100, 800), _randn(800, 1100))
    assert _products(program) == [ALONE]


def test_products_of_one_shape_share_a_kernel(quick):
    program = recorded(lambda a, b, c: (a @ b) @ (a @ b) @ (c @ c), A, B, TERM)
    assert len(_products(program)) == 4
    assert program.kernel_bytes == 2 * quick_products._KERNEL_BYTES


def test_where_memory_is_limited_no_code_is_kept_for_speed(quick):
    x, roomy = torch.zeros(256), plan_jacobian(_wide_net(), torch.zeros(256)).peak_bytes
    tight = plan_jacobian(_wide_net(), x, memory_limit=roomy - quick_products._KERNEL_BYTES)
    assert tight.peak_bytes <= roomy - quick_products._KERNEL_BYTES
    assert {ALONE, ADDED}.isdisjoint(_products(program_of(tight, x)))
    ample = plan_jacobian(_wide_net(), x, memory_limit=2 * roomy)
    assert ALONE in _products(program_of(ample, x))
