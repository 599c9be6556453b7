"""Chunks and memory limits change how much is held at once, never the result."""

from itertools import pairwise

import pytest
import torch
from jacobian_checks import F64, assert_same, composed, judged, parameters_judged, randn
from torch import nn

from torch_jvpvjp.accumulation import STRATEGIES, Chain, jacobian, plan_jacobian
from torch_jvpvjp.accumulation.footprint import Footprint
from torch_jvpvjp.accumulation.held import bytes_of
from torch_jvpvjp.accumulation.infeasible import InfeasiblePlanError
from torch_jvpvjp.accumulation.memory import read_memory


def _chain():
    return [nn.Linear(6, 5).to(F64), nn.GELU(), lambda v: v.cumsum(-1) * v.prod(), nn.Softmax(-1)]


def _branching(v):
    return v.sin() if float(v.detach().sum()) < 0 else v * v.flip(0)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 5, 6, 7, 100])
def test_every_chunk_size_gives_the_jacobian(chunk_size, strategy):
    for stages in (_chain(), [*_chain(), _branching]):
        x = randn(6)
        plan = plan_jacobian(stages, x, chunk_size=chunk_size, strategy=strategy)
        for point in (x, x, x + 0.3):
            assert_same(plan(point), judged(composed(stages), point))


@pytest.mark.parametrize("strategy", ["dynamic_programming", "forward", "reverse", "greedy"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_nothing_holds_a_matrix_of_what_is_diagonal(chunk_size, strategy):
    """A matrix of 2000 by 2000 takes 32 MB, and a slice of it for every two columns a thousand times as long."""
    weight, scale, x = randn(4, 2000) / 50, randn(2000), randn(2000)

    def net(v):
        v = torch.tanh(scale * v)
        v = v + torch.relu(v) * scale
        return torch.softmax(weight @ v, 0)

    plan = plan_jacobian(net, x, chunk_size=chunk_size, strategy=strategy)
    assert plan.peak_bytes < 1_000_000
    assert_same(plan(x), judged(net, x))


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunks_with_batches_trees_and_gradients(chunk_size):
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64), randn(3)
    batch = torch.stack([x, x + 1])
    expected = torch.stack([judged(net, row) for row in batch])
    assert_same(jacobian(net, batch, batch_dims=1, chunk_size=chunk_size), expected)
    assert_same(jacobian(net, x, wrt="parameters", chunk_size=chunk_size), parameters_judged(net, x))
    x.requires_grad_()
    found = jacobian(net, x, create_graph=True, chunk_size=chunk_size).square().sum()
    (gradient,) = torch.autograd.grad(found, x)
    assert_same(gradient, torch.func.grad(lambda v: torch.func.jacrev(net)(v).square().sum())(x.detach()))


@pytest.mark.parametrize("limit", [2_000, "2kB", "2 KB", "0.002MB", "2KiB", "1GB"])
def test_a_memory_limit_does_not_change_the_result(limit):
    stages, x = _chain(), randn(6)
    plan = plan_jacobian(stages, x, memory_limit=limit)
    for point in (x, x, x + 0.3):
        assert_same(plan(point), judged(composed(stages), point))
        assert_same(jacobian(stages, point, memory_limit=limit), judged(composed(stages), point))


@pytest.mark.parametrize("limit", [1_000, 20_000])
def test_a_limit_that_no_plan_keeps_is_refused_with_one_that_works(limit):
    """Of products of entries, whose Jacobian is sparse, blocks alone take 6,304 bytes, a call 40 times as much."""
    a, b, x = torch.randint(0, 40, (400,)), torch.randint(0, 40, (400,)), randn(40)

    def products(v):
        return v[a].sin() * v[b]

    with pytest.raises(InfeasiblePlanError, match=f"got {limit:,} bytes where the least that was found") as raised:
        jacobian(products, x, memory_limit=limit)
    enough = raised.value.smallest
    assert f"holds {enough:,} with" in str(raised.value)
    assert enough <= plan_jacobian(products, x).peak_bytes
    assert_same(jacobian(products, x, memory_limit=enough), judged(products, x))


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_a_limit_below_what_one_column_holds_is_refused(chunk_size):
    net, x = nn.Sequential(nn.Linear(60, 400), nn.Tanh(), nn.Linear(400, 40)).to(F64), randn(60)
    columns = "1 column at" if chunk_size is None else "5 columns at"
    message = f"got 30,000 bytes where the least that was found holds .* with {columns}"
    with pytest.raises(InfeasiblePlanError, match=message) as raised:
        jacobian(net, x, objective="fma", memory_limit=30_000, chunk_size=chunk_size)
    enough = raised.value.smallest
    assert enough > 30_000
    found = jacobian(net, x, objective="fma", memory_limit=enough, chunk_size=chunk_size)
    assert_same(found, judged(net, x))


@pytest.mark.parametrize("batch", [(), (8,)], ids=["one", "batch"])
@pytest.mark.parametrize("part", [0.01, 0.6])
def test_the_limit_that_an_error_names_is_no_more_than_is_held_without_one(part, batch):
    """Of small nets all columns at once may hold less than one at a time does, whose results wait beside the whole."""
    for sizes in ([5, 20, 20], [20, 3, 60, 20], [60, 20, 5]):
        layers = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), nn.Tanh())]
        net, x = nn.Sequential(*layers).to(F64), randn(*batch, sizes[0])
        free = plan_jacobian(net, x, batch_dims=len(batch)).peak_bytes
        limit = max(int(part * free), 1)
        try:
            assert plan_jacobian(net, x, batch_dims=len(batch), memory_limit=limit).peak_bytes <= limit
        except InfeasiblePlanError as error:
            assert limit < error.smallest <= free
            plan = plan_jacobian(net, x, batch_dims=len(batch), memory_limit=error.smallest)
            assert plan.peak_bytes <= error.smallest


