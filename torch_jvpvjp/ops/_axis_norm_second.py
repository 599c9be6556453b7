"""The second order of l2_norm and pixel_norm: what its three points share, and the formula.

With J v = s (v − c β_v y), β_v = ⟨y, v⟩, the derivative of J a in the direction t is symmetric in a and t:

    S(a, t) = −c s² (β_t a + β_a t + (⟨a, t⟩ − 3 c β_a β_t) y)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ._arithmetic import cotangents_like, total, wide

Three = tuple[Tensor | None, Tensor | None, Tensor | None]
# (inputs, t, a, b, wants) -> J a, J b + S(a, t) and J t, not yet summed over what was broadcast
Engine = Callable[[Any, Tensor | None, Tensor | None, Tensor | None, tuple[bool, bool, bool]], Three]


class Points(NamedTuple):
    """The points of the second order, made of one function for all of them."""

    engine: Engine

    def jvp_vjp(self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over forward: ẋ gets J a, x gets J b + S(a, ẋ), a and b being the cotangents of ẏ and y."""
        a, b = cotangents.y_dot, cotangents.y
        # A cotangent of y is shared by all tangents and counts once; one of ẏ counts for each.
        together = a is None or b is None or a.shape == b.shape
        wants = (needs[1] and a is not None, needs[0], False)
        first, second, _ = self.engine(inputs, inputs.x_dot, a, b if together else None, wants)
        apart = None
        if needs[0] and not together:
            apart = cotangents_like((self.engine(inputs, None, None, b, (False, True, False))[1],), (inputs.x,))[0]
        x_bar, x_dot_bar = cotangents_like((second, first), (inputs.x, inputs.x_dot))
        return total(x_bar, apart), x_dot_bar

    def vjp_jvp(self, primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Forward over reverse: x̄ = J ȳ, and its tangent J ȳ′ + S(ȳ, ẋ)."""
        first, second, _ = self.engine(primals, tangents.x, primals.y_bar, tangents.y_bar, (True, True, False))
        return cotangents_like((first,), (primals.x,)), cotangents_like((second,), (primals.x,))

    def vjp_vjp(self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over reverse: with u the cotangent of x̄, ȳ gets J u and x gets S(ȳ, u)."""
        (u,), a = cotangents, inputs.y_bar
        _, second, pushed = self.engine(inputs, u, a, None, (False, needs[1], needs[0]))
        return cotangents_like((pushed, second), (a, inputs.x))


def formula_of(scale: Callable[[Tensor, float, bool], tuple[Tensor, Any]]) -> Engine:
    """The formula in plain PyTorch, to be differentiated further.

    Args:
        scale: s and c of x.

    Returns:
        A function for `Points`.
    """

    def formula(
        inputs: Any, t: Tensor | None, a: Tensor | None, b: Tensor | None, wants: tuple[bool, bool, bool]
    ) -> Three:
        x = wide(inputs.x, inputs.x)
        t, a, b = (wide(v, inputs.x) for v in (t, a, b))
        s, c = scale(x, inputs.eps, inputs.floored)
        y = s * x

        def along(v: Tensor) -> Tensor:
            return (y * v).sum(-2, keepdim=True)

        def apply(v: Tensor | None) -> Tensor | None:
            return None if v is None else s * (v - c * along(v) * y)

        second = apply(b) if wants[1] else None
        if wants[1] and a is not None and t is not None:
            of_a, of_t = along(a), along(t)
            both = (a * t).sum(-2, keepdim=True) - 3 * c * of_a * of_t
            second = total(second, -c * s * s * (of_t * a + of_a * t + both * y))
        return apply(a) if wants[0] else None, second, apply(t) if wants[2] else None

    return formula
