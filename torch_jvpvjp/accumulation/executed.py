"""Which code of Python runs in a call: what a function can depend on is what that code reads, and nothing else."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import wraps
from types import CodeType, FrameType
from typing import Any

from .library import is_library, serves_libraries


class Executed:
    """The code that has run in this thread while it was watched.

    Attributes:
        modules: The modules whose functions have run.
        environment: Whether variables of the environment were read.
    """

    def __init__(self) -> None:
        self._codes: dict[int, CodeType] = {}  # by identity: to hash code takes as long as to read it
        self._foreign: dict[int, CodeType] = {}
        self.modules: set[str] = set()
        self.environment = False
        self._outside: FrameType | None = None  # what has called what is watched

    def watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, watched."""

        @wraps(function, updated=())
        def watched(*args: Any, **kwargs: Any) -> Any:
            before: Any = sys.getprofile()
            self._outside = sys._getframe()
            sys.setprofile(self._note)
            try:
                return function(*args, **kwargs)
            finally:  # a profiler that was on goes on
                in_c = hasattr(before, "enable")  # as cProfile is
                sys.setprofile(None if in_c else before)
                if in_c:
                    before.enable()

        return watched

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or id(code) in self._codes:
            return
        module = _module_of(frame)
        self.modules.add(module)
        if not is_library(module):
            if _is_called_by_library(frame) or self._is_aside(frame):  # it may be called otherwise as well
                return
            if frame.f_globals is vars(os) and code.co_qualname.startswith(_OF_ENVIRONMENT):
                self.environment = True
            else:
                self._foreign[id(code)] = code
        self._codes[id(code)] = code

    def _is_aside(self, frame: FrameType | None) -> bool:
        """Return whether a frame belongs to an import, which no later call does again, or to collecting garbage."""
        callbacks = [getattr(callback, "__code__", None) for callback in gc.callbacks]
        while frame is not None and frame is not self._outside:
            code = frame.f_code
            if _module_of(frame).startswith(_IMPORTING) or code in callbacks or code.co_name == "__del__":
                return True
            frame = frame.f_back
        return False

    def __contains__(self, code: object) -> bool:
        return id(code) in self._codes

    def __or__(self, other: Executed) -> Executed:
        """Return what has run while one of two was watched."""
        both = Executed()
        both._codes, both._foreign = self._codes | other._codes, self._foreign | other._foreign
        both.modules = self.modules | other.modules
        both.environment = self.environment or other.environment
        return both

    @property
    def goes_elsewhere(self) -> bool:
        """Whether another thread or process may have run something."""
        return any(module.startswith(_ELSEWHERE) for module in self.modules) or any(
            code.co_qualname in _STARTING for code in self._codes.values()
        )

    @property
    def foreign(self) -> list[CodeType]:
        """What is no library's, nor belongs to what a library does inside, nor to importing a module."""
        return list(self._foreign.values())


_OF_ENVIRONMENT = ("_Environ.", "_createenviron.", "getenv")
_ELSEWHERE = ("queue", "concurrent.", "asyncio.", "multiprocessing.pool", "multiprocessing.connection", "subprocess")
_STARTING = frozenset({"Thread.start", "BaseProcess.start"})


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _is_called_by_library(frame: FrameType) -> bool:
    """Return whether a frame is of what a library does inside."""
    above: FrameType | None = frame
    while above is not None and serves_libraries(module := _module_of(above)) and not is_library(module):
        above = above.f_back
    return above is not None and above is not frame and is_library(_module_of(above))


_IMPORTING = "importlib._bootstrap"
