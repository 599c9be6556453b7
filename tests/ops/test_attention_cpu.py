"""Attention of CPU tensors: no matrix of queries by keys at any point up to the second order, whatever hides keys."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from attention_judge import not_interpreted
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_jvpvjp import ops
from torch_jvpvjp.ops.attention import fused, in_place, stripes
from torch_jvpvjp.testing.budget import NEIGHBOURS, assert_in_budget

pytestmark = not_interpreted  # CPU tensors take the kernels there
Function = Callable[..., Any]
F64 = torch.float64


def draw_wide(*shapes: Sequence[int], dtype: torch.dtype = F64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=dtype, generator=generator) for shape in shapes]


# ---- memory ----------------------------------------------------------------------------------------------------------


def allocations(run: Callable[[], object]) -> list[int]:
    """Bytes that were allocated (positive) and freed, in order."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with warnings.catch_warnings():
        # Events are kept for one cycle, which is all there is. With `acc_events` each becomes a Python object: seconds.
        warnings.filterwarnings("ignore", ".*Profiler clears events")
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
            run()
    found = profile.profiler
    assert found is not None and found.kineto_results is not None
    events = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def peak(sizes: Sequence[int]) -> int:
    level = highest = 0
    for size in sizes:
        level += size
        highest = max(highest, level)
    return highest


