"""The launchers of attention against whole matrices in float64: options, absent operands, sizes, dtypes, launches."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
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

import attention_oracle as oracle
import triton
from attention_oracle import NAMES, Problem, blocks_of, draw_problem

from torch_jvpvjp.testing.budget import NEIGHBOURS, assert_equal, assert_in_budget
from torch_jvpvjp.testing.products import products_in
from torch_jvpvjp.triton_kernels._launch import count_launches
from torch_jvpvjp.triton_kernels.attention import (
    Operands,
    attention_forward,
    attention_second_order,
    attention_vjp,
    pullback,
)
from torch_jvpvjp.triton_kernels.attention.config import tiles

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
NOTHING = Operands(False, False, False, False)
# On a GPU ops take the formulas in float64, so that nobody but these tests misses it.
compiles_masks_in_float64 = pytest.mark.skipif(
    DEVICE == "cuda" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9),
    reason="Triton 3.6 to 3.8 may not compile float64 products of tiles under a mask",
)


@pytest.fixture(autouse=True)
def poisoned_buffers() -> Iterator[None]:
    """Fresh memory is NaN, so that an element nobody writes shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


def problem_of(*sizes: Any, **options: Any) -> Problem:
    return draw_problem(*sizes, device=DEVICE, **options)


def needed(problem: Problem) -> Operands:
    return Operands(*(t is not None for t in problem.at))


def there(results: Sequence[Tensor | None]) -> list[Tensor]:
    return [t for t in results if t is not None]


def run_forward(problem: Problem) -> list[Tensor]:
    """o, ℓ and their tangents; with one primal and several directions o is there once, and shown for each."""
    moves = any(t is not None for t in problem.dots)
    o, lse, o_dot, lse_dot = attention_forward(problem.at, problem.dots if moves else None, problem.options)
    if o_dot is None or lse_dot is None:
        return [o, lse]
    return [o.expand(o_dot.shape), lse.expand(lse_dot.shape), o_dot, lse_dot]


def run_second(problem: Problem) -> list[Tensor]:
    """The cotangents and their tangents, from what the forward kernel left."""
    o, lse, o_dot, lse_dot = attention_forward(problem.at, problem.dots, problem.options)
    first, second = attention_second_order(
        problem.at, problem.dots, o, lse, o_dot, lse_dot, problem.w, problem.lse_bar, problem.u, problem.lse_bar_dot,
        problem.options, needed(problem), needed(problem),
    )  # fmt: skip
    return there([*first, *second])


def run_vjp(problem: Problem) -> list[Tensor]:
    o, lse, _, _ = attention_forward(problem.at, None, problem.options)
    return there(attention_vjp(problem.at, o, lse, problem.w, problem.lse_bar, problem.options, needed(problem)))


def check(problem: Problem) -> None:
    """Value, tangents, pullback and both second orders, in float64; what goes in stays as it was."""
    tensors = [t for t in (*problem.at, *problem.dots, problem.w, problem.u) if t is not None]
    before = [t.clone() for t in tensors]
    moves = any(t is not None for t in problem.dots)
    assert_equal(run_forward(problem), oracle.forward(problem)[: 4 if moves else 2], "value and tangent: ")
    if problem.w is not None or problem.lse_bar is not None:
        first, second = oracle.second_order(problem)
        assert_equal(run_vjp(problem), first, "pullback: ")
        if moves:
            got = run_second(problem)
            assert_equal(got, (*first, *second), "forward over reverse: ")
            of_tangents, of_primals = oracle.pulled_back_jvp(problem)
            assert_equal(got, (*of_tangents, *of_primals), "reverse over forward: ")
    assert all(torch.equal(one, other) for one, other in zip(before, tensors, strict=True))


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
        o, lse, o_dot, lse_dot = attention_forward(problem.at, problem.dots, problem.options)
        results = run_second(problem)
    assert count.total == 0
    assert o_dot is not None and lse_dot is not None
    assert all(bool((t == 0).all()) for t in (o, o_dot, lse_dot, *results)) and bool((lse == -torch.inf).all())


# ---- what is done to the scores --------------------------------------------------------------------------------------

SLOPES = torch.tensor([[0.5, 0.1], [1.0, 0.25]], dtype=torch.float32, device=DEVICE)
# Rows 0-3 and 4-8 are two sequences of other lengths of keys, 0-5 and 5-7, the second of which is causal at its end.
RANGES = torch.tensor(
    [[[0, 0, 0, 0, 5, 5, 5, 5, 5], [5, 5, 5, 5, 5, 5, 5, 6, 7], [0, 1, 2, 3, 2, 3, 4, 5, 6]]],
    dtype=torch.int32,
    device=DEVICE,
)
OPTIONS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "causal": ((37, 37), {"right": 0}),
    "causal, more rows than keys": ((37, 18), {"right": 0}),
    "causal, aligned at the end": ((18, 37), {"right": 0, "offset": 19}),
    "causal at the end, some rows see nothing": ((37, 18), {"right": 0, "offset": -19}),
    "window": ((50, 50), {"left": 5, "right": 3}),
    "window before": ((50, 50), {"left": 20, "right": -1}),
    "alibi, capped": ((9, 20), {"slopes": SLOPES[:1], "softcap": 1.5, "heads": (2, 1)}),
    "varlen": ((9, 7), {"ranges": RANGES, "heads": (2, 2)}),
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
    o, lse, _, _ = attention_forward(at, None, problem.options)
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(o[..., 2, :], at.v.float().mean(-2).to(dtype), rtol=0, atol=rounding)
    assert lse.isfinite().all()

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


