"""Masks and biases of attention: boolean, additive with derivatives, rows that see nothing, block-sparse ones."""

from functools import partial

import pytest
import torch
from attention_judge import (
    RULES,
    assert_alike,
    assert_blind_rows_have_no_derivative,
    dense,
    heads,
    not_interpreted,
    output,
    positions,
    qkv,
)
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from torch_jvpvjp import ops
from torch_jvpvjp.ops.attention import op
from torch_jvpvjp.testing.budget import assert_equal

pytestmark = not_interpreted
attend = ops.scaled_dot_product_attention
SHAPES = [(3, 4), (1, 4), (3, 1), (2, 1, 1), (1, 2, 3, 4), (2, 1, 1, 4), (2, 2, 3, 4)]


# ---- boolean and additive --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_boolean_mask_broadcasts(shape: tuple[int, ...], device: str) -> None:
    visible = torch.rand(shape, device=device) > 0.4
    assert_alike(lambda *t: attend(*t, visible), output(visible=visible), qkv(device=device))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_bias_broadcasts_and_is_differentiated(shape: tuple[int, ...], device: str) -> None:
    """Every rule, in the bias as well: its gradient has its own shape, sums of dS over what it was broadcast along."""
    assert_alike(attend, output(), (*qkv(device=device), heads(*shape, device=device)))


@pytest.mark.parametrize("shape", [(3, 4), (4, 3, 4), (2, 1, 3, 1)], ids=str)
def test_a_bias_of_grouped_queries(shape: tuple[int, ...], device: str) -> None:
    q, k, v = heads(2, 4, 3, 2, device=device), heads(2, 2, 4, 2, device=device), heads(2, 2, 4, 2, device=device)
    assert_alike(partial(attend, enable_gqa=True), output(), (q, k, v, heads(*shape, device=device)))


def test_a_bias_of_several_batch_axes(device: str) -> None:
    tensors = [heads(2, 3, 2, length, 2, device=device) for length in (3, 4, 4)]
    for shape in ((3, 1, 1, 4), (2, 1, 2, 3, 4)):
        assert_alike(attend, output(), (*tensors, heads(*shape, device=device)), ("primal", "func.jvp", "vjp"))


def test_a_bias_of_float32_beside_half_precision(device: str) -> None:
    q, k, v = (t.half() for t in qkv(device=device))
    bias = heads(2, 1, 1, 4, device=device, dtype=torch.float32).requires_grad_()
    o = attend(q, k, v, bias)
    assert o.dtype == torch.float16
    (bias_bar,) = torch.autograd.grad(o.sum(), bias)
    assert (bias_bar.dtype, bias_bar.shape) == (torch.float32, bias.shape)
    exact = dense(*(t.double() for t in (q, k, v)), bias.double())[0]
    torch.testing.assert_close(
        o.double(), exact, rtol=0, atol=2 * torch.finfo(torch.float16).eps * float(v.abs().max())
    )


@pytest.mark.parametrize("axis", range(4))
def test_a_bias_reaches_the_op_unexpanded(axis: int, device: str) -> None:
    """What the dispatcher op receives has the elements of what was given: axes of 1 stay axes of 1."""
    shape = [2, 2, 3, 4]
    shape[axis] = 1
    bias = heads(*shape, device=device)
    seen: list[Tensor] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is op.overload:
                seen.append(args[3])
            return func(*args, **(kwargs or {}))

    with Watch():
        attend(*qkv(device=device), bias)
    assert [tuple(t.shape) for t in seen] == [tuple(shape)]
    assert seen[0].data_ptr() == bias.data_ptr()


def test_strided_masks_are_read_where_they_lie(device: str) -> None:
    tensors, wide = qkv(device=device), heads(4, 2, 2, 9, device=device)
    bias = wide[..., ::2][..., 1:].permute(1, 2, 3, 0)[..., :3, :]  # (2, 2, 3, 4), no stride of 1
    assert_alike(attend, output(), (*tensors, bias))
    mask = (wide > -0.3)[..., 1:4].permute(1, 2, 3, 0)
    assert_alike(lambda *t: attend(*t, mask), output(visible=mask), tensors)


