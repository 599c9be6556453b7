"""The corners of PyTorch that the accumulator leans on: private names, and `torch.func` of one input, with types."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo as disable_dynamo
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook as any_global_module_hook
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    "FakeTensor", "FakeTensorMode", "any_global_module_hook", "are_deterministic_algorithms_enabled", "bare_op",
    "dict_versions", "disable_dynamo", "function_modes", "grad_switched", "has_jvp_rules", "innermost_transform",
    "inside_transform", "inside_vmap", "is_all_true", "is_any_autocast_enabled", "is_compiled", "is_fake", "jvp",
    "jvp_by_own_rules", "jvp_of", "jvp_of_op", "load_jvp_rules", "memory_of", "new_fake", "outside_modes",
    "past_autograd", "same_forms", "set_grad_enabled", "unharmed", "vjp", "vjp_of", "vmapped", "wraps_derivative",
    "wraps_transform",
]  # fmt: skip


def jvp(function: Callable[[Tensor], Tensor], x: Tensor, x_dot: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) and J ẋ."""
    return jvp_of(function, (x,), (x_dot,))


def jvp_of(function: Callable[..., Any], primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Any, Any]:
    """Return f(x, …) and Σ J ẋ over its arguments; a function of several tensors to a tuple gives tuples."""
    load_jvp_rules()
    with _FORWARD_MODE:
        results: Any = torch.func.jvp(function, tuple(primals), tuple(tangents))
    return results


_FORWARD_MODE = RLock()
"""Held while forward mode runs: PyTorch has one level of it for all threads, which one thread closes for another."""


def vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor]]]:
    """Return f(x) and the pullback ȳ ↦ (Jᵀ ȳ,)."""
    results: Any = torch.func.vjp(function, x)
    return results


