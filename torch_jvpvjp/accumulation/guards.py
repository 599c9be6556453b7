"""Guards: what a function refers to, so that a recording of it is used only while it still says what the function does.

A recording holds Python values as they were: a closed-over number, a module's training flag, a parameter object. A
guard is a list of places (a closure cell, a global, a slot, an entry of an object's `__dict__` or of a container) with
what stood there. Everything is compared by identity, and NumPy arrays by their bytes too; what is written into a tensor
is seen by the recording itself.
"""

from __future__ import annotations

import builtins
import logging
import re
import sys
import types
import weakref
from collections import deque, namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cached_property, lru_cache, partial, partialmethod
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from . import places
from ._torch import any_global_module_hook, function_modes
from ._torch_contexts import LISTS_OF_WEIGHTS
from .arrays import MOST_BYTES, Arrays, is_constant, is_watchable
from .bytecode import ATTRIBUTES, GLOBALS, IMPORTS, is_library, modules_of, named_in, named_within
from .cache import ATTRIBUTE, REFERRED, plans_of
from .entries import DictEntries, Entries
from .members import is_used, slots_of
from .places import GONE, cell_value, keep_only, put_cell, put_class, put_entry, put_slot, refill, slot_value

_MOST_PLACES = 50_000
_CHANGING = frozenset({"random", "time", "datetime", "secrets", "uuid", "os", "environ", "open", "input"})
_SEEDING = frozenset({  # not seen by a recording
    "manual_seed", "seed", "set_state", "set_rng_state", "fork_rng", "initial_seed", "get_rng_state",
})  # fmt: skip
_REFLECTING = frozenset({"globals", "locals", "eval", "exec", "__import__"})  # what these reach cannot be told
_BY_NAME = frozenset({"getattr", "vars", "__dict__"})  # of a Python module these reach what no code names
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
_IDLE_OBJECTS = (logging.Logger, logging.LoggerAdapter, type(vars(Sequence)["_abc_impl"]))
"""Objects that change no value: what is logged, and what an abstract class knows of its subclasses."""
_Cached = type(lru_cache(len))


class Opaque(Exception):  # noqa: N818 (an answer, not an error)
    """A function refers to something that no guard can watch; the message says what."""