def points(f: Function, xs: Sequence[Tensor], options: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Everything up to the second order, as users ask for it."""
    xs, dots = tuple(xs), tuple(torch.randn_like(x) for x in xs)
    w, u = torch.randn_like(xs[0]), torch.randn_like(xs[0])
    call = lambda *xs: f(*xs, **options)  # noqa: E731
    leaves = lambda tensors: tuple(t.detach().requires_grad_() for t in tensors)  # noqa: E731

    def vjp() -> object:
        inputs = leaves(xs)
        return torch.autograd.grad(call(*inputs), inputs, w)

    def vjp_of_jvp() -> object:
        inputs = leaves((*xs, *dots))
        return torch.autograd.grad(torch.func.jvp(call, inputs[: len(xs)], inputs[len(xs) :]), inputs, (w, u))

    def jvp_of_vjp() -> object:
        return torch.func.jvp(lambda *xs: torch.func.vjp(call, *xs)[1](w), xs, dots)

    def vjp_of_vjp() -> object:
        inputs = leaves(xs)
        first = torch.autograd.grad(call(*inputs), inputs, w, create_graph=True)
        return torch.autograd.grad(first, inputs, dots)

    return {
        "primal": lambda: call(*xs),
        "jvp": lambda: torch.func.jvp(call, xs, dots),
        "vjp": vjp,
        "vjp of jvp": vjp_of_jvp,
        "jvp of vjp": jvp_of_vjp,
        "vjp of vjp": vjp_of_vjp,
    }


LENGTH = 2048
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "bottom right": {"is_causal": True, "causal_alignment": "bottom_right"},
    "window": {"window": (100, 5)},
    "mask": {"attn_mask": torch.arange(LENGTH * LENGTH).view(LENGTH, LENGTH) % 3 > 0},
    "alibi": {"alibi_slopes": torch.tensor([0.5])},
    "softcap": {"softcap": 5.0},
    "dropout": {"dropout_p": 0.1},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "dropout" else ()) for n in OPTIONS])
def test_no_point_up_to_the_second_order_holds_a_matrix_of_queries_by_keys(name: str) -> None:
    matrix = LENGTH * LENGTH * 4
    xs = draw_wide((1, 1, LENGTH, 4), (1, 1, LENGTH, 4), (1, 1, LENGTH, 4), dtype=torch.float32)
    for point, run in points(ops.scaled_dot_product_attention, xs, OPTIONS[name]).items():
        sizes = allocations(run)
        assert max(sizes) <= matrix // 4, point
        assert peak(sizes) <= 3 * matrix // 4, point  # of all tiles, stripes, results and residuals together


# ---- numbers ---------------------------------------------------------------------------------------------------------

SEEN = torch.rand(9, 15, generator=torch.Generator().manual_seed(1)) > 0.5
SEEN[4] = False
KEYS = torch.arange(15) < torch.tensor([[11], [0]])

HIDING: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "bottom right": {"is_causal": True, "causal_alignment": "bottom_right"},
    "window": {"window": (2, 1)},
    "left": {"window": (3, None)},
    "mask": {"attn_mask": SEEN},
    "mask of each head": {"attn_mask": torch.stack([SEEN, SEEN.roll(1, 0), ~SEEN, SEEN.roll(2, 1)])[None]},
    "mask, causal": {"attn_mask": SEEN, "is_causal": True},
    "keys": {"attn_mask": KEYS[:, None, None, :]},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 1.0, 2.0, 4.0]), "is_causal": True},
    "bias": {"attn_mask": draw_wide((2, 4, 9, 15))[0]},
    "bias of rows": {"attn_mask": draw_wide((4, 9, 1))[0]},
    "bias of keys": {"attn_mask": draw_wide((1, 15))[0], "is_causal": True},
}


def results(
    f: Function,
    options: dict[str, Any],
    dtype: torch.dtype,
    value_size: int = 5,
    scale: float = 1.0,
    rounded: torch.dtype = F64,
) -> list[Tensor]:
    """Value, ℓ and all derivatives up to the second order, with cotangents for o and ℓ, of grouped heads."""

    def draw(*shapes: Sequence[int], seed: int = 0) -> list[Tensor]:
        return [(scale * t if seed == 0 else t).to(rounded).to(dtype) for t in draw_wide(*shapes, seed=seed)]

    xs = draw((2, 4, 9, 5), (2, 2, 15, 5), (2, 2, 15, value_size))
    options = dict(options)
    bias = options.get("attn_mask")
    if bias is not None and bias.is_floating_point():
        xs.append(options.pop("attn_mask").to(rounded).to(dtype))
    dots = draw(*(x.shape for x in xs), seed=1)
    lse = f(*xs, enable_gqa=True, return_lse=True, **options)[1]
    sees = lse > -torch.inf  # ℓ of a row that sees nothing is -inf and has no derivative
    bars = [draw((2, 4, 9, value_size), seed=2)[0], draw((2, 4, 9), seed=3)[0].to(lse.dtype)]

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        o, lse = f(*tensors, enable_gqa=True, return_lse=True, **options)
        return o, lse.where(sees, 0)

    found = list(call(*xs))
    inputs = [x.clone().requires_grad_() for x in (*xs, *dots)]
    both = torch.func.jvp(call, tuple(inputs[: len(xs)]), tuple(inputs[len(xs) :]))
    outputs = [*both[0], *both[1]]
    found += outputs
    found += torch.autograd.grad(outputs, inputs, [*bars, *(2 * w for w in bars)], retain_graph=True)
    found += torch.autograd.grad(outputs[2], inputs[: len(xs)], bars[0])
    pull = lambda *xs: torch.func.vjp(call, *xs)[1](tuple(bars))  # noqa: E731
    found += [t for pair in torch.func.jvp(pull, tuple(xs), tuple(dots)) for t in pair]
    only_o = [x.clone().requires_grad_() for x in xs]
    found += torch.autograd.grad(f(*only_o, enable_gqa=True, **options), only_o, bars[0])
    return [t.detach() for t in found]


@pytest.mark.parametrize("value_size", [5, 3])
@pytest.mark.parametrize("name", HIDING)
def test_tiles_and_fused_kernels_give_what_the_formulas_give(
    name: str, value_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant, number in {
        "_SCORES_IN_TILE": 64,
        "_ROWS_IN_TILE": 4,
        "_FEWEST_ROWS": 2,
        "_SCORES_IN_CALL": 64,
    }.items():
        monkeypatch.setattr(stripes, constant, number)  # many tiles, of several heads and of one
    found = results(ops.scaled_dot_product_attention, HIDING[name], F64, value_size)
    monkeypatch.setattr(fused, "fits", lambda inputs: False)
    in_tiles = results(ops.scaled_dot_product_attention, HIDING[name], F64, value_size)
    monkeypatch.setattr(in_place, "fits", lambda *args: False)
    monkeypatch.setattr(stripes, "_FEWEST_ROWS", 512)  # one stripe: the formulas
    exact = results(ops.scaled_dot_product_attention, HIDING[name], F64, value_size)
    for kernels in (found, in_tiles):
        for a, b in zip(kernels, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def upper(length: int) -> Tensor:
    return torch.full((length, length), -torch.inf, dtype=F64).triu(1)


def hidden_rows(length: int) -> Tensor:
    seen = torch.arange(length * length).view(1, 1, length, length) % 3 > 0
    seen[..., 5, :] = False
    return seen


LARGE: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda length: {},
    "causal": lambda length: {"is_causal": True},
    "mask": lambda length: {"attn_mask": hidden_rows(length)},
    "mask of each head": lambda length: {"attn_mask": torch.cat([hidden_rows(length), ~hidden_rows(length)], 1)},
}


@pytest.mark.parametrize("layout", ["heads outside", "heads inside"])
@pytest.mark.parametrize("shape", [(1, 2, 512, 32), (2, 2, 384, 32), (2, 2, 385, 32)], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_fused_kernels_of_large_tensors_give_what_a_formula_gives(
    name: str, shape: tuple[int, ...], layout: str
) -> None:
    """Heads become a batch where that is a view, and causal gradients of these lengths come in halves."""
    b, h, n, d = shape
    options = LARGE[name](n)
    if layout == "heads outside":
        q, k, v, w = draw_wide(shape, shape, shape, shape)
    else:
        q, k, v, w = (t.transpose(1, 2) for t in draw_wide(*[(b, n, h, d)] * 4))
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    s = inputs[0] @ inputs[1].mT * d**-0.5
    s = s + upper(n) if name == "causal" else s
    s = s.masked_fill(~options["attn_mask"], -torch.inf) if "attn_mask" in options else s
    expected_lse = torch.logsumexp(s, -1)
    expected = torch.softmax(s, -1).nan_to_num(0) @ inputs[2]
    p = torch.softmax(s.masked_fill(expected_lse[..., None] == -torch.inf, 0), -1)
    p = p.masked_fill(expected_lse[..., None] == -torch.inf, 0)  # 0 and no NaN in the pullback of rows that see nothing
    bars = torch.autograd.grad(p @ inputs[2], inputs, w)
    o, lse = ops.scaled_dot_product_attention(*inputs, return_lse=True, **options)
    torch.testing.assert_close((o, lse), (expected, expected_lse), rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(ops.scaled_dot_product_attention(*inputs, **options), inputs, w)
    torch.testing.assert_close(found, bars, rtol=1e-10, atol=1e-10)


def softmax_formula(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Any:
    """What PyTorch's MATH does, in the dtype of the inputs."""
    k, v = (t.repeat_interleave(2, -3) for t in (k, v))
    s = q @ k.mT * q.shape[-1] ** -0.5
    if options.get("is_causal"):
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        s = s.masked_fill(~attn_mask, -1e4) if attn_mask.dtype == torch.bool else s + attn_mask
    o, lse = torch.softmax(s, -1) @ v, torch.logsumexp(s, -1).to(torch.float64 if q.dtype == F64 else torch.float32)
    return (o, lse) if options.get("return_lse") else o


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "causal", "bias", "bias of keys"])
def test_errors_are_within_those_of_the_formula_in_the_same_dtype(name: str, dtype: torch.dtype) -> None:
    options = HIDING[name]
    low = [results(softmax_formula, options, dtype, scale=factor) for factor in NEIGHBOURS]
    high = [results(softmax_formula, options, F64, scale=factor, rounded=dtype) for factor in NEIGHBOURS]
    assert_in_budget(results(ops.scaled_dot_product_attention, options, dtype), low, high, dtype)