def vjp_of(function: Callable[..., Tensor], *primals: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Return f(x, …) and the pullback ȳ ↦ (Jᵀ ȳ, …), one for each of its arguments."""
    results: Any = torch.func.vjp(function, *primals)
    return results


@cache
def load_jvp_rules() -> None:
    """Import PyTorch's rules for JVPs, quietly."""
    # The first JVP of a process imports this module, which scripts its rules and so warns of PyTorch's own doing; where
    # warnings are errors, that JVP would fail. Filters are the process's: of two threads one would keep the other's.
    with _FORWARD_MODE, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")  # its category differs by release
        importlib.import_module(_JVP_RULES)


_JVP_RULES = "torch._decomp.decompositions_for_jvp"


def has_jvp_rules() -> bool:
    """Return whether PyTorch's rules for JVPs are there: some ops have no other, and no other op needs them."""
    return _JVP_RULES in sys.modules


def jvp_by_own_rules(
    function: Callable[..., tuple[Tensor, ...]], primals: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return what `jvp_of` does, with no rules but those in C++; NotImplementedError where an op has none there.

    The same ops are launched; `torch.func.jvp` loads the other rules first, which takes a quarter of a second.
    """
    eager: Any = importlib.import_module("torch._functorch.eager_transforms")
    make_dual: Any = getattr(torch, "_VF")._make_dual  # noqa: B009 (the stubs do not know it)
    with _FORWARD_MODE, eager.jvp_increment_nesting() as level, forward_ad._set_fwd_grad_enabled(True):
        with forward_ad.dual_level():
            duals = [make_dual(x, x_dot, level=0) for x, x_dot in zip(primals, tangents, strict=True)]
            parts = [eager.safe_unpack_dual(dual, False) for dual in function(*duals)]
            ys, y_dots = (
                tuple(eager._undo_create_differentiable(part, level) for part in side)
                for side in zip(*parts, strict=True)
            )
            return ys, y_dots


def jvp_of_op(
    function: Callable[..., tuple[Tensor, ...]], primals: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return what `jvp_of` does, of what may be run twice; rules that it does not need are not loaded for it."""
    if not has_jvp_rules() and forward_ad._current_level < 0:
        with suppress(NotImplementedError), unharmed():
            return jvp_by_own_rules(function, primals, tangents)
    return jvp_of(function, primals, tangents)


_functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009 (the stubs do not know it)

innermost_transform: Callable[[], Any] = _functorch.peek_interpreter_stack
"""Return the innermost `torch.func` transform that is running; None if there is none."""


def inside_transform() -> bool:
    """Return whether a `torch.func` transform is running."""
    return innermost_transform() is not None


def inside_vmap() -> bool:
    """Return whether one of the `torch.func` transforms that are running is `vmap`, under which values are not seen."""
    functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009 (the stubs do not know it)
    stack = functorch.get_interpreter_stack() or ()
    return any(interpreter.key() == functorch.TransformType.Vmap for interpreter in stack)


def new_fake(
    mode: FakeTensorMode, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return a tensor without data that says it has these."""
    with _disable_current_modes():
        memory = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return FakeTensor(mode, memory, device)


def is_fake(value: Any) -> bool:
    """Return whether a value is a tensor without data."""
    return type(value) is FakeTensor


def memory_of(tensor: Tensor) -> int:
    """Return what tells the memory of a tensor from any other; a mode that watches what reads it is not asked."""
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


def unharmed() -> Any:
    """Return a context that puts back at its end what a thread dispatches by.

    A JVP that fails on fake tensors, as that of batch normalisation does in 2.13, leaves it without autograd: every
    later JVP of the thread would fail.
    """
    keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return torch._C._ForceDispatchKeyGuard(*keys)


def vmapped(function: Callable[..., tuple[Tensor, ...]], vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return `torch.func.vmap(function, randomness="same")(*vectors)`, in a sixth of the time around the function.

    That time is what a first call of a small function spends most on: `vmap` looks for trees where there are none.
    """
    functorch, count = _functorch_for_vmap(), vectors[0].shape[0]
    level = functorch._vmap_increment_nesting(count, "same")
    try:
        results = function(*(functorch._add_batch_dim(vector, 0, level) for vector in vectors))
        return tuple(functorch._remove_batch_dim(result, level, count, 0) for result in results)
    finally:
        functorch._vmap_decrement_nesting()


@cache
def _functorch_for_vmap() -> Any:
    vmap = importlib.import_module("torch._functorch.vmap")
    vmap.lazy_load_decompositions()  # the rules for ops that are written in Python
    return getattr(torch._C, "_functorch")  # noqa: B009 (the stubs do not know it)


def compile_modes() -> tuple[str, ...]:
    """Return the modes that Inductor has, those of `torch.compile`."""
    inductor: Any = importlib.import_module("torch._inductor")
    return tuple(inductor.list_mode_options())


def compile_graph(graph: torch.fx.GraphModule, examples: Sequence[Tensor], mode: str | None) -> Callable[..., Any]:
    """A graph of ATen ops, compiled by Inductor without Dynamo in front.

    Args:
        graph: The graph.
        examples: Inputs of the shapes, dtypes, devices and strides of all that will come.
        mode: As in `torch.compile`.

    Returns:
        A function of such inputs.
    """
    inductor: Any = importlib.import_module("torch._inductor")
    options = inductor.list_mode_options(mode or "default")
    # Inductor tries to fuse each op that reads a tensor with the next 64 that do. In a loop all steps read one weight,
    # but only neighbours can be fused, and the trying is what compiling 200 steps takes most of its time for.
    options = {"max_fusion_buffer_group_pairwise_attempts": _NEIGHBOURS, **options}
    # Between its kernels Inductor goes through Python, which is up to half the time of a program of small matrices. It
    # can write that part in C++ as well; of a long program that is a function which takes the C++ compiler minutes.
    short = len(graph.graph.nodes) <= _MOST_IN_CPP and all(example.device.type == "cpu" for example in examples)
    options["cpp_wrapper"] = short and _is_called_by_cpp(graph)
    return inductor.compile(graph, list(examples), options=options)


_NEIGHBOURS, _MOST_IN_CPP = 4, 500


def _is_called_by_cpp(graph: torch.fx.GraphModule) -> bool:
    """Return whether Inductor, where it writes C++, can call each op of a graph without going back to Python."""
    known: Any = importlib.import_module("torch._inductor.lowering")
    by_name: Any = importlib.import_module("torchgen.aoti.fallback_ops")

    def is_called(op: Any) -> bool:
        if op not in known.lowerings:  # a custom op, or one that is taken apart first
            return not isinstance(op, torch._ops.OpOverload) or op.namespace == "aten"
        return op not in known.fallbacks or str(op) in by_name.inductor_fallback_ops

    return all(is_called(node.target) for node in graph.graph.nodes if node.op == "call_function")


def is_composite(target: Any) -> bool:
    """Return whether an op is made of others, so that it may return what it was given, as `contiguous` does."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")


def bare_op(target: Any) -> Callable[..., Any]:
    """Return what an ATen op calls in C++, without the Python around it."""
    return getattr(target, "_op", target) if type(target) is torch._ops.OpOverload else target


def outside_modes() -> AbstractContextManager[Any]:
    """Return a context in which ops run as they do without any mode."""
    return _disable_current_modes()


set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
"""Turn the recording of gradients on or off; a context manager takes as long as a small kernel does."""


class grad_switched:  # noqa: N801 (a context, as torch.no_grad is)
    """Turn the recording of gradients on or off for a while, in a third of the time that PyTorch's contexts take."""

    __slots__ = ("_before", "_enabled")

    def __init__(self, enabled: bool) -> None:  # noqa: FBT001 (as PyTorch has it)
        self._enabled = enabled

    def __enter__(self) -> None:
        """Turn it on or off."""
        self._before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(self._enabled)

    def __exit__(self, *error: object) -> None:
        """Leave it as it was."""
        torch._C._set_grad_enabled(self._before)


def past_autograd(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose ops go past autograd, which has nothing to do for them: gradients must be off.

    An op then takes a tenth to a fifth less besides its kernel, and a view of a parameter half.
    """
    guard = torch._C._AutoDispatchBelowAutograd

    def past(*args: Any) -> Any:
        with guard():
            return function(*args)

    return past


def same_forms(tensors: Sequence[Tensor]) -> Callable[[], bool]:
    """Return what tells whether all of some tensors have the shape, strides, dtype and device that they have now.

    `.data = …` and `module.to(…)` change these of a tensor that stays what it is. Dynamo's guard, which is asked first,
    takes a tenth of a microsecond for a tensor, a fifth of what Python takes; it says no for other reasons as well.
    """
    forms = list(map(_form, tensors))
    if any(tensor.layout is not torch.strided for tensor in tensors):
        return lambda: list(map(_form, tensors)) == forms
    guards: Any = importlib.import_module("torch._C._dynamo.guards")
    quick = guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    return lambda: quick.check(*tensors) or list(map(_form, tensors)) == forms


def _form(tensor: Tensor) -> tuple[Any, ...]:
    stride = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.shape, stride, tensor.dtype, tensor.device, tensor.layout


def _version_reader() -> Callable[[Any], int] | None:
    if sys.version_info >= (3, 12):
        return None
    version: Callable[[Any], int] = importlib.import_module("torch._C._dynamo.guards").dict_version
    return version


_dict_version = _version_reader()


def dict_versions(dicts: Sequence[Any]) -> list[int] | None:
    """Return the versions of plain dicts, numbers that change with every write; None where they are not to be had.

    CPython gives a dict a number that no other state of any dict has had. To read it takes a tenth of what looking at
    the entries of a module does, and touches none of them. From 3.12 on the number is deprecated; Dynamo, whose
    function this is, then counts writes by a watcher, which makes every later write slower.
    """
    return None if _dict_version is None else list(map(_dict_version, dicts))


# What is asked in every call of a plan is PyTorch's own function, without a frame of Python around it.
function_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""Return how many `TorchFunctionMode`s are active; `torch.set_default_device` and `with device` are such."""
are_deterministic_algorithms_enabled: Callable[[], bool] = torch._C._get_deterministic_algorithms
"""Return whether `torch.use_deterministic_algorithms` is on."""


def is_compiled(function: Callable[..., Any]) -> bool:
    """Return whether Dynamo compiles a function, or a part of it, which it does anew under another mode."""
    parts = function.modules() if isinstance(function, torch.nn.Module) else (function,)
    return any(getattr(part, name, None) is not None for part in parts for name in _OF_DYNAMO)


_OF_DYNAMO = ("_compiled_call_impl", "_orig_mod", "_torchdynamo_orig_callable")


is_any_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled
"""Return whether autocast is on for some device."""


def wraps_transform(tensor: Tensor) -> bool:
    """Return whether a tensor belongs to a `torch.func` transform or carries a tangent of forward mode."""
    return _functorch.is_functorch_wrapped_tensor(tensor) or forward_ad._current_level >= 0


def wraps_derivative(tensor: Tensor) -> bool:
    """Return whether a tensor belongs to a transform other than `functionalize`, or carries a tangent."""
    is_functional: Any = getattr(torch, "_is_functional_tensor")  # noqa: B009 (the stubs do not know it)
    return wraps_transform(tensor) and (forward_ad._current_level >= 0 or not is_functional(tensor))


is_all_true: Any = getattr(torch, "_is_all_true")  # noqa: B009 (the stubs do not know it)
"""What `torch.distributions` asks whether arguments are as they must be."""
