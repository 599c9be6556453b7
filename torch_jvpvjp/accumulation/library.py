"""What of Python is a library's: PyTorch's or Python's own, which does not change from call to call."""

from __future__ import annotations

import sys
import sysconfig
from functools import cache
from types import FunctionType, ModuleType

_OURS = frozenset({"torch", "torch_jvpvjp", "numpy", "builtins"})
_STANDARD = frozenset({
    "math", "functools", "itertools", "operator", "typing", "collections", "abc", "dataclasses", "enum", "contextlib",
    "types", "warnings", "logging", "inspect", "copy", "copyreg", "re", "string", "textwrap", "numbers", "fractions",
    "statistics", "bisect", "heapq", "cmath", "traceback", "json", "pprint", "reprlib", "keyword", "weakref",
    "_weakrefset",
})  # fmt: skip

_INSTALLED = frozenset({"sympy", "mpmath", "opt_einsum", "optree", "jinja2", "networkx", "scipy", "filelock", "fsspec"})


def is_library(module: str | None) -> bool:
    """Return whether the module of a name is a library's; one of the user's that is called `string` is none."""
    first = (module or "").partition(".")[0]
    if first in _OURS:
        return True
    return (first in _STANDARD and _is_pythons_by_name(first)) or first.startswith("namedtuple_")  # what makes one


def serves_libraries(module: str) -> bool:
    """Return whether a module is one that PyTorch calls to do its own work: Python's, or one that it is installed with.

    It counts where the user's own code calls it.
    """
    first = module.partition(".")[0]
    return first in _INSTALLED or (first in sys.stdlib_module_names and _is_pythons_by_name(first))


def is_of_library(function: FunctionType) -> bool:
    """Return whether a function is a library's: where it was written, and where it says that it belongs.

    What `functools.wraps` returns says that it belongs where the function that it stands for does.
    """
    return is_library(function.__module__) and is_library(function.__globals__.get("__name__"))


def is_library_module(module: ModuleType) -> bool:
    """Return whether a module is a library's, and not another one that goes by its name."""
    return is_library(module.__name__) and sys.modules.get(module.__name__, module) is module


def _is_pythons_by_name(module: str) -> bool:
    return module in sys.modules and _is_pythons(sys.modules[module])


@cache
def _is_pythons(module: ModuleType) -> bool:
    """Return whether a module is one that came with Python."""
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__spec__ is not None and module.__spec__.origin in {"built-in", "frozen"}
    return file.startswith(_FOLDERS) and "-packages" not in file


_FOLDERS = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
