"""Guards: what a function refers to, so that a recording of it is used only while it still says what the function does.

A recording holds Python values as they were: a closed-over number, a module's training flag, a parameter object. A
guard is a list of places (a closure cell, a global, a slot, an entry of an object's `__dict__` or of a container) with
what stood there. Everything is compared by identity but code, which does the same where it is equal, and NumPy arrays
by their bytes too; what is written into a tensor is seen by the recording itself.
"""

from __future__ import annotations

import builtins
import logging
import os
import re
import sys
import threading
import types
import weakref
from collections import deque, namedtuple
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cached_property, lru_cache, partial, partialmethod
from typing import Any

import torch
from torch import Tensor, nn

from ._torch import any_global_module_hook, are_deterministic_algorithms_enabled, function_modes
from ._torch_contexts import LISTS_OF_WEIGHTS
from .arrays import is_constant, is_watchable
from .autocasting import autocasts
from .bytecode import ATTRIBUTES, GLOBALS, IMPORTS, codes_within, modules_of, named_in, named_within
from .cache import ATTRIBUTE, REFERRED, plans_of
from .executed import Executed
from .library import is_library, is_library_module, is_of_library
from .members import is_used, slots_of
from .places import GONE, put_slot, slot_value
from .watching import Opaque, Watching

__all__ = ["Guards", "Opaque"]

_CHANGING = frozenset({"random", "time", "datetime", "secrets", "uuid", "os", "environ", "open", "input"})
_SEEDING = frozenset({  # not seen by a recording
    "manual_seed", "seed", "set_state", "set_rng_state", "fork_rng", "initial_seed", "get_rng_state",
})  # fmt: skip
_HIDING = frozenset({"_getframe", "currentframe", "import_module", "start_new_thread"})  # likewise
_OF_ENVIRONMENT = frozenset({"os", "environ", "getenv", "name", "sep", "linesep", "fspath"})  # of `os`, is watched
_REFLECTING = frozenset({"globals", "locals", "eval", "exec", "__import__"})  # what these reach cannot be told
_BY_NAME = frozenset({"getattr", "hasattr", "vars", "__dict__"})  # of a Python module these reach what no code names
_SIGNING = "inspect"  # which reads the defaults of functions that are not called
_TupleGetter = type(vars(namedtuple("_Pair", "one other"))["one"])  # what a field of a NamedTuple is
_VALUES = (
    int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, type(Ellipsis), slice,
    range, torch.layout, torch.memory_format, torch.finfo, torch.iinfo, torch.Generator,
    torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch.jit.ScriptFunction,
    re.Pattern, types.MemberDescriptorType, types.GetSetDescriptorType, _TupleGetter,
)  # fmt: skip
_PLAIN = frozenset({int, float, complex, str, bytes, bool, type(None)})
_ASKED: dict[str, Callable[[Tensor], bool]] = {
    "requires_grad": lambda tensor: tensor.requires_grad,
    "grad": lambda tensor: tensor.is_leaf and tensor.grad is None,
}
_IDLE = frozenset({
    "_non_persistent_buffers_set", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
})  # fmt: skip
"""What a module keeps that changes nothing in a call of it, as long as it has no hooks besides."""
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_IDLE_OBJECTS = (logging.Logger, logging.LoggerAdapter, type(vars(Sequence)["_abc_impl"]), *_LOCKS)
"""Objects that change no value: what is logged, what an abstract class knows of its subclasses, locks in a `with`."""
_ASKING_LOCKS = frozenset({"locked", "acquire"})
_Cached = type(lru_cache(len))


