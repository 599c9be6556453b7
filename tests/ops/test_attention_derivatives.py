"""Derivatives of attention: absent tangents, what each costs and keeps, attention_jvp, layouts, dtypes."""

import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 -- PyTorch's documentation spells it so
from attention_judge import assert_alike, dense, heads, not_interpreted, output, positions, qkv
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_jvpvjp import ops
from torch_jvpvjp.registration import registered_ops
from torch_jvpvjp.testing.budget import assert_equal

pytestmark = not_interpreted
attend = ops.scaled_dot_product_attention
SUBSETS = [which for n in range(1, 5) for which in itertools.combinations("qkvb", n)]


class Points(TorchDispatchMode):
    """Count the points of attention's tower that are computed, each with what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.arguments: dict[str, dict[str, Any]] = {}
        self._ops = {op.overload: op for op in registered_ops().values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._ops:
            point = self._ops[func]
            name = point.qualname.removeprefix("torch_jvpvjp::")
            self.counts[name] += 1
            names = [a.name for a in point.signature.arguments]
            self.arguments[name] = dict(zip(names, point.signature.fill(args, kwargs or {}), strict=True))
        return func(*args, **(kwargs or {}))


def points(run: Callable[[], object]) -> Points:
    with Points() as found:
        run()
    return found


def with_bias(device: str) -> dict[str, Tensor]:
    return dict(zip("qkvb", (*qkv(device=device), heads(2, 1, 4, device=device)), strict=True))


# ---- tangents and cotangents that are absent -------------------------------------------------------------------------


@pytest.mark.parametrize("which", SUBSETS, ids="".join)
def test_every_subset_of_tangents(which: tuple[str, ...], device: str) -> None:
    """Value and tangent, the loss of both differentiated, and the tangent of the gradient; the others are constant."""
    given = with_bias(device)
    fixed = {name: t for name, t in given.items() if name not in which}

    def alone(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *t: f(*((fixed | dict(zip(which, t, strict=True)))[name] for name in "qkvb"))

    rules = ("func.jvp", "vjp", "grad∘jvp", "jvp∘grad")
    assert_alike(alone(attend), alone(output()), [given[name] for name in which], rules)


@pytest.mark.parametrize("which", SUBSETS, ids="".join)
def test_absent_tangents_reach_the_jvp_as_none(which: tuple[str, ...], device: str) -> None:
    given = with_bias(device)

    def run() -> None:
        with fwAD.dual_level():
            attend(*(fwAD.make_dual(t, t) if name in which else t for name, t in given.items()))

    found = points(run)
    assert found.counts == {"attention_jvp": 1}
    tangents = [found.arguments["attention_jvp"][f"{name}_dot"] for name in ("query", "key", "value", "bias")]
    assert [t is not None for t in tangents] == [name in which for name in "qkvb"]


@pytest.mark.parametrize("which", SUBSETS, ids="".join)
def test_only_the_gradients_that_are_wanted(which: tuple[str, ...], device: str) -> None:
    given = {name: t.requires_grad_(name in which) for name, t in with_bias(device).items()}
    wanted = [given[name] for name in which]
    o = attend(*given.values())
    found = points(lambda: torch.autograd.grad(o.sum(), wanted, create_graph=True))
    assert found.arguments["attention_vjp"]["needs"] == [name in which for name in "qkvb"]
    assert_equal(torch.autograd.grad(o.sum(), wanted), torch.autograd.grad(output()(*given.values()).sum(), wanted))


# ---- what each derivative reaches ------------------------------------------------------------------------------------


def test_value_and_tangent_are_one_call(device: str) -> None:
    tensors = qkv(device=device)
    assert points(lambda: torch.func.jvp(attend, tensors, tensors)).counts == {"attention_jvp": 1}
    assert points(lambda: ops.attention_jvp(*tensors, *tensors)).counts == {"attention_jvp": 1}


def test_many_tangents_of_one_primal_are_one_call(device: str) -> None:
    """In jacfwd the primal reaches the JVP without the axis that its tangents have."""
    tensors = qkv(b=1, h=1, device=device)
    found = points(lambda: torch.func.jacfwd(attend, (0, 1, 2))(*tensors))
    assert found.counts == {"attention_jvp": 1}
    given = found.arguments["attention_jvp"]
    count = sum(t.numel() for t in tensors)
    assert given["query"].shape == (1, 1, 3, 2)
    assert given["query_dot"].shape == (count, 1, 1, 3, 2)
    assert_equal(*(torch.func.jacfwd(f, (0, 1, 2))(*tensors) for f in (attend, output())))


def test_many_cotangents_of_one_output_are_one_call(device: str) -> None:
    tensors = qkv(b=1, h=1, device=device)
    found = points(lambda: torch.func.jacrev(attend, (0, 1, 2))(*tensors))
    assert found.counts == {"attention": 1, "attention_vjp": 1}
    assert_equal(*(torch.func.jacrev(f, (0, 1, 2))(*tensors) for f in (attend, output())))


def _backward_of_duals(loss: Callable[[Tensor, Tensor], Tensor], tensors: tuple[Tensor, ...]) -> Points:
    leaves = [t.clone().requires_grad_() for t in tensors]
    o, o_dot = ops.attention_jvp(*leaves, *tensors)
    value = loss(o, o_dot)
    return points(lambda: torch.autograd.grad(value, leaves))


def test_a_stopped_tangent_costs_the_plain_pullback(device: str) -> None:
    """MeanFlow and consistency models: the cotangent of ȯ is None, and so are the terms that it would make."""
    tensors = qkv(device=device)
    found = _backward_of_duals(lambda o, o_dot: ((o + o_dot.detach()) ** 2).sum(), tensors)
    given = found.arguments["attention_jvp_vjp"]
    assert found.counts == {"attention_jvp_vjp": 1}
    assert [given[name] is None for name in ("y0_bar", "y1_bar", "y0_dot_bar", "y1_dot_bar")] == [
        False,
        True,
        True,
        True,
    ]


PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::baddbmm_")
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"  # five in one


def products(run: Callable[[], object]) -> int:
    """Matrix products that a run takes on the CPU; here, where one tile is all, each is of the size of attention."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        run()
    names = [event.name for event in profile.events()]
    return sum(name in PRODUCTS for name in names) + 5 * names.count(FUSED)


