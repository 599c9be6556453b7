"""Memory that a CPU tensor had and glibc's allocator is to keep for the next.

It gives large blocks back to the system when they are freed and asks for them anew, page by page, until a process has
freed something larger: from then on it keeps blocks of that size, and up to twice as much at the end of its heap. What
runs over and over with tensors of a few hundred kilobytes takes up to 1.7 times as long before. PyTorch's other
allocators, and those of other systems, are not changed by what is done here.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.utils._python_dispatch import _disable_current_modes

LEAST_BYTES_GIVEN_BACK = 128 << 10  # of a block that glibc gives back before anything larger was freed
_LARGE = 31 << 20  # beyond 32 MiB it learns nothing


@cache
def keep_freed_memory() -> None:
    """Free a large tensor, of which nothing was touched, once in a process."""
    with _disable_current_modes():
        torch.empty(_LARGE, dtype=torch.uint8, device="cpu")
