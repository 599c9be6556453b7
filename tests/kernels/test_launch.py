"""A launch past Triton's look at arguments is the launch that Triton would make; shown without a device."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("TRITON_INTERPRET is set: interpreted kernels are not compiled", allow_module_level=True)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from torch_jvpvjp.triton_kernels import _launch, attention
from torch_jvpvjp.triton_kernels._launch import Prepared, launch, launch_prepared
from torch_jvpvjp.triton_kernels.attention.config import precision

DEVICE = 4096  # a number that no device has: what is compiled for it is launched on none


class Made(NamedTuple):
    """What reached the driver: the compiled function, the grid and the arguments."""

    function: int
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]


MADE: list[Made] = []


class Launcher:
    """What Triton makes of a compiled kernel."""

    def __init__(self, src: Any, metadata: Any) -> None:
        pass

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        MADE.append(Made(function, (x, y, z), rest[4:]))  # after metadata and hooks


class Driver:
    """A driver of an H100 that is not there: kernels are compiled, launches recorded."""

    launcher_cls = Launcher
    loaded = 0

    @property
    def utils(self) -> Driver:
        return self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def load_binary(self, *args: Any) -> tuple[int, int, int, int, int]:
        Driver.loaded += 1
        return 0, Driver.loaded, 32, 0, 1024


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Made]:
    """The launches that reached the driver."""
    MADE.clear()
    monkeypatch.setattr(_launch, "_compiled", {})
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    return MADE


@triton.jit(do_not_specialize=["rows"])
def _kernel(x_ptr, y_ptr, stride, rows, factor, SIZE: tl.constexpr, FACTS: tl.constexpr):
    index = tl.program_id(0) * stride + tl.arange(0, SIZE)
    y = tl.load(x_ptr + index, mask=index < rows) * factor
    if y_ptr is not None:
        y += tl.load(y_ptr + index, mask=index < rows)
    tl.store(x_ptr + index, y * FACTS[0], mask=index < rows)


def _options(size: int = 16) -> dict[str, Any]:
    return {"SIZE": size, "FACTS": (2, "a"), "num_warps": 1, "enable_fp_fusion": True}


X = torch.zeros(64)

CASES: dict[str, tuple[Any, ...]] = {
    "plain": (X, X, 16, 5, 0.5),
    "none": (X, None, 16, 5, 0.5),
    "one": (X, X, 1, 5, 0.5),
    "odd": (X, X, 17, 5, 0.5),
    "wide": (X, X, 2**40, 5, 0.5),
    "unaligned": (X[1:], X, 16, 5, 0.5),
    "half": (X.half(), X.half(), 16, 5, 0.5),
    "other number": (X, X, 16, 5, 0.25),
    "other length": (X, X, 16, 6, 0.5),
}


def test_repeated_launches_are_those_that_triton_makes(made: list[Made]):
    """Every case comes twice, so that the second time nothing is new; all are in one cache."""
    for _ in range(2):
        for name, arguments in CASES.items():
            launch(_kernel, 3, X, *arguments, **_options())
            _kernel[3,](*arguments, **_options())
            ours, triton_made = made[-2:]
            assert ours.function == triton_made.function, name
            assert ours.grid == triton_made.grid == (3, 1, 1), name
            assert len(ours.arguments) == 7
            assert all(a is b or a == b for a, b in zip(ours.arguments, triton_made.arguments, strict=True)), name
    assert len(_launch._compiled) == len(CASES) - 1  # a float is an argument like another


def test_kernels_that_differ_are_not_mistaken_for_each_other(made: list[Made]):
    for _ in range(2):
        for arguments in CASES.values():
            launch(_kernel, 1, X, *arguments, **_options())
        launch(_kernel, 1, X, *CASES["plain"], **_options(32))
    functions = [m.function for m in made]
    assert functions[: len(CASES) + 1] == functions[len(CASES) + 1 :]
    same = {"plain", "other number", "other length"}  # of what a kernel is not compiled anew for
    assert len(set(functions)) == len(CASES) + 1 - len(same) + 1


def test_prepared_launches_are_the_same(made: list[Made]):
    x, y = X, torch.ones(64)
    prepared = Prepared(_kernel, 2, (16, 5, 0.5), _options())
    for tensors in ((x, x), (x, y), (y[1:], y), (x, y), (y[1:], x)):
        launch_prepared(prepared, x, tensors)
        _kernel[2,](*tensors, 16, 5, 0.5, **_options())
        ours, triton_made = made[-2:]
        assert ours.function == triton_made.function and ours.grid == triton_made.grid
        assert all(a is b or a == b for a, b in zip(ours.arguments, triton_made.arguments, strict=True))
    assert len(_launch._compiled) == 2


def test_the_cache_ends(made: list[Made], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_launch, "_MOST_COMPILED", 4)
    for rows in range(1, 10):
        launch(_kernel, 1, X, X, None, 16, rows, 0.5, **_options())
        assert len(_launch._compiled) <= 4
    assert [m.arguments[3] for m in made] == list(range(1, 10))


def test_hooks_before_a_run_are_heard(made: list[Made], monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    for _ in range(2):
        launch(_kernel, 1, X, *CASES["plain"], **_options())
    monkeypatch.setattr(_kernel, "pre_run_hooks", [lambda *args, **kwargs: seen.append(args)])
    launch(_kernel, 1, X, *CASES["plain"], **_options())
    assert len(made) == 3 and seen == [CASES["plain"]]


def _heads(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def test_attention_tells_its_calls_apart(made: list[Made]):
    """Calls that differ in one thing each, twice: the second time launches what the first time did."""
    q, k = _heads(0, 1, 2, 32, 16), _heads(1, 1, 2, 32, 16)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    turned = _heads(2, 1, 32, 2, 16).transpose(1, 2)
    plain = attention.Scores(0.25)
    calls = {
        "plain": (attention.Operands(q, k, k), plain),
        "in front": (attention.Operands(q[None], k[None], k[None]), plain),
        "turned": (attention.Operands(turned, k, k), plain),
        "longer": (attention.Operands(torch.cat([q, q], 2), k, k), plain),
        "fewer heads": (attention.Operands(q, k[:, :1], k[:, :1]), plain),
        "scale": (attention.Operands(q, k, k), attention.Scores(0.5)),
        "window": (attention.Operands(q, k, k), attention.Scores(0.25, left=3)),
        "mask": (attention.Operands(q, k, k), attention.Scores(0.25, mask=mask)),
        "tangent": (attention.Operands(q, k, k), plain),
    }
    shown: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(2):
        for name, (at, options) in calls.items():
            dots = attention.Operands(at.q, None, None) if name == "tangent" else None
            results = attention.attention_forward(at, dots, options)
            last = made[-1]
            assert all(a is b for a, b in zip(last.arguments[14:19], results, strict=True))
            told = [a for a in last.arguments[19:-5] if not isinstance(a, Tensor)]
            shown[name].append((last.function, last.grid, told, [None if r is None else r.shape for r in results]))
    for first, second in shown.values():
        assert first == second
    firsts = [first for first, _ in shown.values()]
    assert all(a != b for i, a in enumerate(firsts) for b in firsts[:i])
    assert shown["in front"][0][3][0] == (1, 1, 2, 32, 16) and shown["plain"][0][3][0] == (1, 2, 32, 16)


@pytest.mark.parametrize("setting", ["ieee", "tf32", "none"])
def test_float32_is_multiplied_as_pytorch_is_told(setting: str) -> None:
    """By the newer name too, after which the older one raises."""
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = setting
        assert precision(torch.float32) == ("tf32" if setting == "tf32" else "ieee")
        assert precision(torch.bfloat16) == "ieee"
    finally:
        matmul.fp32_precision = before
