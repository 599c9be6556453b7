"""Sizes and costs of a function that cannot be recorded, learnt from a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._left_out import without_derivative
from ._torch import FakeTensorMode, inside_transform, jvp, unharmed, vjp
from ._torch_contexts import quietly
from .carrying import close, dual, random_state, set_random_state, weights
from .count import FmaCounter
from .foreign import left_out, used_constants
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
    by_rows: bool = False  # that its forward mode is wrong at some points, and its pullback is not

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
    profile = _believed(stage, profile, lambda: _value(functions[:place], x))
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


def _believed(stage: BlackBox, profile: Profile, value: Callable[[], Tensor]) -> Profile:
    """Return what is left of a profile where what torch.func says is not the pullback of autograd.

    Args:
        stage: The stage.
        profile: What it said.
        value: Computes its input.

    Returns:
        The profile; by autograd, if nothing is left of the other.
    """
    x = value()
    if inside_transform():
        return _without(profile, left_out(stage, [x]))
    constants = used_constants(stage, [x])
    if constants:
        return _without(profile, constants)
    drawn = random_state(x.device)
    try:
        y, pullback, recording = stage.pullback_of_autograd(x, live=False)
        y_bar = weights(y.numel(), y).reshape(y.shape)
        (x_bar,) = pullback(y_bar)
    except Exception:  # noqa: BLE001 (there is nothing to compare with; custom functions raise what they like)
        set_random_state(x.device, drawn)
        return _without(profile, left_out(stage, [x]))
    if not recording.pushes_rightly and not profile.by_autograd:  # tangents are there, whether PyTorch has a JVP or not
        cost = profile.vjp_cost if profile.jvp_cost is None else profile.jvp_cost
        profile = profile._replace(jvp_cost=cost, by_rows=True)
    elif profile.jvp_cost is not None and not _is_pushed_rightly(stage, x, drawn, y_bar, x_bar):
        profile = profile._replace(jvp_cost=None, refusal="a JVP that is not the transpose of its VJP")
    if (
        profile.vjp_cost is not None
        and not profile.by_autograd
        and not _is_pulled_rightly(stage, x, drawn, y_bar, x_bar)
    ):
        profile = profile._replace(vjp_cost=None, refusal="a VJP by torch.func that is not that of autograd")
    set_random_state(x.device, drawn)
    return profile if profile.can_be_differentiated else _profile_by_autograd(stage, x) or profile


def _without(profile: Profile, names: Sequence[str]) -> Profile:
    """Return a profile without derivatives that leave some ops out."""
    return profile._replace(jvp_cost=None, vjp_cost=None, refusal=without_derivative(names)) if names else profile


def _is_pushed_rightly(stage: BlackBox, x: Tensor, drawn: Tensor, y_bar: Tensor, x_bar: Tensor) -> bool:
    """Return whether the JVP is that of the same Jacobian as a pullback."""
    x_dot = weights(x.numel(), x).reshape(x.shape)
    set_random_state(x.device, drawn)
    try:
        y_dot = jvp(stage, x, x_dot)[1]
    except Exception:  # noqa: BLE001 (it is not to be had, as the profile knows; custom functions raise what they like)
        return True
    return dual([y_bar], [y_dot], [x_bar], [x_dot])


def _is_pulled_rightly(stage: BlackBox, x: Tensor, drawn: Tensor, y_bar: Tensor, x_bar: Tensor) -> bool:
    """Return whether the pullback of torch.func is another."""
    set_random_state(x.device, drawn)
    try:
        with torch.enable_grad():
            (pulled,) = vjp(stage, x)[1](y_bar)
    except Exception:  # noqa: BLE001 (likewise)
        return True
    return close(pulled, x_bar)


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
    except NotImplementedError:  # autograd sees through some ops without a kernel for it, but not while others look on
        return _uncounted_by_autograd(stage, x)
    except RuntimeError:
        return None
    finally:
        set_random_state(x.device, drawn)
    output = Point(y.shape, y.dtype, y.device)
    return Profile(
        output, None, vjp_cost, primal.written, None, vjp_launches=primal.launched + launches, by_autograd=True
    )


def _uncounted_by_autograd(stage: BlackBox, x: Tensor) -> Profile | None:
    """Return the same without counting: as if f and its pullback took one multiplication for each number."""
    try:
        y, pullback, _ = stage.pullback_of_autograd(x, live=False)
        pullback(torch.ones_like(y))
    except RuntimeError:
        return None
    cost = x.numel() + y.numel()
    return Profile(Point(y.shape, y.dtype, y.device), None, cost, cost, None, by_autograd=True)


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
