"""What ops return for fake tensors, remembered: a loop or a deep network calls one op with one kind of arguments often.

PyTorch works the sizes of a result out anew, in Python for many ops, in a fraction of a millisecond to a few.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .._torch import FakeTensorMode, is_fake, new_fake


class _Kind(NamedTuple):
    """What a result depends on of a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


Known = dict[Any, _Kind]
"""What ops return, by the op and what it depends on."""


class Results:
    """The results of ops in one mode.

    Args:
        fake: The mode.
        known: What is remembered of other modes, which learns what this one returns; nothing if not given.
    """

    def __init__(self, fake: FakeTensorMode, known: Known | None = None) -> None:
        self._fake = fake
        self._known: Known = {} if known is None else known

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what an op returns."""
        key = _key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        kind = self._known.get(key) or _of_product(func, args)
        if kind is not None:
            return new_fake(self._fake, kind.shape, kind.stride, kind.dtype, kind.device)
        # A mode refuses to remember what a tensor with data, as a weight is, has part in.
        fakes = tree_map_only(Tensor, self._without_data, args)
        out = func(*fakes, **tree_map_only(Tensor, self._without_data, dict(kwargs)))
        if not is_fake(out) or _is_shared(out, fakes):  # as `_unsafe_view` is, whose schema does not say so
            return func(*args, **kwargs)
        self._known[key] = _kind(out)
        return out

    def _without_data(self, tensor: Tensor) -> Tensor:
        kind = _kind(tensor)
        return tensor if is_fake(tensor) else new_fake(self._fake, kind.shape, kind.stride, kind.dtype, kind.device)


def _is_shared(out: Tensor, args: tuple[Any, ...]) -> bool:
    """Return whether a result is one of the arguments, or looks at the memory of one."""
    memory = out.untyped_storage()._cdata
    return any(arg.untyped_storage()._cdata == memory for arg in tree_leaves(args) if isinstance(arg, Tensor))


def _of_product(func: Any, args: tuple[Any, ...]) -> _Kind | None:
    """Return what a matrix times a vector is, which PyTorch finds out in ten times what any other op takes it."""
    if func is not torch.ops.aten.mv.default:
        return None
    matrix, vector = args
    fits = matrix.dim() == 2 and vector.dim() == 1 and matrix.shape[1] == vector.shape[0]
    if not fits or (matrix.dtype, matrix.device) != (vector.dtype, vector.device):
        return None
    return _Kind(matrix.shape[:1], (1,), matrix.dtype, matrix.device)


def _key(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what tells what an op returns; None for one that returns what it was given, or that cannot be told."""
    if not _is_functional(func):
        return None
    try:
        key = func, tuple(map(_part, args)), tuple((name, _part(value)) for name, value in kwargs.items())
        hash(key)
    except TypeError:
        return None
    return key


_FUNCTIONAL: dict[Any, bool] = {}


def _is_functional(func: Any) -> bool:
    """Return whether an op makes one new tensor, of a shape that its arguments tell, from tensors."""
    known = _FUNCTIONAL.get(func)
    if known is None:
        schema, tags = func._schema, func.tags
        alone = len(schema.returns) == 1 and isinstance(schema.returns[0].type, torch.TensorType)
        shares = any(part.alias_info is not None for part in (*schema.arguments, *schema.returns))
        told = not {*tags} & {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
        takes = any(isinstance(argument.type, torch.TensorType) for argument in schema.arguments)
        known = _FUNCTIONAL[func] = func.namespace == "aten" and alone and not shares and told and takes
    return known


def _part(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_conj() or value.is_neg():
            raise TypeError
        return _kind(value)
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_part, value))
    return type(value), value


def _kind(tensor: Tensor) -> _Kind:
    return _Kind(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
