"""Attention under transforms: vmap over any argument, torch.compile, no recompilation, no synchronisation."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from attention_judge import assert_alike, heads, not_interpreted, output, positions, qkv
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from torch_jvpvjp import ops
from torch_jvpvjp.testing.budget import assert_equal
from torch_jvpvjp.testing.compositions import EAGER

pytestmark = not_interpreted
attend = ops.scaled_dot_product_attention


# ---- vmap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in EAGER if "vmap" in name])
def test_vmap_with_a_bias(name: str, device: str) -> None:
    tensors = (*qkv(b=1, h=1, lq=2, lk=3, device=device), heads(2, 3, device=device))
    assert_alike(attend, output(), tensors, (name,))


def _looped(f: Callable[..., Any], in_dims: tuple[int | None, ...], *xs: Any) -> Any:
    n = next(x.shape[d] for x, d in zip(xs, in_dims, strict=True) if d is not None)
    rows = [f(*(x if d is None else x.select(d, i) for x, d in zip(xs, in_dims, strict=True))) for i in range(n)]
    return torch.utils._pytree.tree_map(lambda *t: torch.stack(t), *rows)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("argument", ["mask", "bias", "slopes", "mask of a batch"])
@pytest.mark.parametrize("batched", [False, True], ids=["alone", "with the query"])
def test_vmap_over_what_is_done_to_the_scores(argument: str, axis: int, batched: bool, device: str) -> None:
    """A mask for each element, of one query or of as many: values, tangents, gradients and their tangents."""
    q, k, v = qkv(device=device)
    given = {
        "mask": (torch.rand(5, 3, 4, device=device) > 0.3).movedim(0, axis),
        "bias": heads(5, 2, 1, 4, device=device).movedim(0, axis),
        "slopes": torch.rand(5, 2, device=device).movedim(0, axis),
        "mask of a batch": (torch.rand(5, 2, 1, 1, 4, device=device) > 0.3).movedim(0, axis),
    }[argument]
    queries = torch.stack([q, -q, 2 * q, q / 2, q * q]) if batched else q
    dims = (0 if batched else None, axis)

    def f(q: Tensor, x: Tensor) -> Tensor:
        return attend(q, k, v, alibi_slopes=x) if argument == "slopes" else attend(q, k, v, x)

    def pushed(q: Tensor, x: Tensor) -> Any:
        return torch.func.jvp(lambda q: f(q, x), (q,), (v[:, :, :3],))

    def gradient(q: Tensor, x: Tensor) -> Tensor:
        return torch.func.grad(lambda q: f(q, x).square().sum())(q)

    def hvp(q: Tensor, x: Tensor) -> Tensor:
        return torch.func.jvp(lambda q: gradient(q, x), (q,), (v[:, :, :3],))[1]

    for g in (f, pushed, gradient, hvp):
        assert_equal(torch.func.vmap(g, dims)(queries, given), _looped(g, dims, queries, given), g.__name__)


def test_derivatives_in_a_bias_of_each_element(device: str) -> None:
    tensors, bias = qkv(device=device), heads(5, 2, 1, 4, device=device)
    loss = lambda b: attend(*tensors, b).square().sum()  # noqa: E731
    for transform in (torch.func.grad, torch.func.hessian):
        assert_equal(torch.func.vmap(transform(loss))(bias), torch.stack([transform(loss)(b) for b in bias]))


def test_vmap_within_vmap(device: str) -> None:
    q, k, v = (
        heads(3, 2, 1, 2, 4, 2, device=device),
        heads(2, 1, 2, 5, 2, device=device),
        heads(3, 1, 2, 5, 2, device=device),
    )
    nested = lambda f: torch.func.vmap(torch.func.vmap(f, (0, 0, None)), (0, None, 0))  # noqa: E731
    assert_alike(nested(attend), nested(output()), (q, k, v))


# ---- torch.compile ---------------------------------------------------------------------------------------------------


@contextmanager
def counting() -> Any:
    """A backend that traces everything and counts, in a fresh compiler."""
    from torch_jvpvjp.registration import _torch_private as private

    inner = private.lookup_backend("aot_eager")
    counted: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        counted.append(1)
        return inner(graph, inputs)

    torch.compiler.reset()
    yield backend, counted
    torch.compiler.reset()


def _jvp(*tensors: Tensor) -> Any:
    return torch.func.jvp(partial(attend, is_causal=True), tensors, tensors)


def _grad(*tensors: Tensor) -> Any:
    return torch.func.grad(lambda *t: attend(*t, is_causal=True).square().sum(), (0, 1, 2))(*tensors)


def _train(*tensors: Tensor) -> Any:
    o, o_dot = ops.attention_jvp(*tensors, *(t.detach() for t in tensors), is_causal=True)
    return (o - o_dot.detach()).square().sum()


@pytest.mark.compiled
def test_numbers_may_be_symbols(device: str) -> None:
    tensors = qkv(device=device)
    attend = lambda s: ops.scaled_dot_product_attention(*tensors, scale=s, softcap=s)  # noqa: E731
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    for number in (0.5, 2.0):
        assert_equal(compiled(number), attend(number))


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("f", [_jvp, _grad, _train])
def test_lengths_and_batches_do_not_recompile(f: Callable[..., Any], device: str) -> None:
    """Sizes marked dynamic before the first call: one compilation for all, value, derivatives and backward."""
    with counting() as (backend, counted):
        compiled = torch.compile(f, fullgraph=True, backend=backend)
        first = 0
        for b, lq, lk in ((2, 5, 7), (3, 9, 4), (4, 130, 257)):
            tensors = qkv(b=b, lq=lq, lk=lk, device=device)
            for t in tensors:
                torch._dynamo.mark_dynamic(t, 0)
                torch._dynamo.mark_dynamic(t, 2)
            if f is _train:
                tensors = tuple(t.requires_grad_() for t in tensors)
            found, expected = compiled(*tensors), f(*tensors)
            assert_equal(found, expected)
            if f is _train:
                assert_equal(*(torch.autograd.grad(y, tensors) for y in (found, expected)))
            first = first or len(counted)
        assert len(counted) == first


@pytest.mark.compiled
@pytest.mark.slow
def test_automatic_dynamic_compiles_twice(device: str) -> None:
    """Without marks PyTorch compiles once for the first sizes and once for all others, masks and windows too."""

    def f(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attend(q, k, v, mask, window=(3, None), causal_alignment="bottom_right")

    with counting() as (backend, counted):
        compiled = torch.compile(f, fullgraph=True, backend=backend)
        for lq, lk in ((5, 7), (9, 4), (130, 257), (3, 11), (64, 64)):
            tensors = (*qkv(b=2, lq=lq, lk=lk, device=device), torch.rand(2, 1, 1, lk, device=device) > 0.2)
            assert_equal(compiled(*tensors), f(*tensors))
        assert len(counted) <= 2


@pytest.mark.compiled
@pytest.mark.slow
def test_block_masks_compile(device: str) -> None:
    made = create_block_mask(lambda b, h, i, j: i >= j, None, None, 32, 32, device=device, BLOCK_SIZE=16)
    tensors = qkv(lq=32, lk=32, device=device)
    f = lambda mask, *t: torch.func.jvp(lambda *t: attend(*t, mask), t, t)  # noqa: E731
    torch.compiler.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    visible = positions(32, 32, device=device) <= 0
    for _ in range(2):
        assert_equal(compiled(made, *tensors), torch.func.jvp(output(visible=visible), tensors, tensors))
    torch.compiler.reset()


@pytest.mark.compiled
@pytest.mark.slow
def test_every_option_compiles_under_inductor(device: str) -> None:
    q, k, v = heads(2, 4, 6, 8, device=device), heads(2, 2, 9, 8, device=device), heads(2, 2, 9, 5, device=device)
    bias, slopes = heads(4, 1, 9, device=device), torch.rand(4, device=device)
    options = {"window": (4, 3), "softcap": 2.0, "alibi_slopes": slopes, "enable_gqa": True, "return_lse": True}

    def loss(*tensors: Tensor) -> Tensor:
        o, lse = attend(*tensors, **options)
        return o.square().sum() + lse.sin().sum()

    f = lambda *t: torch.func.jvp(torch.func.grad(loss, (0, 1, 2, 3)), t, t)  # noqa: E731
    torch.compiler.reset()
    assert_equal(torch.compile(f, fullgraph=True, backend="inductor")(q, k, v, bias), f(q, k, v, bias))
    torch.compiler.reset()


# ---- no synchronisation ----------------------------------------------------------------------------------------------


class NoReading(TorchDispatchMode):
    """Refuse whatever makes the host wait for numbers of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"):
            raise AssertionError(f"{func.name()} reads the data of a tensor")
        return func(*args, **(kwargs or {}))