def test_products_of_the_pullbacks_on_the_cpu() -> None:
    tensors = qkv()

    def count(loss: Callable[[Tensor, Tensor], Tensor]) -> int:
        leaves = [t.clone().requires_grad_() for t in (*tensors, *tensors)]
        value = loss(*ops.attention_jvp(*leaves))
        return products(lambda: torch.autograd.grad(value, leaves, allow_unused=True))

    assert count(lambda o, o_dot: o.sum()) == 5
    assert 5 < count(lambda o, o_dot: (o * o_dot).sum()) <= 15


def test_a_loss_of_the_tangent_reaches_the_pullback_of_the_jvp(device: str) -> None:
    found = _backward_of_duals(lambda o, o_dot: (o * o_dot).sum(), qkv(device=device))
    assert found.counts == {"attention_jvp_vjp": 1}
    assert found.arguments["attention_jvp_vjp"]["y0_dot_bar"] is not None


def test_a_hessian_vector_product_is_the_dual_value_and_the_tangent_of_the_pullback(device: str) -> None:
    tensors = qkv(device=device)
    gradient = torch.func.grad(lambda *t: attend(*t).square().sum(), (0, 1, 2))
    found = points(lambda: torch.func.jvp(gradient, tensors, tensors))
    assert found.counts == {"attention_jvp": 1, "attention_vjp_jvp": 1}


# ---- what is kept for the backward pass ------------------------------------------------------------------------------


def saved(run: Callable[[], object]) -> list[Tensor]:
    """The tensors that autograd saves in a run."""
    found: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (found.append(t), t)[1], lambda t: t):
        run()
    return found


@pytest.mark.parametrize("extra", ["nothing", "bool", "float", "dropout"])
def test_what_is_saved_is_the_arguments_o_lse_and_what_it_lacks(extra: str, device: str) -> None:
    lq, lk = 12, 20
    tensors = [t.requires_grad_() for t in qkv(lq=lq, lk=lk, device=device)]
    masks = {"bool": torch.ones(lk, dtype=torch.bool, device=device)[None], "float": heads(1, lk, device=device)}
    mask = masks.get(extra)
    dropout_p = 0.5 if extra == "dropout" else 0.0
    kept = saved(lambda: attend(*tensors, mask, dropout_p))
    shapes = sorted(tuple(t.shape) for t in kept)
    expected = [*(tuple(t.shape) for t in tensors), (2, 2, lq, 2), *[(2, 2, lq)] * 2]
    expected += [(1, 1, 1, lk)] if mask is not None else []
    expected += [()] if extra == "dropout" else []  # the seed, in place of the mask
    assert shapes == sorted(expected)
    own = {t.data_ptr() for t in (*tensors, *((mask,) if mask is not None else ()))}
    assert own <= {t.data_ptr() for t in kept}  # not copies


