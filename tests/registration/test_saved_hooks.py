"""Hooks on saved tensors around forward and backward, of ops whose formula is differentiated."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from example_ops import fresh_name
from torch import Tensor

from torch_jvpvjp import differentiable_op
from torch_jvpvjp.registration import _torch_private as private

graph = torch.autograd.graph
CONTEXTS: dict[str, Callable[[], Any]] = {
    "save_on_cpu": graph.save_on_cpu,
    "hooks": lambda: graph.saved_tensors_hooks(torch.clone, lambda t: t),
    "mutation": graph.allow_mutation_on_saved_tensors,
}


@pytest.mark.parametrize("names", [("save_on_cpu",), ("hooks",), ("mutation",), ("hooks", "save_on_cpu")], ids=str)
def test_backward_within_hooks(names: tuple[str, ...]) -> None:
    @differentiable_op(fresh_name("hooked"))
    def op(x: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(x) * w

    x, w = (t.requires_grad_() for t in torch.randn(2, 3, 4).double().unbind())
    found = []
    for f in (op, op.reference):
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(CONTEXTS[name]())
            around = private.top_saved_tensors_hooks(False)
            bars = torch.autograd.grad(f(x, w).square().sum(), (x, w), create_graph=True)
            found.append((*bars, *torch.autograd.grad(sum(b.pow(3).sum() for b in bars), (x, w))))
            assert private.top_saved_tensors_hooks(False) == around
    torch.testing.assert_close(found[0], found[1])


def test_hooks_are_put_back_where_the_formula_raises() -> None:
    calls: list[int] = []

    @differentiable_op(fresh_name("raising"))
    def op(x: Tensor) -> Tensor:
        calls.append(1)
        if torch.is_grad_enabled() and len(calls) > 1:
            raise RuntimeError("not twice")
        return x.sin()

    x = torch.randn(3, requires_grad=True)
    with graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        around, y = private.top_saved_tensors_hooks(False), op(x).sum()
        calls.append(1)
        with pytest.raises(RuntimeError, match="not twice"):
            y.backward()
        assert private.top_saved_tensors_hooks(False) == around
