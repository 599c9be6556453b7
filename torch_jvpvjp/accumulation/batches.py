"""Batches of independent samples: that they are independent is asked of the values of f."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ._torch import grad_switched, inside_transform
from .autocasting import autocasts
from .subject import Subject


def over_samples(subject: Subject, function: Callable[..., Any], in_dims: Any, randomness: str) -> Callable[..., Any]:
    """What does of all samples at once what a function does of one.

    Args:
        subject: The function that is differentiated.
        function: The function of one sample.
        in_dims: Which axes are those of the samples, as in `torch.func.vmap`.
        randomness: What random numbers do.

    Returns:
        The function of all samples; it raises a ValueError if random numbers are drawn where `randomness` is "error".
    """
    mapped = torch.func.vmap(function, in_dims, randomness=randomness)

    def of_all(*args: Any) -> Any:
        try:
            return mapped(*args)
        except RuntimeError as error:
            if randomness != "error" or _DRAWS not in str(error):
                raise
            raise ValueError(
                f"{subject.caller}: f must draw no random numbers where batch_dims={subject.batch_dims} and "
                f"randomness='error', got a function that does ({subject.label}; dropout in training mode does this); "
                f"call f.eval(), or say by randomness='same' or 'different' what they are to be."
            ) from error

    return of_all


_DRAWS = "called random operation while in randomness error mode"  # so vmap says


def values_apart(subject: Subject, source: Tensor, extras: Sequence[Tensor], randomness: str) -> Tensor:
    """Return f of each sample by itself, behind one axis for the samples; one by one if `vmap` does not take f."""

    def of_one(x: Tensor, *others: Tensor) -> Tensor:
        with subject.called_with(others):
            for function in subject.functions:
                x = function(x)
            return x

    in_dims = (None if subject.in_parameters else 0, *(0 for _ in extras))
    with torch.set_grad_enabled(source.requires_grad):
        try:
            if inside_transform() or not autocasts():  # which `vmap` takes linear layers past
                return over_samples(subject, of_one, in_dims, randomness)(source, *extras)
        except RuntimeError:  # as where it writes what differs into what does not, or looks at values
            if inside_transform():
                raise
        rows = range(extras[0].shape[0] if subject.in_parameters else source.shape[0])
        sources = [source if subject.in_parameters else source[row] for row in rows]
        return torch.stack([of_one(x, *(extra[row] for extra in extras)) for row, x in zip(rows, sources, strict=True)])


def values_of_parts(subject: Subject, samples: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Values of parts of a batch, shuffled.

    A sample that has other samples beside it, in another order and number, must have the same value. That takes less
    time than a call for each sample, and what f does to the batch as a whole, to neighbours, halves or pairs shows.

    Args:
        subject: The function.
        samples: The batch, its only argument.

    Returns:
        The numbers of the samples of each part, with their values.

    Raises:
        RuntimeError: If f does not take a batch of another size.
    """  # noqa: DOC502 (raised by f)
    with grad_switched(False):
        parts = _parts(samples.shape[0])
        parts = parts if samples.is_cpu else [part.to(samples.device) for part in parts]
        return [(part, subject.values_of_arguments([samples.index_select(0, part)])) for part in parts]


@lru_cache(maxsize=64)
def _parts(count: int) -> list[Tensor]:
    """Return the numbers of the samples that are asked: all of a small batch, in two parts, and some of a large one."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    # Two samples of a large batch may by chance stand as its neighbours or mirror images do.
    some = 1 if count < _SMALL else min(max(count // 4, 3), _MOST_ASKED)
    return [part.clone() for part in (order[:some], order[some:]) if part.numel()][: 2 if count < _SMALL else 1]


_SMALL, _MOST_ASKED = 8, 1024


def check_independent(subject: Subject, apart: Tensor, together: Tensor) -> None:
    """Check that f of a batch is the batch of f of its samples.

    Args:
        subject: The function and its arguments.
        apart: f of each sample by itself.
        together: f of the batch, behind one axis for the samples.

    Raises:
        ValueError: If f mixes its samples.
    """
    if apart.is_meta or torch.equal(apart, together):
        return
    same = (apart == together) | (apart.isnan() & together.isnan())
    gap = (apart - together).abs().masked_fill(same, 0).max()
    scale = together.abs().masked_fill(~together.isfinite(), 0).max()
    if not gap <= scale * torch.finfo(apart.dtype).eps ** 0.5:
        raise ValueError(
            f"{subject.caller}: f must treat the samples of batch_dims={subject.batch_dims} independently, got values "
            f"that differ by {gap:.3g} between the batch and its samples (batch normalisation in training mode does "
            f"this); call f.eval(), or take the Jacobian of the whole batch by batch_dims=0."
        )