def test_the_jvp_saves_arguments_tangents_and_results_alone(device: str) -> None:
    tensors = [t.requires_grad_() for t in qkv(lq=12, lk=20, device=device)]
    kept = saved(lambda: ops.attention_jvp(*tensors, *(t.detach() for t in tensors)))
    linear = [tuple(t.shape) for t in (*tensors, *tensors)] + [(2, 2, 12, 2), (2, 2, 12)] * 2 + [(2, 2, 12)]
    assert sorted(tuple(t.shape) for t in kept) == sorted(linear)


# ---- attention_jvp ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True, "causal_alignment": "bottom_right"},
        {"softcap": 0.8, "window": (1, 2)},
        {"scale": 0.4},
    ],
    ids=str,
)
def test_attention_jvp_is_func_jvp(options: dict[str, Any], device: str) -> None:
    tensors, tangents = qkv(device=device), qkv(device=device)
    expected = torch.func.jvp(partial(attend, **options), tensors, tangents)
    assert_equal(ops.attention_jvp(*tensors, *tangents, **options), expected)


def test_attention_jvp_of_a_mask_and_its_tangent(device: str) -> None:
    tensors, tangents = ((*qkv(device=device), heads(2, 1, 4, device=device)) for _ in range(2))
    ours = ops.attention_jvp(*tensors[:3], *tangents[:3], tensors[3], attn_mask_dot=tangents[3])
    assert_equal(ours, torch.func.jvp(output(), tensors, tangents))
    only = ops.attention_jvp(*tensors[:3], attn_mask=tensors[3], attn_mask_dot=tangents[3])
    assert_equal(only, torch.func.jvp(lambda b: dense(*tensors[:3], b)[0], tensors[3:], tangents[3:]))


@pytest.mark.parametrize("shape", [(3, 1, 1, 4), (2, 1, 2, 3, 4), (3, 1), (1, 1, 1, 1, 1)], ids=str)
def test_attention_jvp_of_a_mask_of_several_batch_axes(shape: tuple[int, ...], device: str) -> None:
    tensors, tangents = ([heads(2, 3, 2, n, 2, device=device) for n in (3, 4, 4)] for _ in range(2))
    mask, mask_dot = (heads(*shape, device=device) for _ in range(2))
    ours = ops.attention_jvp(*tensors, *tangents, mask, attn_mask_dot=mask_dot)
    assert_equal(ours, torch.func.jvp(output(), (*tensors, mask), (*tangents, mask_dot)))


@pytest.mark.parametrize("which", [w for w in SUBSETS if "b" not in w], ids="".join)
def test_attention_jvp_with_absent_tangents(which: tuple[str, ...], device: str) -> None:
    tensors, tangents = qkv(device=device), qkv(device=device)
    given = [t if name in which else None for name, t in zip("qkv", tangents, strict=True)]
    zeros = [torch.zeros_like(x) if t is None else t for x, t in zip(tensors, given, strict=True)]
    assert_equal(ops.attention_jvp(*tensors, *given), torch.func.jvp(output(), tensors, tuple(zeros)))


def test_attention_jvp_without_tangents(device: str) -> None:
    tensors = qkv(device=device)
    o, o_dot = ops.attention_jvp(*tensors)
    assert_equal(o, attend(*tensors))
    assert o_dot.shape == o.shape and o_dot.eq(0).all()


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_attention_jvp_is_differentiable_in_all_six(is_causal: bool, device: str) -> None:
    six = [t.requires_grad_() for t in (*qkv(b=1, device=device), *qkv(b=1, device=device))]
    f = partial(ops.attention_jvp, is_causal=is_causal)
    assert torch.autograd.gradcheck(f, six)
    assert torch.autograd.gradgradcheck(f, six)


