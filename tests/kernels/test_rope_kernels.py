"""The rope launcher against complex arithmetic in float64: options, absent operands, groups, dtypes, launches."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    DEVICE = "cpu"
elif torch.cuda.is_available():
    DEVICE = "cuda"
else:
    pytest.skip("needs TRITON_INTERPRET=1, or a GPU", allow_module_level=True)

from torch_jvpvjp.triton_kernels._launch import count_launches
from torch_jvpvjp.triton_kernels.rope import Angles, Heads, Turned, rope_turn


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(DEVICE, dtype)


def heads(groups: int, d: int, tokens: int = 1, dtype: torch.dtype = torch.float64) -> Heads:
    return Heads(draw(groups, 2, 3, tokens, d, dtype=dtype), draw(groups, 2, 1, tokens, d, dtype=dtype))


def angles(groups: int, c: int, rows: int = 1, dtype: torch.dtype = torch.float64) -> Angles:
    return Angles(draw(groups, 1, rows, c, dtype=dtype), draw(groups, 1, rows, c, dtype=dtype))


# --- The oracle: pairs are complex numbers ----------------------------------------------------------------------------


def split(x: Tensor, c: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    x = x.double()
    parts = (x[..., : 2 * c : 2], x[..., 1 : 2 * c : 2]) if interleaved else (x[..., :c], x[..., c : 2 * c])
    return torch.complex(*parts), x[..., 2 * c :]


def joined(z: Tensor, rest: Tensor, interleaved: bool) -> Tensor:
    parts = torch.stack((z.real, z.imag), -1).flatten(-2) if interleaved else torch.cat((z.real, z.imag), -1)
    return torch.cat((parts, rest.expand(*parts.shape[:-1], -1)), -1)


def oracle(a: Heads, e: Angles, options: dict[str, Any]) -> dict[str, Any]:
    interleaved, positions = options.get("interleaved", False), options.get("positions")
    b, x, x_dot = (options.get(name, Heads()) for name in ("b", "x", "x_dot"))
    c = e.cos.shape[-1]  # pyright: ignore[reportOptionalMemberAccess]

    def turning(pair: Angles) -> Tensor:
        z = torch.complex(pair.cos.double(), pair.sin.double())  # pyright: ignore[reportOptionalMemberAccess]
        z = z.conj() if options.get("inverse") else z
        if positions is not None:
            z = torch.stack([z[:, 0, rows] for rows in positions[0]], 1)
        return z.unsqueeze(2)

    found: dict[str, Any] = {"first": [], "second": [], "first_sum": 0, "second_sum": 0}
    for j in range(2):
        za, rest = split(a[j], c, interleaved)
        found["first"].append(joined(za * turning(e), rest, interleaved))
        second, rest_b = 0, torch.zeros_like(rest)
        if b[j] is not None:
            zb, rest_b = split(b[j], c, interleaved)
            second = zb * turning(e)
        if "dots" in options:
            second = second + za * turning(options["dots"])
        found["second"].append(None if isinstance(second, int) else joined(second, rest_b, interleaved))
        if x[j] is not None:
            zx = split(x[j], c, interleaved)[0].conj()
            found["first_sum"] = found["first_sum"] + (zx * za).sum(2)
            if b[j] is not None:
                found["second_sum"] = found["second_sum"] + (zx * zb).sum(2)
        if x_dot[j] is not None:
            found["second_sum"] = found["second_sum"] + (split(x_dot[j], c, interleaved)[0].conj() * za).sum(2)
    return found


def check(a: Heads, e: Angles, eps: float = 1e-13, **options: Any) -> Turned:
    """Every result that the operands allow; operands stay as they were."""
    operands = [t for v in (a, e, *options.values()) if isinstance(v, tuple) for t in v if t is not None]
    before = [t.clone() for t in operands]
    summed = "x" in options or "x_dot" in options
    wants = {
        "wants_second": "b" in options or "dots" in options,
        "wants_first_sum": "x" in options,
        "wants_second_sum": summed and ("b" in options or "x_dot" in options),
    }
    turned, expected = rope_turn(a, e, **wants, **options), oracle(a, e, options)
    for name in ("first", "second"):
        if name == "first" or wants["wants_second"]:
            for got, wanted in zip(getattr(turned, name), expected[name], strict=True):
                error = (got.double() - wanted).abs().max()
                assert error <= eps * (1 + wanted.abs().max()), name
    for name in ("first_sum", "second_sum"):
        got = getattr(turned, name)
        if wants[f"wants_{name}"]:
            wanted = expected[name]
            for one, other in zip(got, (wanted.real, wanted.imag), strict=True):
                assert (one.double() - other).abs().max() <= eps * (1 + other.abs().max()), name
        else:
            assert got == Angles(), name
    assert all(torch.equal(one, other) for one, other in zip(before, operands, strict=True))
    return turned


# --- Tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "c", "limit"), [(2, 1, None), (7, 2, None), (12, 3, 2)])
@pytest.mark.parametrize(("interleaved", "inverse"), [(False, False), (True, True)])
def test_everything_at_once(d: int, c: int, limit: int | None, interleaved: bool, inverse: bool) -> None:
    check(
        heads(1, d), angles(1, c), b=heads(1, d), dots=angles(1, c), x=heads(1, d), x_dot=heads(1, d),
        interleaved=interleaved, inverse=inverse, heads_last=inverse, block_limit=limit,
    )  # fmt: skip


@pytest.mark.parametrize(
    "present", [p for k in range(3) for p in itertools.combinations(("b", "dots", "x", "x_dot"), k)], ids="-".join
)
def test_absent_operands(present: tuple[str, ...]) -> None:
    made = {name: angles(1, 1) if name == "dots" else heads(1, 3) for name in present}
    check(heads(1, 3), angles(1, 1), **made)


@pytest.mark.parametrize(
    ("a", "e", "b", "dots"), [(1, 1, 3, 3), (3, 1, 3, 1), (1, 3, 3, 3), (3, 3, 1, 1)], ids=lambda k: str(k)
)
def test_groups(a: int, e: int, b: int, dots: int) -> None:
    turned = check(heads(a, 3), angles(e, 1), b=heads(b, 3), dots=angles(dots, 1), x=heads(1, 3), x_dot=heads(b, 3))
    assert turned.first.q is not None and turned.first.q.shape[0] == (1 if a == e == 1 else 3)


@pytest.mark.parametrize("groups", [1, 2])
def test_positions(groups: int) -> None:
    ids = torch.tensor([[[1, 3], [0, 3]]], device=DEVICE)
    check(heads(1, 4, tokens=2), angles(1, 2, rows=4), b=heads(groups, 4, tokens=2), positions=ids)
    turned = rope_turn(heads(1, 4, tokens=2), angles(1, 2, rows=4), positions=ids - 1)
    assert turned.first.q is not None
    assert turned.first.q[0, 1, :, 0].isnan().all() and turned.first.q[0, 0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    eps = max(torch.finfo(dtype).eps, 1e-6)
    turned = check(heads(1, 4, dtype=dtype), angles(1, 2), eps, b=heads(1, 4, dtype=dtype), x=heads(1, 4, dtype=dtype))
    assert turned.first.q is not None and turned.first.q.dtype == dtype
    assert turned.first_sum.cos is not None and turned.first_sum.cos.dtype == torch.float32


@pytest.mark.parametrize("heads_last", [False, True])
def test_layouts(heads_last: bool) -> None:
    a = heads(1, 4, tokens=2)
    strided = Heads(*(torch.stack((t, t * float("nan")), -1)[..., 0] for t in a))  # pyright: ignore[reportOptionalOperand]
    moved = Heads(*(t.transpose(2, 3).contiguous().transpose(2, 3) for t in a))  # pyright: ignore[reportOptionalMemberAccess]
    expanded = Heads(*(t[:, :1].expand(t.shape) for t in a))  # pyright: ignore[reportOptionalSubscript]
    e = Angles(draw(1, 1, 2, 2).mT, draw(1, 1, 2, 2))  # not of the same strides
    for one in (strided, moved, expanded):
        turned = check(one, e, heads_last=heads_last)
        for t in turned.first:
            assert t is not None and (t.transpose(2, 3) if heads_last else t).is_contiguous()


def test_q_alone_and_no_pairs() -> None:
    a = heads(1, 3)
    turned = rope_turn(Heads(a.q), angles(1, 1))
    assert turned.first.k is None and turned.first.q is not None
    nothing = rope_turn(a, angles(1, 0)).first
    assert all(torch.equal(one, other) for one, other in zip(nothing, a, strict=True))  # pyright: ignore[reportArgumentType]


def test_one_launch_and_none_for_nothing() -> None:
    with count_launches() as count:
        rope_turn(heads(1, 4), angles(1, 2), b=heads(4, 4), wants_second=True)
        rope_turn(heads(1, 4), angles(1, 2), x=heads(1, 4), wants_first_sum=True)
    assert dict(count.by_name) == {"_turn_kernel": 1, "_pull_kernel": 1}
    with count_launches() as count:
        turned = rope_turn(heads(1, 4, tokens=0), angles(1, 2, rows=0), x=heads(1, 4, tokens=0), wants_first_sum=True)
    assert count.total == 0
    assert turned.first.q is not None and turned.first.q.shape == (1, 2, 3, 0, 4)
