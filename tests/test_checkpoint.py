"""The checkpoint that sees tangents: gradients, memory and errors, for a transformer block made of our ops."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn

import torch_jvpvjp as tj
from torch_jvpvjp import ops

Block = Callable[..., Any]
Runner = Callable[..., Any]  # of a block and its arguments: the block itself, or a checkpoint around it

F64 = torch.float64
WIDTH, HEADS, LENGTH = 8, 2, 5


class Transformer(nn.Module):
    """Attention and a gated MLP, each behind a norm."""

    def __init__(self, dropout_p: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *s: nn.Parameter(torch.randn(*s, dtype=F64, generator=generator) / s[-1] ** 0.5)  # noqa: E731
        self.first, self.second = draw(WIDTH), draw(WIDTH)
        self.qkv, self.out = draw(3 * WIDTH, WIDTH), draw(WIDTH, WIDTH)
        self.up, self.down = draw(4 * WIDTH, WIDTH), draw(WIDTH, 2 * WIDTH)
        angles = torch.arange(LENGTH)[:, None] * torch.tensor([1.0, 0.1])
        self.register_buffer("cos", angles.cos().to(F64))
        self.register_buffer("sin", angles.sin().to(F64))
        self.dropout_p = dropout_p

    def forward(self, x: Tensor) -> Tensor:
        heads = ops.linear(ops.rms_norm(x, (WIDTH,), self.first), self.qkv).unflatten(-1, (3, HEADS, -1))
        q, k, v = heads.movedim(-3, 0).transpose(-3, -2)
        q, k = ops.rope(q, k, self.cos, self.sin)
        o = ops.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout_p)
        x = x + ops.linear(o.transpose(-3, -2).flatten(-2), self.out)
        gate, up = ops.linear(ops.rms_norm(x, (WIDTH,), self.second), self.up).chunk(2, -1)
        return x + ops.linear(ops.swiglu(gate, up), self.down)


def plainly(block: Block, *args: Any, **kwargs: Any) -> Any:
    return block(*args, **kwargs)


def tokens(seed: int, *lead: int) -> Tensor:
    return torch.randn(*lead, LENGTH, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(seed))


def loss_of(*tensors: Tensor) -> Tensor:
    """Of value and tangent."""
    return sum(((i + 1) * t.sin()).sum() for i, t in enumerate(tensors))  # pyright: ignore[reportReturnType]


# ---- each way to ask for derivatives: a function of a runner that gives gradients ------------------------------------


def _gradients(run: Callable[[Transformer, Tensor, Tensor], tuple[Tensor, ...]], block: Transformer) -> list[Tensor]:
    x, dot = (tokens(seed, 2).requires_grad_() for seed in (1, 2))
    results = run(block, x, dot)
    return [*results, *torch.autograd.grad(loss_of(*results), (x, dot, *block.parameters()))]


def backward(runner: Runner, block: Transformer) -> list[Tensor]:
    return _gradients(lambda block, x, dot: (runner(block, x + dot),), block)


def inside_jvp(runner: Runner, block: Transformer) -> list[Tensor]:
    return _gradients(lambda block, x, dot: torch.func.jvp(lambda x: runner(block, x.sin()), (x,), (dot,)), block)


def around_jvp(runner: Runner, block: Transformer) -> list[Tensor]:
    def push(x: Tensor, dot: Tensor) -> Any:
        return torch.func.jvp(block, (x,), (dot,))

    return _gradients(lambda block, x, dot: runner(push, x, dot), block)


def backward_in_a_dual_level(runner: Runner, block: Transformer) -> list[Tensor]:
    x, dot = (tokens(seed, 2).requires_grad_() for seed in (1, 2))
    with fwd.dual_level():
        results = fwd.unpack_dual(runner(block, fwd.make_dual(x, dot)))
        found = torch.autograd.grad(loss_of(*results), (x, dot, *block.parameters()))
        return [*(fwd.unpack_dual(t).primal for t in (*results, *found))]


def backward_after_a_dual_level(runner: Runner, block: Transformer) -> list[Tensor]:
    def push(block: Transformer, x: Tensor, dot: Tensor) -> tuple[Tensor, ...]:
        with fwd.dual_level():
            return tuple(fwd.unpack_dual(runner(block, fwd.make_dual(x, dot))))

    return _gradients(push, block)


def vmap_of_jvp(runner: Runner, block: Transformer) -> list[Tensor]:
    def push(x: Tensor, dot: Tensor) -> Any:
        return torch.func.jvp(lambda x: runner(block, x), (x,), (dot,))

    return _gradients(lambda block, x, dot: torch.vmap(push)(x, dot), block)


def jvp_of_vmap(runner: Runner, block: Transformer) -> list[Tensor]:
    mapped = torch.vmap(lambda x: runner(block, x))
    return _gradients(lambda block, x, dot: torch.func.jvp(mapped, (x,), (dot,)), block)


def jacfwd(runner: Runner, block: Transformer) -> list[Tensor]:
    def push(block: Transformer, x: Tensor, dot: Tensor) -> tuple[Tensor, ...]:
        along = lambda a: runner(block, x + a.sum() * dot)  # noqa: E731
        return (torch.func.jacfwd(along)(torch.tensor([0.1, 0.2, 0.3], dtype=F64)),)

    return _gradients(push, block)


def jvp_of_jvp(runner: Runner, block: Transformer) -> list[Tensor]:
    def push(block: Transformer, x: Tensor, dot: Tensor) -> tuple[Tensor, ...]:
        inner = lambda x: torch.func.jvp(lambda x: runner(block, x), (x,), (dot,))[1]  # noqa: E731
        return torch.func.jvp(inner, (x,), (dot,))  # pyright: ignore[reportReturnType]

    return _gradients(push, block)


def parameters_with_tangents(runner: Runner, block: Transformer) -> list[Tensor]:
    def push(block: Transformer, x: Tensor, dot: Tensor) -> tuple[Tensor, ...]:
        values = {name: p + 0.1 * dot.sum() for name, p in block.named_parameters()}
        dots = {name: p.detach().cos() * x.mean() for name, p in block.named_parameters()}

        def call(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(Outer(block, runner), {f"inner.{k}": v for k, v in values.items()}, (x,))

        return torch.func.jvp(call, (values,), (dots,))  # pyright: ignore[reportReturnType]

    return _gradients(push, block)


class Outer(nn.Module):
    """A model that checkpoints a block of its own."""

    def __init__(self, inner: Transformer, runner: Runner) -> None:
        super().__init__()
        self.inner, self.runner = inner, runner

    def forward(self, x: Tensor) -> Tensor:
        return self.runner(self.inner, x)


def a_closure_over_a_dual(runner: Runner, block: Transformer) -> list[Tensor]:
    def push(block: Transformer, x: Tensor, dot: Tensor) -> tuple[Tensor, ...]:
        def call(x: Tensor) -> Tensor:
            condition = x.cos()
            return runner(lambda y: block(y * condition), x)

        return torch.func.jvp(call, (x,), (dot,))  # pyright: ignore[reportReturnType]

    return _gradients(push, block)


def a_loop(runner: Runner, block: Transformer) -> list[Tensor]:
    """A variable of the closure goes on after each call."""

    def push(block: Transformer, x: Tensor, dot: Tensor) -> tuple[Tensor, ...]:
        def call(x: Tensor) -> Tensor:
            for step in range(3):
                scale = 1.0 + step
                x = runner(lambda y: block(y * scale), x)  # noqa: B023 -- what the call must remember
            return x

        return torch.func.jvp(call, (x,), (dot,))  # pyright: ignore[reportReturnType]

    return _gradients(push, block)


def nested(runner: Runner, block: Transformer) -> list[Tensor]:
    def twice(x: Tensor) -> Tensor:
        return runner(block, runner(block, x))

    return _gradients(lambda block, x, dot: torch.func.jvp(lambda x: runner(twice, x), (x,), (dot,)), block)


def trees(runner: Runner, block: Transformer) -> list[Tensor]:
    """Arguments and results in lists and dicts, a tensor twice, and something that is no tensor."""

    def several(pair: list[Tensor], *, factor: int, other: dict[str, Tensor]) -> dict[str, Any]:
        y = block(pair[0] * factor + other["x"])
        return {"y": y, "again": [y, pair[1]], "name": "a name"}

    def push(block: Transformer, x: Tensor, dot: Tensor) -> tuple[Tensor, ...]:
        def call(x: Tensor) -> tuple[Tensor, ...]:
            found = runner(several, [x, dot], factor=2, other={"x": x})
            assert found["name"] == "a name" and found["again"][0] is found["y"]
            return found["y"], found["again"][1] * x

        results = torch.func.jvp(call, (x,), (dot,))
        return (*results[0], *results[1])

    return _gradients(push, block)


WAYS = [
    *(backward, inside_jvp, around_jvp, backward_in_a_dual_level, backward_after_a_dual_level, vmap_of_jvp),
    *(jvp_of_vmap, jacfwd, jvp_of_jvp, parameters_with_tangents, a_closure_over_a_dual, a_loop, nested, trees),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_gradients_of_value_and_tangent_are_those_without_checkpoint(way: Callable[..., list[Tensor]]) -> None:
    block = Transformer()
    expected, found = way(plainly, block), way(tj.checkpoint, block)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


# ---- memory ----------------------------------------------------------------------------------------------------------


@contextmanager
def counting() -> Iterator[list[int]]:
    """The bytes of tensors that autograd saves, one number for each."""
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


@pytest.mark.parametrize("way", [backward, inside_jvp, around_jvp, vmap_of_jvp], ids=lambda way: way.__name__)
def test_nothing_but_the_arguments_and_their_tangents_is_kept(way: Callable[..., list[Tensor]]) -> None:
    block = Transformer()
    kept: dict[str, int] = {}

    for name, runner in (("plain", plainly), ("checkpoint", tj.checkpoint)):
        total = 0

        def counted(function: Block, *args: Any, runner: Runner = runner) -> Any:
            nonlocal total
            with counting() as saved:
                result = runner(function, *args)
            total += sum(saved)
            return result

        way(counted, block)
        kept[name] = total
    arguments = 2 * 2 * LENGTH * WIDTH * 8  # x and ẋ
    assert 0 < kept["checkpoint"] <= arguments < kept["plain"] / 5


# ---- randomness ------------------------------------------------------------------------------------------------------


def test_dropout_is_the_same_in_the_second_call() -> None:
    found = []
    for runner in (plainly, tj.checkpoint):
        torch.manual_seed(0)
        found.append(inside_jvp(runner, Transformer(dropout_p=0.5)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert not torch.equal(found[0][0], inside_jvp(plainly, Transformer())[0])


def test_without_preserving_random_numbers_others_are_drawn() -> None:
    x = torch.ones(100, dtype=F64, requires_grad=True)
    torch.manual_seed(0)
    y = tj.checkpoint(lambda x: x * torch.rand(100, dtype=F64), x, preserve_rng_state=False)
    assert not torch.equal(torch.autograd.grad(y.sum(), x)[0], y.detach())


# ---- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", ["inside jvp", "around jvp"])
def test_compiled_it_gives_what_it_gives_eagerly(way: str) -> None:
    block, x, dot = Transformer(), *(tokens(seed, 2) for seed in (1, 2))

    def push(x: Tensor, dot: Tensor) -> Any:
        if way == "inside jvp":
            return torch.func.jvp(lambda x: tj.checkpoint(block, x), (x,), (dot,))
        return tj.checkpoint(lambda x, dot: torch.func.jvp(block, (x,), (dot,)), x, dot)

    found = []
    for function in (push, torch.compile(push, backend="aot_eager")):
        inputs = [t.clone().requires_grad_() for t in (x, dot)]
        results = function(*inputs)
        found.append([*results, *torch.autograd.grad(loss_of(*results), (*inputs, *block.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_reentrant_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use_reentrant must be False, got True; leave it out"):
        tj.checkpoint(torch.sin, torch.ones(2, requires_grad=True), use_reentrant=True)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.hessian, torch.func.jacrev])
def test_inside_of_reverse_transforms_it_raises_and_names_the_way_out(transform: Callable[..., Any]) -> None:
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(x)
        return x.sin().sum()

    with pytest.raises(NotImplementedError, match=r"torch\.func\.grad, vjp, jacrev or hessian.*loss\.backward\(\)"):
        transform(lambda x: tj.checkpoint(function, x))(torch.ones(3))
    assert not calls  # before anything is computed


HIDDEN: dict[str, Tensor] = {}


def test_a_dual_that_is_not_seen_is_refused() -> None:
    def call(x: Tensor) -> Tensor:
        HIDDEN["x"] = x
        return tj.checkpoint(lambda y: y * _hidden(), torch.ones(3, requires_grad=True))

    x = torch.ones(3)
    with pytest.raises(NotImplementedError, match=r"a tensor that has a tangent, is no argument"):
        torch.func.jvp(call, (x,), (x,))
    with pytest.raises(NotImplementedError, match=r"a tensor that has a batch axis of vmap"):
        torch.vmap(call)(torch.ones(2, 3))
    with fwd.dual_level(), pytest.raises(NotImplementedError, match=r"a tensor that has a tangent, is no argument"):
        dual = fwd.make_dual(x, x)
        HIDDEN["x"] = dual
        tj.checkpoint(lambda y: y * _hidden(), fwd.make_dual(torch.ones(3, requires_grad=True), x))
    HIDDEN.clear()


def _hidden() -> Tensor:
    return HIDDEN["x"]


def test_without_gradients_nothing_is_recomputed() -> None:
    calls = []
    with torch.no_grad():
        tj.checkpoint(lambda x: calls.append(x) or x.sin(), torch.ones(3, requires_grad=True))
    assert len(calls) == 1


def test_options_are_those_of_pytorch() -> None:
    x = torch.ones(3, requires_grad=True)
    seen = []
    contexts = lambda: (_noting(seen, "first"), _noting(seen, "second"))  # noqa: E731
    y = tj.checkpoint(lambda x: x.sin().cos(), x, context_fn=contexts, determinism_check="none", early_stop=False)
    y.sum().backward()
    assert seen == ["first", "second"]


@contextmanager
def _noting(seen: list[str], name: str) -> Iterator[None]:
    seen.append(name)
    yield
