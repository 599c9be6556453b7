"""An op of your own: a formula, a fused JVP with its kernel, a VJP, and every property checked.

Run it with ``python examples/own_op.py``; here the "kernel" is NumPy on the CPU, as opaque to autograd as any.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import torch_jvpvjp as tj


@tj.differentiable_op("examples::soft_clip")
def soft_clip(x: Tensor, limit: float = 1.0) -> Tensor:
    """limit · tanh(x / limit): the formula defines the op."""
    return limit * torch.tanh(x / limit)


@soft_clip.kernel("cpu")
def _(x: Tensor, limit: float) -> Tensor:
    return torch.from_numpy(np.asarray(limit * np.tanh(_array(x) / limit))).to(x.dtype)


@soft_clip.jvp
def _(primals: Any, tangents: Any) -> Any:
    """ẏ = (1 − tanh²(x / limit)) ẋ."""
    t = torch.tanh(primals.x / primals.limit)
    return primals.limit * t, (1 - t * t) * tangents.x


@soft_clip.jvp.kernel("cpu")
def _(primals: Any, tangents: Any) -> Any:
    """Value and tangent in one pass over the memory."""
    x, x_dot = _array(primals.x), _array(tangents.x)
    t = np.tanh(x / primals.limit)
    y, y_dot = primals.limit * t, (1 - t * t) * x_dot
    return torch.from_numpy(np.asarray(y)).to(primals.x.dtype), torch.from_numpy(np.asarray(y_dot)).to(primals.x.dtype)


@soft_clip.vjp
def _(cotangents: Any, inputs: Any, outputs: Any) -> Tensor:
    """x̄ = (1 − (y / limit)²) ȳ."""
    return (1 - (outputs[0] / inputs.limit) ** 2) * cotangents.y


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor's numbers in a dtype NumPy has."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to(wide).numpy()


if __name__ == "__main__":
    torch.manual_seed(0)
    samples = [(torch.randn(3),), (torch.randn(2, 3), 0.5), (torch.randn(4, 3), 0.5)]
    print(tj.testing.check_op(soft_clip, samples))
