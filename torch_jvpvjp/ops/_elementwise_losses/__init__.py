"""What mse_loss, huber_loss, kl_div and js_div share: their ops, rules and kernels."""

from . import cpu as _cpu  # noqa: F401 -- registers kernels
from .face import check_operands, reduced
from .ops import huber, js, kl, mse

__all__ = ["check_operands", "huber", "js", "kl", "mse", "reduced"]
