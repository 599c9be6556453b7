"""Recording a function: it runs once on a fake tensor, and every op that it reaches is written down.

A fake tensor has no data, so nothing that depends on values can end up in a tape by mistake. What looks at data
(control flow, `.item()`) is answered by what the tape gives at the point, and the answer noted as a condition of the
recording; see `values`. Where that cannot be (NumPy, a fraction that becomes a Python number) it raises and the
function is not recorded. The tensor requires grad, so PyTorch itself says which values the derivative passes through: a
detached value, or one computed under `torch.no_grad`, does not require it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._torch import FakeTensorMode
from .._torch_contexts import bases_without_writing, checks_without_branches, plain_kernels, quietly
from ..foreign import is_pullback
from ..rules.indexing import unrecorded
from ..rules.linear_entrywise import STEPS
from ..rules.registry import Meta
from .active import between, differentiable, with_active
from .checks import RAISING, checks_of, inspected
from .composites import composites
from .intercepted import Intercepted, NotRecordable, as_slice
from .known import Numbers
from .masks import is_sized_by_data, without_masks
from .op_arguments import SLICES, argument, clamped, fits_into
from .own_derivatives import called, check_derivatives
from .results import Results
from .sharing import APART, Sharing
from .statistics import Constants
from .tape import Ref, Tape, TapeOp, flat_outputs, meta_of, with_refs
from .values import Answers, columns_where_true, where_true

MOST_OPS = 20_000  # a longer tape would take minutes to plan


def record(
    function: Callable[[Tensor], Any],
    meta: Meta,
    varying: Sequence[Tensor] = (),
    point: Callable[[], Tensor] | None = None,
) -> Tape:
    """The tape of a function of one tensor.

    Args:
        function: A function of one floating tensor that returns one.
        meta: Shape, dtype and device of its input.
        varying: Tensors from outside that are others in each call.
        point: Gives the value of that tensor for a function that looks at data; None where it is not to be seen.

    Returns:
        The tape.

    Raises:
        NotRecordable: If the function looks at data that it cannot be told, mutates what it should not, or has
            derivatives of its own.
        LinAlgError: If the function raises it at the point.
    """
    try:
        recorder = _run(function, meta, varying, point, by_autograd=True)
        if recorder.mutation is None:
            return recorder.finish()
        if recorder.stopped:
            check_derivatives(called(function, recorder.point))
        # Once more, with every in-place op written as one that is not. Autograd cannot look through that, so what is
        # active is then told by grad mode and `detach`.
        recorder = _run(torch.func.functionalize(function), meta, varying, point, by_autograd=False)
    except (NotRecordable, torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
        raise
    except Exception as error:
        raise NotRecordable(f"{type(error).__name__}: {error}") from error
    if recorder.mutation is not None:
        raise NotRecordable(f"it writes into a tensor that is not its own, by {recorder.mutation}")
    return recorder.finish()


def _run(
    function: Callable[[Tensor], Any],
    meta: Meta,
    varying: Sequence[Tensor],
    point: Callable[[], Tensor] | None,
    *,
    by_autograd: bool,
) -> _Recorder:
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.enable_grad():
        x = torch.empty(meta.shape, dtype=meta.dtype, device=meta.device)
        recorder = _Recorder(x.requires_grad_(by_autograd), fake, varying, by_autograd, point)
        # In their plain form attention and LSTMs have every derivative; fused, they have no forward mode nor rule here.
        with plain_kernels(), composites(), quietly(), bases_without_writing(), checks_without_branches():
            with Intercepted(answers=point is not None) as intercepted, recorder:
                try:
                    recorder.y = function(x)
                except Exception:
                    if not recorder.stopped:
                        raise
        if recorder.stopped:
            return recorder
        refusal = recorder.refusal or intercepted.refusal
        if refusal is not None:
            raise refusal
        recorder.tape.checked = list(map(recorder._number, [*recorder.checked, *intercepted.checked]))
    y = recorder.y
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise NotRecordable("it does not return one floating tensor")
    check_derivatives(y if by_autograd else None, recorder.tape.ops)
    return recorder


class _Recorder(TorchDispatchMode):
    """Writes every op down as it passes; `mutation` names the first that writes into a tensor.

    A run that is only looked at, after a mutation, is `stopped` where f looks at data: no values are known any more.
    """

    def __init__(
        self,
        x: Tensor,
        fake: FakeTensorMode,
        varying: Sequence[Tensor],
        by_autograd: bool,
        point: Callable[[], Tensor] | None,
    ) -> None:
        super().__init__()
        self.tape = Tape()
        self.mutation: str | None = None
        self.stopped = False
        self.refusal: NotRecordable | None = None  # which f may have caught
        self.checked: list[Tensor] = []  # what f raises for unless it is true, where values are not to be seen
        self._point, self._varying = point, varying
        self.y: Any = None
        self._from_outside = Numbers(self.tape, varying)
        self._fake, self._by_autograd = fake, by_autograd
        self._results = Results(fake)
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # an id is a name only as long as its tensor lives
        self._sharing = Sharing()
        self.tape.source = self._new(x)
        self._carried = {self.tape.source}  # without autograd: the values that depend on x
        self._below: set[int] = set()  # what an op is given by PyTorch instead of an active operand, below autograd
        self._unseen: dict[int, int] = {}  # of values that depend on x what they are where gradients are off
        self._constants = Constants(lambda func, *args, **kwargs: self._run((), func, *args, **kwargs))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _aten.zeros.default and kwargs.get("device") == _NOWHERE:
            # PyTorch takes a tangent of zeros without data that was expanded for one on no device.
            kwargs = {**kwargs, "device": self.tape.metas[self.tape.source].device}
        if func is _aten._local_scalar_dense.default and (self.mutation is None or self._point is not None):
            return self._number_in(args[0])
        seen = self._point is not None
        if is_sized_by_data(func, args, seen=seen) and (self.mutation is None or seen):
            run = partial(self._run, types)
            if func is _aten.nonzero.default:
                return where_true(self._mask(run(_aten.ne.Scalar, args[0], 0)))
            func, args = without_masks(func, args, lambda mask: columns_where_true(self._mask(mask)), run)
        if func in RAISING and self.mutation is None:
            return self._passes(types, func, *args, **kwargs)
        if func.namespace == "prim" or self.mutation is not None:
            return func(*args, **kwargs)  # a query for a device or a layout, or a run that is only looked at
        if func is _aten.select_scatter.default and not self._by_autograd:
            base, rows, dim, start = as_slice(*args, **kwargs)
            written = self.__torch_dispatch__(_aten.unsqueeze.default, types, (rows, dim))
            return self.__torch_dispatch__(_aten.slice_scatter.default, types, (base, written, dim, start, start + 1))
        if func is _aten.slice_scatter.default and all(one.is_complex() for one in args[:2]):
            pairs = [self.__torch_dispatch__(_aten.view_as_real.default, types, (one,)) for one in args[:2]]
            dim, *ends = args[2:] or (0,)  # autograd takes no complex ones
            written = self.__torch_dispatch__(func, types, (*pairs, dim % args[0].dim(), *ends))
            return self.__torch_dispatch__(_aten.view_as_complex.default, types, (written,))
        if func is _aten.native_group_norm.default and not args[0].is_contiguous():
            # It takes entries side by side alone, and of axes of one entry a fake tensor has other strides than a real.
            args = (self._run(types, _aten.clone.default, args[0], memory_format=torch.contiguous_format), *args[1:])
        if func is _aten.rrelu_with_noise.default and not argument(func, args, kwargs, "training"):
            slope = sum(argument(func, args, kwargs, name) for name in ("lower", "upper")) / 2
            return self.__torch_dispatch__(_aten.leaky_relu.default, types, (args[0], slope))
        recorded, unseen, hidden = func, False, not torch.is_grad_enabled()
        if func._schema.is_mutable:
            hidden = hidden and func._schema.name.removeprefix("aten::") not in _SHAPED
            unseen = hidden and self._is_active(args)
            alike = self._without_writing(func, args, kwargs)
            if alike is None and hidden:
                raise NotRecordable(f"it writes into a tensor while gradients are off, by {func}")
            if alike is None:
                self.mutation = str(func)
                return func(*args, **kwargs)
            recorded = alike
        if func in SLICES:
            args = clamped(func, args)
        recorded = APART[func] if func in APART else recorded
        active: list[int] = []
        carries = torch.is_grad_enabled() and func is not _aten.detach.default and func not in _STEPS

        def number(tensor: Tensor) -> int:
            index = self._number(tensor)
            if carries and index in self._constants and not is_pullback(func):
                index = self._number(self._constants.derived(index))
            if self._depends(tensor, index):
                if hidden:
                    return self._detached(index)
                active.append(index)
            return index

        before = self._number(args[0]) if unseen else None
        refs, named = with_refs(args, number), with_refs(kwargs, number)
        out = self._results(func, args, kwargs)
        results = flat_outputs(out)
        outputs = tuple(None if result is None else self._new(result) for result in results)
        if func in APART:
            self._sharing.split(results)
        if not self._by_autograd and func is _aten.copy.default:
            active = [index for index in active if refs[1] == Ref(index)]  # nothing is left of what is written over
        moved = {index for index in outputs if index is not None and differentiable(self.tape, index)}
        if active and carries:
            moved -= self._constants.noted(func, args, kwargs, outputs, results)
            self._constants.follow(active, moved)
            if not self._by_autograd:
                self._carried |= moved
        if active and func in _BELOW_AUTOGRAD:
            self._below |= moved
        self.tape.ops.append(TapeOp(recorded, refs, named, outputs, tuple(dict.fromkeys(active))))
        if before is not None:
            self._keep_derivative(args[0], before)
        if len(self.tape.ops) > MOST_OPS:
            raise NotRecordable(f"it takes more than {MOST_OPS:,} ops")
        return out

    @property
    def point(self) -> Tensor:
        """The value of the source."""
        if self._point is None:
            raise NotRecordable("it looks at data, which is not to be seen here")
        with unrecorded():
            return self._point().detach().contiguous()

    @cached_property
    def _answers(self) -> Answers:
        return Answers(self.tape, self.point, self._varying)

    def _number_in(self, tensor: Tensor) -> Any:
        """Return the number that f is told a tensor holds."""
        known = self._from_outside.read(index := self._asked(tensor))
        return self._told(lambda: self._answers.number(index)) if known is None else known

    def _passes(self, types: Iterable[type], func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        """Raise what f is told where a value does not pass a check, which every call makes anew."""
        passed = self._run(types, _aten.all.default, self._run(types, RAISING[func], tensor, 0))
        if self._point is None:
            self.checked.append(passed)
        elif not self._number_in(passed):
            with unrecorded():
                func(self._answers.value(self._number(tensor)), *args, **kwargs)
        else:
            self.tape.raising[self._number(passed)] = TapeOp(func, (Ref(self._number(tensor)), *args), kwargs, (), ())

    def _mask(self, tensor: Tensor) -> Tensor:
        """Return a mask with data."""
        known = self._from_outside.all(index := self._asked(tensor))
        return self._told(lambda: self._answers.truths(index)) if known is None else known

    def _run(self, types: Iterable[type], func: Any, *args: Any, **kwargs: Any) -> Any:
        return self.__torch_dispatch__(func, types, args, kwargs)

    def _asked(self, tensor: Tensor) -> int:
        """Return which value f looks at."""
        if self.mutation is not None:
            self.stopped = True
            raise NotRecordable("it looks at data after a write")
        return self._number(tensor)

    def _told(self, answer: Callable[[], Any]) -> Any:
        try:
            return answer()
        except Exception as error:
            self.refusal = error if isinstance(error, NotRecordable) else NotRecordable(f"it looks at data: {error}")
            raise self.refusal from error

    def _is_active(self, args: tuple[Any, ...]) -> bool:
        """Return whether the first argument of an op is a tensor that depends on x as derivatives see it."""
        return bool(args) and isinstance(args[0], Tensor) and self._depends(args[0], self._number(args[0]))

    def _depends(self, tensor: Tensor, index: int) -> bool:
        if index in self.tape.constants:
            return False
        if self._by_autograd:
            return tensor.requires_grad or index in self._below or index in self._constants.restored
        return index in self._carried

    def _detached(self, index: int) -> int:
        """Return a value as it is seen where gradients are off: it depends on nothing, in any derivative."""
        if index not in self._unseen:
            self._unseen[index] = self.tape.new_value(self.tape.metas[index])
            self.tape.ops.append(TapeOp(_aten.detach.default, (Ref(index),), {}, (self._unseen[index],)))
        return self._unseen[index]

    def _keep_derivative(self, tensor: Tensor, before: int) -> None:
        """Let a tensor that was written into while gradients were off have the derivative that it had before.

        With v before and w written, the value w has the derivative of v: it is w + (v − v), the first v alone active.
        """
        written, change = self._number(tensor), self.tape.new_value(meta_of(tensor))
        after = self._new(tensor)
        operands = Ref(before), Ref(self._detached(before))
        self.tape.ops.append(TapeOp(_aten.sub.Tensor, operands, {}, (change,), (before,)))
        self.tape.ops.append(TapeOp(_aten.add.Tensor, (Ref(change), Ref(written)), {}, (after,), (change,)))
        self._carried.update((change, after))

    def _without_writing(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any | None:
        """Return the op that does the same without writing, where nobody else can see the difference; else None.

        An op such as `squeeze_` changes only what the tensor itself says of its shape. One such as `add_` may be
        written as one that makes a new tensor if nothing else shares the memory of its result, which is a tensor that
        f made.
        """
        name = func._schema.name.removeprefix("aten::")
        if func.namespace != "aten" or not name.endswith("_") or not args or not isinstance(args[0], Tensor):
            return None
        target, index = args[0], self._numbers.get(id(args[0]))
        if index is None or index == self.tape.source or index in self.tape.constants:
            return None
        packet = getattr(_aten, name[:-1], None)
        overload = getattr(packet, _SHAPED[name] or func._overloadname if name in _SHAPED else func._overloadname, None)
        if overload is None or name in _SHAPED:
            return overload
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in {"copy_", "fill_", "zero_"} and (name != "copy_" or self._is_active(args)):
            return None  # what was there before is gone, and with it what it depended on
        alone = self._sharing.is_alone(target)
        return overload if alone and all(fits_into(operand.dtype, target.dtype) for operand in operands) else None

    def _new(self, tensor: Tensor) -> int:
        index = self.tape.new_value(meta_of(tensor))
        if self._numbers.get(id(tensor)) is None:
            self._kept.append(tensor)
            self._sharing.add(tensor)
        self._numbers[id(tensor)] = index
        return index

    def _number(self, tensor: Tensor) -> int:
        known = self._numbers.get(id(tensor))
        if known is not None:
            return known
        if getattr(tensor, "fake_mode", None) is self._fake:
            raise NotRecordable("it uses a tensor that was made out of sight")
        if type(tensor) not in {Tensor, torch.nn.Parameter, torch.nn.Buffer}:
            raise NotRecordable(f"it uses a tensor of the type {type(tensor).__name__}")
        index = self._new(tensor)
        self.tape.constants[index] = tensor
        return index

    def finish(self) -> Tape:
        """The tape, with the ops between x and y marked and those that y does not need left out.

        Returns:
            The tape.

        Raises:
            NotRecordable: If the derivative passes through an op that draws random numbers and would draw others when
                differentiated.
        """
        tape = self.tape
        tape.result = self._number(self.y)
        if tape.result in self._constants:
            tape.result = self._number(self._constants.derived(tape.result))
        if tape.result == tape.source:  # the identity; an op that says so
            tape.result = tape.new_value(tape.metas[tape.source])
            tape.ops.append(TapeOp(_aten.alias.default, (Ref(tape.source),), {}, (tape.result,), (tape.source,)))
            self._carried.add(tape.result)
        moves = self.y.requires_grad if self._by_autograd else tape.result in self._carried
        on_the_way = between(tape, moves or tape.result in self._constants.restored)
        tape.restores = not self._constants.restored.isdisjoint(on_the_way)
        needed = {tape.result}
        kept: list[TapeOp] = []
        for op in reversed(tape.ops):
            if not needed.isdisjoint(op.outputs):
                needed.update(op.operands)
                kept.append(with_active(op, on_the_way))
        tape.checks = checks_of(tape.ops, inspected(tape))
        tape.ops = kept[::-1]
        drawn = [op.name for op in kept if op.active and op.draws and op.target not in _DROPS]
        if drawn:
            raise NotRecordable(f"{drawn[0]} draws random numbers and is differentiated")
        return tape


_aten = torch.ops.aten
_NOWHERE = torch.device("meta")
# What PyTorch makes of an operand before an op sees it; by a user's call the result requires grad.
_BELOW_AUTOGRAD = frozenset({_aten.clone.default, _aten.expand.default, _aten._to_copy.default})
_STEPS = frozenset(STEPS) - {_aten.angle.default, _aten.sgn.default}  # which are none of complex numbers
# Ops that write only what a tensor says of its shape, with the overload of their twin where it goes by another name.
_SHAPED = {"squeeze_": "", "unsqueeze_": "", "t_": "", "transpose_": "int"}
_DROPS = frozenset({_aten.native_dropout.default})  # it returns its mask, which its derivative is known by
