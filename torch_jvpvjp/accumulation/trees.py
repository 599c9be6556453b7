"""Inputs and outputs of any shape of tree, as one vector in and one vector out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .checked import integer_of

Wrt = None | int | str | Sequence[int] | Sequence[str]
LEAF_SPEC = tree_flatten(None)[1]


def flattened(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves of a tree and what it is but for them, as `tree_flatten` does, at once for a tensor."""
    return ([tree], LEAF_SPEC) if type(tree) is Tensor else tree_flatten(tree)


def kind_of_leaf(leaf: Any) -> Any:
    """Return what tells a leaf that is no tensor from others; two zeros of different sign compare equal, NaN never."""
    return type(leaf), repr(leaf) if isinstance(leaf, (float, complex)) else leaf


class Leaf(NamedTuple):
    """One tensor of an input or output.

    Attributes:
        path: What an error calls it.
        shape: Its shape, without batch axes.
        dtype: Its dtype.
    """

    path: str
    shape: torch.Size
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """The number of entries."""
        return self.shape.numel()


class Side(NamedTuple):
    """The leaves of one side of a Jacobian, and the tree that they stand in.

    `bare` says that there is one leaf, which is the whole vector as it stands.
    """

    leaves: tuple[Leaf, ...]
    spec: TreeSpec
    bare: bool

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vector: that which all leaves fit into."""
        dtype = self.leaves[0].dtype
        for leaf in self.leaves[1:]:
            dtype = torch.promote_types(dtype, leaf.dtype)
        return dtype

    @property
    def sizes(self) -> list[int]:
        """The number of entries of each leaf."""
        return [leaf.numel for leaf in self.leaves]

    def joined(self, tensors: Sequence[Tensor], batch: int = 0) -> Tensor:
        """Return the leaves as one vector, behind `batch` axes; a bare leaf as it is."""
        if self.bare:
            return tensors[0]
        dtype = self.dtype
        flat = [tensor.reshape((*tensor.shape[:batch], tensor.shape[batch:].numel())).to(dtype) for tensor in tensors]
        return torch.cat(flat, -1)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return the leaves of a vector."""
        if self.bare:
            return [vector]
        pieces = torch.split(vector, self.sizes)
        return [piece.reshape(leaf.shape).to(leaf.dtype) for piece, leaf in zip(pieces, self.leaves, strict=True)]


def _way_out(leaf: Any) -> str:
    """Return how a leaf that is no tensor becomes one."""
    if is_dataclass(leaf):
        return "; register the class by torch.export.register_dataclass"
    return "; convert it by torch.as_tensor" if isinstance(leaf, (float, np.ndarray, np.generic)) else ""


def assembled(matrix: Tensor, output: Side, source: Side, batch: Sequence[int] = ()) -> Any:
    """Return a Jacobian (*batch, *outputs, *inputs) as a tree of outputs of trees of inputs, as `jacrev` does."""
    if output.bare and source.bare:
        return matrix.reshape((*batch, *matrix.shape[1:])) if len(batch) > 1 else matrix
    m, n = sum(output.sizes), sum(source.sizes)
    return assembled_of(matrix.reshape(*batch, m, n).split(source.sizes, -1), output, source, batch)


def assembled_of(blocks: Sequence[Tensor], output: Side, source: Side, batch: Sequence[int] = ()) -> Any:
    """Return the same of one block for each leaf of the inputs, (*batch, *outputs, *leaf)."""
    if output.bare and source.bare:
        return blocks[0] if len(batch) < 2 else assembled(blocks[0], output, source, batch)
    m, rows = sum(output.sizes), len(output.leaves)
    columns = [
        block.reshape(*batch, m, leaf.numel).split(output.sizes, -2) if rows > 1 else [block]
        for block, leaf in zip(blocks, source.leaves, strict=True)
    ]
    grid = [
        tree_unflatten(
            [
                _as(part, (*batch, *row.shape, *leaf.shape), row.dtype)
                for part, leaf in zip(parts, source.leaves, strict=True)
            ],
            source.spec,
        )
        for parts, row in zip(zip(*columns, strict=True), output.leaves, strict=True)
    ]
    return tree_unflatten(grid, output.spec)


