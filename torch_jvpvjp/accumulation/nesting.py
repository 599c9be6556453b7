"""Jacobians inside of functions that are differentiated, whose results have to stay differentiable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local

from ._torch import inside_transform

_here = local()


@contextmanager
def differentiating() -> Iterator[None]:
    """Say that what this thread calls here is differentiated by autograd, as no transform of ``torch.func`` says."""
    before = getattr(_here, "differentiates", False)
    _here.differentiates = True
    try:
        yield
    finally:
        _here.differentiates = before


def is_differentiated() -> bool:
    """Return whether the caller is part of a function that is being differentiated, by us or by ``torch.func``."""
    return getattr(_here, "differentiates", False) or inside_transform()
