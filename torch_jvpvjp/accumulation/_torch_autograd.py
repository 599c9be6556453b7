"""What autograd has recorded of a tensor: the private names of PyTorch that tell, and its engine without the Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._torch import wraps_transform

__all__ = [
    "MISBATCHED_NODES", "Recording", "autograd_nodes", "hooks_saved_tensors", "is_batched_or_dual",
    "is_builtin_node", "next_number", "pulled_back", "recording_of", "updates_statistics",
]  # fmt: skip


class Recording(NamedTuple):
    """What autograd has recorded of a tensor.

    Attributes:
        nodes: How many operations.
        kinds: The kinds of the operations, in the order of a walk through them.
        is_all: Whether autograd has recorded no other operation meanwhile; False if it is not asked since when.
        batches_rightly: Whether their derivatives are known to be right under `vmap`. They are not where a node is not
            PyTorch's own, nor where PyTorch's own is wrong: of all that PyTorch samples of its ops, a test compares
            the batched derivatives with single ones.
        pushes_rightly: Whether forward mode of the function is right at every point; see `bending`.
        bends_rightly: Whether it may be differentiated in turn, as far as it is right.
        whole: Whether every operation has a derivative: through an op without a kernel for autograd none comes.
        makes_constants: Whether an op has results that autograd takes for constants; see `foreign`.
        is_given_constants: Whether a pullback on the way was given such results, as in a function of gradients.
        pulls_bare: Whether its pullback is right at every point where nothing is recorded of that.
        attends_plainly: Whether no operation is fused attention, which is pulled back one row after another, and once.
    """

    nodes: int
    kinds: list[type]
    is_all: bool = False
    batches_rightly: bool = True
    pushes_rightly: bool = True
    bends_rightly: bool = True
    whole: bool = True
    makes_constants: bool = False
    is_given_constants: bool = False
    pulls_bare: bool = True
    attends_plainly: bool = True

    @property
    def way(self) -> int:
        """A number that recordings of as many operations of each kind share: those of a function that goes one way."""
        return hash(tuple(sorted(map(id, self.kinds))))


class _Known(NamedTuple):
    """What is known of nodes of one kind, each true of most."""

    batches_rightly: bool
    pushes_rightly: bool
    bends_rightly: bool
    makes_no_constants: bool
    is_given_no_constants: bool
    pulls_bare: bool
    attends_plainly: bool


next_number: Callable[[], int] = getattr(getattr(torch._C, "_autograd"), "_get_sequence_nr")  # noqa: B009 (no stubs)
"""Return the number that autograd gives to the next operation that it records in this thread."""


def recording_of(y: Tensor, since: int | None = None) -> Recording:
    """Return what autograd has recorded of a tensor, since an operation of that number if it matters."""
    until = next_number()
    nodes = autograd_nodes(y)
    kinds = list(map(type, nodes))
    is_all = since is not None and _are_all_since(nodes, kinds, until - since, since)
    others = set(kinds) - _PLAIN_KINDS
    if not others:
        return Recording(len(nodes), kinds, is_all, makes_constants=not nodes)  # y may be such a result
    facts = map(all, zip(*map(_known_of, others), strict=True))
    batches, pushes, bends, makes_none, is_given_none, bare, plainly = facts
    return Recording(
        len(nodes),
        kinds,
        is_all,
        batches_rightly=batches or not any(map(_misbatches, nodes)),
        pushes_rightly=pushes or not any(map(_mispushes, nodes)),
        bends_rightly=bends,
        whole=not any(kind.__name__ == "CppFunction" for kind in others) or not any(map(_warns, nodes)),
        makes_constants=not makes_none,
        is_given_constants=not is_given_none,
        pulls_bare=bare,
        attends_plainly=plainly,
    )


def _are_all_since(nodes: list[Any], kinds: list[type], count: int, since: int) -> bool:
    """Return whether nodes but for those of leaves, whose number is above all others, are so many, none before one."""
    return len(nodes) - kinds.count(_Leaf) == count and (not nodes or min(map(_number_of, nodes)) >= since)


_Leaf: type = getattr(torch._C, "_functions").AccumulateGrad  # noqa: B009 (the stubs do not know it)
_number_of = methodcaller("_sequence_nr")


def _warns(node: Any) -> bool:
    """Return whether a node stands for an op without a derivative, as PyTorch warns once the pullback goes by."""
    return node.name().endswith("WarnNotImplemented")


def _misbatches(node: Any) -> bool:
    """Return whether the derivative of a node may be wrong under `vmap`: a Fourier transform's along no axes."""
    kind = type(node)
    return not _known_of(kind).batches_rightly and not (kind.__name__ == "FftC2CBackward0" and node._saved_dim)


def _mispushes(node: Any) -> bool:
    """Return whether the JVP of a node may be wrong; of these kinds that of a sum, or of a plain look-up, is not."""
    if _known_of(type(node)).pushes_rightly or getattr(node, "_saved_reduce", "") in {"sum", "mean"}:
        return False
    return bool(getattr(node, "_saved_scale_grad_by_freq", True))


def _known_of(kind: type) -> _Known:
    """Return what is known of nodes of a kind; those of which all is true are kept, of PyTorch's own kinds."""
    name = kind.__name__
    bare = name.rstrip("0123456789")
    known = _Known(
        batches_rightly=name not in MISBATCHED_NODES and _is_builtin(kind),
        pushes_rightly=bare not in MISPUSHED_NODES,
        bends_rightly=bare not in BENT_NODES,
        makes_no_constants=bare not in _MAKING_CONSTANTS,
        is_given_no_constants=bare.removesuffix("Backward") not in _MAKING_CONSTANTS,
        pulls_bare=bare != "LinalgDetBackward",  # which is 0 at singular matrices, in 2.11 to 2.15
        attends_plainly=not name.startswith("ScaledDotProduct"),
    )
    if all(known) and not issubclass(kind, _CFunctionBase):  # of which every `autograd.Function` makes another
        _PLAIN_KINDS.add(kind)
    return known


