"""What kernel tests need of their surroundings."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True, scope="session")
def interpreter_loops_under_new_numpy() -> Iterator[None]:
    """Let loop bounds become ints: Triton 3.6 does it in a way that NumPy 2.4 refuses, later versions squeeze them."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor: type, *scope: object) -> None:
        original(tensor, *scope)
        set_attr = getattr(scope[0], "set_attr", None) if scope else None
        (set_attr or setattr)(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", patched)
        yield
