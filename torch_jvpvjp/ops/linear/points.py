"""Every point of a linear layer's tower, written once over two ways to compute what is pointwise.

With z = x Wᵀ + b, ż = ẋ Wᵀ + x Ẇᵀ + ḃ, y = f(z), cotangents a of ẏ and b of y, and α = f′(z) a,
β = f′(z) b + f″(z) ż a:

    ẋ gets α W,  Ẇ αᵀ x,  ḃ Σ α;        x gets β W + α Ẇ,  W βᵀ x + αᵀ ẋ,  b Σ β.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arithmetic import cotangents_like, total
from .activations import IDENTITY
from .maps import Slopes, Terms, project, project_tangents, pull_input, pull_weight


class Points(NamedTuple):
    """The rules of the tower.

    Attributes:
        slopes: Computes what is pointwise.
        reads_z: Whether the z that the primal kept is read; a formula computes it again.
        whole: Brings an operand without memory of its own along batch axes to one without those axes.
    """

    slopes: Callable[..., Slopes]
    reads_z: bool
    whole: Callable[[Any], Any] = lambda t: t

    def primal(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
        """y = f(x Wᵀ + b), and z."""
        z = project(x, weight, bias)
        if activation == IDENTITY:
            return z, x.new_empty(0)
        return self.slopes(activation, z, wants_y=True).y, z

    def jvp(self, primals: Any, tangents: Any) -> tuple[Any, Any]:
        """y = f(z),  ẏ = f′(z) ż."""
        check_tangents(primals, tangents)
        at, dots = terms_of(primals), Terms(*tangents)
        z, z_dot = project(*at), project_tangents(at, dots)
        if primals.activation == IDENTITY:
            y, moved, kept = z, z_dot, z.new_empty(0)
        else:
            y, moved, *_ = self.slopes(primals.activation, z, z_dot, wants_y=True, wants_moved=True)
            kept = z
        return (y, kept), None if moved is None else moved.expand(torch.broadcast_shapes(moved.shape, y.shape))

    def vjp(
        self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...], residuals: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor | None, ...]:
        """With α = f′(z) ȳ:  x̄ = α W,  W̄ = αᵀ x,  b̄ = Σ α."""
        at, activation = terms_of(inputs), inputs.activation
        alpha = cotangents.y
        if activation != IDENTITY:
            z = self._preactivation(at, residuals[0] if residuals else None)
            alpha = self.slopes(activation, z, None, alpha, wants_first=True).first
        return self._first(at, alpha, at, needs)

    def jvp_vjp(
        self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...], residuals: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor | None, ...]:
        """Reverse over forward, as at the top of the file. A cotangent of y may lack batch axes that one of ẏ has."""
        at, dots = terms_of(inputs), Terms(inputs.x_dot, inputs.weight_dot, inputs.bias_dot)
        a, b, kept = cotangents.y_dot, cotangents.y, residuals[0] if residuals else None
        together = a is None or b is None or a.shape == b.shape
        first, second = self._both(
            inputs.activation, at, dots, a, b if together else None, kept, at, needs[3:], needs[:3]
        )
        if not together:
            apart = self._both(inputs.activation, at, dots, None, b, kept, at, (False,) * 3, needs[:3])[1]
            second = tuple(total(one, other) for one, other in zip(second, apart, strict=True))
        return (*second, *cotangents_like(first, dots))

    def vjp_jvp(self, primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Forward over reverse: the pullback of ȳ, and its tangent, which is what reverse over forward gives."""
        at, needs = terms_of(primals), tuple(primals.needs)
        dots = Terms(tangents.x, tangents.weight, tangents.bias)
        first, second = self._both(
            primals.activation, at, dots, primals.y_bar, tangents.y_bar, primals.z, at, needs, needs
        )
        return cotangents_like(first, at), second

    def vjp_vjp(self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over reverse: with u, v, w the cotangents of x̄, W̄, b̄ in the place of ẋ, Ẇ, ḃ,  ȳ̄ = f′(z) ż."""
        at, dots = terms_of(inputs), Terms(cotangents.x_bar, cotangents.weight_bar, cotangents.bias_bar)
        moved = None
        if needs[0]:
            z_dot = self._tangents(at, dots)
            moved = z_dot
            if inputs.activation != IDENTITY and z_dot is not None:
                z = self._preactivation(at, inputs.z)
                moved = self.slopes(inputs.activation, z, z_dot, wants_moved=True).moved
        moved = None if moved is None else moved.expand(inputs.y_bar.shape)
        _, second = self._both(inputs.activation, at, dots, inputs.y_bar, None, inputs.z, at, (False,) * 3, needs[1:])
        return moved, *second

    def _preactivation(self, at: Terms, kept: Tensor | None) -> Tensor:
        return kept if self.reads_z and kept is not None else project(*at)

    def _tangents(self, at: Terms, dots: Terms) -> Tensor | None:
        return project_tangents(Terms(*map(self.whole, at)), Terms(*map(self.whole, dots)))

    def _first(self, at: Terms, alpha: Tensor | None, likes: Terms, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """α W, αᵀ x and Σ α, in the shapes of likes."""
        if alpha is None:
            return None, None, None
        return cotangents_like(
            (
                pull_input(alpha, self.whole(at.weight), likes.x) if needs[0] else None,
                pull_weight(alpha, at.x, likes.weight) if needs[1] else None,
                alpha.sum(-2, keepdim=True) if needs[2] and likes.bias is not None else None,
            ),
            likes,
        )

    def _both(
        self,
        activation: str,
        at: Terms,
        dots: Terms,
        a: Tensor | None,
        b: Tensor | None,
        kept: Tensor | None,
        likes: Terms,
        first_needs: Sequence[bool],
        second_needs: Sequence[bool],
    ) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """The cotangents at the top of the file: those of tangents, and those of primals in the shapes of likes."""
        alpha, beta = a, b
        if activation != IDENTITY:
            bends = a is not None and any(second_needs)
            z_dot = self._tangents(at, dots) if bends else None
            _, _, alpha, beta = self.slopes(
                activation,
                self._preactivation(at, kept),
                z_dot,
                a,
                b,
                wants_first=a is not None,
                wants_second=any(second_needs) and (b is not None or z_dot is not None),
            )
        wanted = Terms(*(like if dot is None else dot for like, dot in zip(likes, dots, strict=True)))
        first = self._first(at, alpha, wanted, first_needs)
        second = list(self._first(at, beta, likes, second_needs))
        if alpha is not None and second_needs[0] and dots.weight is not None:
            second[0] = total(second[0], pull_input(alpha, self.whole(dots.weight), likes.x))
        if alpha is not None and second_needs[1] and dots.x is not None:
            second[1] = total(second[1], pull_weight(alpha, dots.x, likes.weight))
        return first, tuple(second)


def terms_of(inputs: Any) -> Terms:
    """x, W and b among the arguments of a point."""
    return Terms(inputs.x, inputs.weight, inputs.bias)


def check_tangents(primals: Any, tangents: Any) -> None:
    """Refuse a tangent that does not lie at its primal."""
    for name in ("x", "weight", "bias"):
        primal, tangent = getattr(primals, name), getattr(tangents, name)
        if tangent is None or (primal is not None and tangent.shape == primal.shape):
            continue
        shown = "input" if name == "x" else name
        if primal is None:
            raise ValueError(f"linear: the tangent of {shown} must be absent, as {shown} is, got a tensor; pass None.")
        try:
            torch.broadcast_shapes(primal.shape[:-2], tangent.shape[:-2])
            fits = primal.shape[-2:] == tangent.shape[-2:]
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"linear: the tangent of {shown} must have shape {tuple(primal.shape)}, as {shown} has, got "
                f"{tuple(tangent.shape)}."
            )
