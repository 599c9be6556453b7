"""A formula must be a pure function of its arguments: a derivative may run it again, or differentiate it."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._left_out import is_left_out
from .._zero_tangents import without_scaled_zeros
from . import _torch_private as private
from .conventions import Function
from .signature import Signature

_MOST_KINDS = 256
_LEAVING = ("numpy", "__array__", "__dlpack__", "data_ptr")  # ways out of PyTorch


class Examination:
    """What is known of one formula: for which kinds of calls it was seen to be pure, and whether it leaves PyTorch.

    A formula may take another branch for another option, so each combination of options is watched the first time; of
    floats the sign alone counts, and so it does of integers once there are too many.

    Args:
        qualname: The op, for messages.
        signature: Its arguments.
        formula: Its formula as it was written.
    """

    def __init__(self, qualname: str, signature: Signature, formula: Function) -> None:
        self._qualname, self._formula = qualname, formula
        optional = [i for i in signature.tensors if signature.arguments[i].kind.endswith("?")]
        self._telling = (*signature.options, *optional)
        self._tensors = signature.tensors
        self._pure: set[Any] = set()
        self._drawless: set[Any] = set()  # kinds of calls whose derivative was seen to draw no random numbers
        self._whole: set[Any] = set()  # kinds of calls whose derivative was seen to leave no op out
        self._reads_surroundings = False  # tensors that are no arguments, which may require grad another time
        self._leaves: str | None = None  # the function by which the formula leaves PyTorch
        self._stays: set[Any] = set()  # kinds of calls that were seen not to

    def kind(self, args: Sequence[Any]) -> Any:
        """What the formula may branch on: options, and which tensors are there.

        Args:
            args: One value per argument.

        Returns:
            A key.
        """
        if not self._telling:
            return ()
        coarse = len(self._pure) + len(self._drawless) + len(self._stays) > _MOST_KINDS
        return tuple([_kind(args[i], coarse) for i in self._telling])

    def is_settled(self, args: Sequence[Any]) -> bool:
        """Whether the formula may run on plain tensors unwatched.

        Args:
            args: One value per argument.

        Returns:
            True if it was watched on such arguments, or a mode is active, which has to see its ops undisturbed.
        """
        settled = not self._reads_surroundings and self.kind(args) in self._pure
        return settled or private.len_torch_dispatch_stack() > 0

    @contextmanager
    def of_values(self, args: Sequence[Any]) -> Iterator[None]:
        """A context in which the formula runs on plain tensors and is watched.

        Args:
            args: One value per argument.

        Yields:
            Nothing.
        """
        refuse_captured_gradients(self._qualname, self._formula)
        known = {_memory(args[i]) for i in self._tensors if args[i] is not None}
        whole = private.modes_work_here()
        with (
            _RefuseCaptured(self._qualname, known) as watch,
            RefuseImpurity(self._qualname, known) if whole else nullcontext(),
        ):
            yield
        self._reads_surroundings = self._reads_surroundings or watch.reads_surroundings
        self._leaves = self._leaves or watch.left_by
        kind = self.kind(args)
        if whole:
            self._pure.add(kind)
        if watch.left_by is None:
            self._stays.add(kind)

    @contextmanager
    def of_derivative(self, args: Sequence[Any]) -> Iterator[None]:
        """A context in which a derivative runs the formula: it must draw no random numbers, and leave no op out.

        Args:
            args: One value per argument.

        Yields:
            Nothing.
        """
        kind = self.kind(args)
        drawless = kind in self._pure or kind in self._drawless
        if drawless and kind in self._whole:
            yield
            return
        with self._refuse_left_out(kind), nullcontext() if drawless else RefuseImpurity(self._qualname, set()):
            yield
        self._drawless.add(kind)

    def of_duals(self, args: Sequence[Any]) -> AbstractContextManager[object]:
        """A context in which the formula runs on duals, whose tangents no op may leave out.

        Args:
            args: One value per argument.

        Returns:
            The context manager.
        """
        kind = self.kind(args)
        return nullcontext() if kind in self._whole else self._refuse_left_out(kind)

    @contextmanager
    def _refuse_left_out(self, kind: Any) -> Iterator[None]:
        with _RefuseLeftOut(self._qualname) as watch:
            yield
        if not watch.called:  # else another argument may have the derivative another time
            self._whole.add(kind)

    def of_wrappers(self, args: Sequence[Any]) -> AbstractContextManager[object]:
        """A context in which the formula runs on what has derivatives or batch axes, which only PyTorch can follow.

        Args:
            args: One value per argument.

        Returns:
            The context manager.

        Raises:
            NotImplementedError: If the formula is known to leave PyTorch.
        """  # noqa: DOC501, DOC502 (made by _leaving_error)
        if self._leaves is not None:
            raise _leaving_error(self._qualname, self._leaves)
        kind = self.kind(args)
        return nullcontext() if kind in self._stays else self._refuse_leaving(kind)

    @contextmanager
    def _refuse_leaving(self, kind: Any) -> Iterator[None]:
        with _RefuseLeaving(self._qualname):
            yield
        self._stays.add(kind)


def _kind(value: Any, coarse: bool) -> Any:
    """What a formula may branch on: the value of an option, or whether a tensor is there."""
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, list | tuple):
        return tuple([_kind(v, coarse) for v in value])
    if isinstance(value, str | bool | torch.dtype) or value is None or (type(value) is int and not coarse):
        return value
    return (value > 0) - (value < 0) if isinstance(value, int | float) else type(value)


def _memory(tensor: Tensor) -> int | None:
    """What tells one piece of memory from another; None for a tensor that has none of its own."""
    if tensor.layout is not torch.strided or private.is_functorch_wrapped_tensor(tensor):
        return None
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return None


class RefuseImpurity(private.TorchDispatchMode):
    """While active, an op raises that draws random numbers, or writes into memory that was there before.

    A derivative that runs the formula again would see other numbers, and be that of another function.

    Args:
        qualname: The op whose formula runs.
        known: The memory of its arguments.
    """

    def __init__(self, qualname: str, known: set[int | None]) -> None:
        super().__init__()
        self._qualname, self._known = qualname, known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(
                f"{self._qualname}: the formula draws random numbers ({func}), which its derivatives would draw anew; "
                "draw them outside and pass them as an argument."
            )
        if func._schema.is_mutable:
            for declared, value in zip(func._schema.arguments, args, strict=False):
                written = declared.alias_info is not None and declared.alias_info.is_write
                if written and isinstance(value, Tensor) and _memory(value) in self._known:
                    raise ValueError(
                        f"{self._qualname}: the formula writes into its argument ({func}), but a derivative may run it "
                        "again; write into a copy."
                    )
        func, args, kwargs = without_scaled_zeros(func, args, kwargs or {})
        return func(*args, **kwargs)


class _RefuseCaptured(TorchFunctionMode):
    """While active, what reads a tensor from the surroundings that has a derivative raises.

    Args:
        qualname: The op whose formula runs on plain tensors.
        known: The memory of its arguments.
    """

    def __init__(self, qualname: str, known: set[int | None]) -> None:
        super().__init__()
        self._qualname, self._known = qualname, {None, *known}
        self._depth = _depth()
        self.reads_surroundings = False
        self.left_by: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _leaves(func, args):
            self.left_by = self.left_by or func.__name__
        for value in private.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._look_at(value)
        returned = func(*args, **kwargs)
        self._known.update(_memory(value) for value in private.tree_leaves(returned) if isinstance(value, Tensor))
        return returned

    def _look_at(self, value: Tensor) -> None:
        if not (value.is_floating_point() or value.is_complex()):
            return
        if _depth() == self._depth:  # else it may be the formula's own transform
            if private.is_functorch_wrapped_tensor(value):
                raise self._error(value, "belongs to a transform of torch.func")
            if private.forward_ad._current_level >= 0 and private.has_tangent(value):
                raise self._error(value, "has a tangent")
        if _memory(value) not in self._known:
            self.reads_surroundings = True
            if value.requires_grad:
                raise self._error(value, "requires grad")

    def _error(self, value: Tensor, what: str) -> ValueError:
        return ValueError(
            f"{self._qualname}: the formula reads a tensor of shape {tuple(value.shape)} from its surroundings that "
            f"{what}, whose derivative would be lost; take it as an argument, or read its .detach()."
        )


class _RefuseLeaving(TorchFunctionMode):
    """While active, leaving PyTorch with floating-point numbers raises."""

    def __init__(self, qualname: str) -> None:
        super().__init__()
        self._qualname = qualname

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _leaves(func, args):
            raise _leaving_error(self._qualname, func.__name__)
        return func(*args, **(kwargs or {}))


class _RefuseLeftOut(TorchFunctionMode):
    """While active, an op raises whose derivative PyTorch would take for zero, called on what has one."""

    def __init__(self, qualname: str) -> None:
        super().__init__()
        self._qualname = qualname
        self.called = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for op in filter(is_left_out, _overloads(func)):
            self.called = True
            tensors = [value for value in private.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            if any(map(_carries_derivative, tensors)):
                raise NotImplementedError(
                    f"{self._qualname}: the formula calls {op._schema.name}, whose derivative PyTorch leaves "
                    "out (it would be taken for zero); give the op what is asked for here: @op.jvp or @op.vjp."
                )
        return func(*args, **kwargs)


def _overloads(func: Any) -> list[Any]:
    """The ops of the dispatcher that a function may be; none if it is no op."""
    if isinstance(func, torch._ops.OpOverload):
        return [func]
    if isinstance(func, torch._ops.OpOverloadPacket):
        return [getattr(func, name) for name in func.overloads()]
    return []


def _carries_derivative(tensor: Tensor) -> bool:
    """Whether a tensor has a tangent or is on the way to a gradient, on the level that an op is called on."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or private.is_legacy_batched(tensor):
        return False
    return tensor.requires_grad or private.unpack_dual(tensor, level=0)[1] is not None


