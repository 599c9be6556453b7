"""The gated launcher against torch.func on a float64 formula: flags, groups, forms, sizes, layouts, dtypes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

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

from torch_jvpvjp.triton_kernels._launch import count_launches, record_launches
from torch_jvpvjp.triton_kernels.gated import gated_product

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda g: g * torch.sigmoid(g),
    "gelu": F.gelu,
    "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"),
    "sigmoid": torch.sigmoid,
}
NAMES = ("gate", "up", "gate_dot", "up_dot", "a", "b")
FORMS = (None, "gate first", "gate last")
ALL: dict[str, Any] = {
    "wants_y": True,
    "wants_y_dot": True,
    "wants_first": (True, True),
    "wants_second": (True, True),
}
Operands = dict[str, Any]


def draw(groups: tuple[int | None, ...], m: int = 3, n: int = 5, dtype: torch.dtype = torch.float64) -> Operands:
    generator = torch.Generator().manual_seed(m + 10 * n)
    return {
        name: torch.randn(k, m, n, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
        for name, k in zip(NAMES, groups, strict=True)
        if k is not None
    }


def oracle(function: str, operands: Operands) -> dict[str, Tensor]:
    """All results in float64, by differentiating the formula."""
    k = max(t.shape[0] for t in operands.values())
    shape = (k, *operands["gate"].shape[1:])
    zero = torch.zeros(shape, dtype=torch.float64, device=DEVICE)
    g, u, g_dot, u_dot, a, b = (operands[n].double().expand(shape).clone() if n in operands else zero for n in NAMES)
    f = lambda g, u: FUNCTIONS[function](g) * u  # noqa: E731
    y, pull, *_ = torch.func.vjp(f, g, u)
    y_dot, pull_dot, *_ = torch.func.vjp(lambda g, u: torch.func.jvp(f, (g, u), (g_dot, u_dot))[1], g, u)
    first = pull(a)
    second = [s + t for s, t in zip(pull(b), pull_dot(a), strict=True)]
    return {"y": y, "y_dot": y_dot, "g1": first[0], "u1": first[1], "g2": second[0], "u2": second[1]}


def check(function: str, operands: Operands, packed: str | None = None, limit: int | None = None) -> None:
    before = {name: t.clone() for name, t in operands.items()}
    found = gated_product(function, **operands, **ALL, packed=packed, block_limit=limit)
    results: dict[str, Tensor | None] = dict(
        zip(("y", "y_dot", "g1", "u1", "g2", "u2"), (*found[:2], *found.first, *found.second), strict=True)
    )
    dtype = operands["gate"].dtype
    eps = 1e-13 if dtype == torch.float64 else torch.finfo(dtype).eps
    expected = oracle(function, operands)
    for name, want in expected.items():
        got = results[name]
        assert got is not None and got.dtype == dtype
        error = (got.double().expand(want.shape) - want).abs().max()
        assert error <= 8 * eps * want.abs().max().clamp_min(1), (name, float(error))
    for buffer, pair in ((found.packed_first, found.first), (found.packed_second, found.second)):
        assert (buffer is not None) == (packed is not None)
        if buffer is not None:
            halves = pair if packed == "gate first" else pair[::-1]
            assert torch.equal(buffer, torch.cat(halves, -1))  # pyright: ignore[reportArgumentType]
    for name, copy in before.items():
        assert torch.equal(copy, operands[name]), f"{name} was written to"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function(function: str) -> None:
    check(function, draw((1,) * 6))


@pytest.mark.parametrize("groups", list(itertools.product((1, 2), repeat=6))[::3], ids=str)
def test_groups(groups: tuple[int, ...]) -> None:
    check("silu", draw(groups), FORMS[sum(groups) % 3], limit=8)


@pytest.mark.parametrize("packed", FORMS)
def test_halves_of_one_tensor(packed: str | None) -> None:
    drawn = draw((2,) * 6)
    x = torch.randn(2, 3, 10, dtype=torch.float64, device=DEVICE)
    check("silu", {**drawn, "gate": x[..., :5], "up": x[..., 5:]}, packed)
    check("silu", {**drawn, "gate": x[..., 5:], "up": x[..., :5], "gate_dot": x[..., 1:6]}, packed, limit=8)


@pytest.mark.parametrize("absent", [("gate_dot",), ("up_dot", "b"), ("gate_dot", "up_dot"), ("b",)], ids="-".join)
def test_absent_operands(absent: tuple[str, ...]) -> None:
    drawn = draw((1, 1, 2, 2, 2, 2))
    check("gelu", {name: t for name, t in drawn.items() if name not in absent})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("m", "n", "limit"), [(1, 1, None), (2, 1500, None), (7, 33, 16), (40, 3, 16)])
def test_sizes_and_dtypes(m: int, n: int, limit: int | None, dtype: torch.dtype) -> None:
    check("silu", draw((1,) * 6, m, n, dtype), limit=limit)
    check("silu", draw((1,) * 6, m, n, dtype), "gate first", limit=limit)


def test_layouts() -> None:
    drawn = draw((2,) * 6, 4, 6)
    check("silu", {name: t.mT.contiguous().mT for name, t in drawn.items()})
    check("silu", {name: torch.stack((t, t), -1)[..., 0] for name, t in drawn.items()})
    check("silu", {**drawn, "a": torch.ones((), dtype=torch.float64, device=DEVICE).expand(2, 4, 6)})
    check("silu", {**drawn, "gate": drawn["gate"][:1].expand(2, -1, -1), "up": drawn["up"][:1].expand(2, -1, -1)})


def test_zero_sizes_launch_nothing() -> None:
    with count_launches() as count:
        for m, n in ((0, 3), (3, 0)):
            found = gated_product("silu", **draw((1, 1, 2, 2, 2, 2), m, n), **ALL, packed="gate first")
            assert found.packed_first is not None and found.packed_first.shape == (2, m, 2 * n)
    assert count.total == 0
    drawn = draw((1, 1, None, None, None, None))
    found = gated_product("silu", **drawn, gate_dot=drawn["gate"][:0], wants_y=True, wants_y_dot=True)
    assert found.y is not None and found.y_dot is not None and found.y_dot.shape == (0, 3, 5)
    torch.testing.assert_close(found.y, oracle("silu", drawn)["y"])


def test_directions_share_one_launch_and_one_value() -> None:
    drawn = draw((1, 1, 4, 4, None, None))
    with count_launches() as count:
        found = gated_product("silu", **drawn, wants_y=True, wants_y_dot=True)
    assert dict(count.by_name) == {"_gated_kernel": 1}
    assert found.y is not None and found.y.shape[0] == 1


def test_more_columns_than_32_bits_count_are_counted_in_64(monkeypatch: pytest.MonkeyPatch) -> None:
    with record_launches() as launches:
        for rows in (1 << 19, 1 << 20):  # side by side they are one row, of 2³¹ elements or of half as many
            x = torch.empty(1, rows, 2048, dtype=torch.bfloat16, device="meta")
            gated_product("silu", x, x, wants_y=True)
    assert [launched.options["WIDE"] for launched in launches] == [False, True]
    monkeypatch.setattr("torch_jvpvjp.triton_kernels.gated.product._MOST_NARROW", 0)
    operands = draw((1,) * 6, n=37)
    check("gelu", operands, limit=4)
