"""Ops in programs that torch.export records with symbolic sizes: they stay whole and serve every size."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from torch_jvpvjp import ops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # PyTorch copies its own trees,
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),  # and reads its own files
]
WEIGHT, BIAS = torch.randn(6, 4), torch.randn(6)


class Layer(torch.nn.Module):
    """A pre-norm layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.randn(8))
        self.qkv, self.up = torch.nn.Parameter(torch.randn(24, 8)), torch.nn.Parameter(torch.randn(32, 8))
        self.down = torch.nn.Parameter(torch.randn(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        y = ops.linear(ops.rms_norm(x, (size,), self.gain), self.qkv)
        q, k, v = y.reshape(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        angles = torch.arange(length)[:, None] * torch.tensor([1.0, 0.1])
        q, k = ops.rope(q, k, angles.cos(), angles.sin())
        attended = ops.scaled_dot_product_attention(q, k, v, is_causal=True)
        y, x = ops.add_rms_norm(attended.transpose(1, 2).reshape(x.shape), x, (size,), self.gain)
        return x + ops.linear(ops.swiglu(ops.linear(y, self.up)), self.down)


class Of(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def exported(module: torch.nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module, (x,), dynamic_shapes={"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}})


def test_a_layer_serves_every_batch_and_length(tmp_path: Path) -> None:
    layer = Layer()
    program = exported(layer, torch.randn(2, 5, 8))
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    for name in ("rms_norm", "linear", "rope", "attention", "add_rms_norm", "swiglu"):
        assert any(name in target and "torch_jvpvjp" in target for target in used), name
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2")
    for module in (program.module(), program.run_decompositions().module(), loaded.module()):
        for shape in ((3, 9, 8), (1, 1, 8)):
            x = torch.randn(shape)
            torch.testing.assert_close(module(x), layer(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.linear(x, WEIGHT, BIAS, "gelu"),
        lambda x: ops.linear_cross_entropy(x, WEIGHT, torch.zeros(x.shape[:2], dtype=torch.int64), BIAS),
        lambda x: ops.cross_entropy(x.mT, torch.zeros(x.shape[:2], dtype=torch.int64), z_loss=0.1),
        lambda x: ops.group_norm(x.mT, 2, activation="silu"),
        lambda x: ops.modulated_layer_norm(x, x[:, 0], x[:, 0]),
    ],
    ids=["linear", "linear_cross_entropy", "cross_entropy", "group_norm", "modulated_layer_norm"],
)
def test_no_size_is_taken_for_a_constant(function: Callable[[Tensor], Tensor]) -> None:
    module = exported(Of(function), torch.randn(2, 5, 4)).module()
    for shape in ((3, 7, 4), (2, 1, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(module(x), function(x))