def _depth() -> int:
    """How many transforms of torch.func are active."""
    return len(private.interpreter_stack() or ())


def _leaves(func: Any, args: Sequence[Any]) -> bool:
    if getattr(func, "__name__", None) not in _LEAVING or not args or not isinstance(args[0], Tensor):
        return False
    return args[0].is_floating_point() or args[0].is_complex()


def _leaving_error(qualname: str, name: str) -> NotImplementedError:
    return NotImplementedError(
        f"{qualname}: the formula leaves PyTorch (Tensor.{name}), where no derivative, batch axis or trace can follow; "
        "give the op what is asked for here: @op.jvp, @op.vjp, @op.vmap, or @op.fake for tracing."
    )


@contextmanager
def explaining_transforms(qualname: str) -> Iterator[None]:
    """A context in which an error of PyTorch's about a transform inside of the dispatcher says what is wrong.

    Args:
        qualname: The op whose formula or rule runs.

    Yields:
        Nothing.

    Raises:
        NotImplementedError: In the place of that error.
        RuntimeError: Any other, as it came.
    """
    try:
        yield
    except RuntimeError as error:
        if "savedLocalDispatchKeySet_" not in str(error):
            raise
        raise NotImplementedError(
            f"{qualname}: the formula, or a rule of it, calls a transform of torch.func, which PyTorch does not allow "
            "where this derivative or batch axis is dealt with; write it out in plain PyTorch, or give the rule that "
            "is missing here."
        ) from error


def refuse_captured_gradients(qualname: str, formula: Function) -> None:
    """Refuse a formula that reads a tensor from its surroundings that requires grad: its gradient would be lost.

    Args:
        qualname: The op.
        formula: The formula.

    Raises:
        ValueError: If it captures one.
    """
    if not inspect.isfunction(formula):
        return
    captured = inspect.getclosurevars(formula)
    for name, value in {**captured.globals, **captured.nonlocals}.items():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise ValueError(
                f"{qualname}: the formula reads {name!r} from its surroundings, a tensor that requires grad, whose "
                f"gradient would be lost; take it as an argument, or read {name}.detach()."
            )