_PLAIN_KINDS: set[type] = set()


MISBATCHED_NODES = frozenset({
    "CdistBackward0", "EuclideanDistBackward0", "AsStridedScatterBackward0", "RollBackward0", "FftC2CBackward0",
})  # fmt: skip
"""Nodes of autograd whose derivative under `vmap` is not that of each vector, in some release from 2.11 to 2.15; of
Fourier transforms that along no axes, which goes along all of them there."""


MISPUSHED_NODES = frozenset({
    "CholeskyInverseBackward", "EmbeddingBackward", "LinalgDetBackward", "LogcumsumexpBackward",
    "ScatterReduceBackward",
})  # fmt: skip
"""Nodes of autograd whose JVP is not the transpose of their VJP at some points, or at all, in 2.11 to 2.15."""


BENT_NODES = frozenset({
    "NativeLayerNormBackward", "NativeBatchNormBackward", "NativeBatchNormLegitBackward",
    "BatchNormWithUpdateBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward", "LinalgSolveExBackward",
    "LinalgDetBackward", "LinalgSlogdetBackward", "LinalgHouseholderProductBackward", "TriangularSolveBackward",
    "GluBackward",
})  # fmt: skip
"""Nodes of autograd whose JVP, once it is differentiated, is silently wrong in some release from 2.11 to 2.15, or that
of a gated linear unit, which has no derivative."""


_MAKING_CONSTANTS = frozenset({
    "NativeLayerNormBackward", "NativeGroupNormBackward", "NativeBatchNormBackward", "NativeBatchNormLegitBackward",
    "BatchNormWithUpdateBackward", "LinalgLstsqBackward",
})  # fmt: skip
"""Nodes of the ops of which `_left_out.first_constant` knows such results."""


def pulled_back(
    y: Tensor, leaves: Sequence[Tensor], y_bar: Tensor, *, again: bool, batched: bool = False, bare: bool = True
) -> tuple[Tensor | None, ...]:
    """Return the cotangent of each leaf that y depends on, for a cotangent of y or, batched, some behind one axis.

    Of plain tensors there is nothing that `torch.autograd.grad` has to look at before it asks the engine, which for a
    small function takes a tenth of its pullback. If it is not `bare`, the pullback is recorded.
    """
    if batched or type(y) is not Tensor:
        return torch.autograd.grad(
            y, leaves, y_bar, retain_graph=again, create_graph=not bare, allow_unused=True, is_grads_batched=batched
        )
    run = _run_here if y.is_cpu else _run_backward
    return run((y,), (y_bar,), again, not bare, tuple(leaves), True, accumulate_grad=False)


_run_backward: Any = getattr(torch.autograd.graph, "_engine_run_backward")  # noqa: B009 (the stubs do not know it)
# What the former calls, without what it sets up for the threads of devices: a CPU has none.
_run_here: Any = getattr(torch.autograd.Variable, "_execution_engine").run_backward  # noqa: B009 (likewise)


def autograd_nodes(y: Tensor) -> list[Any]:
    """Return the nodes of the autograd graph that leads to a tensor, each once."""
    nodes: list[Any] = [] if y.grad_fn is None else [y.grad_fn]
    seen = set(nodes)
    for node in nodes:  # which grow meanwhile
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return nodes


def is_builtin_node(node: Any) -> bool:
    """Return whether a node of the autograd graph is one of PyTorch's own, or of an op that is kept whole on a tape.

    A Python node is a `torch.autograd.Function`, whose derivative the ops that it ran do not tell. A class of nodes
    that stands for one dispatcher op, and so is not lost, says so by the attribute `of_dispatcher_op` of its function.
    """
    return _is_builtin(type(node))


def _is_builtin(kind: type) -> bool:
    if issubclass(kind, _CFunctionBase):
        return bool(getattr(getattr(kind, "_forward_cls", None), "of_dispatcher_op", False))
    return kind.__name__ not in _FOREIGN_NODES


_CFunctionBase: Any = getattr(torch._C, "_FunctionBase")  # noqa: B009 (the stubs do not know it)
_FOREIGN_NODES = frozenset({"CppFunction", "NotImplemented", "WarnNotImplemented", "Error", "DelayedError"})


def updates_statistics(y: Tensor) -> bool:
    """Return whether batch normalisation on the way to y has updated running statistics."""
    nodes: Any = autograd_nodes(y)
    return any(
        "BatchNorm" in node.name()
        and getattr(node, "_saved_training", True)
        and getattr(node, "_saved_running_mean", None) is not None
        for node in nodes
    )


def hooks_saved_tensors() -> bool:
    """Return whether what autograd saves goes through hooks, as in `checkpoint` and `save_on_cpu`."""
    return _top_hooks(False) is not None  # noqa: FBT003 (as PyTorch has it)


_top_hooks: Any = getattr(getattr(torch._C, "_autograd"), "_top_saved_tensors_default_hooks")  # noqa: B009 (no stubs)


def is_batched_or_dual(tensor: Tensor) -> bool:
    """Return whether a cotangent stands for many, by `vmap` or `is_grads_batched`, or carries a tangent."""
    functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009 (the stubs do not know it)
    return wraps_transform(tensor) or functorch.is_legacy_batchedtensor(tensor)
