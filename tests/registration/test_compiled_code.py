"""Code that PyTorch has kept from an earlier process is used again for the same ops, and for no others."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_jvpvjp import differentiable_op
from torch_jvpvjp.registration.compiled_code import mark_compiled_code
from torch_jvpvjp.registration.digest import CodeDigest

_SCRIPT = """
import json, torch, helpers
from torch_jvpvjp import differentiable_op
SCALE = {scale}

@differentiable_op("stale::op")
def op(x: torch.Tensor) -> torch.Tensor:
    return {formula}

{more}

def loss(x):
    return op(x).sum()

x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
gradient = torch.autograd.grad(torch.compile(loss)(x), x)[0]
found = torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"]
print(json.dumps([gradient.tolist(), found]))
"""
_RULE = "@op.vjp\ndef _(cotangents, inputs):\n    return cotangents.y * {}"


@pytest.fixture(scope="module")
def gradient_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """Run the script anew, with caches that are kept from one run to the next."""
    folder = tmp_path_factory.mktemp("kept")

    def run(formula: str = "x * x", *, scale: float = 2.0, more: str = "", helper: str = "x * 3") -> list[Any]:
        (folder / "helpers.py").write_text(f"def apply(x):\n    return {helper}\n")
        (folder / "script.py").write_text(_SCRIPT.format(formula=formula, scale=scale, more=more))
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, str(folder / "script.py")], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    yield run


@pytest.mark.compiled
def test_an_op_that_was_edited_is_compiled_anew(gradient_of: Callable[..., list[Any]]) -> None:
    assert gradient_of() == [[2.0, 4.0, 6.0], 0]
    assert gradient_of() == [[2.0, 4.0, 6.0], 1]  # from the cache: nothing has changed
    assert gradient_of("x * SCALE") == [[2.0, 2.0, 2.0], 0]
    assert gradient_of("x * SCALE", scale=5.0) == [[5.0, 5.0, 5.0], 0]
    assert gradient_of("helpers.apply(x)") == [[3.0, 3.0, 3.0], 0]
    assert gradient_of("helpers.apply(x)", helper="x * 4") == [[4.0, 4.0, 4.0], 0]
    assert gradient_of(more=_RULE.format("7")) == [[7.0, 7.0, 7.0], 0]
    assert gradient_of() == [[2.0, 4.0, 6.0], 1]


def _digest(function: Callable[..., object]) -> bytes:
    reader = CodeDigest(root="tests")
    reader.add(function)
    return reader.digest()


def _made(source: str, **surroundings: object) -> Any:
    held: dict[str, Any] = {"torch": torch, **surroundings}
    exec(source, held)  # noqa: S102 -- as a notebook does
    return held["f"]


_SOURCE = "def f(x):\n    return x * {}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_made(_SOURCE.format(2)), _made(_SOURCE.format(3))),
        (_made(_SOURCE.format("x")), _made("def f(x):\n    return x + x")),
        (_made(_SOURCE.format("s"), s=2), _made(_SOURCE.format("s"), s=2.0)),
        (_made(_SOURCE.format("s"), s=torch.ones(2)), _made(_SOURCE.format("s"), s=torch.zeros(2))),
        (_made(_SOURCE.format("s[0]"), s=[1]), _made(_SOURCE.format("s[0]"), s=[2])),
        (_made(_SOURCE.format("g(x)"), g=lambda x: x), _made(_SOURCE.format("g(x)"), g=lambda x: -x)),
        (_made("def f(x, n=1):\n    return x * n"), _made("def f(x, n=2):\n    return x * n")),
        (_made(_SOURCE.format("torch.sin(x)")), _made(_SOURCE.format("torch.cos(x)"))),
        (_made("f = (lambda s: lambda x: x * s)(1)"), _made("f = (lambda s: lambda x: x * s)(2)")),
    ],
)
def test_digests_tell_what_a_function_does(one: Any, other: Any) -> None:
    assert _digest(one) == _digest(one)
    assert _digest(one) != _digest(other)


def test_digests_do_not_tell_where_a_function_stands() -> None:
    assert _digest(_made(_SOURCE.format(2))) == _digest(_made("\n\n# more\n" + _SOURCE.format(2)))


def test_what_others_tag_their_caches_with_stays() -> None:
    config = torch.compiler.config
    before = config.cache_key_tag
    try:
        config.cache_key_tag = "mine"
        mark_compiled_code()
        mark_compiled_code()
        tag = config.cache_key_tag
    finally:
        config.cache_key_tag = before
    assert tag.startswith("mine|torch_jvpvjp:") and tag.count("torch_jvpvjp") == 1


def test_what_cannot_be_read_keeps_no_op_from_being_compiled() -> None:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]

    class Closed:
        @property
        def __dict__(self) -> Any:
            raise RuntimeError

    closed = Closed()

    @differentiable_op("stale::unread")
    def op(x: torch.Tensor) -> torch.Tensor:
        return x * x if nested and closed else x

    found = torch.compile(torch.func.grad(lambda x: op(x).sum()), backend="aot_eager")(torch.ones(2))
    assert found.tolist() == [2, 2]


def test_an_op_of_a_text_that_was_run_keeps_no_op_from_being_compiled() -> None:
    text = '@declared("stale::of_a_text")\ndef op(x: "torch.Tensor") -> "torch.Tensor":\n    return x * x\n'
    scope: dict[str, Any] = {"declared": differentiable_op, "torch": torch}  # without __name__: of no module
    exec(text, scope)
    op = scope["op"]
    assert op.__module__ is None
    found = torch.compile(torch.func.grad(lambda x: op(x).sum()), backend="aot_eager")(torch.ones(2))
    assert found.tolist() == [2, 2]