@pytest.mark.parametrize("number", [-1e4, -1e9, torch.finfo(torch.float32).min], ids=str)
def test_a_row_of_padding_has_the_gradients_of_equal_scores(number: float) -> None:
    """Scores vanish beside the bias. PyTorch's own gradients are too large there by the number of keys."""
    q, k, v, w = draw_wide((1, 2, 9, 5), (1, 2, 15, 5), (1, 2, 15, 5), (1, 2, 9, 5), dtype=torch.float32)
    low = torch.zeros(9, 15)
    low[2] = number
    found, expected = [], []
    for f, gradients in ((ops.scaled_dot_product_attention, found), (math, expected)):
        inputs = [t.clone().requires_grad_() for t in (q, k, v)]
        gradients += torch.autograd.grad(f(*inputs, low), inputs, w)
    torch.testing.assert_close(found, expected)


def math(q: Tensor, k: Tensor, v: Tensor, added: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5 + added, -1) @ v


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_16_bits_err_as_those_of_math_do(dtype: torch.dtype, is_causal: bool) -> None:
    """PyTorch's fused backward errs there by more than twice as much, and is not called."""
    *operands, w = torch.randn(4, 1, 2, 300, 40, dtype=torch.float64).to(dtype)

    def gradients(attend: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in inputs]
        with sdpa_kernel(SDPBackend.MATH):
            o = attend(*leaves, is_causal=is_causal)
        return [g.double() for g in torch.autograd.grad(o, leaves, w.to(o.dtype))]

    exact = gradients(F.scaled_dot_product_attention, [t.double() for t in operands])
    theirs, ours = (gradients(f, operands) for f in (F.scaled_dot_product_attention, ops.scaled_dot_product_attention))
    for one, other, judge in zip(ours, theirs, exact, strict=True):
        assert (one - judge).norm() <= 1.3 * (other - judge).norm()
