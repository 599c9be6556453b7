"""What a function refers to, watched while it is recorded: all of it, or what the code reads that has run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from ._torch import inside_transform, wraps_transform
from .carrying import random_state, set_random_state
from .executed import Executed
from .guards import Guards, Opaque
from .subject import Subject


class Watched:
    """A function with its guards.

    Args:
        subject: The function and its arguments.
        watching: The functions whose change makes a recording stale.
        executed: The code that has run in a call; None where all that the function may call is watched.

    Attributes:
        guards: What keeps a recording true; None where there are none.
        unwatchable: Why there are none.
    """

    def __init__(
        self, subject: Subject, watching: Sequence[Callable[..., Any]], executed: Executed | None = None
    ) -> None:
        self._functions, self.executed = [*watching, *subject.objects], executed
        self.guards: Guards | None = None
        self.unwatchable: str | None = None
        self.renew()

    @staticmethod
    def of(subject: Subject, watching: Sequence[Callable[..., Any]], *, recorded: bool) -> Watched:
        """Watch a function: all that it may call or, where that cannot be, what the code reads that runs in a call.

        Args:
            subject: The function and its arguments.
            watching: The functions whose change makes a recording stale.
            recorded: Whether it is to be recorded, and not called as it stands.

        Returns:
            What watches it.
        """
        watched = Watched(subject, watching)
        if watched.guards is not None or not recorded or is_transformed(subject):
            return watched
        executed = Executed()
        call_once(subject, list(map(executed.watching, subject.functions)))
        return Watched(subject, watching, executed)

    def renew(self) -> None:
        """Watch what stands there now."""
        try:
            self.guards, self.unwatchable = Guards(self._functions, self.executed), None
        except Opaque as reason:
            self.guards, self.unwatchable = None, f"it refers to what cannot be watched for changes, {reason}"

    def hold(self) -> bool:
        """Return whether everything is as it was, as far as it is watched."""
        return self.guards is None or self.guards.hold()

    def restore(self) -> None:
        """Put back what stood in all places that are watched."""
        if self.guards is not None:
            self.guards.restore()


def is_transformed(subject: Subject) -> bool:
    """Return whether values cannot be compared: a transform is around, or the tensors have none."""
    return inside_transform() or wraps_transform(subject.sample) or subject.sample.is_meta


def call_once(subject: Subject, functions: Sequence[Callable[..., Any]] | None = None) -> None:
    """Call a function on its first sample, or what stands for it; what goes wrong is raised when it is called again."""
    if is_transformed(subject):
        return
    value, drawn = subject.sample.detach().clone(), random_state(subject.sample.device)
    with suppress(Exception), torch.enable_grad():
        for function in functions or subject.functions:
            value = function(value)
    set_random_state(subject.sample.device, drawn)
