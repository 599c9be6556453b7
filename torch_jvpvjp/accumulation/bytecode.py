"""What code names, as its bytecode tells, and what of that is a library's."""

import dis
import types
from collections.abc import Iterator

_LIBRARIES = frozenset({
    "torch", "torch_jvpvjp", "math", "numpy", "functools", "itertools", "operator", "builtins", "typing", "collections",
    "abc", "dataclasses", "enum", "contextlib", "types",
})  # fmt: skip
GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"})
IMPORTS = frozenset({"IMPORT_NAME"})


def named_in(code: types.CodeType, operations: frozenset[str]) -> Iterator[str]:
    """Return what code itself names in some operations."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in operations:
            yield str(instruction.argval)


def named_within(code: types.CodeType, operations: frozenset[str]) -> set[str]:
    """Return what code names in some operations, with what is defined inside of it."""
    inside = [named_within(constant, operations) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(named_in(code, operations)).union(*inside)


def is_library(module: str | None) -> bool:
    """Return whether something is PyTorch's or Python's own, which does not change from call to call."""
    return (module or "").partition(".")[0] in _LIBRARIES
