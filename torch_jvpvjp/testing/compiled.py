"""The compositions under ``torch.compile(fullgraph=True)``, and dynamic shapes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..registration import _torch_private as private
from .budget import assert_equal
from .case import Case
from .compositions import EAGER, NOT_COMPILED, OUTSIDE_OF_COMPILE, Composition, Point, TensorFunction

# What inductor compiles too: value, JVP, gradient, backward and a Hessian-vector product.
INDUCTOR = ("primal", "func.jvp", "grad", "backward", "jvp∘grad")


class PyTorchCannot(Exception):  # noqa: N818 -- not an error of the op
    """PyTorch does not compile this composition of the plain formula either."""


def compositions_for(backend: str) -> dict[str, Composition]:
    """The compositions to compile with a backend.

    Args:
        backend: "aot_eager" for all that can be compiled, "inductor" for a few.

    Returns:
        Compositions by name.
    """
    names = INDUCTOR if backend == "inductor" else EAGER
    return {name: EAGER[name] for name in names if name not in NOT_COMPILED}


def check_compiled(case: Case, name: str, composition: Composition, backend: str) -> None:
    """A compiled composition equals the reference in eager mode.

    Args:
        case: The sample.
        name: Name of the composition.
        composition: The composition.
        backend: A backend of torch.compile.

    Raises:
        PyTorchCannot: If the op fails where its plain formula fails too.
    """
    point = replace(case.point, thorough=False)
    expected = composition(case.function(case.reference), point)
    try:
        assert_equal(_run(case.function(case.op), point, name, composition, backend), expected)
    except Exception:
        try:
            assert_equal(_run(case.function(case.reference), point, name, composition, backend), expected)
        except Exception as theirs:
            reason = str(theirs).strip().splitlines()[0][:120]
            raise PyTorchCannot(f"PyTorch cannot compile it for the plain formula either: {reason}") from theirs
        raise


def _run(f: TensorFunction, point: Point, name: str, composition: Composition, backend: str) -> object:
    torch.compiler.reset()
    # PyTorch keeps what ops gave for fake tensors. Where that of `_new_zeros_with_same_feature_meta` is taken again, a
    # dual of an expanded tensor raises: whether a composition compiles would depend on what was compiled before.
    with private.without_kept_fake_results():
        if name in OUTSIDE_OF_COMPILE:  # compile the function; its backward runs outside
            return composition(torch.compile(f, fullgraph=True, backend=backend), point)
        return torch.compile(lambda p: composition(f, p), fullgraph=True, backend=backend)(point)


def alike(cases: Sequence[Case]) -> list[Case]:
    """The first cases that differ from one another in sizes only.

    Args:
        cases: Cases of one op.

    Returns:
        Two or more cases, or none.
    """
    filled = [case for case in cases if not case.empty]
    for case in filled:
        group = [other for other in filled if _pattern(other) == _pattern(case)]
        if len(group) > 1:
            return group
    return []


def _pattern(case: Case) -> tuple[Any, ...]:
    return tuple(v.dim() if isinstance(v, torch.Tensor) else repr(v) for v in case.values)


def check_dynamic(cases: Sequence[Case]) -> None:
    """One compilation with dynamic shapes serves every size, value and gradient.

    Args:
        cases: Cases that differ in sizes only.

    Raises:
        AssertionError: If a result is wrong or a size recompiles.
    """
    torch.compiler.reset()
    compilations = 0
    inner = private.lookup_backend("aot_eager")

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compilations
        compilations += 1
        return inner(graph, inputs)

    first = cases[0]
    compiled = torch.compile(first.function(first.op), fullgraph=True, dynamic=True, backend=backend)
    after_first = 0
    for case in cases:
        xs = tuple(x.clone().requires_grad_() for x in case.point.primals)
        with private.sizes_apart():  # two sizes that happen to be equal shall not be taken for one
            y = compiled(*xs)
        after_first = after_first or compilations  # Dynamo may restart within one compilation
        g = case.function(case.reference)
        assert_equal(y, g(*case.point.primals), f"{case.sample.name}: ")
        ours = torch.autograd.grad(y, xs, case.point.cotangents)
        theirs = torch.func.vjp(g, *case.point.primals)[1](case.point.cotangents)
        assert_equal(ours, theirs, f"{case.sample.name}: gradient ")
    if compilations != after_first:
        raise AssertionError(
            f"{compilations - after_first} of {len(cases) - 1} further sizes recompiled with dynamic=True"
        )
