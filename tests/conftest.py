"""What every test runs under: fixed seeds, one thread per worker, and a device chosen on the command line."""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_sanitizer import sanitized

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the op tests: cpu, cuda")
    parser.addoption("--sanitize", action="store_true", help="check the addresses and integers of interpreted kernels")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: left out of make test-fast")
    config.addinivalue_line("markers", "exhaustive: more of the same than CI has time for; make test-all runs it")
    config.addinivalue_line("markers", "compiled: runs torch.compile, which the kernel interpreter does not need again")
    torch.set_num_threads(1)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda was asked for and there is no CUDA device")
    return name


@pytest.fixture(autouse=True)
def seeded() -> None:
    # What torch.manual_seed(0) does, which on a machine without a GPU takes milliseconds: it formats the whole stack
    # for each kind of device, to seed that later.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def interpreted() -> None:
    """Kernels must be able to run here: on a GPU, or in Triton's interpreter on the CPU."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("kernels run on a GPU or under TRITON_INTERPRET=1")


@pytest.fixture(autouse=True, scope="session")
def interpreter_as_we_need_it(request: pytest.FixtureRequest) -> Iterator[None]:
    """Mend and speed up Triton's interpreter in a few places; nothing that a kernel computes changes."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    sanitize = request.config.getoption("--sanitize")
    with pytest.MonkeyPatch.context() as patch, sanitized() if sanitize else nullcontext():
        patch.setattr(interpreter, "_patch_lang_tensor", _loops_under_new_numpy(interpreter._patch_lang_tensor))
        patch.setattr(interpreter, "_patch_lang", _patched_once(interpreter._patch_lang))
        patch.setattr(interpreter, "_get_np_dtype", _looked_up_once(interpreter._get_np_dtype))
        if not sanitize:  # every sum and product of integers is made again in int64 otherwise
            options = interpreter.InterpreterOptions(sanitize_overflow=False)
            patch.setattr(interpreter.interpreter_builder, "options", options)
        yield


def _looked_up_once(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Look NumPy's name of a scalar type up once: the interpreter builds the table of all for every operation."""
    known: dict[str, Any] = {}

    def looked_up(dtype: Any) -> Any:
        scalar = dtype.scalar
        if scalar.is_ptr():
            return original(scalar)
        if scalar.name not in known:
            known[scalar.name] = original(scalar)
        return known[scalar.name]

    return looked_up


def _loops_under_new_numpy(original: Callable[..., None]) -> Callable[..., None]:
    """Let loop bounds become ints: Triton 3.6 does it in a way that NumPy 2.4 refuses, later versions squeeze them."""

    def patched(tensor: type, *scope: object) -> None:
        original(tensor, *scope)
        set_attr = getattr(scope[0], "set_attr", None) if scope else None
        (set_attr or setattr)(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    return patched


def _patched_once(original: Callable[..., Any]) -> Callable[..., Any]:
    """Patch the language once for each launch: the interpreter does it again for every call of a device function.

    That is half of its time, since it looks through every name of ``triton.language`` each time.
    """
    active: set[int] = set()

    def patched(fn: Any) -> Any:
        namespace = fn.__globals__
        langs = {id(value) for value in (tl, tl.core) if any(value is other for other in namespace.values())}
        if langs and langs <= active:
            return SimpleNamespace(restore=lambda: None)
        outermost = not active
        scope = original(fn)
        active.update(langs)
        if not outermost:
            return scope

        def restore() -> None:
            active.clear()
            scope.restore()

        return SimpleNamespace(restore=restore)

    import triton.language as tl

    return patched
