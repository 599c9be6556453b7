"""Sizes and costs of the stages of a chain, learnt from their shapes, or from a run where nothing else tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ._torch import FakeTensorMode, jvp, vjp
from .count import FmaCounter
from .factor import Factor
from .stages import Function, Stage, recognise


class _Point(NamedTuple):
    """What is known of a value on its way through the chain."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class _Profile(NamedTuple):
    """What one run tells of a stage."""

    output: _Point
    jvp_cost: int | None
    vjp_cost: int | None
    tape: int
    refusal: str | None  # why neither derivative could be taken


def measure(functions: Sequence[Function], x: Tensor) -> tuple[tuple[Factor, ...], torch.Size]:
    """The factors of a chain of callables at x.

    A Linear or an elementwise stage is known in closed form. Any other runs once on fake tensors, or, where that fails
    (data-dependent control flow), on real ones, with its JVP and its VJP, whose arithmetic is counted op by op.

    Args:
        functions: The stages, applied in this order.
        x: The point; its shape, dtype and device, and its values only where a stage runs on real tensors.

    Returns:
        The factors, and the shape of the output.

    Raises:
        ValueError: If a stage cannot take what the stage before it returns.
        NotImplementedError: If a stage can be differentiated neither by torch.func.jvp nor by torch.func.vjp.
    """
    factors: list[Factor] = []
    point = _Point(x.shape, x.dtype, x.device)
    profiles: dict[tuple[int, _Point], _Profile] = {}  # a stage that recurs is measured once
    for index, function in enumerate(functions):
        stage = recognise(function)
        try:
            known = stage.closed_form(point.shape, point.dtype)
        except ValueError as error:
            raise ValueError(f"Chain: stage {index + 1} ({stage.label}) does not fit: {error}.") from error
        if known is not None:
            factor, shape = known
            factors.append(factor)
            point = point._replace(shape=shape)
            continue
        key = (id(function), point)
        if key not in profiles:
            profiles[key] = _run(stage, point, index, lambda index=index: _value(functions[:index], x))
        profile = profiles[key]
        if profile.jvp_cost is None and profile.vjp_cost is None:
            raise NotImplementedError(
                f"Chain: stage {index + 1} ({stage.label}) must be differentiable by torch.func.jvp or torch.func.vjp, "
                f"got {profile.refusal}."
            )
        n, m = point.shape.numel(), profile.output.shape.numel()
        factors.append(Factor(n, m, profile.jvp_cost, profile.vjp_cost, profile.tape, None, stage.label))
        point = profile.output
    return tuple(factors), point.shape


def _value(functions: Sequence[Function], x: Tensor) -> Tensor:
    for function in functions:
        x = recognise(function)(x)
    return x


def _run(stage: Stage, point: _Point, index: int, value: Callable[[], Tensor]) -> _Profile:
    """Profile a stage on fake tensors; on real ones if it, or one of its derivatives, does not run on fake ones.

    Args:
        stage: The stage.
        point: What is known of its input.
        index: Its place in the chain, from 0.
        value: Computes its input.

    Returns:
        The profile.

    Raises:
        ValueError: If the stage cannot take such an input.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            profile = _profile(stage, torch.empty(point.shape, dtype=point.dtype, device=point.device))
        if profile.jvp_cost is not None and profile.vjp_cost is not None:
            return profile
    except Exception:  # noqa: BLE001 (whatever went wrong, the real run says it better)
        pass
    try:
        return _profile(stage, value())
    except RuntimeError as error:  # what PyTorch raises when shapes or dtypes do not fit
        raise ValueError(
            f"Chain: stage {index + 1} ({stage.label}) must take a tensor of shape {tuple(point.shape)} and dtype "
            f"{point.dtype}, which the stage before it returns, got an error: {error}."
        ) from error


def _profile(stage: Stage, x: Tensor) -> _Profile:
    """Return what running the stage, and pushing and pulling a few vectors through it at once, tells.

    The cost of one JVP is what one more tangent adds to a batch of them, as the executor runs them: what all tangents
    share, such as the cos(x) of a sine, is not counted once for each. The same for one VJP.
    """
    with torch.no_grad(), FmaCounter() as primal:
        y = stage(x)
    refusals: list[str] = []
    jvp_cost = vjp_cost = None
    with _noting(refusals):
        jvp_cost = _of_one_more(lambda x_dot: jvp(stage, x, x_dot), x)
    with _noting(refusals):
        _, pullback = vjp(stage, x)
        vjp_cost = _of_one_more(pullback, y)
    output = _Point(y.shape, y.dtype, y.device)
    return _Profile(output, jvp_cost, vjp_cost, primal.written, "; ".join(refusals) or None)


def _of_one_more(function: Callable[[Tensor], tuple[Tensor, ...]], vector: Tensor) -> int:
    """Return the fma that a third vector adds to a batch of two; a batch of one is not run as a batch everywhere."""
    counts: list[int] = []
    for size in (2, 3):
        batch = torch.ones((size, *vector.shape), dtype=vector.dtype, device=vector.device)
        with FmaCounter() as counter:
            torch.func.vmap(function, randomness="same")(batch)
        counts.append(counter.fma)
    return max(counts[1] - counts[0], 0)


@contextmanager
def _noting(refusals: list[str]) -> Iterator[None]:
    """A derivative that PyTorch does not have is not an error here: the planner goes without it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (custom functions raise what they like)
        refusals.append(f"{type(error).__name__}: {error}")
