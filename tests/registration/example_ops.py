"""Ops to declare with any subset of their rules: several outputs, residuals, indices, optional and integer inputs."""

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from torch_jvpvjp import DifferentiableOp, differentiable_op

_names = itertools.count()


def fresh_name(stem: str) -> str:
    return f"tests::{stem}_{next(_names)}"


def waves(rules: Collection[str]) -> DifferentiableOp:
    """Two outputs, an option, a VJP that reads the outputs."""

    @differentiable_op(fresh_name("waves"))
    def op(x: Tensor, w: Tensor, limit: float = 1.5) -> tuple[Tensor, Tensor]:
        return limit * torch.tanh(x * w / limit), (x * w).exp()

    if "jvp" in rules:

        @op.jvp
        def _(primals: Any, tangents: Any) -> Any:
            x, w, limit = primals
            t, e = torch.tanh(x * w / limit), (x * w).exp()
            u_dot = 0 if tangents.x is None else tangents.x * w
            u_dot = u_dot if tangents.w is None else u_dot + x * tangents.w
            return (limit * t, e), ((1 - t * t) * u_dot, e * u_dot)

    if "vjp" in rules:

        @op.vjp
        def _(cotangents: Any, inputs: Any, outputs: Any) -> Any:
            y0, y1 = outputs
            u_bar = 0 if cotangents.y0 is None else cotangents.y0 * (1 - (y0 / inputs.limit) ** 2)
            u_bar = u_bar if cotangents.y1 is None else u_bar + cotangents.y1 * y1
            return u_bar * inputs.w, u_bar * inputs.x

    if "vmap" in rules:

        @op.vmap
        def _(info: Any, in_dims: Any, x: Tensor, w: Tensor, limit: float) -> Any:
            def front(t: Tensor, dim: int | None) -> Tensor:
                return t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)

            return op.overload(front(x, in_dims[0]), front(w, in_dims[1]), limit), 0

    if "kernel" in rules:

        @op.kernel("cpu")
        def _(x: Tensor, w: Tensor, limit: float) -> Any:
            with torch.no_grad():  # as opaque to autograd as a Triton kernel is
                return torch.tanh(x * w / limit).mul_(limit), (x * w).exp_()

    return op


