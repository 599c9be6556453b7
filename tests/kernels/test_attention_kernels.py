"""The launchers of attention against whole matrices in float64: sizes, what is done to scores, precision."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1, or a GPU", allow_module_level=True)

import attention_oracle as oracle
import triton
from attention_checks import DEVICE, check, problem_of, run_forward, run_second
from attention_oracle import Problem, blocks_of

from torch_jvpvjp.testing.budget import NEIGHBOURS, assert_equal, assert_in_budget
from torch_jvpvjp.testing.products import products_in
from torch_jvpvjp.triton_kernels._launch import count_launches
from torch_jvpvjp.triton_kernels.attention import (
    Operands,
    attention_forward,
    attention_vjp,
)
from torch_jvpvjp.triton_kernels.attention.config import tiles

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
# On a GPU ops take the formulas in float64, so that nobody but these tests misses it.
compiles_masks_in_float64 = pytest.mark.skipif(
    DEVICE == "cuda" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9),
    reason="Triton 3.6 to 3.8 may not compile float64 products of tiles under a mask",
)


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lq", "lk"), [(1, 1), (17, 1), (1, 129), (127, 128), (129, 17)])
def test_lengths(lq: int, lk: int) -> None:
    with tiles(64, 64):
        check(problem_of(lq, lk))


@pytest.mark.parametrize(("dk", "dv"), [(72, 16), (16, 80), (1, 3)])
def test_head_sizes(dk: int, dv: int) -> None:
    with tiles(16, 32):
        check(problem_of(17, 33, dk, dv))


@pytest.mark.parametrize(("heads", "batch"), [((4, 2), 1), ((2, 1), 2)], ids=["grouped", "one key head"])
def test_grouped_heads_and_batches(heads: tuple[int, int], batch: int) -> None:
    check(problem_of(3, 5, heads=heads, batch=batch, slopes=SLOPES[:batch] if heads[0] == 2 else None))


@pytest.mark.parametrize(("lq", "lk", "batch"), [(0, 3, 1), (3, 0, 1), (2, 3, 0)])
def test_nothing_to_do(lq: int, lk: int, batch: int) -> None:
    problem = problem_of(lq, lk, batch=batch, bias=(1, 1, lq, lk))
    with count_launches() as count:
        o, lse, o_dot, lse_dot, rest = attention_forward(problem.at, problem.dots, problem.options)
        results = run_second(problem)
    assert count.total == 0
    assert o_dot is not None and lse_dot is not None
    assert all(bool((t == 0).all()) for t in (o, o_dot, lse_dot, rest, *results)) and bool((lse == -torch.inf).all())


# ---- what is done to the scores --------------------------------------------------------------------------------------

SLOPES = torch.tensor([[0.5, 0.1], [1.0, 0.25]], dtype=torch.float32, device=DEVICE)
# Rows 0-3 and 4-8 are two sequences of other lengths of keys, 0-5 and 5-7, the second of which is causal at its end.
RANGES = torch.tensor(
    [[[0, 0, 0, 0, 5, 5, 5, 5, 5], [5, 5, 5, 5, 5, 5, 5, 6, 7], [0, 1, 2, 3, 2, 3, 4, 5, 6]]],
    dtype=torch.int32,
    device=DEVICE,
)


def packed(*lengths: tuple[int, int], causal: bool = False) -> Tensor:
    """The ranges of sequences of so many rows and keys, a row seeing keys up to its own number if causal."""
    ranges, first = [], 0
    for rows, keys in lengths:
        ranges += [(first, first + (min(i + 1, keys) if causal else keys), first + i) for i in range(rows)]
        first += keys
    return torch.tensor(ranges, dtype=torch.int32, device=DEVICE).T[None].contiguous()


# Tiles of keys lie within one sequence, whose rows end within a tile, together with rows of the next.
PACKED = ((7, 35), (20, 33), (2, 4))
OPTIONS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "causal": ((37, 37), {"right": 0}),
    "causal, more rows than keys": ((37, 18), {"right": 0}),
    "causal, aligned at the end": ((18, 37), {"right": 0, "offset": 19}),
    "causal at the end, some rows see nothing": ((37, 18), {"right": 0, "offset": -19}),
    "window": ((50, 50), {"left": 5, "right": 3}),
    "window before": ((50, 50), {"left": 20, "right": -1}),
    "alibi, capped": ((9, 20), {"slopes": SLOPES[:1], "softcap": 1.5, "heads": (2, 1)}),
    "varlen": ((9, 7), {"ranges": RANGES, "heads": (2, 2)}),
    "varlen of long sequences": ((29, 72), {"ranges": packed(*PACKED), "heads": (2, 1)}),
    "varlen of long sequences, causal": ((29, 72), {"ranges": packed(*PACKED, causal=True)}),
    "wide window": ((90, 90), {"left": 60, "right": 3}),
    "a negative scale": ((3, 20), {"scale": -0.7}),
    "no scale": ((3, 20), {"scale": 0.0}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    (lq, lk), options = OPTIONS[name]
    with tiles(16, 16):
        check(problem_of(lq, lk, **options))


@compiles_masks_in_float64
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 5, 20), (1, 1, 1, 5, 1), (1, 1, 2, 1, 20), (2, 1, 2, 5, 20)],
    ids=["one for all heads", "rows", "keys", "each its own"],
)
def test_masks(shape: tuple[int, ...]) -> None:
    """Boolean masks through strides of 0; the first row sees nothing."""
    mask = torch.rand(shape, device=DEVICE) < 0.6
    mask[..., 0, :] = False
    with tiles(16, 16):
        check(problem_of(5, 20, heads=(2, 1), n=shape[0], mask=mask))


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((1, 1, 5, 20), 1), ((2, 1, 5, 1), 2), ((1, 2, 1, 20), 1), ((1, 1, 1, 1), 1)],
    ids=["all heads", "rows", "keys", "one number"],
)
def test_biases(shape: tuple[int, int, int, int], batch: int) -> None:
    """Additive masks with tangents and gradients; some entries are −∞."""
    problem = problem_of(5, 20, heads=(2, 1), batch=batch, bias=shape, softcap=2.0)
    assert problem.at.bias is not None
    problem.at.bias[..., -1:] = -torch.inf if shape[-1] > 1 else 0.5
    with tiles(16, 16):
        check(problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("number", [-1e9, torch.finfo(torch.float32).min], ids=str)
def test_a_row_of_padding_is_a_mean_and_harms_no_cotangent(number: float, dtype: torch.dtype) -> None:
    """A bias so low that scores vanish beside it: equal scores. ℓ has no digit left that P could be made of."""
    problem = problem_of(5, 20, bias=(1, 1, 5, 20)).to(dtype)
    at, w = problem.at._replace(bias=problem.at.bias.float()), problem.w
    assert w is not None
    at.bias[..., 2, :], w[..., 2, :] = number, 0.0
    o, lse, _, _, rest = attention_forward(at, None, problem.options)
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(o[..., 2, :], at.v.float().mean(-2).to(dtype), rtol=0, atol=rounding)
    assert lse.isfinite().all()

    if dtype == torch.float32:  # the rest of ℓ is all of log Σ exp(S − max S)
        whole = attention_vjp(at, o, lse, torch.ones_like(w), None, problem.options, Operands(v=True), rest)
        others = torch.ones_like(w)
        others[..., 2, :] = 0.0
        part = attention_vjp(at, o, lse, others, None, problem.options, Operands(v=True), rest)
        torch.testing.assert_close(whole.v - part.v, torch.full_like(at.v, 1 / 20), rtol=0, atol=rounding)

    lse[..., 2] = torch.nextafter(lse[..., 2], torch.tensor(-torch.inf, device=DEVICE))  # as another sum would round it
    hidden = at._replace(bias=at.bias.clone())
    hidden.bias[..., 2, :] = -torch.inf
    needs = Operands(True, True, True, True)
    for one, other in zip(
        attention_vjp(at, o, lse, w, None, problem.options, needs),
        attention_vjp(hidden, *attention_forward(hidden, None, problem.options)[:2], w, None, problem.options, needs),
        strict=True,
    ):
        assert torch.equal(one, other)


@compiles_masks_in_float64
@pytest.mark.parametrize("own", [False, True], ids=["mask of all heads", "mask of each head"])
def test_blocks(own: bool) -> None:
    """Lists of blocks: one is empty, one row of blocks too, tiles are smaller than blocks and lengths no multiples."""
    visible = torch.rand(2 if own else 1, 2 if own else 1, 70, 70) < 0.3
    visible[..., :32, 32:] = False
    visible[..., 32:64, :] = False
    blocks = blocks_of(visible, 32, 32)
    blocks = type(blocks)(*(t.to(DEVICE) if isinstance(t, Tensor) else t for t in blocks))
    mask = visible[None].to(DEVICE)
    with tiles(16, 32):
        check(problem_of(70, 70, heads=(2, 1), batch=2 if own else 1, mask=mask, blocks=blocks))


def test_blocks_are_skipped() -> None:
    """What no list names is not looked at, whatever the mask says."""
    visible = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    visible[..., :32, 32:] = False
    blocks = blocks_of(visible, 32, 32)
    problem = problem_of(64, 64, blocks=type(blocks)(*(t.to(DEVICE) if isinstance(t, Tensor) else t for t in blocks)))
    masked = replace(problem, options=problem.options._replace(mask=visible[None].to(DEVICE)))
    assert_equal(run_second(problem), [t for part in oracle.second_order(masked) for t in part])


def test_dropout() -> None:
    """The mask is Philox's, the same in value, tangents and pullbacks; each seed has its own."""
    seeds = torch.tensor([7, 2**61 + 12345], device=DEVICE)
    with tiles(16, 16):
        check(problem_of(5, 20, heads=(2, 1), n=2, seed=seeds, dropout_p=0.3))
    check(problem_of(5, 20, batch=2, tangents=2, seed=seeds[:1], dropout_p=0.3))


