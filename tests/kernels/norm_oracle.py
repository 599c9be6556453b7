"""The oracle of norm kernels: a float64 formula differentiated by torch.func, and a check of every launcher by it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from torch_jvpvjp.triton_kernels.norms import (
    Norm,
    Second,
    norm_forward,
    norm_jvp,
    norm_second_order,
    norm_vjp,
)

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available() else "cuda"
EPS = 0.1 / 3  # not a float32
RMS, LAYER = Norm(EPS), Norm(EPS, centred=True)
MODULATED = Norm(EPS, centred=True, offset=1.0)
NORMS = {"rms": RMS, "layer": LAYER}
EVERYTHING = Second(*(True,) * 7)
Operands = dict[str, Any]


def formula(x: Tensor, w: Tensor | None, b: Tensor | None, norm: Norm) -> Tensor:
    """The norm of (groups, rows, n) with a gain, offset included, and a bias, (groups, n)."""
    centred = x - x.mean(-1, keepdim=True) if norm.centred else x
    y = centred * (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    y = y if w is None else y * w[:, None, :]
    return y if b is None else y + b[:, None, :]


def oracle(dtype: torch.dtype, norm: Norm, operands: Operands) -> dict[str, Tensor]:
    """y, y_dot and every result of the second-order launcher, computed in `dtype`, group by group."""
    x, w, b = (operands.get(name) for name in ("x", "w", "b"))
    assert x is not None
    groups = max(t.shape[0] for t in operands.values())
    n = x.shape[-1]

    def rows(name: str) -> Tensor:
        t = operands.get(name)
        return (
            torch.zeros_like(x, dtype=dtype).expand(groups, -1, -1) if t is None else t.to(dtype).expand(groups, -1, -1)
        )

    def columns(name: str, absent: float, offset: float = 0.0) -> Tensor:
        t = operands.get(name)
        full = torch.full((groups, n), absent, dtype=dtype, device=x.device)
        return full if t is None else t.to(dtype).expand(groups, -1) + offset

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return formula(x, w, b, norm)

    primals = (rows("x").clone(), columns("w", 1.0, norm.offset), columns("b", 0.0))
    tangents = (rows("x_dot").clone(), columns("w_dot", 0.0), columns("b_dot", 0.0))
    y, pullback = torch.func.vjp(f, *primals)
    y_dot, pullback_dot = torch.func.vjp(lambda *p: torch.func.jvp(f, p, tangents)[1], *primals)
    first = pullback(rows("a"))
    second = [p + q for p, q in zip(pullback(rows("a_dot")), pullback_dot(rows("a")), strict=True)]
    results = Second(*first, *second, y_dot)._asdict() | {"y": y}
    for name, like in (("w", w), ("bias", b)):
        if like is not None and like.shape[0] == 1:
            for order in ("first", "second"):
                results[f"{name}_{order}"] = results[f"{name}_{order}"].sum(0, keepdim=True)
    return results


def check(name: str, got: Tensor, expected: Tensor, reference: Tensor, dtype: torch.dtype) -> None:
    """err(kernel) ≤ 2·(err(reference) + eps·max|y64|), where the reference computes as kernels do and rounds once."""
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == dtype, f"{name}: {got.dtype}, expected {dtype}"
    largest = expected.abs().max().item()
    error = (got.double() - expected).abs().max().item()
    reference_error = (reference.to(dtype).double() - expected).abs().max().item()
    budget = 2 * (reference_error + torch.finfo(dtype).eps * largest)
    if dtype is torch.float64:
        budget = 1e-12 * max(1.0, largest)
    assert error <= budget, f"{name}: error {error:.3g} over budget {budget:.3g} (largest {largest:.3g})"


def check_all(norm: Norm, operands: Operands, limit: int | None = None, wants: Second = EVERYTHING) -> None:
    """Every launcher on one set of operands, each left as it was."""
    x, w, b, x_dot, w_dot, b_dot, a, a_dot = of(operands)
    before = {name: t.clone() for name, t in operands.items()}
    exact = oracle(torch.float64, norm, operands)
    reference = oracle(torch.float64 if x.dtype is torch.float64 else torch.float32, norm, operands)
    dtypes = {"w": x.dtype if w is None else w.dtype, "bias": x.dtype if b is None else b.dtype}

    def compare(name: str, got: Tensor, oracle_name: str) -> None:
        dtype = dtypes.get(name.partition("_")[0], x.dtype)
        check(name, got, exact[oracle_name], reference[oracle_name], dtype)

    compare("forward", norm_forward(x, w, b, norm, block_limit=limit)[0].expand(exact["y"].shape), "y")
    y, y_dot, *_ = norm_jvp(x, w, b, x_dot, w_dot, b_dot, norm, block_limit=limit)
    compare("y", y.expand(exact["y"].shape), "y")
    compare("y_dot", y_dot.expand(exact["y"].shape), "y_dot")

    if a is not None and a.shape[0] == exact["y"].shape[0]:
        for needs in ((True, True, True), (True, False, False), (False, True, False)):
            bars = norm_vjp(a, x, w, b, norm, needs, block_limit=limit)
            for name, like, needed, got in zip(("x", "w", "bias"), (x, w, b), needs, bars, strict=True):
                assert (got is not None) == (needed and like is not None), name
                if got is not None:
                    compare(f"{name}_bar", got, f"{name}_first")

    if a is not None:
        second = norm_second_order(x, w, b, x_dot, w_dot, b_dot, a, a_dot, norm, wants, block_limit=limit)
        for name, want, got in zip(Second._fields, wants, second, strict=True):
            missing = (name[0] == "w" and w is None) or (name[0] == "b" and b is None)
            assert (got is not None) == (bool(want) and not missing), name
            if got is not None:
                compare(name, got, name)

    for name, saved in before.items():
        assert torch.equal(saved, operands[name]), f"{name} was written to"


def of(operands: Operands) -> tuple[Any, Any, Any, Any, Any, Any, Any, Any]:
    get = operands.get
    return get("x"), get("w"), get("b"), get("x_dot"), get("w_dot"), get("b_dot"), get("a"), get("a_dot")


def draw(seed: int, n: int, dtype: torch.dtype = torch.float64, rows: int = 3, **groups: Any) -> Operands:
    """Normal operands; groups names those that exist and says how many groups they have."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device=DEVICE, dtype=dtype)

    return {name: normal(k, n) if name[0] in "wb" else normal(k, rows, n) for name, k in groups.items()}


ALL_ONE: dict[str, Any] = {"x": 1, "w": 1, "b": 1, "x_dot": 1, "w_dot": 1, "b_dot": 1, "a": 1, "a_dot": 1}
