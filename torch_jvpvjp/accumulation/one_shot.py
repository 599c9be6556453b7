"""A call of `jacobian` that makes no plan: one sweep of tangents or adjoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from time import perf_counter
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _len_torch_dispatch_stack

from ._torch import grad_switched, inside_transform, wraps_transform
from ._torch_autograd import updates_statistics
from .autocasting import autocasts
from .batches import check_independent
from .cache import Remembered
from .carrying import random_state, set_random_state
from .foreign import Noticing, left_out, named_calls, used_constants
from .nesting import differentiating, is_differentiated
from .options import Options
from .plain import Recorded, plain_jacobian
from .plain_batches import jacobians_by_samples, jacobians_of_batch
from .stages import is_plain_module
from .subject import Subject
from .trees import assembled_of
from .unwritten import Unwritten


def without_plan(stages: Sequence[Callable[..., Any]], x: Any, options: Options, known: Remembered) -> Any | None:
    """Return the Jacobian by one sweep of tangents or adjoints; None if making a plan pays."""
    begin = perf_counter()
    subject = Subject("jacobian", stages, x, options.wrt, options.batch_dims)
    leaves, extras = subject.leaves()
    live = options.create_graph or is_differentiated() or any(map(wraps_transform, leaves))
    with _recording() if live else grad_switched(False), differentiating():
        if live:  # autograd takes no tensors of inference
            leaves = [leaf.clone() if leaf.is_inference() else leaf for leaf in leaves]
        blocks = _blocks(subject, leaves, extras, x, options, known, live=live)
    if blocks is None:
        return None
    if not live:
        blocks = [
            block if block.is_contiguous() and not block.requires_grad else _own(block.detach()) for block in blocks
        ]
    assert subject.output is not None
    result = assembled_of(blocks, subject.output, subject.source, subject.batch)
    known.took(perf_counter() - begin)
    return result


def _recording() -> AbstractContextManager[object]:
    """Return a context in which autograd records: in inference mode `torch.func` gives zeros, up to 2.11."""
    return torch.inference_mode(mode=False) if torch.is_inference_mode_enabled() else nullcontext()


def _own(block: Tensor) -> Tensor:
    """Return a block that can be written into: of y = Σᵢ xᵢ autograd gives one entry, seen n times."""
    seen_again = any(stride == 0 and size > 1 for size, stride in zip(block.shape, block.stride(), strict=True))
    return block.clone(memory_format=torch.contiguous_format) if seen_again else block


def _blocks(
    subject: Subject,
    leaves: Sequence[Tensor],
    extras: Sequence[Tensor],
    x: Any,
    options: Options,
    known: Remembered,
    *,
    live: bool,
) -> list[Tensor] | None:
    """Return the Jacobian in each leaf, those of a batch behind one axis for its samples; None if a plan pays."""
    device = leaves[0].device
    subject.before = before = random_state(device)
    if known.uses_constants or (live and _leaves_out(subject, leaves, extras, known)):
        return None  # a plan goes by autograd, or says what has no derivative
    if known.layers is None:
        known.layers = " ".join(map(_layers_of, subject.stages))
    subject.attends = "Attention" in known.layers
    normalises = known.normalises or "Norm" in known.layers
    noticing = subject.within = _noticing(subject, known) if live or normalises else None
    try:
        if not subject.batch_dims:
            blocks = _blocks_of_one(subject, leaves, known, live=live)
        elif not subject.batch.numel() or known.planning_pays(0.0, 0):  # what earlier calls took is all that is known
            blocks = None
        else:
            blocks = _blocks_of_batch(subject, leaves, extras, x, options, live=live)
    except RuntimeError as error:
        chained = len(subject.stages) > 1  # a plan says which stage does not take what the one before it returns
        if not chained and not _may_be_planned(error, transformed=live or bool(subject.batch_dims)):
            raise
        blocks = None
    subject.within = None
    if blocks is not None and subject.may_use_constants(noticing) and not _are_of_layers(subject, known):
        known.normalises = True
        known.uses_constants = _uses_constants(subject, leaves, extras, noticing)
        if known.uses_constants:  # which a plan gives the derivative that autograd leaves out, if there is one
            blocks = None
    if blocks is None:
        set_random_state(device, before)  # the plan draws what this run has drawn
    return blocks


def _noticing(subject: Subject, known: Remembered) -> Noticing | None:
    """Return what notices calls, by name, of ops that have such results; None where none can be.

    The record tells of most functions, and takes no time; of one that normalises it does not.
    """
    return None if subject.is_compiled or _are_of_layers(subject, known) else Noticing()


def _are_of_layers(subject: Subject, known: Remembered) -> bool:
    """Return whether the function is made of PyTorch's own layers alone, which call no op by its own name."""
    if known.of_layers is None:
        known.of_layers = all(map(_is_of_layers, subject.stages))
    return known.of_layers