def _as(part: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    part = part if part.shape == shape else part.reshape(shape)
    return part if part.dtype is dtype else part.to(dtype)


class Arguments(NamedTuple):
    """What a function is called with, and which part of it the Jacobian is taken in.

    Attributes:
        args: The positional arguments.
        argnums: Those that the Jacobian is taken in; empty for parameters.
        names: The parameters that it is taken in.
        parameters: These, as they are at the call.
        single: Whether the result has no tuple or dict over arguments.
    """

    args: tuple[Any, ...]
    argnums: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    parameters: tuple[Tensor, ...] = ()
    single: bool = True

    @property
    def path(self) -> str:
        """What errors call that part: x, or one of several arguments in it."""
        return f"x[{self.argnums[0]}]" if self.single and self.argnums and len(self.args) > 1 else "x"


def read_arguments(caller: str, f: Callable[..., Any], x: Any, wrt: Wrt) -> Arguments:
    """What the arguments of `jacobian` say.

    Args:
        caller: The function to name in an error.
        f: The function.
        x: A tensor or tree of tensors, or a tuple of positional arguments.
        wrt: None, argument numbers, "parameters", or names of parameters.

    Returns:
        The arguments and what the Jacobian is taken in.

    Raises:
        TypeError: If wrt is none of these, or names parameters of a function that is no module.
        ValueError: If an argument number or a parameter does not exist.
    """
    args = x if type(x) is tuple else (x,)
    if wrt is None:
        return Arguments(args, tuple(range(len(args))), single=type(x) is not tuple)
    number = integer_of(wrt)
    if number is not None:
        return Arguments(args, (_argnum(caller, number, args),))
    if isinstance(wrt, str) and wrt != "parameters":
        return Arguments(args, (), *_parameters(caller, f, (wrt,)))
    if wrt == "parameters":
        return Arguments(args, (), *_parameters(caller, f, None), single=False)
    if isinstance(wrt, Sequence) and wrt and all(isinstance(one, str) for one in wrt):
        return Arguments(args, (), *_parameters(caller, f, tuple(str(one) for one in wrt)), single=False)
    numbers = [integer_of(one) for one in wrt] if isinstance(wrt, Sequence) else []
    if numbers and None not in numbers:
        argnums = tuple(_argnum(caller, number, args) for number in numbers if number is not None)
        if len(set(argnums)) < len(argnums):
            raise ValueError(f"{caller}: wrt must name each argument once, got {wrt!r} of {len(args)} arguments.")
        return Arguments(args, argnums, single=False)
    raise TypeError(f"{caller}: wrt must be None, argument numbers, 'parameters', or names of parameters, got {wrt!r}.")


def _argnum(caller: str, number: int, args: tuple[Any, ...]) -> int:
    if not -len(args) <= number < len(args):
        raise ValueError(f"{caller}: wrt must be less than the number of arguments, {len(args)}, got {number}.")
    return number % len(args)


def _parameters(
    caller: str, f: Callable[..., Any], names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Return the names of some parameters of a module, all of them for None, and the parameters."""
    if not isinstance(f, nn.Module):
        raise TypeError(
            f"{caller}: f must be an nn.Module where wrt names parameters, got {type(f).__name__}; pass the parameters "
            f"as an argument instead."
        )
    known = dict(f.named_parameters())
    if names is None:
        names = tuple(known)
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise ValueError(
            f"{caller}: wrt must name parameters of f, {', '.join(known) or 'which has none'}, got {missing}."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{caller}: wrt must name each parameter once, got {names}.")
    return names, tuple(known[name] for name in names)


def differentiated(arguments: Arguments) -> Any:
    """Return the tree of tensors that the Jacobian is taken in."""
    if arguments.names:
        parameters = arguments.parameters
        return parameters[0] if arguments.single else dict(zip(arguments.names, parameters, strict=True))
    chosen = tuple(arguments.args[number] for number in arguments.argnums)
    return chosen[0] if arguments.single else chosen


def side_of(caller: str, name: str, tree: Any, batch_dims: int) -> tuple[Side, list[Tensor]]:
    """The leaves of a tree of tensors.

    Args:
        caller: The function to name in an error.
        name: What to call the tree.
        tree: The tree.
        batch_dims: The number of leading axes that are a batch.

    Returns:
        The side, and its tensors.

    Raises:
        TypeError: If a leaf is not a real floating tensor.
        ValueError: If there is none, or one has fewer axes than the batch, or another batch.
    """
    side = side_of_one(name, tree, batch_dims)
    if side is not None:
        return side, [tree]
    tensors, spec = flattened(tree)
    if not tensors:
        raise ValueError(f"{caller}: {name} must hold a tensor at least, got none.")
    leaves: list[Leaf] = []
    aside = ", or leave that argument out by wrt" if name == "x" and type(tree) is tuple and len(tree) > 1 else ""
    for place, tensor in enumerate(tensors):
        path = name if len(tensors) == 1 else f"{name} (leaf {place})"
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{caller}: {path} must be a floating tensor, got {type(tensor).__name__}{_way_out(tensor)}{aside}."
            )
        if not tensor.is_floating_point():
            way = "split it into real and imaginary part" if tensor.is_complex() else "convert it, as by x.double()"
            way = way if name.startswith("x") or len(tensors) == 1 or tensor.is_complex() else f"leave it out, or {way}"
            raise TypeError(f"{caller}: {path} must be a floating tensor, got {tensor.dtype}; {way}{aside}.")
        if tensor.dim() < batch_dims:
            raise ValueError(f"{caller}: {path} must have at least batch_dims={batch_dims} axes, got {tensor.dim()}.")
        leaves.append(Leaf(path, tensor.shape[batch_dims:] if batch_dims else tensor.shape, tensor.dtype))
    if batch_dims and len({tensor.shape[:batch_dims] for tensor in tensors}) > 1:
        shapes = sorted(str(tuple(tensor.shape[:batch_dims])) for tensor in tensors)
        raise ValueError(f"{caller}: the leaves of {name} must have one batch in front, got {', '.join(shapes)}.")
    return Side(tuple(leaves), spec, isinstance(tree, Tensor)), list(tensors)


def side_of_one(name: str, tree: Any, batch_dims: int) -> Side | None:
    """Return the side that one floating tensor is, as most are; None of any other tree."""
    if type(tree) is Tensor and tree.is_floating_point() and tree.dim() >= batch_dims:
        return Side(
            (Leaf(name, tree.shape[batch_dims:] if batch_dims else tree.shape, tree.dtype),), LEAF_SPEC, bare=True
        )
    return None


def batch_size(shape: Sequence[int]) -> int:
    """Return the number of samples of a batch."""
    return prod(shape)
