"""Workloads of what works entry by entry: activations, gates, residuals, features."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from _op_workloads import Workload, normal
from torch import Tensor

N = 4096


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """As models write it."""  # noqa: DOC201
    return F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """As models write it."""  # noqa: DOC201
    return F.gelu(gate) * up


def of_size(elements: int) -> Iterator[Workload]:
    """The workloads.

    Args:
        elements: About how many elements x has.

    Yields:
        One for each op.
    """
    rows = max(1, elements // N)
    x, row = (rows, N), (N,)
    natives = {
        "gelu": F.gelu,
        "silu": F.silu,
        "tanh": torch.tanh,
        "sin": torch.sin,
        "softplus": F.softplus,
        "mish": F.mish,
        "sigmoid": torch.sigmoid,
        "relu": F.relu,
    }
    for name, native in natives.items():
        yield Workload(name, (x,), lambda f, x: f(x), native)
    yield Workload("swiglu", (x, x), lambda f, gate, up: f(gate, up), swiglu)
    yield Workload("geglu", (x, x), lambda f, gate, up: f(gate, up), geglu)
    yield Workload("glu", (x,), lambda f, x: f(x), F.glu)
    yield Workload("dyt", (x, (1,), row, row), lambda f, x, a, w, b: f(x, a, w, b))
    tokens = max(1, elements // (4 * 1024))
    yield Workload(
        "gated_residual", ((4, tokens, 1024), (4, 1024), (4, tokens, 1024)), lambda f, x, gate, h: f(x, gate, h)
    )
    yield Workload("timestep_embedding", ((max(1, elements // 256),),), lambda f, t: f(t, 256))
    frequencies = lambda device: normal(((256, 3),), torch.float32, device, 1)  # noqa: E731
    yield Workload("fourier_features", ((max(1, elements // 512), 3),), lambda f, x, b: f(x, b), constants=frequencies)
