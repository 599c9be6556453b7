"""What every test of kernels runs under: fresh memory is NaN."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_buffers() -> Iterator[None]:
    """Fresh memory is NaN, so that an element nobody writes shows."""
    settings: Any = torch.utils.deterministic  # a module whose attribute is a property
    before = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    settings.fill_uninitialized_memory = before
