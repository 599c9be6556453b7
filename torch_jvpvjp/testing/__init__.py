"""What a differentiable op is judged by: ours in the test suite, and anybody's own."""

from .case import Sample
from .check import check_op
from .properties import poisoned
from .report import CheckFailure, Report

__all__ = ["CheckFailure", "Report", "Sample", "check_op", "poisoned"]
