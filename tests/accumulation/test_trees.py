"""Several inputs and outputs, in any tree: the same tree as torch.func.jacrev gives, block by block."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from jacobian_checks import F64, assert_same, check_jacobian, judged, moved, randn

from torch_jvpvjp.accumulation import jacobian, plan_jacobian

Pair = namedtuple("Pair", "u v")

# name: (function, its arguments as jacobian takes them)
TREES = {
    "two in": (lambda a, b: a.sin() * b.sum(), lambda: (randn(3), randn(2))),
    "two in, dict out": (lambda a, b: {"p": a * b, "q": (a.sum(), b @ b)}, lambda: (randn(3), randn(3))),
    "dict in, list out": (
        lambda d: [d["a"] * d["b"].sum(), d["a"].sum()],
        lambda: {"a": randn(2), "b": randn(2, 2)},
    ),
    "nested in": (
        lambda d, e: (d["a"][0] * e, d["a"][1].sum()),
        lambda: ({"a": [randn(2), randn(3)]}, randn(2)),
    ),
    "named tuple": (lambda p: Pair(p.u * p.v, p.v.sum()), lambda: Pair(randn(2), randn(2))),
    "ordered dict out": (lambda v: OrderedDict(z=v * 2, a=v.sum()), lambda: randn(2)),
    "an argument unused": (lambda a, b: a * 2, lambda: (randn(2), randn(3))),
    "a tuple of one": (lambda a: torch.tanh(a @ a.T), lambda: (randn(2, 2),)),
    "0-dim in and out": (lambda a, b: (a * b, (a + b).sin()), lambda: (randn(1)[0], randn(1)[0])),
    "one output constant": (lambda a: (a * 2, torch.ones(2, dtype=F64)), lambda: randn(2)),
    "one output twice": (lambda a: (a, a, a.sin()), lambda: randn(2)),
    "outputs are inputs": (lambda a, b: (b, a), lambda: (randn(2), randn(3))),
    "an empty leaf": (lambda a, b: (a.sum() + b.sum(), b * 2), lambda: (randn(2), randn(0))),
    "branching": (lambda a, b: (a * b if a.sum() > 0 else a + b, b.sum()), lambda: (randn(2), randn(2))),
}


@pytest.mark.parametrize(("function", "arguments"), TREES.values(), ids=TREES)
def test_trees_are_those_of_jacrev(function, arguments):
    check_jacobian(function, arguments())


def _three(a, b, c):
    return a * b.sum() * c, a.sin()


@pytest.mark.parametrize("wrt", [0, 1, 2, -1, (0,), (0, 2), (2, 0), (1, -1), [0, 1]], ids=str)
def test_argument_numbers_are_those_of_jacrev(wrt):
    argnums = tuple(wrt) if isinstance(wrt, list) else wrt
    check_jacobian(
        _three, (randn(2), randn(3), randn(2)), judge=lambda x: torch.func.jacrev(_three, argnums=argnums)(*x), wrt=wrt
    )


def test_other_arguments_may_be_anything():
    x = (randn(3), torch.tensor([0, 2]), 2, {"scale": 1.5, "names": ("a", None)})

    def function(v, index, power, options):
        return v[index] ** power * options["scale"] if options["names"][1] is None else v

    plan = plan_jacobian(function, x, wrt=0)
    for index in ([0, 2], [1, 1]):
        args = (randn(3), torch.tensor(index), *x[2:])
        assert_same(plan(args), torch.func.jacrev(function)(*args))
    with pytest.raises(ValueError, match="the arguments must be those that the plan was made for but for the values"):
        plan((x[0], x[1], 3, x[3]))
    assert_same(jacobian(function, (x[0], x[1], 3, x[3]), wrt=0), torch.func.jacrev(function)(x[0], x[1], 3, x[3]))


def test_a_black_box_sees_the_other_arguments_of_each_call():
    def function(v, w):
        return v * w if w.sum() > 0 else v**2 * w

    x = (randn(3), torch.ones(3, dtype=F64))
    plan = plan_jacobian(function, x, wrt=0)
    for other in (x[1], 2 * x[1], -x[1], x[1]):
        assert_same(plan((x[0], other)), torch.func.jacrev(function)(x[0], other))


def test_blocks_have_the_dtype_of_their_output():
    def function(a, b):
        return (a * b.float()).sin(), a.double() * b

    x = (torch.randn(3), randn(3))
    for by in (0.0, 0.0, 0.5):
        found, expected = plan_jacobian(function, x)(moved(x, by)), judged(function, moved(x, by))
        for row, judge_row, dtype in zip(found, expected, (torch.float32, F64), strict=True):
            for block, judge in zip(row, judge_row, strict=True):
                assert block.dtype == dtype
                torch.testing.assert_close(block, judge.to(dtype), rtol=1e-5, atol=1e-6)


def test_bad_trees_are_refused():
    x = (randn(2), randn(3))
    with pytest.raises(TypeError, match=r"x \(leaf 1\) must be a floating tensor, got torch.int64; convert it"):
        jacobian(torch.add, (randn(2), torch.tensor([1, 2])))
    with pytest.raises(TypeError, match=r"what <lambda> returns \(leaf 1\) must be a floating tensor, got torch.int64"):
        jacobian(lambda v: (v, v.argmax()), randn(3))
    with pytest.raises(TypeError, match="complex128; split it into real and imaginary part"):
        jacobian(lambda v: v * 1j, randn(3))
    with pytest.raises(ValueError, match="wrt must be less than the number of arguments, 2, got 2"):
        jacobian(torch.add, x, wrt=2)
    with pytest.raises(TypeError, match="wrt must be None, argument numbers, 'parameters', or names"):
        jacobian(torch.add, x, wrt=1.5)
    with pytest.raises(ValueError, match="must hold a tensor at least, got none"):
        jacobian(lambda v: (), randn(3))
    with pytest.raises(ValueError, match=r"must have the shape \(2,\) that the plan was made for, got \(4,\)"):
        plan_jacobian(lambda a, b: a.sum() + b.sum(), x)((randn(4), randn(3)))
