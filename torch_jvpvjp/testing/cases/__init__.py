"""The case table: every public op with its reference and samples. A new op adds one row to the file of its family."""

from .case_row import OpCase
from .norms import CASES as _NORMS

__all__ = ["CASES", "OpCase"]

CASES: dict[str, OpCase] = {**_NORMS}
