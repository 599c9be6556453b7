"""What runs as it stands where it is called from a function that `torch.compile` compiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch

from ._torch import disable_dynamo, is_any_autocast_enabled
from .autocasting import beyond_autocast

Function = TypeVar("Function", bound=Callable[..., Any])

_is_compiling = torch.compiler.is_dynamo_compiling


def uncompiled(function: Function) -> Function:
    """A function that Dynamo does not trace: what it compiles ends before such a call, and begins anew behind it.

    Planning reads values, records functions and keeps plans, none of which can be traced. Dynamo is imported only by
    who compiles, for that takes a second.

    Args:
        function: The function.

    Returns:
        The same to who calls it.
    """
    untraced = disable_dynamo(partial(beyond_autocast, function))

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _is_compiling():
            return untraced(*args, **kwargs)
        if is_any_autocast_enabled():
            return beyond_autocast(function, *args, **kwargs)
        return function(*args, **kwargs)

    return cast(Function, call)
