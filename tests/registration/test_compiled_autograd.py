"""Graphs that were recorded eagerly, whose backward is compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from example_ops import fresh_name
from torch import Tensor
from torch._dynamo import compiled_autograd

from torch_jvpvjp import differentiable_op, ops

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),  # of PyTorch, in compiling its own graph
]


@differentiable_op(fresh_name("formula_alone"))
def formula_alone(x: Tensor, k: float) -> Tensor:
    return torch.tanh(x * k)


@differentiable_op(fresh_name("with_rule"))
def with_rule(x: Tensor, k: float) -> Tensor:
    return torch.sin(x * k)


with_rule.vjp(lambda cotangents, inputs: (cotangents.y * inputs.k * torch.cos(inputs.x * inputs.k),))

FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "formula": formula_alone,
    "rule": with_rule,
    "softplus": ops.softplus,
    "rms_norm": lambda x, k: ops.rms_norm(x, (8,), x[0], k, weight_offset=1.0),
    "l2_norm": lambda x, k: ops.l2_norm(x, -1, k),
    "linear": lambda x, k: ops.linear(x, x * k, x[:, 0]),
    "attention": lambda x, k: ops.scaled_dot_product_attention(x, x * k, x, is_causal=True),
    "mse_loss": lambda x, k: ops.mse_loss(x, k * x.detach()),
    "cross_entropy": lambda x, k: ops.cross_entropy(x, torch.tensor([0, 3, 2, 7]), softcap=k),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_eager_backward_whatever_the_options(name: str) -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 8)
    compiler: Any = torch.compile(backend="aot_eager")
    for k in (0.5, 2.0, 3.0):
        compiled, eager = (x.clone().requires_grad_() for _ in range(2))
        with compiled_autograd._enable(compiler):
            FUNCTIONS[name](compiled, k).square().sum().backward()
        FUNCTIONS[name](eager, k).square().sum().backward()
        torch.testing.assert_close(compiled.grad, eager.grad)
