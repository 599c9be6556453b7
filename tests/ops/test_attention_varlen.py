"""Attention of packed sequences, judged by a loop over the sequences, with every derivative."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from attention_judge import RULES, assert_alike, dense, heads, not_interpreted, positions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.ops.attention.runs import runs_of
from torch_jvpvjp.testing.budget import assert_equal

pytestmark = not_interpreted

LENGTHS = {
    "several": ([3, 1, 4], [2, 5, 3]),
    "one": ([4], [5]),
    "no queries": ([2, 0, 3], [3, 2, 1]),
    "no keys": ([2, 3, 1], [3, 0, 2]),
    "nothing first and last": ([0, 3, 0], [0, 4, 0]),
}


# Long enough that runs of rows are each given to PyTorch's kernel by themselves.
LONG = {"alike": ([16, 24, 11], [16, 24, 11]), "others": ([20, 0, 9, 33], [12, 3, 30, 33]), "blind": ([18, 9], [0, 20])}


def starts(lengths: Sequence[int], device: str = "cpu", dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(dtype)


def packed(
    lengths: str, device: str, *, h: int = 2, kv: int = 2, behind: int = 0, width: int = 3
) -> tuple[tuple[Tensor, ...], Any]:
    """Query, key, value, and both cumulative lengths."""
    lq, lk = LENGTHS[lengths]
    shapes = (sum(lq) + behind, h, 2), (sum(lk) + behind, kv, 2), (sum(lk) + behind, kv, width)
    return tuple(heads(*shape, device=device) for shape in shapes), (starts(lq, device), starts(lk, device))


def loop(lengths: str, visible: Callable[[int, int], Tensor | None] = lambda lq, lk: None) -> Callable[..., Any]:
    """o and ℓ of each sequence by itself, one behind another, and of the rows behind the last."""

    def attend(q: Tensor, k: Tensor, v: Tensor, added: Any = None, **options: Any) -> tuple[Tensor, Tensor]:
        outputs, lses = [], []
        lq, lk = LENGTHS[lengths]
        behind = q.shape[0] - sum(lq)
        for rows, keys, n, m in zip(q.split([*lq, behind]), k.split([*lk, k.shape[0] - sum(lk)]), lq, lk, strict=False):
            values = v.split([*lk, v.shape[0] - sum(lk)])[len(outputs)]
            heads_first = (t.transpose(0, 1) for t in (rows, keys, values))
            bias = None if added is None else added(n, m)
            o, lse = dense(*heads_first, bias, visible=visible(n, m), **options)
            outputs.append(o.transpose(0, 1))
            lses.append(lse.transpose(0, 1))
        outputs.append(q.new_zeros((behind, q.shape[1], v.shape[2])))
        lses.append(q.new_full((behind, q.shape[1]), -torch.inf))
        return torch.cat(outputs), torch.cat(lses)

    return attend


def bound(cu: tuple[Tensor, Tensor], **options: Any) -> Callable[..., Any]:
    return lambda q, k, v: ops.varlen_attention(q, k, v, *cu, **options)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("behind", [0, 2], ids=["to the end", "rows behind"])
def test_equals_a_loop(lengths: str, behind: int, device: str) -> None:
    tensors, cu = packed(lengths, device, behind=behind)
    assert_alike(bound(cu), lambda *t: loop(lengths)(*t)[0], tensors)


@pytest.mark.parametrize("lengths", ["several", "no keys"])
@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"window": (1, 0)}, {"window": (None, 1), "is_causal": True}, {"window": (2, None)}],
    ids=str,
)
@pytest.mark.parametrize("alignment", ["top_left", "bottom_right"])
def test_positions_count_from_the_beginning_of_each_sequence(
    lengths: str, options: dict[str, Any], alignment: str, device: str
) -> None:
    left, right = options.get("window", (None, None))
    right = 0 if options.get("is_causal") else right

    def visible(lq: int, lk: int) -> Tensor:
        ahead = positions(lq, lk, bottom_right=alignment == "bottom_right", device=device)
        return (ahead <= (99 if right is None else right)) & (ahead >= -(99 if left is None else left))

    tensors, cu = packed(lengths, device)
    ours = bound(cu, causal_alignment=alignment, **options)
    assert_alike(ours, lambda *t: loop(lengths, visible)(*t)[0], tensors)


@pytest.mark.parametrize("lengths", LONG)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"is_causal": True, "causal_alignment": "bottom_right"},
        {"window": (3, 2)},
        {"window": (None, 4)},
    ],
    ids=str,
)
@pytest.mark.parametrize("kv", [1, 2], ids=["grouped", "one key head each"])
def test_long_sequences(
    lengths: str, options: dict[str, Any], kv: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LENGTHS, lengths, LONG[lengths])
    left, right = options.get("window", (None, None))
    right = 0 if options.get("is_causal") else right

    def visible(lq: int, lk: int) -> Tensor:
        ahead = positions(lq, lk, bottom_right="causal_alignment" in options, device=device)
        return (ahead <= (99 if right is None else right)) & (ahead >= -(99 if left is None else left))

    tensors, cu = packed(lengths, device, h=2, kv=kv, behind=9, width=2)
    ours = bound(cu, enable_gqa=True, **options)
    assert_alike(ours, lambda *t: loop(lengths, visible)(*t)[0], tensors, ("primal", "vjp"))


def ranges_of(rows: Sequence[tuple[int, int]]) -> Tensor:
    first, end = zip(*rows, strict=True)
    return torch.tensor([first, end, first], dtype=torch.int32).unsqueeze(0)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12), st.booleans(), st.integers(0, 2)), min_size=1))
def test_runs_are_all_rows_with_the_keys_that_they_see(parts: list[tuple[int, int, bool, int]]) -> None:
    rows = [(c, c + (min(i + 1, n) if causal else n)) for count, n, causal, c in parts for i in range(count)]
    runs = runs_of(ranges_of(rows))
    if runs is None:  # cut too often
        return
    found = [
        (c, c + 1 + i if run.causal else d) for run in runs for (a, b, c, d) in (run.window,) for i in range(b - a)
    ]
    assert found == rows


def test_runs_of_packed_sequences() -> None:
    whole, causal = [(0, 20)] * 20, [(20, 21 + i) for i in range(16)]
    runs = runs_of(ranges_of(whole + causal))
    assert runs == [((0, 20, 0, 20), False), ((20, 36, 20, 36), True)]
    assert runs_of(ranges_of(causal + [(20, 36)] * 9)) == [((0, 16, 20, 36), True), ((16, 25, 20, 36), False)]
    assert runs_of(ranges_of([(i, i + 4) for i in range(40)])) is None  # a window that slides
    assert runs_of(ranges_of([(0, 5 + i) for i in range(40)])) is None  # causal, but from the fifth key on
    assert runs_of(ranges_of([(0, 4), (4, 8)] * 20)) is None  # more calls than are worth it


@pytest.mark.parametrize("alignment", ["top_left", "bottom_right"])
def test_grouped_queries_softcap_scale_and_slopes(alignment: str, device: str) -> None:
    tensors, cu = packed("several", device, h=4, kv=2)
    slopes, options = torch.rand(4, device=device), {"softcap": 1.5, "scale": 0.6}
    ours = bound(cu, enable_gqa=True, alibi_slopes=slopes, causal_alignment=alignment, **options)

    def added(lq: int, lk: int) -> Tensor:
        ahead = positions(lq, lk, bottom_right=alignment == "bottom_right", device=device)
        return -slopes.double()[:, None, None] * ahead.abs()

    assert_alike(ours, lambda *t: loop("several")(*t, added, **options)[0], tensors)


def test_lse(device: str) -> None:
    tensors, cu = packed("several", device)
    assert_alike(bound(cu, return_lse=True), loop("several"), tensors)


def test_keys_are_those_of_the_queries_by_default(device: str) -> None:
    lengths = starts([2, 3], device)
    q, k, v = (heads(5, 2, 2, device=device) for _ in range(3))
    assert torch.equal(ops.varlen_attention(q, k, v, lengths), ops.varlen_attention(q, k, v, lengths, lengths))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_dtypes_of_lengths(dtype: torch.dtype, device: str) -> None:
    tensors, cu = packed("several", device)
    assert_equal(bound(tuple(t.to(dtype) for t in cu))(*tensors), loop("several")(*tensors)[0])


def test_one_sequence_is_plain_attention(device: str) -> None:
    tensors, cu = packed("one", device)
    plain = ops.scaled_dot_product_attention(*(t.transpose(0, 1) for t in tensors), is_causal=True)
    assert_equal(bound(cu, is_causal=True)(*tensors), plain.transpose(0, 1))


def test_vmap_over_packed_tensors_and_over_lengths(device: str) -> None:
    tensors, cu = packed("several", device)
    rows = tuple(torch.stack([t, 2 * t, -t]) for t in tensors)
    rules = (*RULES, "vmap∘jvp", "vmap∘grad")
    reference = lambda *t: loop("several")(*t)[0]  # noqa: E731
    assert_alike(torch.func.vmap(bound(cu)), torch.func.vmap(reference), rows, RULES)
    assert_alike(bound(cu), reference, tensors, rules[len(RULES) :])
    others = torch.stack([cu[0], torch.tensor([0, 4, 5, 8], dtype=torch.int32, device=device)])
    found = torch.func.vmap(lambda lengths: ops.varlen_attention(*tensors, lengths, cu[1]))(others)
    for i in range(2):
        assert_equal(found[i], ops.varlen_attention(*tensors, others[i], cu[1]))


def test_hessian_and_functional_transforms(device: str) -> None:
    tensors, cu = packed("one", device, h=1, kv=1)
    f, g = bound(cu, is_causal=True), lambda *t: loop("one", lambda n, m: positions(n, m, device=device) <= 0)(*t)[0]
    assert_equal(*(torch.func.hessian(lambda q, h=h: h(q, *tensors[1:]).square().sum())(tensors[0]) for h in (f, g)))
    assert_equal(*(torch.func.jacfwd(h, (0, 1, 2))(*tensors) for h in (f, g)))


@pytest.mark.compiled
def test_one_compilation_serves_all_lengths(device: str) -> None:
    """Of rows and of sequences, value and gradient; lengths are data and are not read."""
    torch.compiler.reset()
    compilations = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compilations
        compilations += 1
        return graph.forward

    compiled = torch.compile(
        partial(ops.varlen_attention, is_causal=True), fullgraph=True, dynamic=True, backend=backend
    )
    for lengths in ([3, 1, 4], [2, 2, 9, 4], [11, 3]):
        cu = starts(lengths, device)
        q, k, v = (heads(sum(lengths), 2, 3, device=device).requires_grad_() for _ in range(3))
        o = compiled(q, k, v, cu)
        eager = ops.varlen_attention(q, k, v, cu, is_causal=True)
        assert_equal(o, eager)
        assert_equal(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (o, eager)))
    torch.compiler.reset()
    assert compilations == 1


# ---- bad input -------------------------------------------------------------------------------------------------------

X = torch.zeros(5, 2, 3)
CU = torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((1, X, X, CU), TypeError, r"query must be a Tensor, got int"),
        ((X[0], X, X, CU), ValueError, r"query must have shape \(total length, heads, head size\), got \(2, 3\)"),
        ((X, X[None], X, CU), ValueError, r"key must have shape \(total length, .* got \(1, 5, 2, 3\)"),
        ((X, X, X[:4], CU), ValueError, r"value must be as long as key, whose shape is \(5, 2, 3\), got \(4, 2, 3\)"),
        ((X, X[:, :, :2], X, CU), ValueError, r"key must have the query's head size 3 .* got \(5, 2, 2\)"),
        (
            (X, X[:, :1].expand(5, 3, 3), X, CU),
            ValueError,
            r"one number of heads, or 1, got \(2, 3, 2\); .* enable_gqa=True",
        ),
        ((X, X, X, CU.float()), TypeError, r"cu_seqlens_q must be a Tensor of int32 or int64, got torch.float32"),
        ((X, X, X, [0, 5]), TypeError, r"cu_seqlens_q must be a Tensor .* got list"),
        ((X, X, X, CU, CU.bool()), TypeError, r"cu_seqlens_k must be a Tensor .* got torch.bool"),
        ((X, X, X, CU[:1]), ValueError, r"cu_seqlens_q must have shape \(sequences \+ 1,\) .* got \(1,\)"),
        ((X, X, X, CU.to("meta")), ValueError, r"cu_seqlens_q must .* on cpu, got \(3,\) on meta"),
        ((X, X, X, CU, CU[:2]), ValueError, r"cu_seqlens_k must have as many sequences as cu_seqlens_q, 2, got 1"),
        ((X, X, X, CU + 1), ValueError, r"cu_seqlens_q must begin with 0, .* within the 5 rows .* got \[1, 3, 6\]"),
        ((X, X, X, CU.flip(0)), ValueError, r"cu_seqlens_q must begin with 0, not decrease, .* got \[5, 2, 0\]"),
        ((X, X, X, CU, 2 * CU), ValueError, r"cu_seqlens_k .* end within the 5 rows of its tensor, got \[0, 4, 10\]"),
    ],
)
def test_bad_input(args: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"varlen_attention: .*{message}"):
        ops.varlen_attention(*args)


@pytest.mark.parametrize("behind", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_what_stands_behind_the_last_sequence_is_not_read(causal: bool, behind: int) -> None:
    """Rows that fill a buffer up may hold anything: no result or derivative of other rows is NaN for that."""
    tensors, cu = packed("several", "cpu", behind=behind)
    ends = [int(cu[0][-1]), int(cu[1][-1]), int(cu[1][-1])]
    dirty = [t.clone() for t in tensors]
    for tensor, end in zip(dirty, ends, strict=True):
        tensor[end:] = float("nan")

    def f(*xs: Tensor) -> Tensor:
        return ops.varlen_attention(*xs, *cu, is_causal=causal)

    def results(xs: list[Tensor]) -> list[Tensor]:
        leaves, moved = [x.clone().requires_grad_() for x in xs], tuple(x.cos() for x in xs)
        loss = lambda *xs: f(*xs)[: ends[0]].square().sum()  # noqa: E731
        bars = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum(b[:e].square().sum() for b, e in zip(bars, ends, strict=True)), leaves)
        y, y_dot = torch.func.jvp(f, tuple(xs), moved)
        hvp = torch.func.jvp(torch.func.grad(loss, argnums=(0, 1, 2)), tuple(xs), moved)[1]
        each = torch.vmap(f)(*(torch.stack([x, 2 * x]) for x in xs))
        return [*(b[:e] for b, e in zip((*bars, *second, *hvp), 3 * ends, strict=True)), y, y_dot, each]

    for found, expected in zip(results(dirty), results(list(tensors)), strict=True):
        torch.testing.assert_close(found, expected)
        assert found.isfinite().all()
