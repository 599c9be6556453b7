"""Which ops there are, by name; and when a name may be declared again."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .conventions import Function

if TYPE_CHECKING:
    from .op import DifferentiableOp

_OPS: dict[str, "DifferentiableOp"] = {}
_ORIGINS: dict[str, Any] = {}  # the import during which each was declared


def register(op: "DifferentiableOp") -> None:
    """Enter an op under its name.

    Args:
        op: The op, whose name `claim` found free.
    """
    _OPS[op.qualname] = op
    _ORIGINS[op.qualname] = _origin(op.formula)


def claim(qualname: str, formula: Function) -> None:
    """Make sure that a name is free: an op whose own declaration runs again makes room, with all that stands on it.

    That is so if a cell of a notebook, a line of a prompt or a reloaded module declares the same function once more.

    Args:
        qualname: ``namespace::name``.
        formula: What is to be declared under it.

    Raises:
        ValueError: If another declaration has taken the name.
    """
    present = _OPS.get(qualname)
    if present is None:
        return
    if present.convention.derived or not _runs_again(present, formula):
        raise ValueError(
            f"differentiable_op: {qualname!r} is registered already (by {present.__qualname__} of "
            f"{present.__module__}); choose another name."
        )
    for point in present.points().values():
        point.retire()
        del _OPS[point.qualname]


def _runs_again(present: "DifferentiableOp", formula: Function) -> bool:
    old, new = present.formula, formula
    if (old.__module__, old.__qualname__) != (new.__module__, new.__qualname__):
        return False
    surroundings = getattr(new, "__globals__", {})
    if "__file__" not in surroundings:  # typed at a prompt, or in a notebook
        return True
    return surroundings is not getattr(old, "__globals__", None) or _origin(new) is not _ORIGINS[present.qualname]


def _origin(formula: Function) -> Any:
    """What is another object for each import of the module that a function is of, reloading included."""
    return getattr(sys.modules.get(getattr(formula, "__module__", "")), "__spec__", None)


def find_op(qualname: str, module: str | None = None) -> "DifferentiableOp":
    """The op registered under a name.

    Args:
        qualname: ``namespace::name``.
        module: The module that declares it, imported if need be.

    Returns:
        The op.

    Raises:
        ValueError: If there is none.
    """
    if qualname not in _OPS and module not in (None, "__main__"):
        importlib.import_module(str(module))
    if qualname not in _OPS:
        raise ValueError(
            f"no differentiable op {qualname!r} is registered; import what declares it. There are {sorted(_OPS)}."
        )
    return _OPS[qualname]


def registered_ops() -> dict[str, "DifferentiableOp"]:
    """Every registered op, derivatives included, by name.

    Returns:
        A copy of the registry.
    """
    return dict(_OPS)