def normalise(rules: Collection[str]) -> DifferentiableOp:
    """A hidden residual that only the VJP's kernel reads."""

    @differentiable_op(fresh_name("normalise"), residuals=("size",))
    def op(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        size = (x.square().sum(-1, keepdim=True) + 1).sqrt()
        return x / size * w, size

    if "jvp" in rules:

        @op.jvp
        def _(primals: Any, tangents: Any) -> Any:
            x, w = primals
            size = (x.square().sum(-1, keepdim=True) + 1).sqrt()
            unit = x / size
            y_dot = torch.zeros_like(x)
            if tangents.x is not None:
                y_dot = y_dot + (tangents.x - unit * (unit * tangents.x).sum(-1, keepdim=True)) / size * w
            if tangents.w is not None:
                y_dot = y_dot + unit * tangents.w
            return (unit * w, size), y_dot

    if "vjp" in rules:

        def pull(cotangents: Any, inputs: Any, size: Tensor) -> Any:
            unit, g = inputs.x / size, cotangents.y * inputs.w
            return (g - unit * (unit * g).sum(-1, keepdim=True)) / size, unit * cotangents.y

        @op.vjp
        def _(cotangents: Any, inputs: Any) -> Any:
            return pull(cotangents, inputs, (inputs.x.square().sum(-1, keepdim=True) + 1).sqrt())

        if "vjp kernel" in rules:

            @op.vjp.kernel("cpu")
            def _(cotangents: Any, inputs: Any, *, needs: Any, residuals: Any) -> Any:
                with torch.no_grad():
                    x_bar, w_bar = pull(cotangents, inputs, residuals[0])
                return x_bar if needs[0] else None, w_bar if needs[1] else None

    if "kernel" in rules:

        @op.kernel("cpu")
        def _(x: Tensor, w: Tensor) -> Any:
            with torch.no_grad():
                size = (x.square().sum(-1, keepdim=True) + 1).sqrt_()
                return (x / size).mul_(w), size

    return op


def largest(rules: Collection[str]) -> DifferentiableOp:
    """A differentiable output and one without derivative, which the rules read."""

    @differentiable_op(fresh_name("largest"), non_differentiable_outputs=(1,))
    def op(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        value, index = (x * w).max(-1)
        return value.sin(), index

    if "jvp" in rules:

        @op.jvp
        def _(primals: Any, tangents: Any) -> Any:
            x, w = primals
            value, index = (x * w).max(-1)
            u_dot = torch.zeros_like(x)
            u_dot = u_dot if tangents.x is None else u_dot + tangents.x * w
            u_dot = u_dot if tangents.w is None else u_dot + tangents.w * x
            return (value.sin(), index), value.cos() * u_dot.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    if "vjp" in rules:

        @op.vjp
        def _(cotangents: Any, inputs: Any, outputs: Any) -> Any:
            x, w = inputs
            index = outputs[1].unsqueeze(-1)
            g = (cotangents.y0 * (x * w).gather(-1, index).squeeze(-1).cos()).unsqueeze(-1)
            u_bar = torch.zeros_like(x).scatter(-1, index, g)
            return u_bar * w, u_bar * x

    if "kernel" in rules:

        @op.kernel("cpu")
        def _(x: Tensor, w: Tensor) -> Any:
            with torch.no_grad():
                value, index = (x * w).max(-1)
                return value.sin_(), index

    return op


def gather_affine(rules: Collection[str]) -> DifferentiableOp:
    """An optional tensor, an integer tensor, a list of ints, a string; the VJP does not read what it does not save."""

    @differentiable_op(fresh_name("gather_affine"))
    def op(
        x: Tensor, index: Tensor, bias: Tensor | None = None, sizes: list[int] | None = None, *, mode: str = "sin"
    ) -> Tensor:
        y = x[..., index]
        y = (y.sin() if mode == "sin" else y.square()) * len(sizes or [1])
        return y if bias is None else y + bias

    if "jvp" in rules:

        @op.jvp
        def _(primals: Any, tangents: Any) -> Any:
            x, index, bias, sizes, mode = primals
            y = x[..., index]
            out, slope = (y.sin(), y.cos()) if mode == "sin" else (y.square(), 2 * y)
            out, y_dot = out * len(sizes or [1]), torch.zeros_like(y)
            if tangents.x is not None:
                y_dot = y_dot + slope * tangents.x[..., index] * len(sizes or [1])
            if bias is not None:
                out = out + bias
            if tangents.bias is not None:
                y_dot = y_dot + tangents.bias
            return out, y_dot

    if "vjp" in rules:

        @op.vjp(unsaved=("bias",))
        def _(cotangents: Any, inputs: Any, *, needs: Any) -> Any:
            x, index, bias, sizes, mode = inputs
            assert bias is None
            y = x[..., index]
            g = cotangents.y * (y.cos() if mode == "sin" else 2 * y) * len(sizes or [1])
            return torch.zeros_like(x).index_add(-1, index, g), None, cotangents.y.sum_to_size(y.shape)

    if "kernel" in rules:

        @op.kernel("cpu")
        def _(x: Tensor, index: Tensor, bias: Tensor | None, sizes: list[int] | None, mode: str) -> Tensor:
            with torch.no_grad():
                y = x[..., index]
                y = (y.sin_() if mode == "sin" else y.square_()).mul_(len(sizes or [1]))
                return y if bias is None else y.add_(bias)

    return op


EXAMPLES: dict[str, tuple[Callable[[Collection[str]], DifferentiableOp], tuple[str, ...]]] = {
    "waves": (waves, ("jvp", "vjp", "vmap", "kernel")),
    "normalise": (normalise, ("jvp", "vjp", "kernel", "vjp kernel")),
    "largest": (largest, ("jvp", "vjp", "kernel")),
    "gather_affine": (gather_affine, ("jvp", "vjp", "kernel")),
}


def sample_args(name: str) -> tuple[Any, ...]:
    x, w = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    if name == "gather_affine":
        return x, torch.tensor([2, 0, 2]), w, [1, 2]
    return x, w


def subsets(rules: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for size in range(len(rules) + 1):
        for chosen in itertools.combinations(rules, size):
            if "vjp kernel" not in chosen or "vjp" in chosen:
                yield chosen