# ---- what may be absent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [m for k in range(1, 5) for m in itertools.combinations(NAMES, k)], ids="-".join)
def test_absent_tangents(missing: tuple[str, ...]) -> None:
    problem = problem_of(3, 5, 2, 3, bias=(1, 1, 3, 5), softcap=3.0)
    check(replace(problem, dots=problem.dots._replace(**dict.fromkeys(missing))))


@pytest.mark.parametrize(
    "missing",
    [("w",), ("lse_bar",), ("u",), ("u", "lse_bar_dot"), ("w", "lse_bar_dot"), ("lse_bar", "u", "lse_bar_dot")],
    ids="-".join,
)
def test_absent_cotangents(missing: tuple[str, ...]) -> None:
    check(replace(problem_of(3, 5, 2, 3, bias=(1, 1, 1, 5)), **dict.fromkeys(missing)))


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_wanted(name: str) -> None:
    """Any one cotangent and any one tangent of a cotangent; the launches that others need are not made."""
    problem = problem_of(3, 5, bias=(1, 1, 3, 5))
    o, lse, o_dot, lse_dot = attention_forward(problem.at, problem.dots, problem.options)
    rest = (problem.w, problem.lse_bar, problem.u, problem.lse_bar_dot, problem.options)
    first, second = oracle.second_order(problem)
    other = NAMES[(NAMES.index(name) + 1) % 4]
    for one, two in ((name, None), (None, name), (name, other)):
        wants = [NOTHING._replace(**{w: True}) if w else NOTHING for w in (one, two)]
        with count_launches() as count:
            got = attention_second_order(problem.at, problem.dots, o, lse, o_dot, lse_dot, *rest, *wants)
        kinds = {{"q": "_rows_kernel", "bias": "_bias_kernel"}.get(w, "_columns_kernel") for w in (one, two) if w}
        assert dict(count.by_name) == dict.fromkeys([*kinds, "_delta_kernel"], 1)
        for results, expected, wanted in zip(got, (first, second), (one, two), strict=True):
            for n, result, value in zip(NAMES, results, expected, strict=True):
                assert (result is None) == (n != wanted)
                assert_equal([result] if n == wanted else [], [value] if n == wanted else [])


# ---- several of a kind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tangents", "dk"), [(2, 3), (3, 3), (4, 72)])
def test_many_tangents_are_one_launch(tangents: int, dk: int) -> None:
    problem = problem_of(3, 20, dk, tangents=tangents)
    with count_launches() as count:
        run_forward(problem)
    assert dict(count.by_name) == {"_forward_kernel": 1}
    with tiles(16, 16):
        check(problem)


def test_batches_of_primals() -> None:
    """Of what may have an axis in front each has it or not."""
    problem = problem_of(3, 5, n=3, bias=(1, 1, 3, 5))
    at, dots = problem.at, problem.dots
    check(problem)
    check(replace(problem, at=Operands(at.q, at.k[:1], at.v, at.bias[:1]), dots=dots._replace(k=dots.k[:1])))
    check(replace(problem, at=Operands(*(t[:1] for t in at)), dots=Operands(dots.q, dots.k[:1], None, None)))
    assert problem.w is not None and problem.u is not None
    shared = problem.w[:1].expand(problem.w.shape), problem.u[:1].mT.contiguous().mT.expand(problem.u.shape)
    check(replace(problem, w=shared[0], u=shared[1]))


def test_a_call_is_worked_out_once_for_all_numbers() -> None:
    one, other = (problem_of(5, 6, 7, bias=(1, 1, 1, 6)) for _ in range(2))
    assert not torch.equal(one.at.q, other.at.q)
    check(one)
    known = len(pullback._calls)
    check(other)
    assert len(pullback._calls) == known


@pytest.mark.parametrize("kind", ["heads last", "expanded", "every second", "transposed"])
def test_layouts(kind: str) -> None:
    def relaid(t: Tensor) -> Tensor:
        if kind == "heads last":
            return t.transpose(2, 3).contiguous().transpose(2, 3)
        if kind == "expanded":
            return t[:, :1, :1].expand(t.shape)
        if kind == "every second":
            return torch.stack((t, t * float("nan")), -1)[..., 0]
        return t.mT.contiguous().mT

    problem = problem_of(5, 3, 2, heads=(2, 2), batch=2, bias=(2, 1, 5, 3))
    moved = Operands(*map(relaid, problem.at)), Operands(*map(relaid, problem.dots))
    assert problem.w is not None and problem.u is not None
    check(replace(problem, at=moved[0], dots=moved[1], w=relaid(problem.w), u=relaid(problem.u)))


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


# ---- launches --------------------------------------------------------------------------------------------------------


def test_launches() -> None:
    problem = problem_of(3, 5, bias=(1, 1, 3, 5))
    with count_launches() as count:
        run_forward(problem)
    assert dict(count.by_name) == {"_forward_kernel": 1}
    with count_launches() as count:
        run_vjp(replace(problem, at=problem.at._replace(bias=None)))
    assert dict(count.by_name) == {
        name: 1 for name in ("_forward_kernel", "_delta_kernel", "_rows_kernel", "_columns_kernel")
    }
    with count_launches() as count:
        run_second(problem)
    kinds = ("_forward_kernel", "_delta_kernel", "_rows_kernel", "_columns_kernel", "_bias_kernel")
    assert dict(count.by_name) == dict.fromkeys(kinds, 1)
