"""The pointwise functions: value, f′ and f″ of each in plain PyTorch, and the names of their jets in the kernels.

A new function is one entry here and its line in `triton_kernels/_jets.py`. Formulas get x in the dtype that the op
computes in, and stay right when they are differentiated further.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

_SCALE, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715
_FAR = 64.0  # beyond it exp(−x²/2) is 0, and a polynomial times it shall not be ∞·0


@dataclass(frozen=True)
class OutputSlope:
    """f′ as a function of y = f(x), for pullbacks that save y and not x.

    Attributes:
        slope: f′.
        bend: Its derivative in y.
        kernel: Its name in `_jets.jet`.
    """

    slope: Callable[[Tensor], Tensor]
    bend: Callable[[Tensor], Tensor]
    kernel: str


@dataclass(frozen=True)
class Pointwise:
    """One function.

    Attributes:
        name: Of the op.
        value: f(x, *options); its annotated signature is that of the op.
        slope: f′(x, *options).
        bend: f″(x, *options).
        kernel: From the options to the name in `_jets.jet` and the two parameters there.
        of_output: If given, the pullback reads y.
    """

    name: str
    value: Callable[..., Tensor]
    slope: Callable[..., Tensor]
    bend: Callable[..., Tensor]
    kernel: Callable[..., tuple[str, float, float]]
    of_output: OutputSlope | None = None


def _named(name: str) -> Callable[..., tuple[str, float, float]]:
    return lambda *_: (name, 1.0, 20.0)


# ---- f, f′ and f″ ----------------------------------------------------------------------------------------------------


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _silu_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


def _silu_bend(x: Tensor) -> Tensor:
    s, rest = torch.sigmoid(x), torch.sigmoid(-x)
    return s * rest * (2 + x * (rest - s))


def _sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _sigmoid_bend(x: Tensor) -> Tensor:
    s, rest = torch.sigmoid(x), torch.sigmoid(-x)
    return s * rest * (rest - s)


def _tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


def _tanh_slope(x: Tensor) -> Tensor:
    return 1 - torch.tanh(x).square()


def _tanh_bend(x: Tensor) -> Tensor:
    t = torch.tanh(x)
    return -2 * t * (1 - t.square())


def _sin(x: Tensor) -> Tensor:
    return torch.sin(x)


def _relu(x: Tensor) -> Tensor:
    return torch.relu(x)


def _relu_slope(x: Tensor) -> Tensor:
    return (~(x <= 0)).to(x.dtype)  # 0 at 0, 1 at NaN, as in PyTorch


def _gelu(x: Tensor, approximate: str) -> Tensor:
    """x Φ(x), or x σ(z) with z = 2√(2/π) (x + 0.044715 x³)."""
    return x * (torch.sigmoid(_gelu_inner(x)) if approximate == "tanh" else _normal_distribution(x))


def _gelu_slope(x: Tensor, approximate: str) -> Tensor:
    if approximate == "none":
        return _normal_distribution(x) + x * _normal_density(x)
    z = _gelu_inner(x)
    s, rest = torch.sigmoid(z), torch.sigmoid(-z)
    return s + x * (s * rest * _gelu_inner_slope(x))


def _gelu_bend(x: Tensor, approximate: str) -> Tensor:
    if approximate == "none":
        return _normal_density(x) * (2 - x.clamp(-_FAR, _FAR).square())
    z, z1, z2 = _gelu_inner(x), _gelu_inner_slope(x), 6 * _SCALE * _CUBIC * x.clamp(-_FAR, _FAR)
    s, rest = torch.sigmoid(z), torch.sigmoid(-z)
    return 2 * s * rest * z1 + x * (s * rest * ((rest - s) * z1.square() + z2))


def _normal_distribution(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.clamp(-_FAR, _FAR).square()) * (0.5 / math.sqrt(0.5 * math.pi))


def _gelu_inner(x: Tensor) -> Tensor:
    near = x.clamp(-_FAR, _FAR)
    return _SCALE * near * (1 + _CUBIC * near.square())


def _gelu_inner_slope(x: Tensor) -> Tensor:
    return _SCALE * (1 + 3 * _CUBIC * x.clamp(-_FAR, _FAR).square())


def _softplus(x: Tensor, beta: float, threshold: float) -> Tensor:
    return F.softplus(x, beta, threshold)


def _softplus_slope(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = x * beta
    return torch.where(z > threshold, 1.0, torch.sigmoid(z))


def _softplus_bend(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = x * beta
    return torch.where(z > threshold, 0.0, beta * torch.sigmoid(z) * torch.sigmoid(-z))


def _mish(x: Tensor) -> Tensor:
    """x t with t = tanh(log(1 + exp(x)));  t′ = (1 − t²) σ."""
    return x * torch.tanh(F.softplus(x))


def _mish_slope(x: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(x))
    return t + x * (1 - t.square()) * torch.sigmoid(x)


def _mish_bend(x: Tensor) -> Tensor:
    t, s = torch.tanh(F.softplus(x)), torch.sigmoid(x)
    slope = (1 - t.square()) * s  # t′, which is 0 far from 0; only then may x come in
    return 2 * slope + slope * x * (torch.sigmoid(-x) - 2 * t * s)


# ---- the table -------------------------------------------------------------------------------------------------------

GELU = Pointwise("gelu", _gelu, _gelu_slope, _gelu_bend, lambda a: ("gelu_tanh" if a == "tanh" else "gelu", 1.0, 20.0))
SILU = Pointwise("silu", _silu, _silu_slope, _silu_bend, _named("silu"))
SIN = Pointwise("sin", _sin, torch.cos, lambda x: -torch.sin(x), _named("sin"))
SOFTPLUS = Pointwise(
    "softplus", _softplus, _softplus_slope, _softplus_bend, lambda beta, threshold: ("softplus", beta, threshold)
)
MISH = Pointwise("mish", _mish, _mish_slope, _mish_bend, _named("mish"))
TANH = Pointwise(
    "tanh",
    _tanh,
    _tanh_slope,
    _tanh_bend,
    _named("tanh"),
    OutputSlope(lambda y: 1 - y.square(), lambda y: -2 * y, "tanh_slope"),
)
SIGMOID = Pointwise(
    "sigmoid",
    _sigmoid,
    _sigmoid_slope,
    _sigmoid_bend,
    _named("sigmoid"),
    OutputSlope(lambda y: y * (1 - y), lambda y: 1 - 2 * y, "sigmoid_slope"),
)
RELU = Pointwise(
    "relu",
    _relu,
    _relu_slope,
    torch.zeros_like,
    _named("relu"),
    OutputSlope(_relu_slope, torch.zeros_like, "relu_slope"),
)