# ---- rows that see nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [None, 2.0], ids=["tiles", "stripes"])
def test_no_cotangent_of_minus_infinity_is_read(softcap: float | None, device: str) -> None:
    assert_blind_rows_have_no_derivative(qkv(lk=2, device=device), softcap)


@pytest.mark.parametrize("kind", ["bool", "float", "window"])
def test_a_row_that_sees_nothing_is_zero_and_so_are_its_derivatives(kind: str, device: str) -> None:
    q, k, v = qkv(device=device)
    visible = torch.ones(3, 4, dtype=torch.bool, device=device)
    visible[1] = False
    if kind == "bool":
        ours = lambda *t: attend(*t, visible)  # noqa: E731
    elif kind == "float":
        added = torch.zeros(3, 4, dtype=q.dtype, device=device).masked_fill(~visible, -torch.inf)
        ours = lambda *t: attend(*t, added)  # noqa: E731
    else:  # from the bottom right, one key before row 0 is none
        q = q[:, :, :2].repeat(1, 1, 3, 1)
        visible = positions(6, 4, bottom_right=True, device=device) <= 0
        ours = partial(attend, is_causal=True, causal_alignment="bottom_right")
    blind = ~visible.any(-1)
    assert blind.any()
    assert_alike(ours, output(visible=visible), (q, k, v))
    o, pull = torch.func.vjp(ours, q, k, v)
    assert o[:, :, blind].eq(0).all()
    only = torch.zeros_like(o)
    only[:, :, blind] = 1.0
    assert all(t.eq(0).all() for t in pull(only))
    assert torch.func.jvp(ours, (q, k, v), (q, k, v))[1][:, :, blind].eq(0).all()


def test_all_rows_see_nothing(device: str) -> None:
    visible = torch.zeros(3, 4, dtype=torch.bool, device=device)
    assert_alike(lambda *t: attend(*t, visible), output(visible=visible), qkv(device=device))


def test_nan_behind_a_mask_stays_there(device: str) -> None:
    """Key padding: what stands in keys that no row sees does not reach the rows, nor the gradients of other tensors."""
    q, k, v = qkv(b=1, device=device)
    visible = torch.tensor([True, True, True, False], device=device)[None]
    huge = [t.clone() for t in (k, v)]
    for t in huge:
        t[:, :, 3] = 1e300
    f = lambda q, k, v: attend(q, k, v, visible)  # noqa: E731
    assert_equal(f(q, *huge), f(q, k, v))
    (q_bar, k_bar, v_bar) = torch.func.vjp(f, q, *huge)[1](q)
    assert_equal((q_bar, k_bar[:, :, :3], v_bar[:, :, :3]), [t[:, :, :3] for t in torch.func.vjp(f, q, k, v)[1](q)])
    assert k_bar[:, :, 3].eq(0).all() and v_bar[:, :, 3].eq(0).all()


# ---- block-sparse ----------------------------------------------------------------------------------------------------


