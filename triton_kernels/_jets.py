"""Jets of pointwise functions: f(x), f′(x), f″(x), f‴(x) from one pass over x, in registers.

    f, f1, f2, f3 = jet(x, first, second, FUNCTION, ROUNDED)

What a kernel does not use of a jet is never computed: the compiler drops it. x is float32 or float64 and results are of
its dtype. Nothing but exp, erf, sin, cos and arithmetic is used, so kernels run alike on every GPU and in the
interpreter. For large |x| no intermediate overflows and no factor 0·∞ arises at a finite x; at 0 values are exact; NaN
gives NaN; at ±∞ values and f′ are those of PyTorch, which gives NaN where its formula is 0·∞.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SQRT_HALF = tl.constexpr(0.7071067811865475244)  # √½
_INV_SQRT_2PI = tl.constexpr(0.3989422804014326779)  # 1/√(2π)
_GELU_SCALE = tl.constexpr(1.5957691216057307118)  # 2√(2/π)
_GELU_CUBIC = tl.constexpr(0.044715)
_SINE_LIMIT = tl.constexpr(0x45800000)  # the bits of 4096
_FAR = tl.constexpr(64.0)  # beyond it exp(−x²/2) is 0 in float64, and gelu is x or 0


@triton.jit
def jet(x, first, second, FUNCTION: tl.constexpr, ROUNDED: tl.constexpr):
    """Return (f, f′, f″, f‴) of the function named FUNCTION at x.

    first and second are beta and threshold of softplus; the other functions have no options and read neither. The
    functions named `..._slope` are f′ as a function of y = f(x), in the place of f′; their first value is y.

    ROUNDED: results are rounded to 16 bits. Their relative error is 1e-5 then, 2 % of a rounding to float16, and they
    take fewer instructions than a GPU has time for while it moves 16 bits.
    """
    if FUNCTION == "gelu":
        return gelu_jet(x, ROUNDED)
    elif FUNCTION == "gelu_tanh":
        return gelu_tanh_jet(x)
    elif FUNCTION == "silu":
        return silu_jet(x)
    elif FUNCTION == "sigmoid":
        return sigmoid_jet(x)
    elif FUNCTION == "tanh":
        return tanh_jet(x, ROUNDED)
    elif FUNCTION == "sin":
        return sin_jet(x, ROUNDED)
    elif FUNCTION == "softplus":
        return softplus_jet(x, first, second, ROUNDED)
    elif FUNCTION == "mish":
        return mish_jet(x, ROUNDED)
    elif FUNCTION == "relu":
        return relu_jet(x)
    elif FUNCTION == "identity":
        return x, tl.full(x.shape, 1.0, x.dtype), tl.zeros_like(x), tl.zeros_like(x)
    elif FUNCTION == "tanh_slope":
        return x, 1.0 - x * x, -2.0 * x, tl.full(x.shape, -2.0, x.dtype)
    elif FUNCTION == "sigmoid_slope":
        return x, x * (1.0 - x), 1.0 - 2.0 * x, tl.full(x.shape, -2.0, x.dtype)
    else:
        tl.static_assert(FUNCTION == "relu_slope", "no such function")
        return relu_jet(x)


@triton.jit
def gelu_jet(x, ROUNDED: tl.constexpr):
    """Return the jet of x Φ(x), Φ the normal distribution function and φ its density."""
    near = _clamped(x)
    e = tl.exp(-0.5 * (near * near))
    density = _INV_SQRT_2PI * e
    if ROUNDED:
        beyond = e * _tail(tl.abs(near))
        below = tl.where(x < 0, beyond, 1.0 - beyond)
    else:
        below = 0.5 * (1.0 + tl.erf(x * _SQRT_HALF))
    return x * below, below + x * density, density * (2.0 - near * near), density * near * (near * near - 4.0)


@triton.jit
def _tail(size):
    """Return Φ(−s) exp(s²/2) for s ≥ 0 with a relative error of 5e-6, by a polynomial in 1 / (1 + 0.31 s)."""
    t = 1.0 / (1.0 + 0.31 * size)
    p = 0.1804498899133017 - 0.07392897958107306 * t
    p = 0.13342952056501095 + t * (0.0157452093998377 + t * p)
    return t * (0.12386069535973031 + t * (0.12044134406693208 + t * p))


@triton.jit
def gelu_tanh_jet(x):
    """Return the jet of x σ(z) with z = 2√(2/π) (x + 0.044715 x³), which is ½ x (1 + tanh(z/2))."""
    near = _clamped(x)
    square = near * near
    z = _GELU_SCALE * near * (1.0 + _GELU_CUBIC * square)
    z1 = _GELU_SCALE * (1.0 + (3.0 * _GELU_CUBIC) * square)
    z2 = (6.0 * _GELU_SCALE * _GELU_CUBIC) * near
    z3 = tl.full(x.shape, 6.0 * _GELU_SCALE * _GELU_CUBIC, x.dtype)
    s, s1, s2, s3 = sigmoid_jet(z)
    return _times_argument(x, s, s1 * z1, s2 * z1 * z1 + s1 * z2, s3 * z1 * z1 * z1 + 3.0 * s2 * z1 * z2 + s1 * z3)


@triton.jit
def silu_jet(x):
    """Return the jet of x σ(x)."""
    s, s1, s2, s3 = sigmoid_jet(x)
    return _times_argument(x, s, s1, s2, s3)


@triton.jit
def sigmoid_jet(x):
    """Return the jet of σ(x) = 1 / (1 + exp(−x)):  σ′ = σ(1 − σ),  σ″ = σ′(1 − 2σ),  σ‴ = σ′(1 − 6σ′)."""
    e = tl.exp(-tl.abs(x))
    r = 1.0 / (1.0 + e)
    s = tl.where(x >= 0, r, e * r)
    s1 = e * r * r  # does not cancel where σ is nearly 1
    return s, s1, s1 * (1.0 - 2.0 * s), s1 * (1.0 - 6.0 * s1)


@triton.jit
def tanh_jet(x, ROUNDED: tl.constexpr):
    """Return the jet of t = tanh(x):  t′ = 1 − t²,  t″ = −2 t t′,  t‴ = 2 t′(2 t² − t′)."""
    size = tl.abs(x)
    e = tl.exp(-2.0 * size)
    r = 1.0 / (1.0 + e)
    if ROUNDED:  # near 0, where 1 − e cancels, the series
        t = tl.where(size < 0.05, size * (1.0 - size * size * (1.0 / 3.0)), (1.0 - e) * r)
    else:
        small = size < 0.4
        # Near 0 Lambert's continued fraction cut at x¹⁵: its relative error is below 1e-17.
        a = tl.where(small, size, 0.0)
        q = a * a
        above = tl.where(small, a * (135135.0 + q * (17325.0 + q * (378.0 + q))), 1.0 - e)
        below = tl.where(small, 135135.0 + q * (62370.0 + q * (3150.0 + q * 28.0)), 1.0 + e)
        t = above / below
    t = tl.where(x < 0, -t, t)
    t1 = 4.0 * e * r * r  # does not cancel where |t| is nearly 1
    return t, t1, -2.0 * t * t1, 2.0 * t1 * (2.0 * t * t - t1)


@triton.jit
def sin_jet(x, ROUNDED: tl.constexpr):
    """Return the jet of sin(x):  sin′ = cos,  sin″ = −sin,  sin‴ = −cos."""
    if ROUNDED:
        # The bits of |x| are ordered as |x| is, NaN last. One branch for a program: those for each element, which wait
        # for each other, and a table of 2/π in local memory are what makes the sine of a float32 slow.
        if tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < _SINE_LIMIT:
            s = _sine_rounded(x, 0.0)  # pyright: ignore[reportArgumentType]
            c = _sine_rounded(x, 0.5)  # pyright: ignore[reportArgumentType]
        else:
            s = tl.sin(x)
            c = tl.cos(x)
    else:
        s = tl.sin(x)
        c = tl.cos(x)
    return s, c, -s, -c


@triton.jit
def _sine_rounded(x, SHIFT: tl.constexpr):
    """Return sin(x + πSHIFT) for |x| < 4096, with a relative error of 2e-6: (−1)^k sin(r), r = x − π(k − SHIFT).

    π is cut into parts of 12 bits at most, whose products with k − SHIFT are exact. Added to 1.5·2²³, k is rounded to
    an integer, whose last bit is that of the sum.
    """
    turns = x * 0.3183098861837907
    if SHIFT != 0.0:
        turns += SHIFT
    rounded = turns + 12582912.0
    k = rounded - 12582912.0
    if SHIFT != 0.0:
        k -= SHIFT
    r = x - k * 3.140625
    r = r - k * 0.0009675025939941406
    r = r - k * 1.5099580252808664e-07
    z = r * r
    p = 0.008314197446058089 - 0.00018539632379448688 * z
    s = r * (1.0 + z * (z * p - 0.16665848233960442))
    return (s.to(tl.int32, bitcast=True) ^ (rounded.to(tl.int32, bitcast=True) << 31)).to(tl.float32, bitcast=True)


@triton.jit
def softplus_jet(x, beta, threshold, ROUNDED: tl.constexpr):
    """Return the jet of log(1 + exp(βx)) / β, which is taken to be x where βx > threshold."""
    b = tl.full(x.shape, beta, x.dtype)
    z = b * x
    linear = z > tl.full(x.shape, threshold, x.dtype)
    s, s1, s2, s3 = sigmoid_jet(z)
    e = tl.exp(-tl.abs(z))
    if ROUNDED:
        f = tl.where(z > 0, x, 0.0) + _log1p_rounded(e) * (1.0 / tl.full([], beta, x.dtype))
    else:
        f = (tl.where(z > 0, z, 0.0) + log1p_unit(e)) / b
    return (
        tl.where(linear, x, f),
        tl.where(linear, 1.0, s),
        tl.where(linear, 0.0, b * s1),
        tl.where(linear, 0.0, b * b * s2),
    )


@triton.jit
def mish_jet(x, ROUNDED: tl.constexpr):
    """Return the jet of x t with t = tanh(log(1 + exp(x))):  t′ = (1 − t²) σ,  t″ = t′ q,  q = 1 − σ − 2 t σ.

    With w = exp(x)(exp(x) + 2), t = w / (w + 2) and t′ = 4 exp(x)(exp(x) + 1) / (w + 2)².
    """
    s, s1, s2, s3 = sigmoid_jet(x)
    if ROUNDED:  # beyond 40 t is 1, and t′ < 1e-34 is taken to be 0
        far = x > 40.0
        e = tl.exp(tl.where(far, 40.0, x))
        w = e * (e + 2.0)
        r = 1.0 / (w + 2.0)
        t = w * r
        t1 = tl.where(far, 0.0, (4.0 * (e * e + e) * r) * r)
    else:
        e = tl.exp(-tl.abs(x))
        # Above and below are both divided by exp(2x) where x > 0.
        above = tl.where(x >= 0, 1.0 + 2.0 * e, e * (e + 2.0))
        rest = tl.where(x >= 0, 2.0 * e * e, 2.0)
        r = 1.0 / (above + rest)
        t = above * r
        t1 = (4.0 * (1.0 + e) * tl.where(x >= 0, e * e, e) * r) * r
    q = 1.0 - s - 2.0 * t * s
    return _times_argument(x, t, t1, t1 * q, t1 * (q * q - s1 - 2.0 * (t1 * s + t * s1)))


@triton.jit
def relu_jet(x):
    """Return the jet of max(x, 0), which is its own slope in y; as in PyTorch f′(0) = 0 and f′(NaN) = 1."""
    zero = tl.zeros_like(x)
    return tl.where(x <= 0, 0.0, x), tl.where(x <= 0, zero, 1.0), zero, zero


@triton.jit
def log1p_unit(u):
    """Return log(1 + u) for 0 ≤ u ≤ 1, to rounding: 2 atanh(s) with s = u / (2 + u) ≤ 1/3, as a series in s²."""
    TERMS: tl.constexpr = 17 if u.dtype == tl.float64 else 8  # pyright: ignore[reportAssignmentType]
    s = u / (2.0 + u)
    q = s * s
    total = tl.zeros_like(u)
    for i in tl.static_range(TERMS):  # pyright: ignore[reportGeneralTypeIssues]
        total = total * q + 1.0 / (2 * (TERMS - 1 - i) + 1)
    return 2.0 * s * total


@triton.jit
def _log1p_rounded(u):
    """Return log(1 + u) for 0 ≤ u ≤ 1 with a relative error of 9e-6, by a polynomial."""
    p = 0.10122230220148437 - 0.023869153199278126 * u
    p = 0.325206700272354 + u * (-0.21004872115533604 + u * p)
    return u * (0.9999915984765637 + u * (-0.4993613695164547 + u * p))


@triton.jit
def _times_argument(x, h, h1, h2, h3):
    """Return the jet of x h(x) from that of h."""
    return x * h, h + x * h1, 2.0 * h1 + x * h2, 3.0 * h2 + x * h3


@triton.jit
def _clamped(x):
    """Return x within ±64, NaN staying NaN: what polynomials in x get where an exponential factor is 0 beyond."""
    if x.dtype == tl.float64:  # which has no such instruction
        return tl.where(x > _FAR, _FAR, tl.where(x < -_FAR, -_FAR, x))
    else:
        return tl.clamp(x, -_FAR, _FAR, propagate_nan=tl.PropagateNan.ALL)