class Guards(Watching):
    """What some functions refer to, as it stands now.

    What code names is watched where it may run, or where it did: a function goes on as it did as long as all that the
    code reads which has run is what it was, whatever other code refers to.

    Args:
        functions: The functions to watch.
        executed: The code that has run; None where all that a function may call counts.

    Raises:
        Opaque: If one refers to something that cannot be watched.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]], executed: Executed | None = None) -> None:
        super().__init__()
        self._executed, self._read = executed, set[int]()  # code whose names are watched
        self._seen, self._classes = set[int](), set[int]()
        self._kept: list[Any] = []  # an id is a name only as long as its object lives
        self._named: set[str] = set()  # all attributes that code names
        self._modules: list[types.ModuleType] = []  # reached otherwise than by a name in code
        self._foreign: types.ModuleType | None = None  # one of the user's, reached in any way
        self._environment = self._locks = False  # whether the one is watched, and there are others
        self.tensors: list[Tensor] = []
        if executed is not None and executed.goes_elsewhere:
            raise Opaque("what runs in another thread or process")
        for function in functions:
            with suppress(TypeError, AttributeError):  # put there now, it is no change later
                plans_of(getattr(function, "__self__", function))
            self._visit(function)
        for module in self._modules:  # grows while it is walked
            self._visit_module(module, self._named)
        if self._foreign is not None and self._named & _BY_NAME:
            raise Opaque(f"the module {self._foreign.__name__}, by {', '.join(sorted(self._named & _BY_NAME))}")
        if self._locks and self._named & _ASKING_LOCKS:
            raise Opaque(f"a lock, by {', '.join(sorted(self._named & _ASKING_LOCKS))}")
        self._watch_tensors()
        self._modes = _modes()

    def hold(self) -> bool:
        """Return whether everything is as it was."""
        return _modes() == self._modes and super().hold()

    def missed(self, executed: Executed) -> str | None:
        """Return what of the code that has run was not found in what the functions refer to; None if all was."""
        missed = [code for code in executed.foreign if id(code) not in self._read]
        names = {code.co_qualname for code in missed} | (
            {"os.environ"} if executed.environment > self._environment else set()
        )
        return ", ".join(sorted(names)) or None

    def _watch_tensors(self) -> None:
        """Watch what code may ask tensors besides their entries, which no op shows."""
        for name, looks in _ASKED.items():
            if name in self._named:
                self._looks += [(partial(looks, tensor), looks(tensor)) for tensor in self.tensors]

    def watch_gradients(self, used: Iterable[Tensor]) -> None:
        """Watch those tensors whose `grad` is among some that a recording uses; each backward may put another there."""
        numbers = set(map(id, used))
        for tensor in self.tensors:
            if tensor.is_leaf and id(tensor.grad) in numbers:
                self._looks.append((partial(getattr, tensor, "grad"), tensor.grad))

    def _visit(self, value: Any) -> None:
        if type(value) in _PLAIN or id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._visit_tensor(value)
            return
        self._seen.add(id(value))
        self._kept.append(value)
        if isinstance(value, _VALUES) or is_constant(value):
            self._visit_subclass(value)
            return
        if isinstance(value, types.FunctionType):
            self._visit_function(value)
        elif isinstance(value, types.ModuleType):
            self._visit_any_module(value)
        elif isinstance(value, type):
            self._visit_class(value, called=True)
        elif isinstance(value, types.MethodType):
            self._visit(value.__self__)
            self._visit(value.__func__)
        elif isinstance(value, (staticmethod, classmethod)):
            self._visit(value.__func__)
        elif isinstance(value, property):
            self._visit(value.fget)
        elif isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
            self._visit_builtin(value)
        elif isinstance(value, weakref.ref):
            if not isinstance(value(), Tensor):  # as an LSTM keeps its weights
                raise Opaque("a weak reference")
        elif isinstance(value, cached_property):
            self._visit(value.func)
        elif isinstance(value, (partial, partialmethod)):
            for part in (value.func, value.args, value.keywords):
                self._visit(part)
        elif isinstance(value, (dict, types.MappingProxyType)):
            self._watch_mapping(value)
            self._visit_subclass(value)
        elif is_watchable(value):
            self._watch_array(value)
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            self._watch_container(value)
            self._visit_subclass(value)
        else:
            self._visit_object(value)

    def _visit_tensor(self, tensor: Tensor) -> None:
        self.tensors.append(tensor)
        if vars(tensor):  # attributes that somebody gave it
            self._seen.add(id(tensor))
            self._kept.append(tensor)
            self._watch_mapping(vars(tensor), [name for name in vars(tensor) if name != ATTRIBUTE])

    def _visit_subclass(self, value: Any) -> None:
        """Watch what a container, or a number, of the user's own kind holds besides its members."""
        if not is_library(type(value).__module__):
            self._kinds.add(value)
            self._visit_class(type(value))
            self._watch_mapping(getattr(value, "__dict__", {}))

    def _visit_object(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, _IDLE_OBJECTS):
            self._locks = self._locks or isinstance(value, _LOCKS)
            return
        if value is os.environ:
            self._watch_environment()
            return
        if isinstance(value, _Cached):
            self._watch_cached(value)
            return
        if isinstance(value, ContextVar):
            self._watch(partial(value.get, GONE))
            return
        referred = getattr(kind, REFERRED, None)
        if referred is not None:  # an object that says itself what a recording may depend on
            self._watch(partial(referred, value))
            return
        slots = slots_of(kind)
        if kind.__module__.partition(".")[0] in {"numpy", "jax", "functools"} or slots is None:
            raise Opaque(f"a {kind.__name__}")
        self._visit_class(kind)
        self._kinds.add(value)
        for slot in slots.values():
            self._watch(partial(slot_value, slot, value), put=partial(put_slot, slot, value))
        if not hasattr(value, "__dict__"):
            return
        attributes = vars(value)
        if isinstance(value, nn.Module):
            self._look_once(any_global_module_hook)
        if isinstance(value, nn.RNNBase):
            self._watch_attributes(attributes, LISTS_OF_WEIGHTS)
        elif attributes:
            idle = _IDLE | {ATTRIBUTE} if isinstance(value, nn.Module) else frozenset({ATTRIBUTE})
            self._watch_mapping(attributes, [name for name in attributes if name not in idle])
        else:
            self._watch_attributes(attributes)

    def _visit_class(self, kind: type, *, called: bool = False) -> None:
        """Watch what objects of a class do, and how they are made where the class itself may be called."""
        for base in kind.__mro__:
            if is_library(base.__module__):
                continue
            members = vars(base)
            if id(base) not in self._classes:
                self._classes.add(id(base))
                self._watch_class(base, [name for name, value in members.items() if self._may_run(name, value)])
            if called:
                for name in ("__new__", "__init__", "__post_init__"):
                    self._visit(members.get(name))
        if not is_library(type(kind).__module__):
            self._visit_class(type(kind))

    def _may_run(self, name: str, value: Any) -> bool:
        """Return whether a call may have used an attribute of a class."""
        code = getattr(getattr(value, "__func__", value), "__code__", None)
        return is_used(name, value) or (self._executed is not None and code in self._executed)

    def _visit_function(self, function: types.FunctionType) -> None:
        if is_of_library(function):
            return
        code, executed = function.__code__, self._executed
        if executed is None or code in executed or _SIGNING in executed.modules:
            self._functions.add(function)
            self._counted(1)
            for defaults in (function.__defaults__, function.__kwdefaults__):
                self._visit(defaults)
        if executed is not None and code not in executed:
            self._watch_mapping(vars(function))
            return
        self._watch_attributes(vars(function))
        attributes = named_within(code, ATTRIBUTES)
        self._named |= attributes | named_within(code, GLOBALS) & _BY_NAME
        for cell in function.__closure__ or ():
            self._visit_named(self._look_into(cell), attributes)
        for inside in codes_within(code):
            if executed is None or inside in executed:
                self._read.add(id(inside))
                self._visit_names(function.__globals__, inside, attributes)

    def _visit_names(self, scope: dict[str, Any], code: types.CodeType, attributes: set[str]) -> None:
        names, own = set(named_in(code, GLOBALS)), set(named_in(code, ATTRIBUTES))
        imports = set(named_in(code, IMPORTS))
        parts = {part for name in imports for part in name.split(".")}
        changing = (names | own | parts) & (_CHANGING | _SEEDING | _HIDING) | names & _REFLECTING
        if _takes_environment_alone(own):
            changing -= _OF_ENVIRONMENT
        if changing:
            raise Opaque(f"what changes by itself: {', '.join(sorted(changing))}")
        for name in sorted(imports):
            for module in modules_of(name, scope.get("__package__")):
                if not is_library(module):
                    self._visit_named(self._look(partial(sys.modules.get, module, GONE)), attributes)
        for name in sorted(names):
            value = self._look_up(scope, name)
            if value is GONE and not hasattr(builtins, name):
                raise Opaque(f"the name {name}, which is not defined")
            self._visit_named(self._look_up(vars(builtins), name) if value is GONE else value, attributes)

    def _visit_named(self, value: Any, attributes: Iterable[str]) -> None:
        """Visit what code names; of a module what the code may take of it."""
        if value is os and _takes_environment_alone(attributes):
            self._watch_environment()
        elif isinstance(value, types.ModuleType):
            _check_module(value)
            self._visit_module(value, attributes)
            self._visit_subclass(value)
        else:
            self._visit(value)

    def _watch_environment(self) -> None:
        """Watch the variables of the environment, as Python has them."""
        if not self._environment:
            self._environment = True
            self._fixed.add(vars(os.environ)["_data"])

    def _visit_any_module(self, module: types.ModuleType) -> None:
        """Visit a module that is reached in another way, of which any code may take something."""
        _check_module(module)
        self._modules.append(module)
        self._visit_subclass(module)

    def _visit_module(self, module: types.ModuleType, attributes: Iterable[str]) -> None:
        """Watch what a function may take from a module of the user's, or from one within that."""
        if is_library_module(module):
            return
        scope: Any = vars(module)  # a dict, which the stubs have as a proxy
        self._foreign = module
        for name in sorted(attributes):
            known = self._names.has(scope, name)
            value = self._look_up(scope, name)
            if not known and value is not GONE:
                self._visit_named(value, attributes)

    def _visit_builtin(self, value: Any) -> None:
        if getattr(value, "__module__", None) in _CHANGING:
            raise Opaque(f"what changes by itself: {value.__module__}.{value.__name__}")
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, (types.ModuleType, type)):
            self._visit(owner)


def _takes_environment_alone(attributes: Iterable[str]) -> bool:
    """Return whether code that takes no more than these of `os` takes what is watched."""
    return vars(os).keys() & set(attributes) <= _OF_ENVIRONMENT


def _check_module(module: types.ModuleType) -> None:
    """Refuse a module of what changes by itself, such as `numpy.random`, under whatever name code knows it."""
    first, _, last = module.__name__.rpartition(".")
    if last in _CHANGING and (not first or is_library(first)):
        raise Opaque(f"what changes by itself: {module.__name__}")


def _modes() -> tuple[Any, ...]:
    """Return the global settings that change what a function does."""
    return (
        torch.get_default_dtype(),
        function_modes(),  # a default device is one
        are_deterministic_algorithms_enabled(),
        autocasts(),
    )