def _causal(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
    return row >= key


def _banded_by_head(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
    return (row - key).abs() <= 5 + 20 * h


def _documents(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
    return row // (17 + 3 * b) == key // (17 + 3 * b)


def _nothing_after_row_20(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
    return (row <= 20) & (key < 33)


BLOCKS = {
    "causal": (_causal, None, None),
    "banded by head": (_banded_by_head, None, 2),
    "documents by batch": (_documents, 2, None),
    "rows that see nothing": (_nothing_after_row_20, None, None),
}


def block_mask(name: str, lq: int, lk: int, device: str, size: int = 16) -> tuple[BlockMask, Tensor]:
    """A BlockMask and the same mask as one bool per query and key."""
    mask_mod, b, h = BLOCKS[name]
    made = create_block_mask(mask_mod, b, h, lq, lk, device=device, BLOCK_SIZE=size)
    axes = [torch.arange(n, device=device) for n in (b or 1, h or 1, lq, lk)]
    visible = mask_mod(*torch.meshgrid(*axes, indexing="ij"))
    return made, visible


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_mask_is_its_dense_mask(name: str, device: str) -> None:
    made, visible = block_mask(name, 40, 50, device)
    tensors = qkv(lq=40, lk=50, device=device)
    assert_alike(lambda *t: attend(*t, made), output(visible=visible), tensors)


@pytest.mark.parametrize("size", [16, (32, 16), 128], ids=str)
def test_blocks_that_are_full_partial_and_empty(size: int, device: str) -> None:
    """Some blocks of a causal mask are full: mask_mod is not asked there, and they are visible all the same."""
    made, visible = block_mask("causal", 64, 64, device, size)
    if size == 16:
        assert made.full_kv_num_blocks is not None and int(made.full_kv_num_blocks.sum()) == 6
        assert int(made.kv_num_blocks.sum()) == 4
    assert_alike(lambda *t: attend(*t, made), output(visible=visible), qkv(b=1, lq=64, lk=64, device=device))


def test_listed_blocks_decide_and_full_ones_overrule_mask_mod(device: str) -> None:
    """A BlockMask made by hand may list fewer blocks than its mask_mod would, and call full what is not."""
    listed = torch.tensor([[[[0, 1], [1, 0]]]], dtype=torch.int32, device=device)
    counts = torch.tensor([[[1, 0]]], dtype=torch.int32, device=device)
    full_counts = torch.tensor([[[0, 1]]], dtype=torch.int32, device=device)
    made = BlockMask.from_kv_blocks(counts, listed, full_counts, listed, BLOCK_SIZE=16, mask_mod=_causal)
    visible = torch.zeros(32, 32, dtype=torch.bool, device=device)
    visible[:16, :16] = positions(16, 16, device=device) <= 0
    visible[16:, 16:] = True
    assert_alike(lambda *t: attend(*t, made), output(visible=visible), qkv(b=1, lq=32, lk=32, device=device))


def test_a_block_mask_with_other_options(device: str) -> None:
    made, visible = block_mask("documents by batch", 40, 40, device)
    q, k, v = heads(2, 4, 40, 2, device=device), heads(2, 2, 40, 2, device=device), heads(2, 2, 40, 3, device=device)
    ours = lambda *t: attend(*t, made, is_causal=True, enable_gqa=True, softcap=2.0)  # noqa: E731
    causal = positions(40, 40, device=device) <= 0
    assert_alike(ours, output(visible=visible & causal, softcap=2.0), (q, k, v))


def test_the_mask_of_a_block_mask_is_made_once(device: str) -> None:
    calls = []

    def counted(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        calls.append(1)
        return row >= key

    made = create_block_mask(counted, None, None, 32, 32, device=device, BLOCK_SIZE=16)
    tensors = qkv(lq=32, lk=32, device=device)
    attend(*tensors, made)
    count = len(calls)
    attend(*tensors, made)
    torch.func.jvp(lambda *t: attend(*t, made), tensors, tensors)
    assert len(calls) == count


@pytest.mark.parametrize("transform", ["jvp", "grad", "vmap", "no_grad"])
def test_a_block_mask_may_be_seen_first_inside_of_a_transform(transform: str, device: str) -> None:
    """What is kept with it is no wrapper of that transform, which would be dead behind it."""
    made, visible = block_mask("causal", 32, 32, device)
    tensors = qkv(b=1, lq=32, lk=32, device=device)
    f = lambda *t: attend(*t, made)  # noqa: E731
    with torch.set_grad_enabled(transform != "no_grad"):
        {
            "jvp": lambda: torch.func.jvp(f, tensors, tensors),
            "grad": lambda: torch.func.grad(lambda *t: f(*t).sum())(*tensors),
            "vmap": lambda: torch.func.vmap(f)(*(t[None] for t in tensors)),
            "no_grad": lambda: f(*tensors),
        }[transform]()
    assert_alike(f, output(visible=visible), tensors)


def test_a_block_mask_under_vmap(device: str) -> None:
    made, visible = block_mask("causal", 32, 32, device)
    rows = tuple(torch.stack([t, 2 * t]) for t in qkv(b=1, lq=32, lk=32, device=device))
    assert_alike(torch.func.vmap(lambda *t: attend(*t, made)), torch.func.vmap(output(visible=visible)), rows, RULES)
