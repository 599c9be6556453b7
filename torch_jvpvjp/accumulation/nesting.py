"""Jacobians inside of functions that are differentiated, whose results have to stay differentiable."""

from __future__ import annotations

from threading import local

from ._torch import innermost_transform

_here = local()


class differentiating:  # noqa: N801 (a context, which each call enters, and a generator takes longer)
    """Say that what this thread calls here is differentiated by autograd, as no transform of ``torch.func`` says."""

    def __enter__(self) -> None:
        """Say so from here on."""
        self._before = getattr(_here, "differentiates", False)
        _here.differentiates = True

    def __exit__(self, *error: object) -> None:
        """Say again what was said before."""
        _here.differentiates = self._before


def is_differentiated() -> bool:
    """Return whether the caller is part of a function that is being differentiated, by us or by ``torch.func``."""
    return getattr(_here, "differentiates", False) or innermost_transform() is not None
