"""The elementwise losses with their first derivatives, in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from .._jets import log1p_unit

_LOG_2 = tl.constexpr(0.6931471805599453094)


@triton.jit
def loss_jet(x, t, delta, LOSS: tl.constexpr):
    """Return (e, e_x, e_t) of the loss named LOSS; delta is that of huber."""
    if LOSS == "mse":
        d = x - t
        return d * d, 2.0 * d, -2.0 * d
    elif LOSS == "huber":
        d = x - t
        size = tl.abs(d)
        bound = tl.full(x.shape, delta, x.dtype)
        slope = tl.where(d >= bound, bound, tl.where(d <= -bound, -bound, d))
        return tl.where(size <= bound, 0.5 * d * d, bound * (size - 0.5 * bound)), slope, -slope
    elif LOSS == "kl":
        log_t = tl.log(t)
        return tl.where(t == 0, 0.0, t * log_t) - t * x, -t, log_t + (t / t - x)
    elif LOSS == "kl_log":
        q = tl.exp(t)
        return q * (t - x), -q, q * (t - x + 1.0)
    elif LOSS == "js":
        log_q = tl.log(t)
        e, e_x, e_log_q = _js_jet(x, log_q, t)
        return e, e_x, 0.5 * _ratio_log(log_q, x)
    else:
        tl.static_assert(LOSS == "js_log", "no such loss")
        return _js_jet(x, t, tl.exp(t))


@triton.jit
def _js_jet(x, log_q, q):
    """Return e and its derivatives in x and log q:  e_x = ½ p (x − log m),  e_log_q = ½ q (log q − log m)."""
    p = tl.exp(x)
    e_x = tl.where(p == 0, 0.0, 0.5 * p * _ratio_log(x, log_q))
    e_log_q = tl.where(q == 0, 0.0, 0.5 * q * _ratio_log(log_q, x))
    return e_x + e_log_q, e_x, e_log_q


@triton.jit
def _ratio_log(a, b):
    """Return a − log((exp a + exp b)/2) = log 2 − log(1 + exp(b − a)), −∞ where a is and b is not."""
    d = b - a
    size = tl.abs(d)
    return _LOG_2 - (tl.where(d > 0, d, 0.0) + log1p_unit(tl.exp(-size)))
