"""Attention of CPU tensors by oneDNN, a head after another: when it is so, and that its numbers are as good."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from attention_judge import not_interpreted
from test_attention_cpu import F64, HIDING, allocations, draw_wide, peak, points, results, softmax_formula
from torch import Tensor

from torch_jvpvjp import _onednn, ops
from torch_jvpvjp.accumulation._torch_contexts import plain_kernels
from torch_jvpvjp.ops.attention import products, stripes
from torch_jvpvjp.testing.budget import NEIGHBOURS, assert_in_budget

pytestmark = [
    not_interpreted,  # CPU tensors take the kernels there
    pytest.mark.skipif(_onednn.onednn_products() is None, reason="PyTorch was built without oneDNN"),
]
F32 = torch.float32


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """OneDNN is quicker, whatever this machine says."""
    monkeypatch.setattr(products, "onednn_is_quicker_by_head", lambda threads: True)


@pytest.fixture
def small_too(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any product is large enough, and there are many tiles."""
    monkeypatch.setattr(products, "LEAST_FMA_BY_HEAD", 0)
    monkeypatch.setattr("torch_jvpvjp.ops.attention.cpu.LEAST_FMA_BY_HEAD", 0)
    monkeypatch.setattr(stripes, "_FEWEST_ROWS", 2)
    monkeypatch.setattr(stripes, "_ROWS_IN_TILE", 4)
    monkeypatch.setattr(stripes, "_WIDTHS_BY_HEAD", 2)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """The shapes of all products that oneDNN makes."""
    found: list[torch.Size] = []
    product = products.product

    def counted(*args: Any) -> Tensor:
        y = product(*args)
        found.append(y.shape)
        return y

    monkeypatch.setattr(products, "product", counted)
    return found


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "causal", "bottom right", "bias", "bias of keys"])
def test_errors_are_within_those_of_the_formula(
    name: str, dtype: torch.dtype, small_too: None, made: list[torch.Size]
) -> None:
    options = HIDING[name]
    if name == "bottom right":  # which the formula does not know: the same hidden by a mask
        seen = torch.arange(15) <= torch.arange(9)[:, None] + 6
        formula = {"attn_mask": seen}
    else:
        formula = options
    low = [results(softmax_formula, formula, dtype, scale=factor) for factor in NEIGHBOURS]
    high = [results(softmax_formula, formula, F64, scale=factor, rounded=dtype) for factor in NEIGHBOURS]
    assert_in_budget(results(ops.scaled_dot_product_attention, options, dtype), low, high, dtype)
    assert made


TANGENTS: dict[str, tuple[int | None, ...]] = {  # which of q̇, k̇, v̇ differ in each direction; None where there is none
    "all": (0, 0, 0),
    "query alone": (0, None, None),
    "value alone": (None, None, 0),
    "one shared": (0, 1, 1),
    "value shared": (0, None, 1),
    "scores shared": (1, None, 0),
}