class Guards:
    """What some functions refer to, as it stands now.

    Args:
        functions: The functions to watch.

    Raises:
        Opaque: If one refers to something that cannot be watched.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        # Kinds of places by how they are looked at in every call: entries of a dict, of a mapping of another kind, and
        # anything else.
        self._dicts, self._mappings, self._arrays = DictEntries(), Entries(), Arrays()
        self._puts: list[Callable[[], object]] = []  # what puts back what stood in other places
        self._looks: list[tuple[Callable[[], Any], Any]] = []
        self._empty: list[Any] = []  # containers that were empty, as most of a module's are
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # an id is a name only as long as its object lives
        self._named: set[str] = set()  # all attributes that code names
        self._watched: set[tuple[int, str]] = set()  # modules and their attributes
        self._modules: list[types.ModuleType] = []  # reached otherwise than by a name in code
        self._foreign: types.ModuleType | None = None  # one of the user's, reached in any way
        self.tensors: list[Tensor] = []
        self._count = 0
        for function in functions:
            with suppress(TypeError, AttributeError):  # put there now, it is no change later
                plans_of(getattr(function, "__self__", function))
            self._visit(function)
        for module in self._modules:  # grows while it is walked
            self._visit_module(module, self._named)
        if self._foreign is not None and self._named & _BY_NAME:
            raise Opaque(f"the module {self._foreign.__name__}, by {', '.join(sorted(self._named & _BY_NAME))}")
        self._watch_tensors()
        self._modes = _modes()

    def hold(self) -> bool:
        """Return whether everything is as it was."""
        return (
            not any(self._empty)
            and _modes() == self._modes
            and self._dicts.hold()
            and self._mappings.hold()
            and self._arrays.hold()
            and all([look() is before for look, before in self._looks])  # noqa: C419 (a list is quicker)
        )

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

    def restore(self) -> None:
        """Put back what stood in all places that can be written into."""
        for container in self._empty:
            if isinstance(container, (dict, list, set, deque)):
                container.clear()
        self._dicts.restore()
        self._mappings.restore()
        self._arrays.restore()
        for put in self._puts:
            put()

    def __len__(self) -> int:
        return self._count

    def _watch(
        self,
        look: Callable[[], Any],
        attributes: Iterable[str] | None = None,
        put: Callable[[Any], object] | None = None,
    ) -> None:
        """Watch a place, and of a module that stands there these attributes; None for those that any code names."""
        value = look()
        self._looks.append((look, value))
        if put is not None:
            self._puts.append(partial(put, value))
        self._counted(1)
        if attributes is not None and isinstance(value, types.ModuleType):
            _check_module(value)
            self._visit_module(value, attributes)
        else:
            self._visit(value)

    def _watch_once(self, look: Callable[[], Any]) -> None:
        if not any(known is look for known, _ in self._looks):
            self._looks.append((look, look()))

    def _watch_mapping(self, mapping: Mapping[Any, Any], visited: Iterable[Any] | None = None) -> None:
        """Watch all entries of a mapping, and visit the values of all or some."""
        if not mapping:
            self._empty.append(mapping)
            return
        (self._dicts if type(mapping) is dict else self._mappings).add(mapping)
        self._counted(len(mapping))
        for key in mapping if visited is None else visited:
            self._visit(key)
            self._visit(mapping[key])

    def _counted(self, more: int) -> None:
        self._count += more
        if self._count > _MOST_PLACES:
            raise Opaque("more than a guard can watch")

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
            _check_module(value)
            self._modules.append(value)
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
            self._visit_array(value)
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            self._visit_container(value)
            self._visit_subclass(value)
        else:
            self._visit_object(value)

    def _visit_tensor(self, tensor: Tensor) -> None:
        self.tensors.append(tensor)
        if vars(tensor):  # attributes that somebody gave it
            self._seen.add(id(tensor))
            self._kept.append(tensor)
            self._watch_mapping(vars(tensor), [name for name in vars(tensor) if name != ATTRIBUTE])

    def _visit_array(self, array: Any) -> None:
        if self._arrays.size + array.nbytes > MOST_BYTES:
            raise Opaque(f"NumPy arrays of more than {MOST_BYTES:,} bytes")
        self._arrays.add(array)

    def _visit_subclass(self, value: Any) -> None:
        """Watch what a container, or a number, of the user's own kind holds besides its members."""
        if not is_library(type(value).__module__):
            self._visit_class(type(value))
            self._watch_mapping(getattr(value, "__dict__", {}))

    def _visit_container(self, container: Any) -> None:
        if not container:
            if not isinstance(container, (tuple, frozenset)):
                self._empty.append(container)
            return
        members = list(container)
        if isinstance(container, (list, set, deque)):
            self._looks.append((lambda: len(container) == len(members) and all(map(is_, container, members)), True))
            self._puts.append(partial(refill, container, members))
        self._counted(len(members))
        for member in members:
            self._visit(member)

    def _visit_object(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, _IDLE_OBJECTS):
            return
        if isinstance(value, _Cached):  # its results are those that it had, until it computes one anew
            self._watch(partial(places.misses, value), put=partial(places.forget, value))
            self._visit(value.__wrapped__)
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
        for slot in slots.values():
            self._watch(partial(slot_value, slot, value), put=partial(put_slot, slot, value))
        if not hasattr(value, "__dict__"):
            return
        attributes = vars(value)
        if isinstance(value, nn.Module):
            self._watch_once(any_global_module_hook)
        if isinstance(value, nn.RNNBase):
            self._watch_attributes(attributes, LISTS_OF_WEIGHTS)
        elif attributes:
            idle = _IDLE | {ATTRIBUTE} if isinstance(value, nn.Module) else frozenset({ATTRIBUTE})
            self._watch_mapping(attributes, [name for name in attributes if name not in idle])
        else:
            self._watch_attributes(attributes)

    def _watch_attributes(self, attributes: dict[str, Any], others: frozenset[str] = frozenset()) -> None:
        """Watch attributes, but for some that come and go: plans that are kept among them, and others."""
        passing = others | {ATTRIBUTE}
        names = [name for name in attributes if name not in passing]
        self._looks.append((lambda: len(attributes) - sum(map(attributes.__contains__, passing)) == len(names), True))
        self._puts.append(partial(keep_only, attributes, {*names, *passing}))
        for name in names:
            self._watch(partial(attributes.get, name, GONE), put=partial(put_entry, attributes, name))

    def _visit_class(self, kind: type, *, called: bool = False) -> None:
        """Watch what objects of a class do, and how they are made where the class itself may be called."""
        for base in kind.__mro__:
            if is_library(base.__module__):
                continue
            if id(base) not in self._seen or base is kind:
                self._seen.add(id(base))
                self._puts.append(partial(put_class, base, dict(vars(base))))
                self._watch_mapping(vars(base), [name for name, value in vars(base).items() if is_used(name, value)])
            if called:
                self._visit(vars(base).get("__new__"))
                self._visit(vars(base).get("__init__"))
        if not is_library(type(kind).__module__):
            self._visit_class(type(kind))

    def _visit_function(self, function: types.FunctionType) -> None:
        if is_library(function.__module__):
            return
        self._looks.append((partial(getattr, function, "__code__"), function.__code__))
        attributes = named_within(function.__code__, ATTRIBUTES)
        self._named |= attributes | named_within(function.__code__, GLOBALS) & _BY_NAME
        for cell in function.__closure__ or ():
            self._watch(partial(cell_value, cell), attributes, partial(put_cell, cell))
        for name in ("__defaults__", "__kwdefaults__"):
            self._watch(partial(getattr, function, name))
        self._watch_attributes(vars(function))
        self._visit_names(function.__globals__, function.__code__)

    def _visit_names(self, scope: dict[str, Any], code: types.CodeType) -> None:
        names, attributes = set(named_in(code, GLOBALS)), set(named_in(code, ATTRIBUTES))
        imports = set(named_in(code, IMPORTS))
        parts = {part for name in imports for part in name.split(".")}
        changing = (names | attributes | parts) & (_CHANGING | _SEEDING) | names & _REFLECTING
        if changing:
            raise Opaque(f"what changes by itself: {', '.join(sorted(changing))}")
        for name in sorted(imports):
            for module in modules_of(name, scope.get("__package__")):
                if not is_library(module):
                    self._watch(partial(sys.modules.get, module, GONE), attributes)
        for name in sorted(names):
            if name in scope:
                self._watch(partial(scope.get, name, GONE), attributes, partial(put_entry, scope, name))
            elif not hasattr(builtins, name):
                raise Opaque(f"the name {name}, which is not defined")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._visit_names(scope, constant)

    def _visit_module(self, module: types.ModuleType, attributes: Iterable[str]) -> None:
        """Watch what a function may take from a module of the user's, or from one within that."""
        if is_library(module.__name__):
            return
        self._foreign = module
        for name in sorted(attributes):
            if name in vars(module) and (id(module), name) not in self._watched:
                self._watched.add((id(module), name))
                put = partial(put_entry, vars(module), name)
                self._watch(partial(vars(module).get, name, GONE), attributes, put)

    def _visit_builtin(self, value: Any) -> None:
        if getattr(value, "__module__", None) in _CHANGING:
            raise Opaque(f"what changes by itself: {value.__module__}.{value.__name__}")
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, (types.ModuleType, type)):
            self._visit(owner)


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
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
    )
