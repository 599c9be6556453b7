"""Sizes and costs of a function that cannot be recorded, learnt from a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._torch import FakeTensorMode, inside_transform, jvp, unharmed, vjp
from ._torch_contexts import quietly
from .carrying import dual, random_state, set_random_state, weights
from .count import FmaCounter
from .stages import BlackBox


class Point(NamedTuple):
    """What is known of a value on its way through a chain."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Profile(NamedTuple):
    """What one run tells of a function."""

    output: Point
    jvp_cost: int | None
    vjp_cost: int | None
    tape: int
    refusal: str | None  # why neither derivative could be taken
    jvp_launches: int = 1  # ops that one run of it launches, the function itself included
    vjp_launches: int = 1
    by_autograd: bool = False  # that no transform of torch.func takes it, and autograd does

    @property
    def can_be_differentiated(self) -> bool:
        """Whether one of the two derivatives is there."""
        return self.jvp_cost is not None or self.vjp_cost is not None


def profile_of(functions: Sequence[Callable[..., Any]], place: int, point: Point, x: Tensor) -> Profile:
    """The profile of one function of a chain.

    It runs once on fake tensors, or, where that fails (data-dependent control flow), on real ones, with its JVP and its
    VJP, whose arithmetic is counted op by op.

    Args:
        functions: The chain.
        place: Which of them, from 0.
        point: What is known of its input.
        x: The input of the chain; its values are read only if the function runs on nothing else.

    Returns:
        The profile.

    Raises:
        NotImplementedError: If the function can be differentiated neither by torch.func.jvp nor by torch.func.vjp, nor
            by autograd.
    """
    stage = BlackBox(functions[place])
    profile = _run(stage, point, place, lambda: _value(functions[:place], x))
    if profile.jvp_cost is not None and not _is_pushed_rightly(stage, lambda: _value(functions[:place], x)):
        profile = profile._replace(jvp_cost=None, refusal="a JVP that is not the transpose of its VJP")
    if not profile.can_be_differentiated:
        raise NotImplementedError(
            f"Chain: stage {place + 1} ({stage.label}) must be differentiable by torch.func.jvp, torch.func.vjp "
            f"or autograd, got {profile.refusal}."
        )
    return profile


def _value(functions: Sequence[Callable[..., Any]], x: Tensor) -> Tensor:
    x = x.clone()  # one of them may write into it, which is found out only then
    for function in functions:
        x = BlackBox(function)(x)
    return x


def _run(stage: BlackBox, point: Point, index: int, value: Callable[[], Tensor]) -> Profile:
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
        with unharmed(), quietly(), FakeTensorMode(allow_non_fake_inputs=True):
            profile = _profile(stage, torch.empty(point.shape, dtype=point.dtype, device=point.device))
        if profile.jvp_cost is not None and profile.vjp_cost is not None:
            return profile
    except Exception:  # noqa: BLE001 (whatever went wrong, the real run says it better)
        pass
    try:
        profile = _profile(stage, value())
        return profile if profile.can_be_differentiated else _profile_by_autograd(stage, value()) or profile
    except RuntimeError as error:  # what PyTorch raises when shapes or dtypes do not fit
        profile = _profile_by_autograd(stage, value())
        if profile is not None:
            return profile
        given = "which the stage before it returns" if index else "which x is"
        raise ValueError(
            f"Chain: stage {index + 1} ({stage.label}) must take a tensor of shape {tuple(point.shape)} and dtype "
            f"{point.dtype}, {given}, got an error: {error}."
        ) from error


def _is_pushed_rightly(stage: BlackBox, value: Callable[[], Tensor]) -> bool:
    """Return whether JVP and VJP of a stage are those of one Jacobian, the VJP being that of autograd."""
    if inside_transform():
        return True
    x = value()
    if x.is_meta:
        return True
    drawn = random_state(x.device)
    try:
        x_dot = weights(x.numel(), x).reshape(x.shape)
        y, y_dot = jvp(stage, x, x_dot)
        y_bar = weights(y.numel(), y).reshape(y.shape)
        set_random_state(x.device, drawn)
        with torch.enable_grad():
            own = x.detach().clone().requires_grad_()
            of_own = stage(own)
            (x_bar,) = torch.autograd.grad(of_own, own, y_bar, allow_unused=True) if of_own.requires_grad else (None,)
    except Exception:  # noqa: BLE001 (one of the two is not to be had)
        return True
    finally:
        set_random_state(x.device, drawn)
    return dual([y_bar], [y_dot], [torch.zeros_like(x) if x_bar is None else x_bar], [x_dot])


def _profile(stage: BlackBox, x: Tensor) -> Profile:
    """Return what running the stage, and pushing and pulling a few vectors through it at once, tells.

    The cost of one JVP is what one more tangent adds to a batch of them, as the executor runs them: what all tangents
    share, such as the cos(x) of a sine, is not counted once for each. The same for one VJP.
    """
    with torch.no_grad(), FmaCounter() as primal:
        y = stage(x)
    refusals: list[str] = []
    jvp_cost = vjp_cost = None
    jvp_launches, vjp_launches = 1, 1
    with torch.enable_grad(), _noting(refusals):  # as an LSTM on a CPU needs, to keep what it is differentiated by
        jvp_cost, jvp_launches = _of_one_more(lambda x_dot: jvp(stage, x, x_dot), x)
    with torch.enable_grad(), _noting(refusals):
        _, pullback = vjp(stage, x)
        vjp_cost, vjp_launches = _of_one_more(pullback, y)
    output, why = Point(y.shape, y.dtype, y.device), "; ".join(refusals) or None
    return Profile(output, jvp_cost, vjp_cost, primal.written, why, jvp_launches, primal.launched + vjp_launches)


def _profile_by_autograd(stage: BlackBox, x: Tensor) -> Profile | None:
    """Return the same by autograd, which pulls alone; None if that does not take the stage, or inside a transform."""
    if inside_transform():
        return None
    drawn = random_state(x.device)
    try:
        with FmaCounter() as primal:
            y, pullback, _ = stage.pullback_of_autograd(x, live=False)
        vjp_cost, launches = _of_one_more(pullback, y)
    except RuntimeError:
        return None
    finally:
        set_random_state(x.device, drawn)
    output = Point(y.shape, y.dtype, y.device)
    return Profile(
        output, None, vjp_cost, primal.written, None, vjp_launches=primal.launched + launches, by_autograd=True
    )


def _of_one_more(function: Callable[[Tensor], tuple[Tensor, ...]], vector: Tensor) -> tuple[int, int]:
    """Return the fma that a third vector adds to a batch of two, and the ops that a batch launches.

    A batch of one is not run as a batch everywhere. Where no batch is run at all, that is what one vector takes.
    """
    counts, launched = [], 1
    for size in (2, 3):
        batch = torch.ones((size, *vector.shape), dtype=vector.dtype, device=vector.device)
        with FmaCounter() as counter:
            try:
                torch.func.vmap(function, randomness="same")(batch)
            except RuntimeError:
                function(batch[0])
                return counter.fma, counter.launched
        counts.append(counter.fma)
        launched = counter.launched
    return max(counts[1] - counts[0], 0), launched


@contextmanager
def _noting(refusals: list[str]) -> Iterator[None]:
    """A derivative that PyTorch does not have is not an error here: the planner goes without it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (custom functions raise what they like)
        refusals.append(f"{type(error).__name__}: {error}")
