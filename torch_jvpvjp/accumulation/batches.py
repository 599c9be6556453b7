"""Batches of independent samples: that they are independent is asked of the values of f."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .subject import Subject


def check_independent(subject: Subject, apart: Tensor, x: Any) -> None:
    """Check that f of a batch is the batch of f of its samples.

    Args:
        subject: The function and its arguments.
        apart: f of each sample by itself, one after another.
        x: The batch.

    Raises:
        ValueError: If f mixes its samples.
    """
    with torch.no_grad():
        together = subject.values_of_batch(x)
        gap, scale = (apart - together).abs().max(), together.abs().max()
    if not gap <= scale * torch.finfo(apart.dtype).eps ** 0.5:
        raise ValueError(
            f"{subject.caller}: f must treat the samples of batch_dims={subject.batch_dims} independently, got values "
            f"that differ by {gap:.3g} between the batch and its samples (batch normalisation in training mode does "
            f"this); call f.eval(), or take the Jacobian of the whole batch by batch_dims=0."
        )
