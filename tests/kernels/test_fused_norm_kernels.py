"""What norm launchers do beside the norm: a residual, a carry, rounding of unit rows, two tensors in one launch."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1, or a GPU", allow_module_level=True)

from norm_oracle import (
    EPS,
    LAYER,
    RMS,
    draw,
    of,
)

from torch_jvpvjp.triton_kernels._launch import count_launches
from torch_jvpvjp.triton_kernels.norms import (
    Norm,
    Side,
    norm_forward,
    norm_jvp,
    norm_vjp,
    pair_forward,
    pair_jvp,
    pair_vjp,
)

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.mark.parametrize(("norm", "limit"), [(RMS, None), (LAYER, 16)], ids=["rms", "layer_in_chunks"])
def test_residual(norm: Norm, limit: int | None) -> None:
    x, w, _, x_dot, *_ = of(draw(11, 20, rows=1, x=1, w=1, x_dot=2))
    z, *_, z_dot = draw(12, 20, rows=1, x=1, x_dot=2).values()
    y, total = norm_forward(x, w, None, norm, residual=z, block_limit=limit)
    torch.testing.assert_close(total, x + z)
    torch.testing.assert_close(y, norm_forward(x + z, w, None, norm)[0])
    for a, b in ((x_dot, z_dot), (x_dot, None), (None, z_dot), (None, None)):
        got = norm_jvp(x, w, None, a, w, None, norm, residual=z, residual_dot=b, block_limit=limit)
        dots = [t for t in (a, b) if t is not None]
        expected = norm_jvp(x + z, w, None, sum(dots) if dots else None, w, None, norm)
        torch.testing.assert_close(got[:3], (*expected[:2], x + z))
        assert (got[3] is None) == (not dots)
        if dots:
            torch.testing.assert_close(got[3], sum(dots))


def test_a_sum_is_rounded_before_it_is_normalised() -> None:
    x, z = (draw(seed, 33, torch.float16, x=1)["x"] for seed in (13, 14))
    y, total = norm_forward(x, None, None, RMS, residual=z)
    assert torch.equal(total, x + z) and torch.equal(y, norm_forward(x + z, None, None, RMS)[0])


@pytest.mark.parametrize("limit", [None, 16], ids=["one_pass", "chunks"])
def test_carry(limit: int | None) -> None:
    x, w, _, _, _, _, a, carry = of(draw(15, 20, rows=1, x=1, w=1, a=2, a_dot=2))
    needs = (True, True, False)
    plain, carried = (norm_vjp(a, x, w, None, RMS, needs, carry=c, block_limit=limit) for c in (None, carry))
    torch.testing.assert_close(carried[0], plain[0] + carry)
    torch.testing.assert_close(carried[1], plain[1])


def test_the_unit_row_is_rounded_where_asked() -> None:
    x, w, *_ = of(draw(16, 64, torch.float16, x=1, w=1))
    wide = x.float()
    unit = wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt()
    rounded = RMS._replace(rounded=True)
    for y in (norm_forward(x, w, None, rounded)[0], norm_jvp(x, w, None, x, None, None, rounded)[0]):
        assert torch.equal(y, unit.to(torch.float16) * w)
    assert not torch.equal(norm_forward(x, w, None, RMS)[0], unit.to(torch.float16) * w)


@pytest.mark.parametrize(("tangents", "limit"), [(1, 16), (3, None)])
def test_two_tensors_in_one_launch(tangents: int, limit: int | None) -> None:
    sides = []
    for seed, rows in ((17, 3), (18, 1)):
        x, w, _, x_dot, w_dot, _, a, _ = of(draw(seed, 20, rows=rows, x=1, w=1, x_dot=tangents, w_dot=1, a=tangents))
        sides.append(Side(x, w, x_dot, w_dot, a, needs_x=True, needs_weight=True))
    q, k = sides[0], sides[1]._replace(weight_dot=None)
    norm = Norm(EPS, offset=1.0)
    with count_launches() as count:
        values, tangents_of = pair_forward(q, k, norm, block_limit=limit), pair_jvp(q, k, norm, block_limit=limit)
        pulled = pair_vjp(q, k._replace(needs_weight=False), norm, block_limit=limit)
    assert count.by_name["_pair_forward_kernel"] == count.by_name["_pair_jvp_kernel"] == 1
    assert count.by_name["_pair_vjp_kernel"] == 1 and count.total <= 4
    for side, y, dual, bars in zip((q, k), values, tangents_of, pulled, strict=True):
        torch.testing.assert_close(y, norm_forward(side.x, side.weight, None, norm)[0])
        expected = norm_jvp(side.x, side.weight, None, side.x_dot, side.weight_dot, None, norm)[:2]
        torch.testing.assert_close(dual, expected)
        x_bar, w_bar, _ = norm_vjp(side.y_bar, side.x, side.weight, None, norm, (True, side is q, False))
        torch.testing.assert_close(bars, (x_bar, w_bar))
    empty = Side(q.x[:, :0], None, q.x[:, :0], None, q.x[:, :0], needs_x=True)
    assert pair_forward(q, empty, norm)[1].shape == pair_jvp(empty, q, norm)[0][1].shape == empty.x.shape
    assert pair_vjp(q, empty, norm)[1][0].shape == empty.x.shape  # pyright: ignore[reportOptionalMemberAccess]
