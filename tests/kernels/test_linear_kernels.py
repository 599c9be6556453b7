"""The linear layer's epilogue against its definition: activations, groups, sizes, dtypes, layouts, launches."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    DEVICE = "cpu"
elif torch.cuda.is_available():
    DEVICE = "cuda"
else:
    pytest.skip("needs TRITON_INTERPRET=1, or a GPU", allow_module_level=True)

from torch_jvpvjp.triton_kernels._launch import count_launches
from torch_jvpvjp.triton_kernels.linear import linear_epilogue

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z * 1,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "mish": F.mish,
}


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(DEVICE, dtype)


def check(
    function: str,
    p: Tensor,
    p_dot: Tensor,
    bias: Tensor | None = None,
    bias_dot: Tensor | None = None,
    limit: int | None = None,
) -> None:
    """All three results against torch.func in float64, within one rounding (and those of float64)."""
    given = [t for t in (p, p_dot, bias, bias_dot) if t is not None]
    before = [t.clone() for t in given]
    y, y_dot, z = linear_epilogue(function, p, p_dot, bias, bias_dot, wants_z=True, block_limit=limit)
    wide = lambda t: 0.0 if t is None else (t.double()[:, None] if t.dim() == 2 else t.double())  # noqa: E731
    point = p.double() + wide(bias)
    tangent = (p_dot.double() + wide(bias_dot)).expand(y_dot.shape)
    expected, expected_dot = torch.func.jvp(
        FUNCTIONS[function], (point.expand(y_dot.shape).clone(),), (tangent.clone(),)
    )
    assert z is not None and y.is_contiguous() and y_dot.is_contiguous() and z.is_contiguous()
    for got, wanted in ((y, expected), (y_dot, expected_dot), (z, point)):
        assert got.dtype == p.dtype
        eps = max(torch.finfo(p.dtype).eps, 1e-14 if p.dtype == torch.float64 else 1e-6)
        budget = eps * max(1.0, float(wanted.abs().max())) * (1 if p.dtype.itemsize == 2 else 4)
        assert float((got.double() - wanted).abs().max()) <= budget, function
    assert all(torch.equal(one, other) for one, other in zip(before, given, strict=True))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(function: str) -> None:
    check(function, draw(1, 3, 5), draw(1, 3, 5), draw(1, 5), draw(1, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    check("gelu", *(draw(1, 4, 8, dtype=dtype) for _ in range(2)), *(draw(1, 8, dtype=dtype) for _ in range(2)))


@pytest.mark.parametrize(("rows", "n", "limit"), [(1, 1, None), (300, 3, None), (3, 40, 16), (2, 1000, None)])
def test_sizes(rows: int, n: int, limit: int | None) -> None:
    check("silu", draw(1, rows, n), draw(1, rows, n), draw(1, n), None, limit)


@pytest.mark.parametrize("own", [1, 3])
@pytest.mark.parametrize("bias", [None, 1, 3])
@pytest.mark.parametrize("bias_dot", [None, 1, 3])
def test_groups(own: int, bias: int | None, bias_dot: int | None) -> None:
    biases = (None if k is None else draw(k, 5) for k in (bias, bias_dot))
    check("tanh", draw(own, 2, 5), draw(3, 2, 5), *biases)


def test_layouts_and_shared_groups() -> None:
    check("silu", draw(2, 4, 3).mT, draw(3, 2, 4).transpose(0, 1), draw(2, 8)[:, ::2], draw(4, 1).mT.expand(2, -1))
    y, y_dot, _ = linear_epilogue("silu", draw(1, 3, 4).expand(5, -1, -1), draw(5, 3, 4), None, None, wants_z=False)
    assert y.shape == (1, 3, 4) and y_dot.shape == (5, 3, 4)


@pytest.mark.parametrize("shape", [(1, 0, 3), (1, 2, 0), (0, 2, 3)])
def test_zero_sizes(shape: tuple[int, ...]) -> None:
    with count_launches() as count:
        y, y_dot, z = linear_epilogue("gelu", draw(*shape), draw(*shape), None, None, wants_z=True)
    assert count.total == 0 and z is not None
    assert y.shape == y_dot.shape == z.shape == shape


def test_many_tangents_are_one_launch() -> None:
    with count_launches() as count:
        linear_epilogue("gelu", draw(1, 2, 3), draw(4, 2, 3), draw(1, 3), draw(4, 3), wants_z=True)
    assert dict(count.by_name) == {"_epilogue_kernel": 1}
