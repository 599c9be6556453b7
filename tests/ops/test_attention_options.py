"""What the options of attention mean, each with every rule of its tower (every property is in test_every_op)."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from attention_judge import RULES, assert_alike, dense, heads, not_interpreted, output, positions, qkv
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.testing.budget import assert_equal

pytestmark = not_interpreted
attend = ops.scaled_dot_product_attention


# ---- as PyTorch has it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["none", "bool", "float", "bool by key", "float by head"])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"enable_gqa": True}], ids=str)
def test_equals_pytorch(mask: str, options: dict[str, Any], device: str) -> None:
    q, k, v = heads(2, 4, 5, 3, device=device), *(heads(2, 4, 6, 3, device=device) for _ in range(2))
    if options.get("enable_gqa"):
        k, v = k[:, :2], v[:, :2]
    added = {
        "none": None,
        "bool": torch.rand(2, 4, 5, 6, device=device) > 0.3,
        "float": heads(2, 4, 5, 6, device=device),
        "bool by key": torch.rand(2, 1, 1, 6, device=device) > 0.3,
        "float by head": heads(4, 1, 1, device=device),
    }[mask]
    assert_equal(attend(q, k, v, added, **options), F.scaled_dot_product_attention(q, k, v, added, **options))


@pytest.mark.parametrize("lk", [3, 5, 7])
def test_causal_is_that_of_pytorch(lk: int, device: str) -> None:
    q, k, v = qkv(lq=5, lk=lk, device=device)
    assert_equal(attend(q, k, v, is_causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 2), (4, 2), (4, 2)),
        ((2, 3, 2), (2, 4, 2), (2, 4, 5)),
        ((2, 3, 2), (5, 2, 4, 2), (5, 2, 4, 2)),
        ((5, 1, 2, 3, 2), (4, 1, 4, 2), (2, 4, 2)),
        ((1, 2, 3, 2), (4, 1, 3, 2), (4, 2, 3, 2)),
    ],
    ids=str,
)
def test_axes_in_front_broadcast(shapes: tuple[tuple[int, ...], ...], device: str) -> None:
    tensors = [heads(*shape, device=device) for shape in shapes]
    assert attend(*tensors).shape == F.scaled_dot_product_attention(*tensors).shape
    assert_alike(attend, output(), tensors, ("primal", "func.jvp", "vjp", "grad∘jvp"))


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dk", "dv"), [(72, 72), (80, 16), (96, 96), (3, 256)])
def test_head_sizes(dk: int, dv: int, device: str) -> None:
    tensors = heads(1, 1, 5, dk, device=device), heads(1, 1, 7, dk, device=device), heads(1, 1, 7, dv, device=device)
    assert_alike(attend, output(), tensors)


@pytest.mark.parametrize(("lq", "lk"), [(1, 17), (17, 1), (129, 127)])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_lengths(lq: int, lk: int, is_causal: bool, device: str) -> None:
    visible = positions(lq, lk, device=device) <= 0 if is_causal else None
    assert_alike(partial(attend, is_causal=is_causal), output(visible=visible), qkv(lq=lq, lk=lk, b=1, device=device))


@pytest.mark.parametrize("shapes", [((3, 2), (0, 2)), ((0, 2), (3, 2)), ((0, 2), (0, 2)), ((3, 0), (4, 0))], ids=str)
def test_nothing_to_see_or_to_look(shapes: tuple[tuple[int, int], tuple[int, int]], device: str) -> None:
    (lq, d), (lk, _) = shapes
    tensors = heads(2, 1, lq, d, device=device), heads(2, 1, lk, d, device=device), heads(2, 1, lk, 3, device=device)
    o, lse = attend(*tensors, return_lse=True)
    if lk == 0:
        assert torch.equal(o, torch.zeros(2, 1, lq, 3, dtype=o.dtype, device=device))
        assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    scale = 1.0 if d == 0 else None
    assert_alike(attend, output(scale=scale), tensors)


def test_no_batch_and_no_heads(device: str) -> None:
    for b, h in ((0, 2), (2, 0)):
        tensors = [t.requires_grad_() for t in qkv(b=b, h=h, device=device)]
        o = attend(*tensors)
        assert o.shape == (b, h, 3, 2)
        assert [g.shape for g in torch.autograd.grad(o.sum(), tensors)] == [t.shape for t in tensors]


# ---- grouped queries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2], ids=["one key head", "two key heads"])
def test_gradients_of_grouped_keys_are_sums_over_the_group(kv_heads: int, device: str) -> None:
    q = heads(2, 4, 3, 2, device=device)
    k, v = heads(2, kv_heads, 5, 2, device=device), heads(2, kv_heads, 5, 2, device=device)
    assert_alike(partial(attend, enable_gqa=True), output(), (q, k, v))

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad(lambda *t: attend(*t).square().sum(), (1, 2))(*tensors)

    group = 4 // kv_heads
    repeated = gradients(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
    grouped = torch.func.grad(lambda *t: attend(*t, enable_gqa=True).square().sum(), (1, 2))(q, k, v)
    assert_equal(grouped, tuple(t.unflatten(1, (kv_heads, group)).sum(2) for t in repeated))


def test_grouped_values_may_have_other_heads_than_keys(device: str) -> None:
    q, k, v = heads(1, 6, 2, 2, device=device), heads(1, 2, 3, 2, device=device), heads(1, 3, 3, 2, device=device)
    assert_alike(partial(attend, enable_gqa=True), output(), (q, k, v), ("primal", "func.jvp", "vjp"))


def test_one_key_head_needs_no_flag(device: str) -> None:
    q, k, v = heads(2, 4, 3, 2, device=device), heads(2, 1, 3, 2, device=device), heads(2, 1, 3, 2, device=device)
    assert_alike(attend, output(), (q, k, v), ("primal", "vjp"))


# ---- which keys a row sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lq", "lk"), [(3, 5), (5, 3), (4, 4)])
def test_causal_from_the_bottom_right(lq: int, lk: int, device: str) -> None:
    """The last row sees every key; of more rows than keys the first see none."""
    visible = positions(lq, lk, bottom_right=True, device=device) <= 0
    ours = partial(attend, is_causal=True, causal_alignment="bottom_right")
    tensors = qkv(lq=lq, lk=lk, device=device)
    assert_alike(ours, output(visible=visible), tensors)
    assert ours(*tensors)[:, :, : max(0, lq - lk)].eq(0).all()


@pytest.mark.parametrize("window", [(1, 0), (0, 0), (None, 1), (2, None), (None, None), (9, 9)], ids=str)
@pytest.mark.parametrize("alignment", ["top_left", "bottom_right"])
def test_window(window: tuple[int | None, int | None], alignment: str, device: str) -> None:
    left, right = (9 if side is None else side for side in window)
    ahead = positions(3, 5, bottom_right=alignment == "bottom_right", device=device)
    ours = partial(attend, window=window, causal_alignment=alignment)
    theirs = output(visible=(ahead >= -left) & (ahead <= right))
    assert_alike(ours, theirs, qkv(b=1, lq=3, lk=5, device=device))


def test_causal_closes_a_window_to_the_right(device: str) -> None:
    tensors = qkv(lq=5, lk=5, device=device)
    assert_equal(attend(*tensors, is_causal=True, window=(2, 3)), attend(*tensors, window=(2, 0)))


# ---- what is done to the scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [0.5, 3.0])
def test_softcap(softcap: float, device: str) -> None:
    tensors = [3 * t for t in qkv(device=device)]
    assert_alike(partial(attend, softcap=softcap), output(softcap=softcap), tensors)
    assert not torch.allclose(attend(*tensors, softcap=softcap), attend(*tensors))


def test_a_bias_is_added_behind_the_softcap(device: str) -> None:
    tensors = (*qkv(device=device), heads(2, 1, 3, 4, device=device))
    assert_alike(partial(attend, softcap=0.7), output(softcap=0.7), tensors)


@pytest.mark.parametrize("far", [2**31 - 1, 2**63 - 1], ids=str)
def test_a_window_wider_than_positions_can_be_counted(far: int, device: str) -> None:
    q, k, v = qkv(b=1, lq=5, lk=5, device=device)
    full, lengths = attend(q, k, v), torch.tensor([0, 5], device=device)
    for window in ((far, far), (None, far), (far, None)):
        assert_equal(attend(q, k, v, window=window), full)
        packed = ops.varlen_attention(*(t[0].transpose(0, 1) for t in (q, k, v)), lengths, window=window)
        assert_equal(packed.transpose(0, 1)[None], full)


@pytest.mark.parametrize("alignment", ["top_left", "bottom_right"])
@pytest.mark.parametrize("batch", [None, 2], ids=["by head", "by batch and head"])
def test_alibi(alignment: str, batch: int | None, device: str) -> None:
    slopes = torch.rand(2, device=device) if batch is None else torch.rand(batch, 2, device=device)
    distance = positions(3, 5, bottom_right=alignment == "bottom_right", device=device).abs()
    added = -slopes.double()[..., None, None] * distance
    ours = partial(attend, alibi_slopes=slopes, causal_alignment=alignment)
    assert_alike(ours, lambda *t: dense(*t, added)[0], qkv(lq=3, lk=5, device=device))


def test_everything_at_once(device: str) -> None:
    q, k, v = heads(2, 4, 4, 2, device=device), heads(2, 2, 6, 2, device=device), heads(2, 2, 6, 3, device=device)
    bias, slopes = heads(4, 1, 6, device=device), torch.rand(4, device=device)
    ahead = positions(4, 6, bottom_right=True, device=device)
    added = -slopes.double()[:, None, None] * ahead.abs()
    options = {"scale": 0.9, "softcap": 2.0}
    ours = partial(
        *(attend,),
        is_causal=True,
        enable_gqa=True,
        causal_alignment="bottom_right",
        window=(3, 2),
        alibi_slopes=slopes,
        **options,
    )
    visible = (ahead <= 0) & (ahead >= -3)
    theirs = lambda q, k, v, b: dense(q, k, v, b + added, visible=visible, **options)[0]  # noqa: E731
    assert_alike(ours, theirs, (q, k, v, bias))


# ---- the logarithm of the mass of a row ------------------------------------------------------------------------------


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_lse_and_its_derivatives(is_causal: bool, device: str) -> None:
    visible = positions(4, 3, bottom_right=True, device=device) <= 0 if is_causal else None
    ours = partial(attend, is_causal=is_causal, causal_alignment="bottom_right", return_lse=True)
    tensors = qkv(lq=4, lk=3, device=device)
    if is_causal:  # the row that sees nothing has −∞, whose square is no loss
        ours_of, theirs_of = (lambda f: lambda *t: (f(*t)[0], f(*t)[1][:, :, 1:]) for _ in range(2))
        assert_alike(ours_of(ours), theirs_of(partial(dense, visible=visible)), tensors)
        lse = ours(*tensors)[1]
        assert torch.equal(lse[:, :, 0], torch.full_like(lse[:, :, 0], -torch.inf))
    else:
        assert_alike(ours, dense, tensors, (*RULES, "backward, one output"))


def test_lse_alone_is_differentiated_by_its_own_pullback(device: str) -> None:
    """∂ℓ_i/∂S_ij = P_ij: the gradient of Σ ℓ in an added bias is P, whose rows sum to 1."""
    q, k, v = qkv(device=device)
    zero = torch.zeros(2, 2, 3, 4, dtype=q.dtype, device=device)
    p = torch.func.grad(lambda bias: attend(q, k, v, bias, return_lse=True)[1].sum())(zero)
    assert_equal(p, torch.softmax(q @ k.mT / 2**0.5, -1))


@pytest.mark.parametrize(
    ("dtype", "lse"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_dtypes_of_results(dtype: torch.dtype, lse: torch.dtype, device: str) -> None:
    o, found = attend(*(t.to(dtype) for t in qkv(device=device)), return_lse=True)
    assert (o.dtype, found.dtype) == (dtype, lse)
