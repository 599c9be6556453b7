"""The subject of a Jacobian: a function with its arguments, as a function of one vector of one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from threading import local
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from ._torch import is_compiled
from ._torch_contexts import with_lists_of_weights
from .autocasting import as_outside, autocasts
from .stages import label_of
from .trees import (
    LEAF_SPEC,
    Arguments,
    Side,
    Wrt,
    batch_size,
    differentiated,
    flattened,
    kind_of_leaf,
    read_arguments,
    side_of,
    side_of_one,
)

if TYPE_CHECKING:
    from ._torch_autograd import Recording
    from .foreign import Noticing

Function = Callable[..., Any]
_NO_BATCH = torch.Size()
_CALLED = "_called"  # what a subject keeps for each thread, where it does


class Subject:
    """A function, its arguments and what its Jacobian is taken in.

    The rest of the accumulator sees `functions`: a chain of functions of one tensor, the source vector of one sample in
    front and the joined outputs of that sample at the end.

    Args:
        caller: The function to name in errors.
        stages: The function, as a chain of one stage or more.
        x: A tensor or tree of tensors, or a tuple of positional arguments.
        wrt: What the Jacobian is taken in; see `jacobian`.
        batch_dims: The number of leading axes that are a batch of independent samples.
    """

    def __init__(self, caller: str, stages: Sequence[Function], x: Any, wrt: Wrt, batch_dims: int) -> None:
        self.caller, self.stages, self.wrt, self.batch_dims = caller, tuple(stages), wrt, batch_dims
        self.output: Side | None = None  # known once the function has run
        self.made: Recording | None = None  # what autograd has recorded of it in a call without a plan
        self.within: AbstractContextManager[object] | None = None  # what it is to run in, in such a call
        self.before: Tensor | None = None  # the state of what draws random numbers, as such a call began
        self.attends = False  # whether it is known to have layers that attend
        self._is_of_tensor = False  # without further ado; see `is_simple`
        side = side_of_one("x", x, batch_dims) if wrt is None else None
        if side is None:
            self._read(x)
        else:
            self._read_tensor(x, side)

    def _read_tensor(self, x: Tensor, side: Side) -> None:
        """Do what `_read` does of one tensor: a first call of a small function is spent on much of that."""
        self.in_parameters, self.batch = False, x.shape[: self.batch_dims] if self.batch_dims else _NO_BATCH
        self.source, self._arguments_of_one = side, Arguments((x,), (0,))
        self.layout = [tuple(x.shape)], [LEAF_SPEC]
        self._is_of_tensor = not self.batch_dims
        self._leaves_at_first, self._extras_at_first = ([_merged(x, self.batch_dims)], []), list[Tensor]()

    def _read(self, x: Any) -> None:
        """Read the arguments."""
        arguments = self._arguments(x)
        self.in_parameters = bool(arguments.names)
        tree = differentiated(arguments)
        self.source, tensors = side_of(self.caller, arguments.path, tree, 0 if self.in_parameters else self.batch_dims)
        self.batch = self._batch(arguments, tensors)
        self.layout = _layout(arguments)
        self._leaves_at_first = self._merged(tensors, arguments)
        # Each a tensor of its own: a recording tells tensors from outside apart by identity, and one that is given
        # twice, or that the function closes over as well, may be given other values alone.
        self._extras_at_first = [
            (extra := _first(given, self.batch_dims)).view_as(extra) for given in self._leaves_at_first[1]
        ]
        self._arguments_of_one = arguments

    @cached_property
    def sample(self) -> Tensor:
        """The source vector of one sample, the first of a batch."""
        source = self.source_of(self._leaves_at_first[0])
        source = source.clone() if source.is_inference() and not torch.is_inference_mode_enabled() else source
        return source if self.in_parameters or not self.batch_dims else _first(source, 1)

    @property
    def _target(self) -> Function:
        return self.stages[0] if len(self.stages) == 1 else nn.Sequential(*_modules(self.stages))

    @cached_property
    def label(self) -> str:
        """What people call the function."""
        return " ∘ ".join(label_of(stage) for stage in reversed(self.stages))

    @property
    def functions(self) -> list[Function]:
        """The chain of functions of one tensor."""
        if self.is_simple:
            last = _named(self._finished, label_of(self.stages[-1]))
            if not autocasts():
                return [*self.stages[:-1], last]
            return [*(_named(partial(as_outside, stage), label_of(stage)) for stage in self.stages[:-1]), last]
        return [_named(self._whole, self.label)]

    @property
    def is_simple(self) -> bool:
        """Whether the function takes the tensor that the Jacobian is taken in, as it is, and nothing else."""
        alone = self.has_one_argument and not self.in_parameters and not self.extras
        return alone and self.source.bare and not self.batch_dims

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that the Jacobian is taken in."""
        return self._leaves_at_first[0] if self.in_parameters else []

    @property
    def objects(self) -> list[Any]:
        """The arguments that are no tensors, as they were at first."""
        return [
            leaf for arg in self._arguments_of_one.args for leaf in tree_leaves(arg) if not isinstance(leaf, Tensor)
        ]

    @property
    def extras(self) -> list[Tensor]:
        """The other tensors of the call that this thread is in, or those at first."""
        called: local | None = vars(self).get(_CALLED)
        return self._extras_at_first if called is None else getattr(called, "extras", self._extras_at_first)

    @property
    def has_one_argument(self) -> bool:
        """Whether the function is called with one argument."""
        return len(self._arguments_of_one.args) == 1

    def bind(self, x: Any) -> tuple[Tensor, list[Tensor]]:
        """Return the source vector and the other tensors of a call; see `bind_leaves`."""
        leaves, extras = self.bind_leaves(x)
        return self.source_of(leaves), extras

    def bind_leaves(self, x: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that the Jacobian is taken in, and the others, of a call.

        Args:
            x: As at first.

        Returns:
            The tensors, with all axes of a batch as one in front, and the others, likewise.

        Raises:
            ValueError: If shapes, dtypes or other arguments are not those at first.
        """
        arguments = self._arguments(x)
        if not self.in_parameters:
            tree = differentiated(arguments)
            side, tensors = side_of(self.caller, arguments.path, tree, self.batch_dims)
            for leaf, expected in zip(side.leaves, self.source.leaves, strict=False):
                if leaf.shape != expected.shape:
                    raise ValueError(
                        f"{self.caller}: {leaf.path} must have the shape {tuple(expected.shape)} that the plan was "
                        f"made "
                        f"for, got {tuple(leaf.shape)}; make a new one by plan_jacobian(f, x)."
                    )
            batch = self._batch(arguments, tensors)
            if batch != self.batch:
                raise ValueError(
                    f"{self.caller}: x must have the batch {tuple(self.batch)} that the plan was made for, got "
                    f"{tuple(batch)}."
                )
        if _layout(arguments) != self.layout:
            raise ValueError(
                f"{self.caller}: the arguments must be those that the plan was made for but for the values of tensors, "
                f"got others; make a new one by plan_jacobian(f, x)."
            )
        return self._merged(flattened(differentiated(arguments))[0], arguments)

    def leaves(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors that the Jacobian is taken in at first, and the others, with all batch axes as one."""
        return self._leaves_at_first

    def forget(self) -> None:
        """Keep of the first arguments only what they look like, so that a plan does not keep their memory."""
        self.sample = _outline(self.sample)
        self._extras_at_first = list(map(_outline, self._extras_at_first))
        self._leaves_at_first = ([], [])
        arguments = self._arguments_of_one
        self._arguments_of_one = arguments._replace(args=tree_map_only(Tensor, _outline, arguments.args), parameters=())

    def source_of(self, leaves: Sequence[Tensor]) -> Tensor:
        """Return the source vector, behind one axis for the samples of a batch, of the tensors of a call."""
        return self.source.joined(leaves, 1 if self.batch_dims and not self.in_parameters else 0)

    def _merged(self, tensors: Sequence[Tensor], arguments: Arguments) -> tuple[list[Tensor], list[Tensor]]:
        dims = 0 if self.in_parameters else self.batch_dims
        merged = [_merged(tensor, dims) for tensor in tensors] if dims else list(tensors)
        return merged, [_merged(extra, self.batch_dims) for extra in self._extras(arguments)]

    def _extras(self, arguments: Arguments) -> list[Tensor]:
        if len(arguments.argnums) == len(arguments.args):
            return []
        others = [arg for number, arg in enumerate(arguments.args) if number not in arguments.argnums]
        return [leaf for other in others for leaf in flattened(other)[0] if isinstance(leaf, Tensor)]

    def _batch(self, arguments: Arguments, tensors: Sequence[Tensor]) -> torch.Size:
        if not self.batch_dims:
            return torch.Size()
        every = self._extras(arguments) + ([] if self.in_parameters else list(tensors))
        batches = {tensor.shape[: self.batch_dims] for tensor in every}
        if len(batches) != 1 or any(tensor.dim() < self.batch_dims for tensor in every):
            raise ValueError(
                f"{self.caller}: all tensors must have one batch of batch_dims={self.batch_dims} axes in front, got "
                f"{', '.join(sorted(str(tuple(batch)) for batch in batches)) or 'none'}."
            )
        return batches.pop()

    def _arguments(self, x: Any) -> Arguments:
        return read_arguments(self.caller, self._target, x, self.wrt)

    @contextmanager
    def called_with(self, others: Sequence[Tensor]) -> Iterator[None]:
        """Let the function of one sample see the other arguments of this call, as a black box must."""
        called: local = vars(self).setdefault(_CALLED, local())  # at once, for threads that come together
        before = dict(vars(called))
        called.extras = list(others)
        try:
            yield
        finally:
            vars(called).clear()
            vars(called).update(before)

    def values_of_batch(self, x: Any) -> Tensor:
        """Return the joined outputs of f at a whole batch, behind one axis for its samples."""
        return self.values_of_arguments(tree_map_only(Tensor, torch.clone, self._arguments(x).args))

    def values_of_arguments(self, args: Sequence[Any]) -> Tensor:
        """Return the same, for positional arguments that f may write into."""
        value = as_outside(self._of_stages, args)
        self.output, tensors = self._side_of(value)
        if self.output.bare:
            return _merged(tensors[0], self.batch_dims)
        return self.output.joined([_merged(tensor, self.batch_dims) for tensor in tensors], 1)

    def _side_of(self, value: Any) -> tuple[Side, list[Tensor]]:
        """Return the side that a value of the function makes, and its tensors; an error names the function."""
        side = side_of_one("f(x)", value, self.batch_dims)
        if side is not None:
            return side, [value]
        return side_of(self.caller, f"what {self.label} returns", value, self.batch_dims)

    # ---- the function of one sample --------------------------------------------------------------------------------

    def _finished(self, x: Tensor) -> Tensor:
        return self._joined(as_outside(self.stages[-1], x))

    def _whole(self, source: Tensor) -> Tensor:
        """Return the joined outputs of one sample, for the source vector of one sample."""
        return self.value(self.source.split(source))

    def value(self, leaves: Sequence[Tensor]) -> Tensor:
        """Return the joined outputs of one sample, for the tensors of one sample that the Jacobian is taken in."""
        if self._is_of_tensor or self.is_simple:
            return self._joined(as_outside(self._of_stages, leaves))
        arguments = self._arguments_of_one
        ones = (1,) * self.batch_dims
        extras = iter([extra.reshape((*ones, *extra.shape)) for extra in self.extras])
        args: list[Any] = []
        pieces = iter(leaves)
        chosen = {number: [next(pieces) for _ in tree_leaves(arguments.args[number])] for number in arguments.argnums}
        for number, arg in enumerate(arguments.args):
            flat, spec = tree_flatten(arg)
            if number in chosen:
                flat = chosen[number]
                flat = [leaf.reshape(*ones, *leaf.shape) for leaf in flat] if ones else flat
            else:
                flat = [next(extras) if isinstance(leaf, Tensor) else leaf for leaf in flat]
            args.append(tree_unflatten(flat, spec))
        if arguments.names:
            parameters = dict(zip(arguments.names, leaves, strict=True))
            return self._joined(as_outside(self._of_stages, args, parameters))
        return self._joined(as_outside(self._of_stages, args))

    def may_use_constants(self, noticing: Noticing | None) -> bool:
        """Return whether it may have used results of ops that autograd takes for constants; see `foreign`."""
        made = self.made
        if noticing is not None:  # y may depend on such a result beside what autograd has recorded
            return bool(noticing.names) or (made is not None and made.is_given_constants)
        if made is None:
            return False
        return made.makes_constants or made.is_given_constants or not (made.is_all or self.is_compiled)

    def may_call_unseen(self, noticing: Noticing | None) -> bool:
        """Return whether it may have called such an op where a call by its name is not seen, or was seen already."""
        return noticing is not None or self.is_compiled or (self.made is not None and self.made.is_given_constants)

    @property
    def is_compiled(self) -> bool:
        """Whether a stage is compiled: what it runs is not seen."""
        return any(map(is_compiled, self.stages))

    def _of_stages(self, args: Sequence[Any], parameters: Mapping[str, Tensor] | None = None) -> Any:
        """Return what the function returns, with these parameters if they are given."""
        try:
            if self.within is None:
                return self._of_arguments(args, parameters)
            with self.within:
                return self._of_arguments(args, parameters)
        except ValueError as error:
            if not self.batch_dims or _ALONE not in str(error):
                raise
            raise ValueError(
                f"{self.caller}: f must treat the samples of batch_dims={self.batch_dims} independently, got one that "
                f"takes no sample alone ({self.label}, by batch normalisation in training mode); call f.eval(), or "
                f"take the Jacobian of the whole batch by batch_dims=0."
            ) from error

    def _of_arguments(self, args: Sequence[Any], parameters: Mapping[str, Tensor] | None) -> Any:
        if parameters is not None:
            assert isinstance(self._target, nn.Module)
            with with_lists_of_weights(self._target):
                return torch.func.functional_call(self._target, dict(parameters), tuple(args))
        value: Any = self.stages[0](*args)
        for stage in self.stages[1:]:
            value = stage(value)
        return value

    def _joined(self, value: Any) -> Tensor:
        side, tensors = self._side_of(value)
        if self.batch_dims:
            if any(tensor.shape[: self.batch_dims].numel() != 1 for tensor in tensors):
                raise ValueError(
                    f"{self.caller}: {self.label} must keep the batch of batch_dims={self.batch_dims} axes in front, "
                    f"got "
                    f"outputs of shape {', '.join(str(tuple(tensor.shape)) for tensor in tensors)} for one sample."
                )
            tensors = [tensor.reshape(tensor.shape[self.batch_dims :]) for tensor in tensors]
        self.output = side
        return tensors[0] if side.bare else side.joined(tensors)


_ALONE = "more than 1 value per channel when training"  # so batch normalisation says of a sample without others


def _named(function: Callable[[Tensor], Tensor], name: str) -> Function:
    """Return a function that goes by another name."""

    def named(x: Tensor) -> Tensor:
        return function(x)

    named.__name__ = name
    return named


def _modules(stages: Sequence[Function]) -> list[nn.Module]:
    return [stage for stage in stages if isinstance(stage, nn.Module)]


def _merged(tensor: Tensor, dims: int) -> Tensor:
    """Return a tensor with its leading `dims` axes as one."""
    return tensor if dims == 1 or not dims else tensor.reshape(batch_size(tensor.shape[:dims]), *tensor.shape[dims:])


def _first(tensor: Tensor, dims: int) -> Tensor:
    """Return the first sample of a batch, or zeros if it has none."""
    if not dims:
        return tensor
    return tensor[0] if tensor.shape[0] else tensor.new_zeros(tensor.shape[1:])


def _outline(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape, dtype and device with memory for one entry."""
    return tensor.detach().new_empty(()).expand(tensor.shape)


def _layout(arguments: Arguments) -> Any:
    """Return what must not change between calls: the tree of arguments and all that is no tensor."""
    found = [flattened(arg) for arg in arguments.args]
    leaves, spec = [leaf for leaves, _ in found for leaf in leaves], [spec for _, spec in found]
    return [tuple(leaf.shape) if isinstance(leaf, Tensor) else kind_of_leaf(leaf) for leaf in leaves], spec