def test_sizes_are_read():
    sizes = {"8GB": 8 * 10**9, "512MiB": 512 * 2**20, "1.5 kb": 1500, "7": 7, "3B": 3, "1TiB": 2**40, 12: 12}
    assert {size: read_memory("jacobian", size) for size in sizes} == sizes


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        ("much", ValueError, "memory_limit must be a size such as '8GB' or '512MiB', got 'much'"),
        ("8XB", ValueError, "got '8XB'"),
        ("-1GB", ValueError, "memory_limit must be positive, got '-1GB'"),
        (0, ValueError, "memory_limit must be positive, got 0"),
        (1.5, TypeError, "memory_limit must be bytes or a size such as '8GB', got float"),
        (True, TypeError, "got bool"),
        ("nan", ValueError, "memory_limit"),
        ("inf GB", ValueError, "memory_limit"),
    ],
    ids=str,
)
def test_bad_limits_are_refused(limit, error, message):
    with pytest.raises(error, match=message):
        jacobian(torch.sin, randn(3), memory_limit=limit)


def test_bad_chunk_sizes_are_refused():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        jacobian(torch.sin, randn(3), chunk_size=0)
    with pytest.raises(TypeError, match="chunk_size must be an integer, got 2.0"):
        jacobian(torch.sin, randn(3), chunk_size=2.0)


def test_a_plan_says_how_many_bytes_a_call_holds():
    net = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 100)).to(F64).requires_grad_(False)
    plan = plan_jacobian(net, randn(300))
    assert "bytes" not in str(plan)  # nobody has asked
    entries = 100 * 300 + 2 * 100 * 200  # J, the weight scaled by a diagonal, and a transient
    assert plan.peak_bytes is not None
    assert 8 * (100 * 300 + 100 * 200) <= plan.peak_bytes <= 8 * (entries + 10 * 300)
    assert f"{plan.peak_bytes:,} bytes in all" in str(plan)
    assert plan_jacobian([net, _branching], randn(300)).peak_bytes is None  # a black box
    assert Chain.from_sizes([3, 4, 5]).plan().peak_bytes is None


@pytest.mark.parametrize("strategy", ["forward", "reverse", "dynamic_programming"])
@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("batch", [0, 3])
def test_what_a_plan_holds_is_what_its_execution_holds(batch, chunk_size, strategy):
    net = nn.Sequential(nn.Linear(30, 20), nn.GELU(), nn.LayerNorm(20), nn.Linear(20, 10), nn.Softmax(-1)).to(F64)
    x = randn(batch, 30) if batch else randn(30)
    plan = plan_jacobian(net, x, batch_dims=int(batch > 0), chunk_size=chunk_size, strategy=strategy)
    tracing = plan.runtime.tracing(x)
    source, extras = tracing.subject.bind(x)
    held = []
    for _ in range(2):  # the first fills the caches of indices
        with torch.no_grad(), Footprint(None, [source, *tracing.constants.values()]) as footprint:
            plan.runtime.executed(plan, tracing, source, extras)
        held.append(footprint.peak)
    assert plan.peak_bytes == pytest.approx(held[1], rel=0.05)


