"""Block-sparse masks: what kernels need of a BlockMask to visit only the blocks that are not empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...registration import _torch_private as private
from .arguments import Heads

if TYPE_CHECKING:  # PyTorch 2.15 loads sympy with it, which takes a third of a second
    from torch.nn.attention.flex_attention import BlockMask

_SMALLEST = 16


class Blocks(NamedTuple):
    """A block-sparse mask.

    Attributes:
        mask: What is visible, bool, (b, h, Lq, Lk), or None without block sparsity.
        lists: How many blocks of keys each block of rows looks at, (b, h, R), which, (b, h, R, C), and the same for
            blocks of keys and rows; int32, or Nones.
        sizes: Rows and keys in a block; 0 without.
    """

    mask: Tensor | None = None
    lists: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None, None, None, None)
    sizes: tuple[int, int] = (0, 0)


_known: WeakKeyDictionary[Any, Blocks] = WeakKeyDictionary()


def is_block_mask(attn_mask: Any) -> bool:
    """Whether attn_mask is block-sparse.

    Args:
        attn_mask: What came.

    Returns:
        Whether it is a BlockMask.
    """
    if attn_mask is None or isinstance(attn_mask, Tensor):
        return False
    from torch.nn.attention.flex_attention import BlockMask

    return isinstance(attn_mask, BlockMask)


def blocks_of(name: str, block_mask: BlockMask, heads: Heads) -> Blocks:
    """The mask of a BlockMask and the lists of its blocks; kept as long as the BlockMask lives.

    Args:
        name: The function that was called.
        block_mask: The BlockMask.
        heads: Query, key and value.

    Returns:
        The blocks.

    Raises:
        ValueError: If lengths, batch, heads or device do not fit.
    """
    lengths = tuple(block_mask.seq_lengths)
    wanted = (heads.query.shape[-2], heads.key.shape[-2])
    batch, count = block_mask.kv_num_blocks.shape[:2]
    if lengths != wanted:
        raise ValueError(
            f"{name}: attn_mask is a BlockMask for {lengths[0]} queries and {lengths[1]} keys, got {wanted[0]} and "
            f"{wanted[1]}; make one with create_block_mask(..., Q_LEN={wanted[0]}, KV_LEN={wanted[1]})."
        )
    # Not `in`: for Dynamo a size that it does not know is in no tuple of numbers.
    if (batch != 1 and batch != heads.query.shape[0]) or (count != 1 and count != heads.query.shape[1]):
        raise ValueError(
            f"{name}: attn_mask is a BlockMask for batch {batch} and {count} heads, query has {heads.query.shape[0]} "
            f"and {heads.query.shape[1]}; make it with B=None, H=None to share it."
        )
    if block_mask.kv_num_blocks.device != heads.query.device:
        raise ValueError(
            f"{name}: attn_mask is a BlockMask on {block_mask.kv_num_blocks.device}, the query on "
            f"{heads.query.device}; use attn_mask.to(query.device)."
        )
    if _is_traced(
        block_mask.kv_num_blocks
    ):  # what is made then belongs to a graph, or is a wrapper, and must not be kept
        return _read(name, block_mask, batch, count)
    found = _known.get(block_mask)
    if found is None:
        # Outside of all transforms: whatever is made inside of one is a wrapper that dies with it.
        with private.temporarily_clear_interpreter_stack(), torch.no_grad():
            found = _known[block_mask] = _read(name, block_mask, batch, count)
    return found


def _is_traced(counts: Tensor) -> bool:
    """Whether tensors are not plain ones here."""
    return (
        torch.compiler.is_compiling()
        or private.len_torch_dispatch_stack() > 0
        or type(counts) is not Tensor
        or private.is_functorch_wrapped_tensor(counts)
    )


def _read(name: str, block_mask: BlockMask, batch: int, count: int) -> Blocks:
    from torch.nn.attention.flex_attention import create_mask

    q_size, kv_size = block_mask.BLOCK_SIZE
    lq, lk = block_mask.seq_lengths
    device = block_mask.kv_num_blocks.device
    visited = _visited(block_mask.kv_num_blocks, block_mask.kv_indices)
    inside = create_mask(block_mask.mask_mod, batch, count, lq, lk, device=device).to(torch.bool)
    mask = inside & _spread(visited, q_size, kv_size, lq, lk)
    if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
        full = _visited(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
        mask = mask | _spread(full, q_size, kv_size, lq, lk)  # visible whatever mask_mod says
        visited = visited | full
    if any(size < _SMALLEST or size & (size - 1) for size in (q_size, kv_size)):
        raise ValueError(
            f"{name}: attn_mask is a BlockMask of blocks {q_size} x {kv_size}; kernels take powers of two from "
            f"{_SMALLEST}; pass BLOCK_SIZE=128 to create_block_mask."
        )
    lists = (*_listed(visited), *_listed(visited.mT))
    return Blocks(mask, lists, (q_size, kv_size))


def _visited(counts: Tensor, indices: Tensor) -> Tensor:
    """Which blocks are listed, bool, (b, h, R, C)."""
    columns = indices.shape[-1]
    listed = torch.arange(columns, device=counts.device) < counts[..., None]
    # Entries behind the count go to one column more, which is cut off.
    places = torch.where(listed, indices, columns).long()
    found = torch.zeros((*indices.shape[:-1], columns + 1), dtype=torch.bool, device=counts.device)
    return found.scatter_(-1, places, True)[..., :columns]  # noqa: FBT003


def _listed(visited: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row of blocks visits, and which, in ascending order, before all others."""
    order = torch.argsort((~visited).to(torch.int8), dim=-1, stable=True)
    return visited.sum(-1).to(torch.int32), order.to(torch.int32).contiguous()


def _spread(blocks: Tensor, q_size: int, kv_size: int, lq: int, lk: int) -> Tensor:
    """Blocks as single queries and keys."""
    return blocks.repeat_interleave(q_size, -2)[..., :lq, :].repeat_interleave(kv_size, -1)[..., :lk]
