"""Checks of the dispatcher ops that an op reaches: PyTorch's opcheck, and every kernel against its formula."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._zero_tangents import without_scaled_zeros
from ..registration import DifferentiableOp, registered_ops
from ..registration import _torch_private as private
from .budget import NEIGHBOURS, assert_equal, assert_in_budget
from .case import Case
from .compositions import EAGER
from .products import products_in

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
# Together they call every point up to second order in every way. Those under vmap come first: of the calls of one
# pattern the first is kept, which there has three tangents of one primal, or three cotangents; Jacobians have more.
_REACHING = (
    *("vmap∘jvp", "vmap∘vjp", "vmap∘hvp", "vmap∘grad∘jvp", "vmap∘grad∘grad", "vmap∘jvp, one tangent"),
    *("jvp∘jvp", "jvp∘grad", "grad∘jvp", "grad∘tangent", "grad∘grad", "double backward", "grad∘jvp∘grad"),
    *("backward, one input", "backward, one output", "backward through a dual", "backward, tangent stopped"),
)


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
        func, args, kwargs = without_scaled_zeros(func, args, kwargs or {})
        return func(*args, **kwargs)


def record_calls(case: Case, reaching: Sequence[str] = _REACHING) -> list[Call]:
    """The distinct dispatcher calls that derivatives up to second order make, under vmap too.

    Args:
        case: The sample.
        reaching: Names of the compositions to run.

    Returns:
        One call per point of the tower and pattern of arguments.
    """
    f = case.function(case.op)
    with _Recorder() as recorder:
        for name in reaching:
            with contextlib.suppress(Exception):  # a composition that fails is a row of its own
                EAGER[name](f, replace(case.point, thorough=False))
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
    yield f"{name}: opcheck", lambda: opcheck(call)


def _kernel_is_formula(call: Call) -> None:
    """The kernel agrees with the formula it accelerates, in float64 and in every lower dtype within the budget.

    The budget is twice the formula's own error in that dtype, its matrix products rounded as well (`products_in`), and
    what it costs to read saved results that have been rounded to the dtype, which a formula does not.
    """
    formula = call.op.convention.flatten(call.op.formula)
    expected = formula(call.args)
    assert_equal(call.op.compute(call.args), expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        args = _with_own_results(call.op, tuple(_cast(a, dtype) for a in call.args))
        low, high = [], []
        for factor in NEIGHBOURS:
            rounded = args if factor == 1 else tuple(_cast(a, dtype, factor) for a in call.args)
            with products_in(dtype):
                low.append(formula(rounded))
            high.append(formula(tuple(_cast(a, torch.float64) for a in rounded)))
        wider = tuple(_cast(a, torch.float64 if dtype == torch.float32 else torch.float32) for a in args)
        low.append(call.op.compute(wider))
        high.append(call.op.compute(_with_own_results(call.op, wider)))
        assert_in_budget(call.op.compute(args), low, high, dtype, f"{dtype}: ")


def _with_own_results(op: DifferentiableOp, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments among which the saved results are those that the op gives, in its dtypes, for the other arguments."""
    convention = op.convention
    while hasattr(convention, "base"):
        convention = convention.base  # pyright: ignore[reportAttributeAccessIssue]
    root = registered_ops()[convention.qualname]
    named = dict(zip((a.name for a in op.signature.arguments), args, strict=True))
    for point, names in ((root, "{}"), (root.jvp_op, "{}_dot")):
        saved = [names.format(r.name) for r in root.signature.results]
        if point is None or not any(isinstance(named.get(name), Tensor) for name in saved):
            continue
        own = [named.get(a.name) for a in point.signature.arguments]
        required = [not a.kind.endswith("?") for a in point.signature.arguments]
        if any(value is None and needed for value, needed in zip(own, required, strict=True)):
            continue  # an argument that the rule does not read was not kept
        for result, value in zip(point.signature.results, point.compute(tuple(own)), strict=True):
            if result.name in saved and isinstance(named.get(result.name), Tensor):
                named[result.name] = value.expand(named[result.name].shape)
    return tuple(named.values())


def _cast(value: Any, dtype: torch.dtype, factor: float = 1.0) -> Any:
    return (value * factor).to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def opcheck(call: Call, tests: Sequence[str] = OPCHECKS) -> None:
    """PyTorch's own check of one dispatcher call.

    Args:
        call: The call.
        tests: Which of its tests.
    """
    frozen = set(call.op.signature.frozen)
    args = tuple(
        a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() and i not in frozen else a
        for i, a in enumerate(call.args)
    )
    torch.library.opcheck(call.op.overload, args, test_utils=tests)


def opcheck_dynamic(case: Case) -> None:
    """The primal of a sample, and its gradient, under AOTAutograd with symbolic shapes.

    Args:
        case: The sample.
    """
    for call in record_calls(case, ("primal",)):
        opcheck(call, ("test_aot_dispatch_dynamic",))