def test_attention_jvp_broadcasts_and_groups(device: str) -> None:
    shapes = (2, 4, 3, 2), (1, 2, 5, 2), (1, 2, 5, 3)
    tensors, tangents = ([heads(*shape, device=device) for shape in shapes] for _ in range(2))
    ours = lambda *six: ops.attention_jvp(*six, enable_gqa=True)  # noqa: E731
    theirs = lambda *six: torch.func.jvp(output(), six[:3], six[3:])  # noqa: E731
    assert_alike(ours, theirs, (*tensors, *tangents), ("primal", "vjp"))


# ---- layouts ---------------------------------------------------------------------------------------------------------

RELAID = {
    "(B, L, H, d)": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "(L, B, H, d)": lambda t: t.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
    "no stride of 1": lambda t: torch.stack([t, t], -1).select(-1, 0),
    "transposed": lambda t: t.mT.contiguous().mT,
    "expanded": lambda t: t[:1].expand(2, -1, -1, -1),
}


@pytest.mark.parametrize("layout", RELAID)
def test_layouts(layout: str, device: str) -> None:
    relay = RELAID[layout]
    assert_alike(lambda *t: attend(*map(relay, t)), lambda *t: output()(*map(relay, t)), qkv(device=device))


def test_packed_projections_get_one_gradient(device: str) -> None:
    """q, k and v as views of one projection, (B, L, 3, H, d), which is what gets the gradient."""

    def self_attention(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda packed: f(*packed.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)

    assert_alike(self_attention(attend), self_attention(output()), (heads(2, 4, 3, 2, 2, device=device),))


# ---- dtypes and autocast ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_lowers_it_under_every_transform(dtype: torch.dtype, device: str) -> None:
    kind = torch.device(device).type
    tensors = [t.float() for t in qkv(device=device)]
    low = [t.to(dtype) for t in tensors]

    def derivatives(xs: list[Tensor]) -> list[Tensor]:
        gradient = torch.func.grad(lambda *t: attend(*t).float().square().sum(), (0, 1, 2))
        return [attend(*xs), *torch.func.jvp(attend, tuple(xs), tuple(xs)), *gradient(*xs)]

    expected = derivatives(low)
    with torch.autocast(kind, dtype):
        found = derivatives(tensors)
        mixed = attend(low[0], *tensors[1:])
    assert [t.dtype for t in found] == [dtype] * 3 + [torch.float32] * 3
    assert mixed.dtype == dtype
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype))


def test_autocast_leaves_slopes_as_they_are(device: str) -> None:
    """Rounded to eight bits they would move the scores of far keys by more than those round themselves."""
    tensors, slopes = [t.float() for t in qkv(lk=200, device=device)], torch.tensor([0.3, 0.0377], device=device)
    options = {"alibi_slopes": slopes, "return_lse": True}
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        found = attend(*tensors, **options)
    expected = attend(*(t.bfloat16() for t in tensors), **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_large_scores_do_not_overflow(device: str) -> None:
    q = torch.full((1, 1, 2, 16), 200.0, dtype=torch.float16, device=device)
    o, o_dot = torch.func.jvp(attend, (q, q, q), (q, q, q))
    torch.testing.assert_close((o, o_dot), (q, q))


def test_float64_is_not_computed_in_less(device: str) -> None:
    """A difference of 1e-12 of one score shows."""
    q, k, v = qkv(b=1, h=1, device=device)
    moved = q.clone()
    moved[0, 0, 0, 0] += 1e-12
    change = attend(moved, k, v) - attend(q, k, v)
    q_dot = torch.zeros_like(q)
    q_dot[0, 0, 0, 0] = 1.0
    exact = torch.func.jvp(lambda q: dense(q, k, v)[0], (q,), (q_dot,))[1]
    torch.testing.assert_close(change / 1e-12, exact, rtol=0, atol=1e-2)


def test_positions_of_a_causal_tangent(device: str) -> None:
    """A row's tangent does not depend on the tangents of keys that it does not see."""
    q, k, v = qkv(lq=4, lk=4, device=device)
    f = partial(attend, is_causal=True)
    k_dot, v_dot = heads(2, 2, 4, 2, device=device), heads(2, 2, 4, 2, device=device)
    full = torch.func.jvp(f, (q, k, v), (q, k_dot, v_dot))[1]
    late = positions(1, 4, device=device)[0] > 2
    cut = [t.masked_fill(late[:, None], 0.0) for t in (k_dot, v_dot)]
    assert torch.equal(torch.func.jvp(f, (q, k, v), (q, *cut))[1][:, :, :3], full[:, :, :3])
