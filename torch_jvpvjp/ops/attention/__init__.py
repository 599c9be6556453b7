"""Scaled dot product attention with every derivative."""

from . import batching as _batching  # noqa: F401 -- registers vmap rules
from . import cpu as _cpu  # noqa: F401 -- registers kernels
from . import kernels as _kernels  # noqa: F401 -- as does this
from .face import scaled_dot_product_attention
from .functional import attention_jvp
from .rules import op
from .varlen import varlen_attention

__all__ = ["attention_jvp", "op", "scaled_dot_product_attention", "varlen_attention"]
