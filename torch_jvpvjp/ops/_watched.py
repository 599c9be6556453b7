"""PyTorch's own node in an autograd graph, watched: where its pullback is differentiated in turn, the op's steps in.

A node in Python costs several times what one of PyTorch's does, in forward and in backward. Where PyTorch's pullback is
right and what it builds on top is not, its node may stay all the same, with a function in front of it that looks
whether plain backward is all that is asked for. If so it does nothing. If not, it pulls back by the op, lets the node
run on zeros, and puts its own results in the place of what the node found.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..registration import DifferentiableOp
from ..registration import _torch_private as private

_is_compiling, _grad_enabled = torch.compiler.is_dynamo_compiling, torch.is_grad_enabled
_interpreter, _forward_ad = private.peek_interpreter_stack, private.forward_ad
_dispatch_modes, _is_legacy_batched = private.len_torch_dispatch_stack, private.is_legacy_batched


def watched(op: DifferentiableOp, arguments: Callable[..., tuple[Any, ...]]) -> Callable[..., Tensor]:
    """What turns the result of PyTorch's function, recorded, into one that is right in every composition.

    Args:
        op: The op that PyTorch's function stands for, of one visible output.
        arguments: From PyTorch's node and the options of a call to the arguments of the op, then the residuals that its
            VJP rule reads. The node's first inputs must be the op's differentiable arguments, in their order.

    Returns:
        A function of the result and those options that returns the result; for calls that `standing` calls
        ``RECORDED``.
    """
    count = len(op.signature.differentiable)

    def look(options: tuple[Any, ...], y_bars: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
        y_bar = y_bars[0]
        # Under compiled autograd nothing is differentiated in turn. The rest is `is_plain_backward`, written out: after
        # megabytes have gone through the caches, a frame of Python costs microseconds.
        if (
            _is_compiling()
            or y_bar is None
            or (
                type(y_bar) is Tensor
                and not _grad_enabled()
                and _interpreter() is None
                and _forward_ad._current_level < 0
                and not _dispatch_modes()
                and not _is_legacy_batched(y_bar)
            )
        ):
            return None
        node = private.current_autograd_node()
        needs = [following is not None for following, _ in node.next_functions[:count]]
        pull, operands = op.vjp.op, (y_bar, *arguments(node, *options), needs)
        legacy = _is_legacy_batched(y_bar)  # the fast path cannot tell such a one from a plain tensor
        _replace_results(node, pull.unpacked(pull.overload(*operands)) if legacy else pull.call_flat(operands))
        # The node may have no derivative of its own for what y_bar carries, and would raise.
        return (torch.zeros((), dtype=y_bar.dtype).expand(y_bar.shape), *y_bars[1:])

    def watch(y: Tensor, *options: Any) -> Tensor:
        node: Any = y.grad_fn
        node.register_prehook(partial(look, options))
        return y

    return watch


def _replace_results(node: Any, bars: tuple[Tensor, ...]) -> None:
    """Let the run of a node that is about to begin, and no other, end with these cotangents."""

    def replace(found: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
        handle.remove()
        return tuple([None if f is None else bar for f, bar in zip(found, bars, strict=True)])

    handle = node.register_hook(replace)
