"""Tensors that no op takes, in the place of each argument of each op: sparse, nested, MKL-DNN's, quantized, complex."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.testing.cases import CASES

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype"),
]


def nested(t: Tensor, layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([t, t], layout=layout)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": Tensor.to_sparse,
    "csr": lambda t: t.reshape(-1, t.shape[-1] if t.dim() else 1).to_sparse_csr(),
    "nested": lambda t: nested(t, torch.strided),
    "jagged": lambda t: nested(t.reshape(-1, t.shape[-1] if t.dim() else 1), torch.jagged),
    "mkldnn": lambda t: t.float().to_mkldnn(),
}


def arguments_of(name: str) -> list[tuple[int, Callable[[Any], Any], Tensor]]:
    """Each tensor argument of the samples of an op: how many are beside it, the call with another there, and it."""
    case, found = CASES[name], {}
    for sample in case.samples:
        values = [*sample.args, *sample.kwargs.values()]
        for i, value in enumerate(values):
            where = i if i < len(sample.args) else list(sample.kwargs)[i - len(sample.args)]
            if not isinstance(value, Tensor) or where in found or (0 in value.shape):
                continue

            def call(other: Any, i: int = i, values: list[Any] = values, sample: Any = sample) -> Any:
                given = [*values[:i], other, *values[i + 1 :]]
                count = len(sample.args)
                return case.function(*given[:count], **dict(zip(sample.kwargs, given[count:], strict=True)))

            found[where] = (sum(isinstance(v, Tensor) for v in values) - 1, call, value)
    return list(found.values())


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_what_is_not_dense_is_refused_by_name(name: str, kind: str) -> None:
    arguments = arguments_of(name)
    assert arguments
    way_out = r"use \.to_padded_tensor" if kind in ("nested", "jagged") else r"use \.to_dense\(\)"
    for _, call, value in arguments:
        if kind == "mkldnn" and not (value.is_floating_point() and value.dim()):
            continue
        other = LAYOUTS[kind](value)
        with pytest.raises(TypeError, match=rf"^{name}: \w+ must be a dense tensor .*; {way_out}"):
            call(other)


@pytest.mark.parametrize("name", ["tanh", "softmax", "rms_norm", "linear", "mse_loss", "scaled_dot_product_attention"])
def test_what_is_not_dense_is_refused_where_it_is_differentiated(name: str) -> None:
    _, call, value = arguments_of(name)[0]
    with pytest.raises(TypeError, match=rf"^{name}: \w+ must be a dense tensor .*torch\.sparse_coo"):
        torch.func.grad(lambda t: call(t.to_sparse()).sum())(value)
    with pytest.raises(TypeError, match=rf"^{name}: \w+ must be a dense tensor .*torch\.sparse_coo"):
        call(value.to_sparse().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_dtype_that_no_op_computes_in_is_refused_by_name(name: str, dtype: torch.dtype) -> None:
    _, call, value = arguments_of(name)[0]
    assert value.is_floating_point()
    if name == "attention_jvp":
        pytest.skip("its query has a tangent in this sample; scaled_dot_product_attention looks at the same arguments")
    with pytest.raises(TypeError, match=rf"^{name}: \w+ must .*got {dtype}"):
        call(value.to(dtype))


NO_TENSORS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "array": (Tensor.numpy, r"ndarray; use torch\.from_numpy\(\)"),
    "list": (Tensor.tolist, r"(list|float|int); use torch\.tensor\(\)"),
    "number": (lambda _: 2.5, r"float; use torch\.tensor\(\)"),
    "text": (str, "str"),
}


@pytest.mark.parametrize("kind", NO_TENSORS)
@pytest.mark.parametrize("name", CASES)
def test_what_is_no_tensor_is_refused_by_name(name: str, kind: str) -> None:
    make, came = NO_TENSORS[kind]
    for _, call, value in arguments_of(name):
        with pytest.raises(TypeError, match=rf"^{name}: \w+ must be an? .*Tensor.*, got {came}\.$"):
            call(make(value))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda x: ops.softmax(torch.ones(2), -1, mask=x), "mask"),
        (lambda x: ops.cross_entropy(torch.ones(2, 2), torch.tensor([0, 1]), x), "weight"),
        (lambda x: ops.scaled_dot_product_attention(*[torch.ones(1, 1, 2, 2)] * 3, attn_mask=x), "attn_mask"),
        (lambda x: ops.scaled_dot_product_attention(*[torch.ones(1, 1, 2, 2)] * 3, alibi_slopes=x), "alibi_slopes"),
    ],
)
def test_what_is_no_tensor_is_refused_where_a_tensor_may_be_absent(call: Callable[[Any], Any], argument: str) -> None:
    for value, way_out in (([1.0, 2.0], r"list; use torch\.tensor"), (torch.ones(2).numpy(), "ndarray; use torch")):
        with pytest.raises(TypeError, match=rf"^\w+: {argument} must be .*, got {way_out}"):
            call(value)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_the_way_out_of_a_dtype() -> None:
    x = torch.ones(3)
    with pytest.raises(TypeError, match=r"^tanh: input must be float16, .* got torch\.qint8; use \.dequantize\(\)\.$"):
        ops.tanh(torch.quantize_per_tensor(x, 0.1, 0, torch.qint8))
    with pytest.raises(TypeError, match=r"^tanh: input must be float16, .* got torch\.complex64; use \.real\.$"):
        ops.tanh(x.to(torch.complex64))


@pytest.mark.parametrize("name", [name for name in CASES if len(arguments_of(name)) > 1])
def test_tensors_on_two_devices_are_refused_by_name(name: str) -> None:
    refused = 0
    for beside, call, value in arguments_of(name):
        if beside:
            with pytest.raises(ValueError, match=rf"^{name}: .* (meta|cpu).* got .*(meta|cpu)"):
                call(value.to("meta"))
            refused += 1
    assert refused
