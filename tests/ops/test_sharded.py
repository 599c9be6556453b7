"""Ops of DTensors: their formulas, which PyTorch shards."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_jvpvjp import ops

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


@pytest.fixture
def mesh() -> Iterator[Any]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms_norm": lambda x, w: ops.rms_norm(x, (8,), w),
    "layer_norm": lambda x, w: ops.layer_norm(x, (8,), w, w),
    "add_rms_norm": lambda x, w: ops.add_rms_norm(x, x, (8,), w)[0],
    "softmax": lambda x, w: ops.softmax(x * w, -1),
    "gelu": lambda x, w: ops.gelu(x * w),
    "swiglu": lambda x, w: ops.swiglu(x, x * w),
    "swiglu, packed": lambda x, w: ops.swiglu(x * w),
    "linear": lambda x, w: ops.linear(x, w.unsqueeze(0)),
    "mse_loss": lambda x, w: ops.mse_loss(x, x * w),
    "attention": lambda x, w: ops.scaled_dot_product_attention(x * w, x, x),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("axis", [0, None], ids=["sharded", "replicated"])
def test_value_and_gradient(name: str, axis: int | None, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    values = torch.randn(4, 6, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    places = Replicate() if axis is None else Shard(axis), Replicate()
    parts = [distribute_tensor(v, mesh, [p]).requires_grad_() for v, p in zip(values, places, strict=True)]
    whole = [v.clone().requires_grad_() for v in values]
    y, expected = CASES[name](*parts), CASES[name](*whole)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(y.full_tensor(), expected)  # pyright: ignore[reportAttributeAccessIssue]
    y.sin().sum().backward()
    expected.sin().sum().backward()
    for part, leaf in zip(parts, whole, strict=True):
        torch.testing.assert_close(part.grad.full_tensor(), leaf.grad)


def test_a_plain_tensor_beside_a_sharded_one_is_refused(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    x = distribute_tensor(torch.randn(4, 8), mesh, [Shard(0)])
    with pytest.raises(TypeError, match=r"'weight' must be a DTensor, as another one is, got Tensor; use torch\.dist"):
        ops.rms_norm(x, (8,), torch.ones(8))