@compiles_masks_in_float64
def test_everything_at_once() -> None:
    mask = torch.rand(1, 1, 1, 9, 7, device=DEVICE) < 0.8
    options: dict[str, Any] = {"ranges": RANGES, "slopes": SLOPES[:1], "softcap": 1.5, "mask": mask}
    seed = torch.tensor([3], device=DEVICE)
    check(problem_of(9, 7, 3, 2, heads=(2, 1), bias=(1, 2, 1, 7), seed=seed, dropout_p=0.2, **options))


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["plain", "capped, biased, causal", "capped far off", "long"])
def test_precision(kind: str, dtype: torch.dtype) -> None:
    """The error is at most twice that of whole matrices whose products are of that dtype, plus a rounding."""
    sizes = {"plain": (3, 5), "capped, biased, causal": (5, 5), "capped far off": (16, 32), "long": (33, 65)}[kind]
    capped: dict[str, Any] = {"softcap": 2.0, "bias": (1, 1, 1, 5), "right": 0}
    options = {"capped, biased, causal": capped, "capped far off": {"softcap": 1000.0}}.get(kind, {})
    exact = problem_of(*sizes, **options).to(dtype)

    def scaled(factor: float) -> Problem:
        times = lambda t: None if t is None else (t * factor).to(t.dtype)  # noqa: E731
        return replace(
            exact, at=Operands(*map(times, exact.at)), dots=Operands(*map(times, exact.dots)),
            w=times(exact.w), u=times(exact.u),
        )  # fmt: skip

    def reference(problem: Problem) -> list[Tensor]:
        first, second = oracle.second_order(problem)
        return [*oracle.forward(problem), *first, *second]

    low, high = [], []
    with tiles(16, 16):
        actual = [*run_forward(exact), *run_second(exact)]
    for factor in NEIGHBOURS:
        problem = scaled(factor)
        with products_in(dtype):
            raw = reference(problem.to(torch.float32))
        low.append([t.to(a.dtype) for t, a in zip(raw, actual, strict=True)])
        high.append(reference(problem.to(torch.float64)))
    assert_in_budget(actual, low, high, dtype)


def test_results_are_the_same_to_the_bit_twice() -> None:
    problem = problem_of(5, 20, heads=(2, 1), bias=(1, 1, 1, 20)).to(torch.float32)
    once, twice = ([*run_forward(problem), *run_second(problem)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
