"""The case table: every public op with its reference and samples. A new op adds one row to the file of its family."""

from .attention import CASES as _ATTENTION
from .case_row import OpCase
from .cross_entropy import CASES as _CROSS_ENTROPY
from .diffusion import CASES as _DIFFUSION
from .elementwise_losses import CASES as _ELEMENTWISE_LOSSES
from .gated import CASES as _GATED
from .linear import CASES as _LINEAR
from .norms import CASES as _NORMS
from .pointwise import CASES as _POINTWISE
from .rope import CASES as _ROPE
from .softmax import CASES as _SOFTMAX

__all__ = ["CASES", "OpCase"]

CASES: dict[str, OpCase] = {
    **_ATTENTION,
    **_NORMS,
    **_DIFFUSION,
    **_SOFTMAX,
    **_POINTWISE,
    **_ROPE,
    **_LINEAR,
    **_CROSS_ENTROPY,
    **_GATED,
    **_ELEMENTWISE_LOSSES,
}
