"""What the norms over last axes share: one op with its rules and kernels, and the checks of their arguments."""

from . import cpu as _cpu  # noqa: F401 -- registers kernels, as the next does
from . import kernels as _kernels  # noqa: F401
from .rules import op

__all__ = ["op"]
