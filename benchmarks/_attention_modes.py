"""What attention is timed in: value, derivatives of first and second order, and the products that each must make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
Thunk = Callable[[], Sequence[Tensor]]
Three = tuple[Tensor, Tensor, Tensor]

# PyTorch annotates their results as a union, of which has_aux decides.
jvp: Any = torch.func.jvp
vjp: Any = torch.func.vjp


class Point(NamedTuple):
    """Where attention is differentiated and along what.

    Attributes:
        primals: q, k, v, each (B, H, N, d).
        tangents: Theirs.
        directions: K tangents of each, (K, B, H, N, d).
        o_bar: The cotangent of o.
        o_dot_bar: That of ȯ.
    """

    primals: Three
    tangents: Three
    directions: Three
    o_bar: Tensor
    o_dot_bar: Tensor

    @staticmethod
    def draw(shape: Sequence[int], dtype: torch.dtype, device: torch.device, tangents: int) -> "Point":
        """Normally distributed tensors."""  # noqa: DOC201
        generator = torch.Generator(device).manual_seed(0)

        def normal(*lead: int) -> Tensor:
            return torch.randn(*lead, *shape, generator=generator, dtype=torch.float32, device=device).to(dtype)

        three = lambda *lead: (normal(*lead), normal(*lead), normal(*lead))  # noqa: E731
        return Point(three(), three(), three(tangents), normal(), normal())

    def of(self, change: Callable[[Tensor], Tensor]) -> "Point":
        """The same with every tensor changed, such as to another dtype."""  # noqa: DOC201

        def three(group: Three) -> Three:
            q, k, v = group
            return change(q), change(k), change(v)

        directions = three(self.directions)
        return Point(three(self.primals), three(self.tangents), directions, change(self.o_bar), change(self.o_dot_bar))


@dataclass(frozen=True)
class Mode:
    """A derivative of attention.

    Attributes:
        name: How tables call it.
        prepare: From an attention, a point and a compiler (the identity for eager code) to what is timed.
        products: Of the size of attention, 2·B·H·N²·d flop each, that cannot be saved.
        by_row: Of each result, whether its rows are those of queries; the others are of keys and sum over queries.
        matrices: Of queries by keys that MATH holds at once, about.
    """

    name: str
    prepare: Callable[[Attention, Point, Compiler], Thunk]
    products: int
    by_row: tuple[bool, ...]
    matrices: int


def _forward(f: Attention, at: Point, compiler: Compiler) -> Thunk:
    g = compiler(f)

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return (g(*at.primals),)

    return run


def _jvp(f: Attention, at: Point, compiler: Compiler) -> Thunk:
    g = compiler(_pushing(f))

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return g(at.primals, at.tangents)

    return run


def _jvps(f: Attention, at: Point, compiler: Compiler) -> Thunk:
    """K tangents of one primal."""

    def push(primals: Three, directions: Three) -> Sequence[Tensor]:
        one = lambda *dots: jvp(f, primals, dots)  # noqa: E731
        return torch.vmap(one, out_dims=(None, 0))(*directions)  # pyright: ignore[reportArgumentType]

    g = compiler(push)

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return g(at.primals, at.directions)

    return run


def _backward(f: Attention, at: Point, compiler: Compiler) -> Thunk:
    """The pullback alone, of a value that was computed before."""
    inputs = _leaves(at.primals)
    o = compiler(f)(*inputs)
    return lambda: torch.autograd.grad(o, inputs, at.o_bar, retain_graph=True)


def _backward_of_jvp(f: Attention, at: Point, compiler: Compiler) -> Thunk:
    """The pullback alone of value and tangent, to q, k, v and their tangents: what a loss of both needs."""
    inputs, dots = _leaves(at.primals), _leaves(at.tangents)
    outputs = compiler(_pushing(f))(inputs, dots)
    bars = (at.o_bar, at.o_dot_bar)
    return lambda: torch.autograd.grad(outputs, (*inputs, *dots), bars, retain_graph=True)


def _jvp_of_vjp(f: Attention, at: Point, compiler: Compiler) -> Thunk:
    """Gradients and how they move along the tangents: a Hessian-vector product, with the forward that it needs."""

    def push(primals: Three, tangents: Three, o_bar: Tensor) -> Sequence[Tensor]:
        gradients, moved = jvp(lambda *xs: vjp(f, *xs)[1](o_bar), primals, tangents)
        return (*gradients, *moved)

    g = compiler(push)

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return g(at.primals, at.tangents, at.o_bar)

    return run


def _pushing(f: Attention) -> Callable[..., Sequence[Tensor]]:
    return lambda primals, tangents: jvp(f, primals, tangents)


def _leaves(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(t.detach().requires_grad_() for t in tensors)


TANGENTS = 4
FORWARD, JVP, JVPS, VJP, VJP_OF_JVP, JVP_OF_VJP = (
    *("forward", "jvp", f"jvp K={TANGENTS}", "vjp", "vjp of jvp", "jvp of vjp"),
)
_QKV = (True, False, False)

MODES = {
    mode.name: mode
    for mode in (
        Mode(FORWARD, _forward, 2, (True,), 4),  # q kᵀ, P v
        Mode(JVP, _jvp, 6, (True, True), 10),  # q kᵀ; q̇ kᵀ, q k̇ᵀ; P v; Ṗ v, P v̇
        Mode(JVPS, _jvps, 2 + 4 * TANGENTS, (True, True), 4 + 8 * TANGENTS),
        Mode(VJP, _backward, 5, _QKV, 8),  # q kᵀ, ō vᵀ; dS k, dSᵀ q, Pᵀ ō
        Mode(VJP_OF_JVP, _backward_of_jvp, 15, _QKV * 2, 30),
        Mode(JVP_OF_VJP, _jvp_of_vjp, 6 + 15, _QKV * 2, 30),  # the JVP, and the pullback with its tangent
    )
}