def _blocks_of_batch(
    subject: Subject, leaves: Sequence[Tensor], extras: Sequence[Tensor], x: Any, options: Options, *, live: bool
) -> list[Tensor] | None:
    """Return the Jacobians of the samples in each leaf, behind one axis for them; None if that takes a plan."""
    asked = options.randomness == "error" and not (live and inside_transform())
    if asked and isinstance(x, Tensor) and subject.has_one_argument and not subject.in_parameters:
        together = jacobians_of_batch(subject, x, live=live)
        if together is not None:
            return [together]
    if autocasts() and not inside_transform():
        return None  # `vmap` takes linear layers past it
    values, blocks = jacobians_by_samples(subject, leaves, extras, options.randomness, live=live)
    if asked:
        check_independent(subject, values, subject.values_of_batch(x))
    return blocks


def _blocks_of_one(subject: Subject, leaves: Sequence[Tensor], known: Remembered, *, live: bool) -> list[Tensor] | None:
    def function(*tensors: Tensor) -> Tensor:
        return subject.value(tensors)

    run = Recorded(function, leaves, live=live, before=None if subject.attends else subject.before)
    pays = known.planning_pays(run.seconds, run.width, lambda: run.recording)
    if pays and (live or not updates_statistics(run.recorded)):  # what has counted a batch is not run again
        return None
    blocks = plain_jacobian(run)
    known.last = run.recording
    subject.made = run.recording
    return blocks


def _leaves_out(subject: Subject, leaves: Sequence[Tensor], extras: Sequence[Tensor], known: Remembered) -> bool:
    """Return whether torch.func leaves out the derivatives of some ops: f runs once more, the first time."""
    if known.left_out is None:
        names = _looked_at(left_out, subject, leaves, extras)
        known.left_out = None if names is None else bool(names)
    return bool(known.left_out)


def _uses_constants(
    subject: Subject, leaves: Sequence[Tensor], extras: Sequence[Tensor], noticing: Noticing | None
) -> bool:
    """Return whether f uses results that autograd takes for constants: it runs once more, or twice."""
    named = subject.may_call_unseen(noticing) or _looked_at(named_calls, subject, leaves, extras)
    return bool(named and _looked_at(used_constants, subject, leaves, extras))


def _looked_at(
    look: Callable[[Callable[..., Tensor], Sequence[Tensor]], list[str]],
    subject: Subject,
    leaves: Sequence[Tensor],
    extras: Sequence[Tensor],
) -> list[str] | None:
    """Return what is seen in one more run of f at one sample; None where it cannot be."""
    if inside_transform() or _len_torch_dispatch_stack() or (subject.batch_dims and not subject.batch.numel()):
        return None
    if subject.batch_dims:
        leaves = leaves if subject.in_parameters else [leaf[0] for leaf in leaves]
        extras = [extra[0] for extra in extras]
    with Unwritten() as unwritten, subject.called_with(extras):
        unwritten.keep(subject.stages, ())
        return look(lambda *tensors: subject.value(tensors), leaves)


def _is_of_layers(stage: Callable[..., Any]) -> bool:
    return isinstance(stage, nn.Module) and all(
        type(layer).__module__.startswith("torch.nn.modules.") and is_plain_module(layer) for layer in stage.modules()
    )


def _layers_of(stage: Callable[..., Any]) -> str:
    """Return the names of the classes of all layers of a module, or of those that a function refers to by a name."""
    layers = [stage] if isinstance(stage, nn.Module) else [one for one in _held_by(stage) if isinstance(one, nn.Module)]
    seen, names = set(layers), list[str]()
    for layer in layers:  # which grow meanwhile
        names.append(type(layer).__name__)
        for inner in layer._modules.values():
            if inner is not None and inner not in seen:
                seen.add(inner)
                layers.append(inner)
    return " ".join(names)


def _held_by(stage: Callable[..., Any]) -> list[Any]:
    held = [getattr(stage, "__self__", None)]
    code: CodeType | None = getattr(stage, "__code__", None)
    if code is not None:
        names: dict[str, Any] = getattr(stage, "__globals__", {})
        held += [names.get(name) for name in code.co_names]
    for cell in getattr(stage, "__closure__", None) or ():
        with suppress(ValueError):  # it is empty
            held.append(cell.cell_contents)
    return held


def _may_be_planned(error: RuntimeError, *, transformed: bool) -> bool:
    """Return whether a plan may do what a sweep could not, or say better why not.

    Autograd needs a value that f has written over since, which a recording keeps; an op has a JVP alone, or none that
    PyTorch knows; a cotangent does not lie as an op takes it; or no transform of torch.func takes f, but autograd may.
    """
    if isinstance(error, NotImplementedError) or any(words in str(error) for words in _OF_AUTOGRAD):
        return True
    return transformed and not inside_transform() and any(words in str(error) for words in _OF_TRANSFORMS)


_OF_AUTOGRAD = (
    "modified by an inplace operation",
    "no autograd formula",
    "Inference tensors cannot be saved",
    "divisible by 2",  # so lies no part of a cotangent of several outputs that is to be seen as complex numbers
)
_OF_TRANSFORMS = (
    "transform",
    "vmap",
    "Tensor that doesn't have storage",
    "Autograd not support dtype",  # so it takes indices for what is differentiated, as of `embedding_bag`
)
