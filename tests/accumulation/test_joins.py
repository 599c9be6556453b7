"""Blocks of a Jacobian are never joined only to be taken apart again, and each is the caller's own."""

from itertools import pairwise

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, moved, parameters_judged, randn
from replay_checks import program_of, run_calls
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.calls import without_unused
from torch_jvpvjp.accumulation.program import ProgramRecorder
from torch_jvpvjp.accumulation.replay import with_own_results, without_joins

ATEN = torch.ops.aten
WEIGHT = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
SAVED = WEIGHT.clone()

# name: (function, its arguments); most of these have blocks that are known, transposed, repeated, or the same
FUNCTIONS = {
    "sum": (lambda a, b: a + b, lambda: (randn(3), randn(3))),
    "the same twice": (lambda a: (a.sin(), a.sin()), lambda: randn(3)),
    "one argument twice": (lambda a, b: (a * b, a), lambda: (same := randn(3), same)),
    "weights": (lambda a, b: WEIGHT @ a + WEIGHT @ b, lambda: (randn(3), randn(3))),
    "transposed weights": (lambda a, b: a @ WEIGHT + b @ WEIGHT, lambda: (randn(3), randn(3))),
    "products": (lambda a, b: a @ b, lambda: (randn(2, 3), randn(3, 2))),
    "expanded": (lambda a, b: (a.sum() + b).expand(2, 3), lambda: (randn(3), randn(3))),
    "permuted": (lambda a, b: a.T.flip(0) * b, lambda: (randn(3, 2), randn(2, 3))),
    "constants": (lambda a, b: (a * 2, b.new_ones(2), b * 3), lambda: (randn(2), randn(2))),
    "mixed dtypes": (lambda a, b: (a.double() * b, a), lambda: (torch.randn(3), randn(3))),
    "without entries": (lambda a, b: (a.sum() + b.sum(), b * 2), lambda: (randn(2), randn(0))),
}


def assert_apart(tree):
    """Check that no two tensors share memory, and no two entries of one."""
    leaves = [leaf for leaf in tree_leaves(tree) if leaf.numel()]
    for number, leaf in enumerate(leaves):
        leaf.copy_(torch.arange(leaf.numel()).reshape(leaf.shape) + 1000 * number)
    for number, leaf in enumerate(leaves):
        assert_same(leaf.double(), torch.arange(leaf.numel(), dtype=F64).reshape(leaf.shape) + 1000 * number)


@pytest.mark.parametrize("strategy", ["forward", "reverse"])
@pytest.mark.parametrize(("function", "arguments"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_blocks_are_right_and_share_no_memory(function, arguments, strategy):
    x = arguments()
    tolerance = 1e-10 if all(leaf.dtype is F64 for leaf in tree_leaves(x)) else 1e-6
    plan = plan_jacobian(function, x, strategy=strategy)
    for by in (0.0, 0.0, 0.5, 0.5):
        found = plan(moved(x, by))
        # The blocks of an output have its dtype, where those of `jacrev` have that of the input.
        expected = tree_map(torch.Tensor.double, judged(function, moved(x, by)))
        assert_same(tree_map(torch.Tensor.double, found), expected, tolerance)
        assert_apart(found)
    assert_same(WEIGHT, SAVED)


@pytest.mark.parametrize("batch", [1, 4])
def test_blocks_of_parameters_are_not_joined(batch):
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)).double()
    x = randn(batch, 3)
    plan = plan_jacobian(net, x, wrt="parameters")
    for by in (0.0, 0.0, 0.3):
        found = plan(x + by)
        assert_same(found, parameters_judged(net, x + by))
        assert all(block.is_contiguous() for block in found.values())
        assert_apart(found)
    targets = {call.target for call in program_of(plan, x).calls}
    assert targets.isdisjoint({ATEN.cat.default, ATEN.split_with_sizes.default})


def test_parameters_are_read_anew_and_left_as_they_are():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double(), randn(2, 3)
    plan = plan_jacobian(net, x, wrt="parameters")
    for _ in range(3):
        with torch.no_grad():
            net[0].weight.add_(0.1)
        net[2].bias = nn.Parameter(torch.randn(2, dtype=F64))
        before = {name: parameter.clone() for name, parameter in net.named_parameters()}
        found = plan(x)
        assert_same(found, parameters_judged(net, x))
        assert_apart(found)
        assert_same(dict(net.named_parameters()), before)


def rewritten(function, x):
    """Return the calls of a function without joins, what they give, and what the function gives."""
    recorder = ProgramRecorder([x])
    with recorder, torch.no_grad():
        results = function(x)
    numbers = [recorder._number(result) for result in results]
    calls, numbers = without_joins(recorder._calls, numbers, recorder._layouts)
    calls, numbers = with_own_results(without_unused(calls, numbers), numbers, recorder._layouts, recorder._next)
    values = run_calls(calls, {0: x, **recorder._fixed})
    for index, value in values.items():
        layout = recorder._layouts[index]
        assert (layout.shape, layout.stride) == (value.shape, value.stride()), index
    return calls, [values[index] for index in numbers], results


@pytest.mark.parametrize("axis", [0, 1, -1], ids=str)
@pytest.mark.parametrize(
    ("sizes", "joined"),
    [((2, 2, 2), 0), ((2, 4), 1), ((4, 2), 1), ((6,), 1), ((1, 5), 1), ((3, 3), 1), ((0, 2, 4), 1)],
    ids=str,
)
def test_a_piece_is_its_part_or_its_parts(sizes, joined, axis):
    def function(x):
        parts = x.sin(), x.T.cos(), x.exp()
        return [piece * 2 for piece in torch.split(torch.cat(parts, axis).clone(), sizes, axis)]

    calls, found, expected = rewritten(function, randn(2, 2))
    assert_same(found, list(expected))
    assert sum(call.target is ATEN.cat.default for call in calls) == joined


def test_parts_that_lie_otherwise_are_viewed_as_the_pieces_were():
    def function(x):
        return [piece.view(6) + 1 for piece in torch.cat([x.sin().T, x.cos().T]).split([2, 2])]

    _, found, expected = rewritten(function, randn(3, 2))
    assert_same(found, list(expected))


def test_what_depends_on_memory_keeps_its_joins():
    def function(x):
        return [piece.as_strided((2,), (1,), 1) for piece in torch.cat([x.sin(), x.cos()]).split([3, 3])]

    _, found, expected = rewritten(function, randn(3))
    assert_same(found, list(expected))


@pytest.mark.parametrize("seed", range(12))
def test_random_joins_and_splits(seed):
    draw = torch.Generator().manual_seed(seed)

    def number(high):
        return int(torch.randint(high, (), generator=draw))

    ways = [number(6) for _ in range(12)]
    ends = [sorted({0, 12, *(number(12) for _ in range(number(4)))}) for _ in range(12)]

    def function(x):
        known = [x, x.sin(), x.T.contiguous().view(4, 3).T]  # each (3, 4)
        for way, borders in zip(ways, ends, strict=True):
            one, other = known[way % len(known)], known[-1]
            whole = torch.cat([one, other, one], 1)
            pieces = list(whole.split([b - a for a, b in pairwise(borders)], 1))
            known.append(torch.cat(pieces[::-1], 1)[:, :4] if way % 2 else pieces[0][:, :1] * other)
        return [*known[1:], known[-1], known[3].T, x]

    _, found, expected = rewritten(function, randn(3, 4))
    assert_same(found, list(expected))
    assert_apart(found)