def _everything(device: str) -> list[tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """Functions of attention with what they take; lengths and masks are data."""
    made = create_block_mask(lambda b, h, i, j: i >= j, None, None, 32, 32, device=device, BLOCK_SIZE=16)
    tensors, blocks = qkv(device=device), qkv(lq=32, lk=32, device=device)
    mask, bias = torch.rand(3, 4, device=device) > 0.2, heads(2, 1, 4, device=device)
    rows = tuple(heads(6, 2, 2, device=device) for _ in range(3))
    lengths = torch.tensor([0, 2, 6], device=device)
    return [
        (lambda *t: attend(*t, is_causal=True, window=(2, 1)), tensors),
        (lambda *t: attend(*t[:3], t[3], softcap=3.0), (*tensors, bias)),
        (lambda *t: attend(*t, mask, 0.3), tensors),
        (lambda *t: attend(*t, alibi_slopes=mask[0, :2].double()), tensors),
        (lambda *t: attend(*t, made), blocks),
        (lambda *t: ops.varlen_attention(*t, lengths, is_causal=True), rows),
        (lambda *t: ops.attention_jvp(*t, *t)[1], tensors),
    ]


@pytest.mark.parametrize("number", range(7))
def test_nothing_is_read_back(number: int, device: str) -> None:
    """Neither by the function nor by a derivative. (On the CPU varlen_attention looks at its lengths to check them.)"""
    f, tensors = _everything(device)[number]
    gradient = torch.func.grad(lambda *t: f(*t).square().sum(), tuple(range(len(tensors))))
    with NoReading():
        f(*tensors)
        torch.func.jvp(f, tensors, tensors)
        gradient(*tensors)
        torch.func.jvp(gradient, tensors, tensors)
        torch.func.vmap(f)(*(torch.stack([t, t]) for t in tensors)) if number != 2 else None


@pytest.mark.parametrize("number", range(7))
def test_shapes_alone_are_enough(number: int, device: str) -> None:
    """Tensors without data (meta): whatever looked at a number would raise."""
    f, tensors = _everything("meta")[number] if number != 4 else (attend, qkv(device="meta"))
    expected, own = _everything(device)[number] if number != 4 else (attend, qkv(device=device))
    gradient = lambda f, n: torch.func.grad(lambda *t: f(*t).square().sum(), tuple(range(n)))  # noqa: E731
    count = len(tensors)
    shapes = lambda nest: [t.shape for t in torch.utils._pytree.tree_leaves(nest)]  # noqa: E731
    for transform in (
        lambda f, t: f(*t),
        lambda f, t: torch.func.jvp(f, t, t),
        lambda f, t: gradient(f, count)(*t),
        lambda f, t: torch.func.jvp(gradient(f, count), t, t),
    ):
        assert shapes(transform(f, tuple(tensors))) == shapes(transform(expected, tuple(own)))
