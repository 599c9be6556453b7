"""A digest of what a function does: of its code, and of the code and the values that it refers to."""

import ctypes
import functools
import hashlib
import sys
import sysconfig
import types
import uuid
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _torch_private as private

_MOST_BYTES = 2**20
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class was made as the program ran
PROCESS = uuid.uuid4().hex  # what cannot be read is another thing in every process
_ATOMS = (
    bool | int | float | complex | str | bytes | range | types.NoneType | types.EllipsisType
    | torch.dtype | torch.device | torch.layout | torch.memory_format
)  # fmt: skip


class CodeDigest:
    """A digest of functions and values, equal in two processes only if they do the same there.

    Functions go in by their bytecode, constants, defaults, closures and the globals that they name; libraries by name
    and version. What cannot be read makes the digest one of this process alone.

    Args:
        root: The package whose code goes in as it is even where it is installed among libraries.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._hash = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # by id; held, so that no id is used twice

    def digest(self) -> bytes:
        """The digest of all that was added.

        Returns:
            Its bytes.
        """
        return self._hash.digest()

    def add(self, value: Any, names: tuple[str, ...] = ()) -> None:
        """Add a value.

        Args:
            value: A function or whatever one refers to.
            names: What of a module counts.
        """
        if isinstance(value, _ATOMS):
            self._write(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self._write("again", str(self._seen[id(value)][0]))
            return
        self._seen[id(value)] = len(self._seen), value
        for kinds, add in self._ways:
            if isinstance(value, kinds):
                add(self, value, names)
                return
        self._add_object(value)

    def _write(self, *words: str) -> None:
        for word in words:
            data = word.encode()
            self._hash.update(f"{len(data)}:".encode())
            self._hash.update(data)

    def _is_library(self, module: str) -> bool:
        root = module.partition(".")[0]
        return root != self._root and _is_installed(root)

    def _add_by_name(self, value: Any) -> None:
        module = getattr(value, "__module__", None) or ""
        self._write("name", module, getattr(value, "__qualname__", str(value)), _version(module.partition(".")[0]))

    def _add_function(self, function: types.FunctionType, names: tuple[str, ...]) -> None:
        if self._is_library(function.__module__ or ""):
            self._add_by_name(function)
            return
        self._write("function")
        self.add(function.__code__)
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents, _names(function.__code__))
            except ValueError:  # a name that is bound later
                self._write("empty")
        for name in _names(function.__code__):
            if name in function.__globals__:
                self._write(name)
                self.add(function.__globals__[name], _names(function.__code__))

    def _add_code(self, code: types.CodeType, names: tuple[str, ...]) -> None:
        self._write("code", code.co_code.hex(), code.co_exceptiontable.hex(), str(code.co_flags))
        for part in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
            self._write(*part)
        for constant in code.co_consts:
            self.add(constant)

    def _add_module(self, module: types.ModuleType, names: tuple[str, ...]) -> None:
        self._write("module", module.__name__)
        if self._is_library(module.__name__):
            self._write(_version(module.__name__.partition(".")[0]))
            return
        for name in names:
            if name in vars(module):
                self._write(name)
                self.add(vars(module)[name], names)

    def _add_class(self, kind: type, names: tuple[str, ...]) -> None:
        self._add_by_name(kind)
        if self._is_library(kind.__module__):
            return
        for base in kind.__bases__:
            self.add(base)
        for name, value in sorted(vars(kind).items()):
            if name != "_abc_impl" and (callable(value) or not name.startswith("__")):
                self._write(name)
                self.add(value)

    def _add_sequence(self, values: Any, names: tuple[str, ...]) -> None:
        self._write(type(values).__name__, str(len(values)))
        for value in sorted(values, key=repr) if isinstance(values, set | frozenset) else values:
            self.add(value, names)

    def _add_mapping(self, values: Any, names: tuple[str, ...]) -> None:
        self._write(type(values).__name__, str(len(values)))
        for key, value in values.items():
            self.add(key)
            self.add(value, names)

    def _add_parts(self, value: Any, names: tuple[str, ...]) -> None:
        self._write(type(value).__name__)
        for part in ("func", "args", "keywords", "__func__", "__self__", "__wrapped__", "fget"):
            if hasattr(value, part):
                self._write(part)
                self.add(getattr(value, part), names)

    def _add_tensor(self, tensor: Tensor, names: tuple[str, ...]) -> None:
        # By its memory alone: a mode or a transform of whoever compiles may be active.
        wrapped = type(tensor) not in (Tensor, torch.nn.Parameter) or private.is_functorch_wrapped_tensor(tensor)
        if wrapped or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            self._write(PROCESS)
            return
        self._write(str(tensor.dtype), str(tuple(tensor.shape)))
        lies_plainly = tensor.is_contiguous() and not (tensor.is_conj() or private.is_lazy(tensor))
        if not lies_plainly or tensor.nbytes > _MOST_BYTES:
            self._write(PROCESS)
        elif tensor.nbytes:
            self._hash.update(ctypes.string_at(tensor.data_ptr(), tensor.nbytes))

    def _add_array(self, array: np.ndarray, names: tuple[str, ...]) -> None:
        self._write(str(array.dtype), str(array.shape))
        plain = array.dtype != object and array.nbytes <= _MOST_BYTES
        self._hash.update(array.tobytes()) if plain else self._write(PROCESS)

    def _add_builtin(self, value: Any, names: tuple[str, ...]) -> None:
        self._write(type(value).__name__, str(getattr(value, "__module__", "")), str(getattr(value, "__name__", value)))

    def _add_object(self, value: Any) -> None:
        kind = type(value)
        self.add(kind)
        if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:  # an op goes in under its own name
            self._write(str(getattr(value, "qualname", kind.__qualname__)))
            return
        if not all(c is object or c.__flags__ & _HEAP_TYPE for c in kind.__mro__):
            self._write(PROCESS)  # what is written in C may keep what cannot be seen
            return
        self.add(getattr(value, "__dict__", None))
        for slot in (s for c in kind.__mro__ for s in _slots(c)):
            self._write(slot)
            self.add(getattr(value, slot, None))

    _ways: tuple[tuple[Any, Callable[..., None]], ...] = (
        (types.FunctionType, _add_function),
        (types.CodeType, _add_code),
        (types.ModuleType, _add_module),
        (type, _add_class),
        (tuple | list | set | frozenset, _add_sequence),
        (dict | types.MappingProxyType, _add_mapping),
        (functools.partial | types.MethodType | staticmethod | classmethod | property, _add_parts),
        (type(functools.lru_cache(len)), _add_parts),
        (Tensor, _add_tensor),
        (np.ndarray, _add_array),
        (
            types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType
            | types.GetSetDescriptorType | types.MemberDescriptorType | types.ClassMethodDescriptorType
            | np.ufunc | private.OpOverload | private.OpOverloadPacket,
            _add_builtin,
        ),
    )  # fmt: skip


def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names that a function and those inside of it read, of globals and of attributes."""
    found = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= dict.fromkeys(_names(constant))
    return tuple(found)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(s for s in slots if not s.startswith("__"))


@cache
def _is_installed(root: str) -> bool:
    """Whether a package is one of Python's own or was installed, of which name and version tell enough."""
    if root in sys.stdlib_module_names or root == __name__.partition(".")[0]:
        return root != "__main__"
    file = getattr(sys.modules.get(root), "__file__", None)
    paths = sysconfig.get_paths()
    return file is not None and file.startswith((paths["purelib"], paths["platlib"], paths["stdlib"]))


def _version(root: str) -> str:
    return str(getattr(sys.modules.get(root), "__version__", ""))
