"""Fractions that a function reads by `.item()`, followed through Python's arithmetic while it is recorded.

To Python such a number is a float; to derivatives it is a constant; and in each call it is another one. So a recording
hands out what stands for it: an object over a detached tensor of no axes, of double precision as a float is. Its sums,
products and powers are such numbers too, what comparing it tells becomes a condition, and a tensor that it meets gets
the tensor in its place. Whatever else is done with it takes a float, which is refused where it depends on x: then the
function is not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


class ReadNumber:
    """A number that a function has read from a tensor, in the place of a float.

    Args:
        tensor: The number, detached, of no axes, in double precision.
        refuse: Raises that the function cannot be recorded, for a reason.
    """

    __slots__ = ("refuse", "tensor")
    __array_ufunc__ = None  # NumPy's numbers leave arithmetic to this one

    def __init__(self, tensor: Tensor, refuse: Callable[[str], NoReturn]) -> None:
        self.tensor, self.refuse = tensor, refuse

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride] (for isinstance)
        return float

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Say nothing: a mode that answers is in front of it."""
        return NotImplemented

    # ---- arithmetic ------------------------------------------------------------------------------------------------

    def _with(self, function: Callable[..., Tensor], *operands: Any) -> Any:
        tensors = [one.tensor if type(one) is ReadNumber else one for one in operands]
        if not all(type(one) is ReadNumber or isinstance(one, (int, float)) for one in operands):
            return NotImplemented
        return ReadNumber(function(*map(self._as_tensor, tensors)), self.refuse)

    def _as_tensor(self, number: Any) -> Tensor:
        if isinstance(number, Tensor):
            return number
        return torch.full((), float(number), dtype=torch.float64, device=self.tensor.device)

    def __add__(self, other: Any) -> Any:
        return self._with(torch.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return self._with(torch.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return self._with(torch.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._with(torch.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return self._with(torch.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._with(torch.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._with(self._quotient, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(self._quotient, other, self)

    def __pow__(self, other: Any) -> Any:
        return self._with(self._power, self, other)

    def __rpow__(self, other: Any) -> Any:
        return self._with(self._power, other, self)

    def __neg__(self) -> Any:
        return self._with(torch.neg, self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self._with(torch.abs, self)

    def _quotient(self, x: Tensor, y: Tensor) -> Tensor:
        if not bool(y != 0):
            self.refuse("it divides by a number that it has read, which is 0")
        return x / y

    def _power(self, x: Tensor, y: Tensor) -> Tensor:
        power = x**y
        if not bool(power.isfinite()):  # where Python raises, or goes on with a complex number
            self.refuse("it takes a power of a number that it has read, which has none")
        return power

    # ---- what is known of it from then on ----------------------------------------------------------------------------

    def _compared(self, function: Callable[..., Tensor], other: Any) -> Any:
        result = self._with(function, self, other)
        return result if result is NotImplemented else bool(result.tensor)

    def __lt__(self, other: Any) -> Any:
        return self._compared(torch.lt, other)

    def __le__(self, other: Any) -> Any:
        return self._compared(torch.le, other)

    def __gt__(self, other: Any) -> Any:
        return self._compared(torch.gt, other)

    def __ge__(self, other: Any) -> Any:
        return self._compared(torch.ge, other)

    def __eq__(self, other: object) -> Any:
        return self._compared(torch.eq, other)

    def __ne__(self, other: object) -> Any:
        return self._compared(torch.ne, other)

    def __bool__(self) -> bool:
        return bool(self.tensor != 0)

    def __int__(self) -> int:
        return self._whole(torch.trunc)

    def __trunc__(self) -> int:
        return self._whole(torch.trunc)

    def __floor__(self) -> int:
        return self._whole(torch.floor)

    def __ceil__(self) -> int:
        return self._whole(torch.ceil)

    def __round__(self, digits: int | None = None) -> int:
        if digits is not None:
            self.refuse("it rounds a number that it has read to a fraction")
        return self._whole(torch.round)  # to the even neighbour, as Python does

    def _whole(self, function: Callable[[Tensor], Tensor]) -> int:
        return int(function(self.tensor))

    # ---- what takes a float ----------------------------------------------------------------------------------------

    def __float__(self) -> float:
        return float(self.tensor)  # refused if it depends on x

    def __complex__(self) -> complex:
        return complex(float(self))

    def __hash__(self) -> int:
        return hash(float(self))

    def __str__(self) -> str:
        return str(float(self))

    def __repr__(self) -> str:
        return repr(float(self))

    def __format__(self, form: str) -> str:
        return format(float(self), form)

    def __floordiv__(self, other: Any) -> Any:
        return float(self) // other

    def __rfloordiv__(self, other: Any) -> Any:
        return other // float(self)

    def __mod__(self, other: Any) -> Any:
        return float(self) % other

    def __rmod__(self, other: Any) -> Any:
        return other % float(self)

    def __divmod__(self, other: Any) -> Any:
        return divmod(float(self), other)

    def __rdivmod__(self, other: Any) -> Any:
        return divmod(other, float(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return float(self).__reduce_ex__(protocol)

    def __getattr__(self, name: str) -> Any:
        return getattr(float(self), name)


def has_read_numbers(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether there are such numbers among the arguments of a function, or in lists of them."""
    return any(_is_read(one) for one in args) or any(_is_read(one) for one in kwargs.values())


def _is_read(value: Any) -> bool:
    if type(value) in {list, tuple}:
        return any(map(_is_read, value))
    return type(value) is ReadNumber


def with_tensors(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function of tensors with tensors in the place of numbers that were read.

    A number of Python decides of the dtype of a result no more than that it is no whole number, so the tensor has the
    dtype that another one has with a fraction. A function of which that is not known to be the same is refused.

    Args:
        func: The function.
        args: Its arguments.
        kwargs: Likewise.

    Returns:
        The arguments.
    """
    every = (*args, *kwargs.values())
    dtype, device = _kind(func, args, kwargs)
    if dtype not in {torch.float32, torch.float64} or any(
        type(one) in {list, tuple} and _is_read(one) for one in every
    ):
        _first(every).refuse(f"it hands a number that it has read to {getattr(func, '__name__', func)}")

    def placed(one: Any) -> Any:
        if type(one) is ReadNumber:
            return one.tensor.to(device, dtype)
        bound = func in _BOUNDING and isinstance(one, (int, float)) and not isinstance(one, bool)
        return torch.full((), one, dtype=dtype, device=device) if bound else one

    return tuple(map(placed, args)), {name: placed(one) for name, one in kwargs.items()}


def _first(values: Sequence[Any]) -> ReadNumber:
    found = next(one for one in values if _is_read(one))
    return found if type(found) is ReadNumber else _first(found)


def _kind(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.dtype | None, Any]:
    """Return dtype and device of the tensors that take the place of numbers; no dtype if none may."""
    if func in MAKING:
        made = kwargs.get("dtype") or torch.get_default_dtype()
        return made if len(args) == 1 and kwargs.keys() <= {"dtype"} else None, None
    tensors = [one for one in args if isinstance(one, Tensor) and one.dtype is not torch.bool]
    if any(isinstance(one, Tensor) for one in kwargs.values()):
        return None, None
    if func in _WRITING and isinstance(args[0], Tensor) and not kwargs:
        return args[0].dtype, args[0].device
    if func in _CHOOSING and not all(one.is_floating_point() for one in tensors):
        return None, None
    if func in _BOUNDING or (func in _OF_TWO and len(args) == 2 and not kwargs) or (func in _CHOOSING and not kwargs):
        if len(tensors) == 1:
            return torch.result_type(tensors[0], 1.0), tensors[0].device
    return None, None


_TWO = (
    "add", "sub", "mul", "div", "true_divide", "pow", "lt", "le", "gt", "ge", "eq", "ne", "less", "greater",
    "multiply", "divide", "subtract",
)  # fmt: skip
_DUNDERS = (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "lt", "le", "gt", "ge", "eq",
    "ne",
)  # fmt: skip
_OF_TWO: frozenset[Any] = frozenset({
    *(getattr(torch, name) for name in _TWO),
    *(getattr(Tensor, name) for name in _TWO),
    *(getattr(Tensor, f"__{name}__") for name in _DUNDERS),
})
_BOUNDING: frozenset[Any] = frozenset({
    torch.clamp, torch.clip, torch.clamp_min, torch.clamp_max, Tensor.clamp, Tensor.clip, Tensor.clamp_min,
    Tensor.clamp_max,
})  # fmt: skip
_CHOOSING: frozenset[Any] = frozenset({torch.where, Tensor.where, torch.masked_fill, Tensor.masked_fill})
_WRITING: frozenset[Any] = frozenset({
    Tensor.__setitem__, Tensor.__iadd__, Tensor.__isub__, Tensor.__imul__, Tensor.__itruediv__, Tensor.add_,
    Tensor.sub_, Tensor.mul_, Tensor.div_,
})  # fmt: skip
MAKING: frozenset[Any] = frozenset({torch.tensor, torch.as_tensor})
"""The functions that make a tensor of a number."""
