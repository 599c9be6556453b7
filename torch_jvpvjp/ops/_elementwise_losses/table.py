"""The elementwise losses: e(x, t), e_x and e_t in plain PyTorch, right when they are differentiated further."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """One loss.

    Attributes:
        name: Of the op.
        value: e(x, t, *options); its annotated signature tells the options.
        slope_x: e_x(x, t, *options).
        slope_t: e_t(x, t, *options).
        kernel: From the options to the name in the kernels' list and delta.
        bend: e″(x, t, *options) of a loss of x − t alone, for which e_t = −e_x; None for others.
    """

    name: str
    value: Callable[..., Tensor]
    slope_x: Callable[..., Tensor]
    slope_t: Callable[..., Tensor]
    kernel: Callable[..., tuple[str, float]]
    bend: Callable[..., Tensor | float] | None = None


# ---- mse: e = d²,  huber: e = ½ d² where |d| ≤ δ, else δ (|d| − ½ δ),  with d = x − t --------------------------------


def _mse(x: Tensor, t: Tensor) -> Tensor:
    return (x - t).square()


def _huber(x: Tensor, t: Tensor, delta: float) -> Tensor:
    size = (x - t).abs()
    return torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta))


def _huber_slope(x: Tensor, t: Tensor, delta: float) -> Tensor:
    # Differentiated, 1 where |d| < δ and 0 elsewhere. Choosing between numbers takes a CPU twenty times as long.
    return F.hardtanh(x - t, -delta, delta)


# ---- kl: e = t (log t − x); in logarithms exp(t) (t − x) -------------------------------------------------------------


def _kl(x: Tensor, t: Tensor, log_target: bool) -> Tensor:
    return t.exp() * (t - x) if log_target else torch.xlogy(t, t) - t * x


def _kl_slope_x(x: Tensor, t: Tensor, log_target: bool) -> Tensor:
    return -t.exp() if log_target else -t


def _kl_slope_t(x: Tensor, t: Tensor, log_target: bool) -> Tensor:
    return t.exp() * (t - x + 1) if log_target else t.log() + (t / t - x)  # NaN at 0, as in PyTorch


# ---- js: e = ½ p (x − log m) + ½ q (log q − log m), p = exp(x), m = (p + q)/2 ----------------------------------------


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """a − log((exp a + exp b)/2)."""
    return math.log(2) - torch.logaddexp(b - a, torch.zeros_like(a))


def _log_middle(p: Tensor, q: Tensor) -> Tensor:
    return (0.5 * (p + q)).log()


def _js(x: Tensor, t: Tensor, log_target: bool) -> Tensor:
    if log_target:
        return _half(x.exp(), _log_ratio(x, t)) + _half(t.exp(), _log_ratio(t, x))
    p = x.exp()
    middle = _log_middle(p, t)
    return _half(p, x - middle) + 0.5 * (torch.xlogy(t, t) - _times(t, middle))


def _js_slope_x(x: Tensor, t: Tensor, log_target: bool) -> Tensor:
    p = x.exp()
    return _half(p, _log_ratio(x, t) if log_target else x - _log_middle(p, t))


def _js_slope_t(x: Tensor, t: Tensor, log_target: bool) -> Tensor:
    return _half(t.exp(), _log_ratio(t, x)) if log_target else 0.5 * (t.log() - _log_middle(x.exp(), t))


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """Their product, 0 where the weight is 0 whatever the value."""
    return torch.where(weight == 0, 0.0, weight * value)


def _half(weight: Tensor, value: Tensor) -> Tensor:
    return 0.5 * _times(weight, value)


# ---- the table -------------------------------------------------------------------------------------------------------

MSE = Loss("mse_loss", _mse, lambda x, t: 2 * (x - t), lambda x, t: 2 * (t - x), lambda: ("mse", 1.0), lambda x, t: 2.0)
HUBER = Loss(
    "huber_loss",
    _huber,
    _huber_slope,
    lambda x, t, delta: -_huber_slope(x, t, delta),
    lambda delta: ("huber", delta),
    lambda x, t, delta: ((x - t).abs() < delta).to(x.dtype),
)
KL = Loss("kl_div", _kl, _kl_slope_x, _kl_slope_t, lambda log_target: ("kl_log" if log_target else "kl", 1.0))
JS = Loss("js_div", _js, _js_slope_x, _js_slope_t, lambda log_target: ("js_log" if log_target else "js", 1.0))
