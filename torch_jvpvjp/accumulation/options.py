"""How a Jacobian is taken: what `jacobian` is told besides the function and the point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .trees import Wrt


@dataclass(frozen=True)
class Options:
    """How a Jacobian is taken.

    Attributes:
        wrt: What it is taken in.
        batch_dims: Leading axes that are a batch of independent samples.
        chunk_size: Most columns or rows that a sweep carries at once; None for all.
        create_graph: Whether the result can be differentiated.
        compile: Whether the program is compiled.
        compile_mode: How, as the mode of `torch.compile`.
        randomness: What a function that draws random numbers does under a batch, as in `torch.func.vmap`.
        progress: Whether a bar shows how far a call is.
        sparse: True for a sparse tensor, "auto" for one where the structure has zeros.
        together: Whether like calls of a program may run as one, which holds more at once.
    """

    wrt: Wrt = None
    batch_dims: int = 0
    chunk_size: int | None = None
    create_graph: bool = False
    compile: bool = False
    compile_mode: str | None = None
    randomness: str = "error"
    progress: bool = False
    sparse: bool | str = False
    together: bool = True

    @cached_property
    def leave_free(self) -> bool:
        """Whether they say nothing of how a call is executed, so that it may be without a plan."""
        return not (self.chunk_size or self.compile or self.progress or self.sparse)

    @property
    def limited(self) -> bool:
        """Whether they ask for what a Jacobian that is differentiated is not replayed with."""
        return bool(self.chunk_size or self.progress or self.sparse or not self.together)
