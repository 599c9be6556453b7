"""What code names, as its bytecode tells."""

import dis
import types
from collections.abc import Iterator
from itertools import accumulate

GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"})
IMPORTS = frozenset({"IMPORT_NAME"})


def named_in(code: types.CodeType, operations: frozenset[str]) -> Iterator[str]:
    """Return what code itself names in some operations."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in operations:
            yield str(instruction.argval)


def codes_within(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield code with what is defined inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_within(constant)


def named_within(code: types.CodeType, operations: frozenset[str]) -> set[str]:
    """Return what code names in some operations, with what is defined inside of it."""
    return {name for inside in codes_within(code) for name in named_in(inside, operations)}


def modules_of(name: str, package: str | None) -> list[str]:
    """The modules that an import in a function may mean: of a.b also a, which code may take; others of its package.

    Args:
        name: What code imports; code does not say, where it stands, how many dots are before it.
        package: The package of the function.

    Returns:
        Names of modules, some of which there may be none of.
    """
    above = list(accumulate(package.split("."), "{}.{}".format)) if package else []
    names = list(accumulate(name.split("."), "{}.{}".format)) if name else []
    return names + above * (not name) + [f"{one}.{inner}" for one in above for inner in names]
