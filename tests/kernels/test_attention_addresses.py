"""Attention's kernels on tensors of 2³¹ elements and more: what they count in 32 bits, and what they must not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from attention_oracle import draw_problem, forward, second_order

from torch_jvpvjp.testing.budget import assert_equal
from torch_jvpvjp.triton_kernels._launch import Launch, record_launches
from torch_jvpvjp.triton_kernels.attention import (
    Operands,
    Scores,
    _pullback_call,
    attention_forward,
    attention_second_order,
    attention_vjp,
    pullback,
    value,
)

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
_ROWS = ("q_row", "qd_row", "bias_row", "bd_row", "mask_row")
_COLUMNS = ("k_row", "v_row", "kd_row", "vd_row", "bias_column", "bd_column", "mask_column")
LARGE = 2**31


def heads(rows: int, size: int = 64, apart: int | None = None) -> Tensor:
    """A tensor of heads without memory, whose vectors lie `apart`."""
    stride = size if apart is None else apart
    return torch.empty_strided((1, 1, 2, rows, size), (0, 0, size, stride, 1), dtype=torch.bfloat16, device="meta")


def scores(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty((1, 1, 1, rows, columns), dtype=dtype, device="meta")


def launches_of(
    q: Tensor, k: Tensor, bias: Tensor | None = None, moved_v: Tensor | None = None, **options: Any
) -> list[Launch]:
    """The launches of value, tangent, pullback and its tangent; k serves as v."""
    at, needs = Operands(q, k, k, bias), Operands(True, True, True, bias is not None)
    dots = Operands(q, None, moved_v, bias)
    done = Scores(0.125, **options)
    o = torch.empty(q.shape, dtype=q.dtype, device="meta")
    lse = torch.empty(q.shape[:-1], device="meta")
    with record_launches() as launches:
        attention_forward(at, dots, done)
        attention_vjp(at, o, lse, o, None, done, needs)
        attention_second_order(at, dots, o, lse, o, lse, o, None, o, None, done, needs, needs)
    return launches


def farthest(launch: Launch) -> int:
    """How far behind the first the last element of a matrix stands that the tiles of a launch reach."""
    given = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    facts = launch.options["FACTS"]
    rows, columns = given["rows"] + facts.BLOCK_M, given["columns"] + facts.BLOCK_N
    vectors = max(given[name] * rows for name in _ROWS[:2]), max(given[name] * columns for name in _COLUMNS[:4])
    matrices = [
        given[row] * rows + given[column] * columns for row, column in zip(_ROWS[2:], _COLUMNS[4:], strict=True)
    ]
    return max(*(v + max(facts.BLOCK_DK, facts.BLOCK_DV) for v in vectors), rows * facts.DV, *matrices)


CASES: dict[str, Callable[[], list[Launch]]] = {
    "queries": lambda: launches_of(heads(300_000, apart=64 * 128), heads(64)),
    "keys": lambda: launches_of(heads(64), heads(300_000, apart=64 * 128)),
    "a tangent of values": lambda: launches_of(heads(64), heads(9000), moved_v=heads(9000, apart=2**18)),
    "cotangents": lambda: launches_of(heads(2**25), heads(64)),
    "a bias": lambda: launches_of(heads(60_000), heads(40_000), scores(60_000, 40_000)),
    "a mask": lambda: launches_of(heads(60_000), heads(40_000), mask=scores(60_000, 40_000, torch.bool)),
}


@pytest.mark.parametrize("name", CASES)
def test_large_matrices_are_addressed_by_64_bits(name: str) -> None:
    launches = [launch for launch in CASES[name]() if "FACTS" in launch.options]
    far = [launch for launch in launches if farthest(launch) >= LARGE]
    assert far
    assert all(launch.options["FACTS"].WIDE for launch in far)


def test_heads_and_batches_far_apart_cost_no_wide_addresses() -> None:
    """Offsets of heads are of 64 bits always; those inside of a matrix of 2²⁰ vectors stay of 32."""
    apart = torch.empty_strided((1, 3, 2, 2**20, 64), (0, 2**36, 2**33, 64, 1), dtype=torch.bfloat16, device="meta")
    for launch in launches_of(apart, apart):
        if "FACTS" in launch.options:
            assert farthest(launch) < LARGE and not launch.options["FACTS"].WIDE


def test_a_bias_of_one_number_sums_more_tiles_than_32_bits_count() -> None:
    q, bias = heads(2**22), torch.empty((1, 1, 1, 1, 1), dtype=torch.bfloat16, device="meta")
    *_, of_bias = launches_of(q, q, bias)
    given = dict(zip(of_bias.kernel.arg_names, of_bias.arguments, strict=False))
    assert given["row_blocks"] * given["column_blocks"] >= LARGE
    assert of_bias.options["FACTS"].WIDE


def test_lengths_beyond_what_kernels_count_are_refused() -> None:
    with pytest.raises(ValueError, match=r"up to 1073741568 rows and keys, got 64 and 1073741569"):
        launches_of(heads(64), heads(2**30 - 255))


@interpreted
@pytest.mark.parametrize("shape", [(1, 1, 5, 7), (1, 1, 1, 1)], ids=["bias", "bias of one number"])
def test_wide_addresses_give_the_same(shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What only large tensors are compiled for, on small ones."""
    for module, calls in ((value, value._calls), (_pullback_call, pullback._calls)):
        monkeypatch.setattr(module, "is_wide", lambda *_: True)
        calls.clear()
    mask = torch.rand(1, 1, 1, 5, 7) < 0.8
    problem = draw_problem(5, 7, heads=(2, 1), bias=shape, mask=mask)
    o, lse, o_dot, lse_dot, rest = attention_forward(problem.at, problem.dots, problem.options)
    assert_equal((o, lse, o_dot, lse_dot), forward(problem))
    needs = Operands(True, True, True, True)
    results = attention_second_order(
        problem.at, problem.dots, o, lse, o_dot, lse_dot, problem.w, problem.lse_bar, problem.u, problem.lse_bar_dot,
        problem.options, needs, needs, rest,
    )  # fmt: skip
    value._calls.clear()
    pullback._calls.clear()
    assert_equal(results, second_order(problem))


@interpreted
def test_a_mask_whose_rows_stand_a_gigabyte_apart() -> None:
    """Real addresses beyond 2³¹ elements. Of the memory only the pages that hold a row are ever touched."""
    stride = 2**30
    mask = torch.empty(0, dtype=torch.bool).set_(
        torch.UntypedStorage(2 * stride + 20), 0, (1, 1, 1, 3, 20), (0, 0, 0, stride, 1)
    )
    mask.copy_(torch.rand(3, 20) < 0.5)
    mask[..., 0] = True
    problem = draw_problem(3, 20, mask=mask)
    assert_equal(attention_forward(problem.at, None, problem.options)[:2], forward(problem)[:2])