@pytest.mark.parametrize("part", [0.4, 0.6, 0.9])
def test_a_limit_is_kept_by_what_a_call_holds(part):
    net = nn.Sequential(nn.Linear(40, 400), nn.GELU(), nn.LayerNorm(400), nn.Linear(400, 50)).to(F64)
    x = randn(40)
    free = plan_jacobian(net, x, strategy="reverse", objective="fma").peak_bytes
    plan = plan_jacobian(net, x, strategy="reverse", objective="fma", memory_limit=int(part * free))
    assert plan.peak_bytes <= part * free
    assert plan.runtime.options.chunk_size is not None
    assert_same(plan(x), judged(net, x))


@pytest.mark.parametrize("part", [0.9, 0.4, 0.3])
def test_where_blocks_do_not_fit_a_sweep_in_chunks_does(part):
    net = nn.Sequential(nn.Linear(30, 200), nn.GELU(), nn.Linear(200, 200), nn.Softmax(-1), nn.Linear(200, 20)).to(F64)
    x = randn(30)
    limit = int(part * plan_jacobian(net, x, objective="fma").peak_bytes)
    plan = plan_jacobian(net, x, objective="fma", memory_limit=limit)
    assert plan.peak_bytes <= limit
    for point in (x, x, 2 * x):
        assert_same(plan(point), judged(net, point))


def _euler(v):
    weight = torch.linspace(-1, 1, 24 * 24, dtype=F64).reshape(24, 24)
    for _ in range(50):
        v = v + 0.1 * torch.tanh(weight @ v)
    return v


def test_what_is_stacked_between_calls_is_told_and_kept_within_a_limit():
    x = randn(24)
    plan = plan_jacobian(_euler, x)
    assert _held(plan, x) <= plan.peak_bytes <= 1.5 * _held(plan, x)
    limited = plan_jacobian(_euler, x, memory_limit=plan.peak_bytes // 2)
    assert _held(limited, x) <= limited.peak_bytes <= plan.peak_bytes // 2
    assert_same(limited(x), judged(_euler, x))


@pytest.mark.parametrize("batch", [0, 40])
def test_a_recording_holds_no_more_than_is_told(batch):
    net = nn.Sequential(nn.Linear(30, 200), nn.Tanh(), nn.Linear(200, 20), nn.Tanh()).to(F64)
    x = randn(batch, 30) if batch else randn(30)
    limit = plan_jacobian(net, x, batch_dims=int(batch > 0)).peak_bytes // 2
    plan = plan_jacobian(net, x, batch_dims=int(batch > 0), memory_limit=limit)
    assert plan.runtime.options.chunk_size is not None
    with Footprint(None, [x, *net.parameters()]) as footprint:
        plan(x)
    assert footprint.peak <= limit


def _held(plan, x):
    """The most bytes that a call of a plan that was called before holds, with what is kept between calls."""
    plan(x)
    (tracing,) = plan.runtime._tracings.values()
    with Footprint(None, [x, *tracing.constants.values()]) as footprint, torch.no_grad():
        tracing.program.run(x, *tracing.constants.values())
    return footprint.peak + bytes_of(tracing.program.fixed.values())


def _written(v):
    y = v.clone()
    y[..., 0].mul_(v[..., -1])
    return y * y if float(y.detach().sum()) < 1e9 else y  # it looks at data, and so is called as it stands


def test_chunks_of_a_black_box_that_writes_into_tensors_of_its_own():
    """`torch.func.linearize` gives wrong tangents of such a function."""
    x = randn(2, 3)
    for strategy in ("forward", "reverse"):
        plan = plan_jacobian(_written, x, chunk_size=2, strategy=strategy)
        assert_same(plan(x), judged(_written, x))


def test_chunks_of_a_black_box_draw_the_same_random_numbers():
    def function(v):
        mask = torch.rand(v.shape, dtype=F64)
        return v * mask if float(v.detach().sum()) < 1e9 else v

    x = randn(6)
    plan = plan_jacobian(function, x, chunk_size=2, strategy="forward")
    torch.manual_seed(3)
    found = plan(x)
    torch.manual_seed(3)
    assert_same(found, torch.diag(torch.rand(6, dtype=F64)))
