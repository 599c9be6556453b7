"""Batches of independent samples: that they are independent is asked of the values of f."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .subject import Subject


def values_apart(subject: Subject, source: Tensor, extras: Sequence[Tensor], randomness: str) -> Tensor:
    """Return f of each sample by itself, behind one axis for the samples."""

    def of_one(x: Tensor, *others: Tensor) -> Tensor:
        with subject.called_with(others):
            for function in subject.functions:
                x = function(x)
            return x

    in_dims = (None if subject.in_parameters else 0, *(0 for _ in extras))
    with torch.no_grad():
        return torch.func.vmap(of_one, in_dims, randomness=randomness)(source, *extras)


def check_independent(subject: Subject, apart: Tensor, together: Tensor) -> None:
    """Check that f of a batch is the batch of f of its samples.

    Args:
        subject: The function and its arguments.
        apart: f of each sample by itself.
        together: f of the batch, behind one axis for the samples.

    Raises:
        ValueError: If f mixes its samples.
    """
    gap, scale = (apart - together).abs().max(), together.abs().max()
    if not gap <= scale * torch.finfo(apart.dtype).eps ** 0.5:
        raise ValueError(
            f"{subject.caller}: f must treat the samples of batch_dims={subject.batch_dims} independently, got values "
            f"that differ by {gap:.3g} between the batch and its samples (batch normalisation in training mode does "
            f"this); call f.eval(), or take the Jacobian of the whole batch by batch_dims=0."
        )
