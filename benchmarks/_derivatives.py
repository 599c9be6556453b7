"""The operations a row-wise op f(x, w) is timed in: value, JVP, VJP, several tangents, second order.

x is (m, n), w is (n,). Each operation is one function of tensors, the same for every contender, with the bytes it
cannot help moving: each operand read once and each result written once, whatever a contender really moves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

# PyTorch annotates their results as a union, of which has_aux decides.
jvp: Any = torch.func.jvp
vjp: Any = torch.func.vjp

RowOp = Callable[[Tensor, Tensor], Tensor]
TensorFunction = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Operation:
    """A derivative of f as a function of tensors.

    Attributes:
        name: How tables call it.
        operands: Names of its arguments; every one but "w" is a row tensor.
        transform: From f to the function of those arguments.
        result_rows: The axis of rows of each result, None for what is summed over rows.
        row_tensors: Tensors of m·n elements read or written.
        weight_tensors: Tensors of n elements read or written.
        recorded: Where eager code records the forward once and only the backward is timed: from f and the arguments to
            the backward. Others are timed as ``transform`` says.
        needs_forward_mode: Whether f must have forward mode.
        tangents: K, for operands and results that have an axis of K in front of the rows.
    """

    name: str
    operands: tuple[str, ...]
    transform: Callable[[RowOp], TensorFunction]
    result_rows: tuple[int | None, ...]
    row_tensors: int
    weight_tensors: int
    recorded: Callable[..., Callable[[], Sequence[Tensor]]] | None = None
    needs_forward_mode: bool = True
    tangents: int | None = None

    def bytes_moved(self, m: int, n: int, itemsize: int) -> int:
        """The fewest bytes the operation can move.

        Args:
            m: Rows.
            n: Columns.
            itemsize: Bytes of an element, the same for x and w.

        Returns:
            Bytes read plus bytes written.
        """
        return (self.row_tensors * m + self.weight_tensors) * n * itemsize

    @property
    def operand_rows(self) -> tuple[int | None, ...]:
        """The axis of rows of each operand, None for w."""
        return tuple(None if name == "w" else 1 if name == "x_dots" else 0 for name in self.operands)

    def draw(self, m: int, n: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> tuple[Tensor, ...]:
        """Random operands.

        Args:
            m: Rows.
            n: Columns.
            dtype: Of all operands.
            device: Where they go.
            seed: Of the generator.

        Returns:
            One tensor per operand.
        """
        generator = torch.Generator(device).manual_seed(seed)
        shapes = [{"w": (n,), "x_dots": (self.tangents or 1, m, n)}.get(name, (m, n)) for name in self.operands]
        return tuple(torch.randn(s, generator=generator, dtype=dtype, device=device) for s in shapes)

    def prepare(self, f: RowOp, operands: Sequence[Tensor], compiled: bool) -> Callable[[], Sequence[Tensor]]:
        """What is timed, without arguments.

        Args:
            f: The op.
            operands: As ``draw`` returned them.
            compiled: Whether ``torch.compile`` takes the whole operation.

        Returns:
            A function that computes the results.
        """
        if compiled:
            function = torch.compile(self.transform(f), fullgraph=True, dynamic=False)
            return lambda: function(*operands)
        if self.recorded is not None:
            return self.recorded(f, *operands)
        function = self.transform(f)
        return lambda: function(*operands)


def operations(tangent_counts: Sequence[int] = (1, 4, 16)) -> dict[str, Operation]:
    """All operations, the most important first.

    Args:
        tangent_counts: The K for which there is an operation with K tangents.

    Returns:
        Operations by name.
    """
    listed = [
        # Reads x, w; writes y.
        Operation("forward", ("x", "w"), _forward, (0,), 2, 1, needs_forward_mode=False),
        # Reads x, ẋ, w; writes y, ẏ.
        Operation("jvp", ("x", "w", "x_dot"), _jvp, (0, 0), 4, 1),
        # Reads x, ȳ, w; writes x̄, w̄.
        Operation("vjp", ("x", "w", "y_bar"), _vjp, (0, None), 3, 2, _record_vjp, needs_forward_mode=False),
        # Reads x, ȳ, w; writes x̄.
        Operation("vjp dx", ("x", "w", "y_bar"), _vjp_dx, (0,), 3, 1, _record_vjp_dx, needs_forward_mode=False),
        # Reads x, ẋ, w and the cotangents of y and ẏ; writes those of x, w and ẋ.
        Operation("vjp of jvp", _SECOND, _vjp_of_jvp, (0, None, 0), 6, 2, _record_vjp_of_jvp),
        # Reads x, ẋ, ȳ, w; writes y, ẏ, x̄, x̄˙. As a composition it is at least two kernels, which read x, ẋ and w
        # twice between them: an eager contender can reach 7/9 of the copy at best.
        Operation("jvp of vjp", ("x", "w", "x_dot", "y_bar"), _jvp_of_vjp, (0, 0, 0, 0), 7, 1),
        # Reads x, w and K ẋ; writes y once and K ẏ.
        *(
            Operation(f"jvp K={k}", ("x", "w", "x_dots"), _jvps, (0, 1), 2 + 2 * k, 1, tangents=k)
            for k in tangent_counts
        ),
    ]
    return {operation.name: operation for operation in listed}


_SECOND = ("x", "w", "x_dot", "y_bar", "y_dot_bar")


def _forward(f: RowOp) -> TensorFunction:
    return lambda x, w: (f(x, w),)


def _jvp(f: RowOp) -> TensorFunction:
    return lambda x, w, x_dot: jvp(lambda x: f(x, w), (x,), (x_dot,))


def _jvps(f: RowOp) -> TensorFunction:
    """K tangents at one primal; y has no axis of K, for it is the same for all."""

    def push(x: Tensor, w: Tensor, x_dots: Tensor) -> tuple[Tensor, ...]:
        one = lambda x_dot: jvp(lambda x: f(x, w), (x,), (x_dot,))  # noqa: E731
        return vmap(one, out_dims=(None, 0))(x_dots)  # pyright: ignore[reportArgumentType]

    return push


def _vjp(f: RowOp) -> TensorFunction:
    return lambda x, w, y_bar: vjp(f, x, w)[1](y_bar)


def _vjp_dx(f: RowOp) -> TensorFunction:
    return lambda x, w, y_bar: vjp(lambda x: f(x, w), x)[1](y_bar)


def _vjp_of_jvp(f: RowOp) -> TensorFunction:
    """What a loss on value and tangent needs: the cotangents of x, w and ẋ."""

    def pull(x: Tensor, w: Tensor, x_dot: Tensor, y_bar: Tensor, y_dot_bar: Tensor) -> tuple[Tensor, ...]:
        return vjp(_jvp(f), x, w, x_dot)[1]((y_bar, y_dot_bar))

    return pull


def _jvp_of_vjp(f: RowOp) -> TensorFunction:
    """A Hessian-vector product without its loss: value and gradient, and how both move along ẋ."""

    def push(x: Tensor, w: Tensor, x_dot: Tensor, y_bar: Tensor) -> tuple[Tensor, ...]:
        def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
            y, pull = vjp(lambda x: f(x, w), x)
            return y, pull(y_bar)[0]

        (y, x_bar), (y_dot, x_bar_dot) = jvp(value_and_gradient, (x,), (x_dot,))
        return y, y_dot, x_bar, x_bar_dot

    return push


def _leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.detach().requires_grad_() for t in tensors)


def _record_vjp(f: RowOp, x: Tensor, w: Tensor, y_bar: Tensor) -> Callable[[], Sequence[Tensor]]:
    leaves = _leaves(x, w)
    y = f(*leaves)
    return lambda: torch.autograd.grad(y, leaves, y_bar, retain_graph=True)


def _record_vjp_dx(f: RowOp, x: Tensor, w: Tensor, y_bar: Tensor) -> Callable[[], Sequence[Tensor]]:
    (leaf,) = _leaves(x)
    y = f(leaf, w)
    return lambda: torch.autograd.grad(y, leaf, y_bar, retain_graph=True)


def _record_vjp_of_jvp(
    f: RowOp, x: Tensor, w: Tensor, x_dot: Tensor, y_bar: Tensor, y_dot_bar: Tensor
) -> Callable[[], Sequence[Tensor]]:
    leaves = _leaves(x, w, x_dot)
    duals = _jvp(f)(*leaves)
    return lambda: torch.autograd.grad(duals, leaves, (y_bar, y_dot_bar), retain_graph=True)
