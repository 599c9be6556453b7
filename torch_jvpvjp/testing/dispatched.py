"""Checks of the dispatcher ops that an op reaches: PyTorch's opcheck, and every kernel against its formula."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..registration import DifferentiableOp, registered_ops
from ..registration import _torch_private as private
from .budget import assert_equal, assert_in_budget
from .case import Case
from .compositions import SECOND_ORDER, VMAP

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
_REACHING = {**SECOND_ORDER, "vmap∘jvp": VMAP["vmap∘jvp"], "vmap∘vjp": VMAP["vmap∘vjp"]}


class Call:
    """One call of a dispatcher op: the point of the tower and its flat arguments."""

    def __init__(self, op: DifferentiableOp, args: tuple[Any, ...]) -> None:
        self.op, self.args = op, args

    @property
    def pattern(self) -> tuple[Any, ...]:
        """What tells calls apart: the point, which arguments are absent, which results are wanted, and emptiness."""
        return (self.op.qualname, *(_kind(a) for a in self.args))


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return "empty" if value.numel() == 0 else "tensor"
    return str(value) if isinstance(value, list) else type(value).__name__


class _Recorder(private.TorchDispatchMode):
    """Note every call of an op of ours below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[tuple[Any, ...], Call] = {}
        self._ops = {op.overload: op for op in registered_ops().values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._ops:
            op = self._ops[func]
            flat = op.signature.fill(args, kwargs or {})
            call = Call(op, tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in flat))
            self.calls.setdefault(call.pattern, call)
        return func(*args, **(kwargs or {}))


def record_calls(case: Case) -> list[Call]:
    """The distinct dispatcher calls that the second-order and vmap compositions make.

    Args:
        case: The sample.

    Returns:
        One call per point of the tower and pattern of arguments.
    """
    f = case.function(case.op)
    with _Recorder() as recorder:
        for composition in _REACHING.values():
            with contextlib.suppress(Exception):  # a composition that fails is a row of its own
                composition(f, case.point)
    return list(recorder.calls.values())


def checks_of(call: Call) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of one dispatcher call.

    Args:
        call: The call.

    Yields:
        Names and checks that raise.
    """
    name = call.op.qualname.partition("::")[2]
    if call.op.kernel_devices():
        yield f"{name}: kernel = formula", lambda: _kernel_is_formula(call)
    yield f"{name}: opcheck", lambda: _opcheck(call)


def _kernel_is_formula(call: Call) -> None:
    """The kernel agrees with the formula it accelerates, in float64 and in every lower dtype within the budget."""
    formula = call.op.convention.flatten(call.op.formula)
    expected = formula(call.args)
    assert_equal(call.op.compute(call.args), expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rounded = tuple(_cast(a, dtype) for a in call.args)
        exact = formula(tuple(_cast(a, torch.float64) for a in rounded))
        assert_in_budget(call.op.compute(rounded), formula(rounded), exact, dtype, f"{dtype}: ")


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _opcheck(call: Call) -> None:
    frozen = set(call.op.signature.frozen)
    args = tuple(
        a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() and i not in frozen else a
        for i, a in enumerate(call.args)
    )
    # Differentiating the primal under AOTAutograd with symbolic shapes traces its derivatives too; one is slow enough.
    derived = call.op.convention.derived
    torch.library.opcheck(
        call.op.overload, args, test_utils=OPCHECKS if derived else (*OPCHECKS, "test_aot_dispatch_dynamic")
    )