@pytest.mark.parametrize("route", ["oneDNN", "bmm"])
@pytest.mark.parametrize("name", TANGENTS)
def test_several_tangents_of_one_primal(
    name: str, route: str, small_too: None, made: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "onednn_is_quicker_by_head", lambda threads: route == "oneDNN")
    dtype = F32 if route == "oneDNN" else F64
    xs = [t.to(dtype) for t in draw_wide((2, 4, 9, 5), (2, 2, 15, 5), (2, 2, 15, 5))]
    count = 3
    dots = [
        None if kind is None else torch.randn((count, *x.shape) if kind == 0 else x.shape, dtype=dtype)
        for x, kind in zip(xs, TANGENTS[name], strict=True)
    ]
    given = [i for i, dot in enumerate(dots) if dot is not None]
    in_dims = tuple(0 if TANGENTS[name][i] == 0 else None for i in given)

    def push(*some: Tensor, op: Any = ops.scaled_dot_product_attention) -> tuple[Tensor, Tensor]:
        def of(*moved: Tensor) -> Tensor:
            arguments = list(xs)
            for i, x in zip(given, moved, strict=True):
                arguments[i] = x
            return op(*arguments, is_causal=True, enable_gqa=True)

        return torch.func.jvp(of, tuple(xs[i] for i in given), some)

    chosen = [dot for dot in dots if dot is not None]
    found = torch.vmap(push, in_dims, (None, 0))(*chosen)
    assert bool(made) == (route == "oneDNN")
    for i in range(count):
        one = [dot if dim is None else dot[i] for dot, dim in zip(chosen, in_dims, strict=True)]
        expected = push(*one, op=softmax_formula)
        torch.testing.assert_close((found[0], found[1][i]), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("value_size", [5, 3])
@pytest.mark.parametrize("name", HIDING)
def test_they_are_those_of_the_other_products(
    name: str, value_size: int, small_too: None, made: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = results(ops.scaled_dot_product_attention, HIDING[name], F32, value_size)
    assert bool(made) == (name not in {"window", "left"})  # where few keys are seen at once
    monkeypatch.setattr(products, "onednn_is_quicker_by_head", lambda threads: False)
    made.clear()
    expected = results(ops.scaled_dot_product_attention, HIDING[name], F64, value_size, rounded=F32)
    assert not made
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["plain", "causal", "mask"])
@pytest.mark.parametrize("layout", ["heads outside", "heads inside"])
def test_large_tensors_however_they_lie(name: str, layout: str, quick: None, made: list[torch.Size]) -> None:
    b, h, n, d = 2, 2, 513, 64
    if layout == "heads outside":
        wide = draw_wide(*[(b, h, n, d)] * 4)
    else:
        wide = [t.transpose(1, 2) for t in draw_wide(*[(b, n, h, d)] * 4)]
    seen = torch.arange(n * n).view(n, n) % 3 > 0
    seen[7] = False
    options = {"plain": {}, "causal": {"is_causal": True}, "mask": {"attn_mask": seen}}[name]

    def both(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        *inputs, w = (t.detach().requires_grad_() for t in tensors)
        o, lse = ops.scaled_dot_product_attention(*inputs, return_lse=True, **options)
        return (o.detach(), lse.detach(), *torch.autograd.grad(o, inputs, w))

    expected = both(wide)
    assert not made  # float64
    narrow = [t.float() for t in wide]
    kept = [t.clone() for t in narrow]
    found = both(narrow)
    assert len(made) > 5 * b * h
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=2e-5)
    assert all(t.is_contiguous() for t in found[2:])
    assert all(torch.equal(t, other) for t, other in zip(narrow, kept, strict=True))


@pytest.mark.parametrize("added", [False, True])
def test_long_sums_err_no_more_than_those_of_pytorch(added: bool) -> None:
    """OneDNN adds term after term, which errs by twice as much: pieces of a sum are made by themselves."""
    p, v, y = draw_wide((256, 2048), (2048, 64), (256, 64), dtype=F32)
    exact = p.double() @ v.double() + (y.double() if added else 0)
    found = products.product(p, v.t(), y if added else None)
    theirs = torch.addmm(y, p, v) if added else p @ v
    error, allowed = ((t.double() - exact).square().mean().sqrt() for t in (found, theirs))
    assert error <= 1.5 * allowed


def test_large_derivatives_are_within_the_budget(quick: None, made: list[torch.Size]) -> None:
    length, width = 1024, 64
    wide = draw_wide(*[(1, 1, length, width)] * 7)

    def all_of(f: Callable[..., Any], dtype: torch.dtype, scale: float) -> list[Tensor]:
        q, k, v, q_dot, k_dot, v_dot, w = ((scale * t).float().to(dtype) for t in wide)
        both = torch.func.jvp(f, (q, k, v), (q_dot, k_dot, v_dot))
        pull = lambda *xs: torch.func.vjp(f, *xs)[1](w)  # noqa: E731
        return [*both, *(t for pair in torch.func.jvp(pull, (q, k, v), (q_dot, k_dot, v_dot)) for t in pair)]

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT * width**-0.5, -1) @ v

    low = [all_of(formula, F32, factor) for factor in NEIGHBOURS]
    high = [all_of(formula, F64, factor) for factor in NEIGHBOURS]
    made.clear()
    assert_in_budget(all_of(ops.scaled_dot_product_attention, F32, 1.0), low, high, F32)
    assert made


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_special_values_pass_through(number: float, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, w = (t.float() for t in draw_wide(*[(1, 1, 512, 64)] * 4))
    q[0, 0, 3, 5] = number
    v[0, 0, 7, 9] = number

    def both() -> list[Tensor]:
        inputs = [t.detach().requires_grad_() for t in (q, k, v)]
        o = ops.scaled_dot_product_attention(*inputs)
        return [o.detach(), *torch.autograd.grad(o, inputs, w)]

    found = both()
    s = torch.softmax(q.double() @ k.double().mT / 8, -1) @ v.double()
    assert torch.equal(found[0].isfinite(), s.isfinite())
    monkeypatch.setattr(products, "onednn_is_quicker_by_head", lambda threads: False)
    monkeypatch.setattr("torch_jvpvjp.ops.attention.fused.is_plain", lambda inputs: False)
    monkeypatch.setattr("torch_jvpvjp.ops.attention.fused.fits", lambda inputs: False)
    for a, b in zip(found, both(), strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


def test_rows_that_see_nothing_have_no_gradient_beside_a_row_of_nan(quick: None, made: list[torch.Size]) -> None:
    q, k, v, w = (t.float() for t in draw_wide(*[(1, 1, 512, 64)] * 4))
    q[0, 0, 3] = float("nan")
    seen = torch.ones(512, 512, dtype=torch.bool)
    seen[7] = False
    q.requires_grad_()
    (found,) = torch.autograd.grad(ops.scaled_dot_product_attention(q, k, v, attn_mask=seen), q, w)
    assert made
    assert torch.equal(found[0, 0].isfinite().all(-1), torch.arange(512) != 3)
    assert not found[0, 0, 7].any()


@pytest.mark.compiled
def test_compiled_it_is_the_same(quick: None, made: list[torch.Size]) -> None:
    q, k, v = (t.float().transpose(1, 2) for t in draw_wide(*[(1, 512, 2, 64)] * 3))
    step = lambda q, k, v: torch.func.grad_and_value(  # noqa: E731
        lambda q: ops.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum()
    )(q)
    expected = step(q, k, v)
    count = len(made)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(q, k, v)
    assert count and len(made) == 2 * count
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# ---- when ------------------------------------------------------------------------------------------------------------

Change = Callable[[pytest.MonkeyPatch], Any]
PLAIN: list[Tensor] = [t.float() for t in draw_wide(*[(1, 2, 512, 64)] * 3)]


def attend(tensors: list[Tensor] = PLAIN, **options: Any) -> Tensor:
    return ops.scaled_dot_product_attention(*tensors, **options)


CALLS: dict[str, tuple[Callable[[], object], bool]] = {
    "plain": (attend, True),
    "causal": (lambda: attend(is_causal=True), True),
    "mask": (lambda: attend(attn_mask=torch.ones(512, 512, dtype=torch.bool)), True),
    "grouped": (lambda: attend([PLAIN[0], PLAIN[1][:, :1], PLAIN[2][:, :1]], enable_gqa=True), True),
    "alibi": (lambda: attend(alibi_slopes=torch.ones(2)), True),
    "window": (lambda: attend(window=(16, 16)), False),
    "softcap": (lambda: attend(softcap=2.0), False),
    "dropout": (lambda: attend(dropout_p=0.1), False),
    "float64": (lambda: attend([t.double() for t in PLAIN]), False),
    "bfloat16": (lambda: attend([t.bfloat16() for t in PLAIN]), False),
    "short": (lambda: attend([t[:, :, :128] for t in PLAIN]), False),
    "one query": (lambda: attend([PLAIN[0][:, :, :1], *PLAIN[1:]]), False),
    "narrow heads": (lambda: attend([t[..., :8] for t in PLAIN]), False),
    "JVP": (lambda: torch.func.jvp(lambda q: attend([q, *PLAIN[1:]]), (PLAIN[0],), (PLAIN[1],)), True),
    "inference": (lambda: torch.inference_mode()(attend)(), True),
}


@pytest.mark.parametrize("name", CALLS)
def test_large_products_of_float32_are_made_by_onednn(name: str, quick: None, made: list[torch.Size]) -> None:
    call, expected = CALLS[name]
    call()
    assert bool(made) == expected


def test_where_it_is_not_quicker_it_is_not_called(monkeypatch: pytest.MonkeyPatch, made: list[torch.Size]) -> None:
    monkeypatch.setattr(products, "onednn_is_quicker_by_head", lambda threads: False)
    attend()
    assert not made


def test_more_threads_want_larger_products(monkeypatch: pytest.MonkeyPatch, made: list[torch.Size]) -> None:
    push, asked = CALLS["JVP"][0], []
    monkeypatch.setattr(products, "onednn_is_quicker_by_head", lambda threads: asked.append(threads) or True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    push()
    assert not made and not asked
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    push()
    assert made and set(asked) == {2}


def test_on_several_threads_the_fused_kernels_stay_where_they_are_quicker(
    quick: None, made: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    def routes(threads: int, **options: Any) -> tuple[bool, bool]:
        """Whether oneDNN makes products of the value, and of the pullback."""
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        inputs = [t.detach().requires_grad_() for t in PLAIN]
        found = []
        o = attend(inputs, **options)
        for step in (lambda: None, lambda: torch.autograd.grad(o.sum(), inputs)):
            step()
            found.append(bool(made))
            made.clear()
        return found[0], found[1]

    assert routes(1) == routes(1, is_causal=True) == (True, True)
    assert routes(2) == (False, True)
    assert routes(2, is_causal=True) == routes(3) == (False, False)


@pytest.mark.parametrize("needs", [(0, 1, 2), (0,), (1, 2), (2,), (0, 1)])
@pytest.mark.parametrize("name", ["plain", "causal", "bottom right", "mask", "alibi", "hidden rows", "long"])
def test_pullbacks_of_heads_that_are_one_tile(
    name: str, needs: tuple[int, ...], small_too: None, made: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both results, grouped queries, sums that go piece by piece, and keys that no row sees."""
    monkeypatch.setattr(stripes, "_ROWS_IN_TILE", 512)
    rows, keys = (300, 290) if name == "long" else (9, 15)
    q, k, v = draw_wide((2, 4, rows, 5), (2, 2, keys, 5), (2, 2, keys, 3))
    hidden = (torch.rand(2, 1, rows, keys) > 0.3) & (torch.arange(rows) != 4)[:, None]
    options: dict[str, Any] = {
        "plain": {},
        "causal": {"is_causal": True},
        "bottom right": {"is_causal": True, "causal_alignment": "bottom_right"},
        "mask": {"attn_mask": torch.rand(1, 4, rows, keys) > 0.3},
        "alibi": {"alibi_slopes": torch.rand(4)},
        "hidden rows": {"attn_mask": hidden},
        "long": {},
    }[name]
    w, lse_bar = torch.randn(2, 4, rows, 3), torch.randn(2, 4, rows)

    def pulled(dtype: torch.dtype, *, with_lse: bool) -> tuple[Tensor, ...]:
        xs = [t.to(dtype, copy=True) for t in (q.float(), k.float(), v.float())]
        for i in needs:
            xs[i].requires_grad_()
        o, lse = ops.scaled_dot_product_attention(*xs, enable_gqa=True, return_lse=True, **options)
        made.clear()
        outputs, bars = ([o, lse], [w, lse_bar]) if with_lse and needs != (2,) else ([o], [w])
        bars = [t.to(dtype) for t in bars]
        return torch.autograd.grad(outputs, [xs[i] for i in needs], bars)

    for with_lse in (False, True):
        found = pulled(F32, with_lse=with_lse)
        assert made
        for a, b in zip(found, pulled(F64, with_lse=with_lse), strict=True):
            assert a.shape == b.shape and a.is_contiguous()
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5)


def test_where_onednn_is_off_it_is_not_called(quick: None, made: list[torch.Size]) -> None:
    with plain_kernels():  # another thread records
        attend()
    assert not made
    attend()
    assert made


def test_deterministic_algorithms_do_not_depend_on_a_measurement(quick: None, made: list[torch.Size]) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        attend()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not made


def test_products_that_may_be_less_than_float32_are_not_made(quick: None, made: list[torch.Size]) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        attend()
    finally:
        torch.set_float32_matmul_precision(before)
    assert not made
    attend()
    assert made


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "causal"])
def test_no_matrix_of_queries_by_keys_is_held(name: str, quick: None, made: list[torch.Size]) -> None:
    length, width = 4096, 24
    xs = draw_wide(*[(1, 1, length, width)] * 3, dtype=F32)
    matrix = length * length * 4
    for point, run in points(ops.scaled_dot_product_attention, xs, {"is_causal": name == "causal"}).items():
        made.clear()
        sizes = allocations(run)
        assert made, point
        assert max(sizes) <= matrix // 16, point
        assert peak(sizes) <= matrix // 3, point  # of all tiles, results and residuals together
