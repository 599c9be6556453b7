"""The Triton kernel of the gated linear units at every point of their towers: one launch each."""

from typing import Any

from torch import Tensor

from ...registration import DifferentiableOp
from .._arithmetic import total
from .._devices import triton_devices
from .._groups import Grouped, group, sum_to
from .._shapes import broadcast
from ..pointwise.rules import values_of
from ..pointwise.table import Pointwise
from .halves import Halves, Pair

_DEVICES = triton_devices()


def register_kernels(op: DifferentiableOp, function: Pointwise, halves: Halves) -> None:
    """Register the kernel at the points of an op's tower, where Triton can run.

    Args:
        op: The op.
        function: What is applied to the gate.
        halves: The form of the arguments.
    """
    if not _DEVICES:
        return
    count = len(halves.names)
    options = op.signature.inputs_type._fields[count:]

    def product(inputs: Any, tangents: Pair = (None, None), a: Any = None, b: Any = None, **wants: Any) -> Any:
        """The launcher on what a rule receives: the way to shape results, and the results."""
        from ...triton_kernels.gated import gated_product

        named = function.kernel(*values_of(inputs, options))[0]
        grouped = _grouped([*halves.pair(inputs), *tangents, a, b])
        return grouped, gated_product(named, *grouped.rows, packed=halves.packed, **wants)

    def shaped(grouped: Grouped, pair: Pair, packed: Tensor | None, values: Any, suffix: str = "") -> tuple[Any, ...]:
        """A pair of results as cotangents of the arguments."""
        if halves.packed is None:
            likes = halves.pair(values, suffix)
            return tuple(
                None if t is None or like is None else grouped.row_result(t, like)
                for t, like in zip(pair, likes, strict=True)
            )
        like = getattr(values, f"x{suffix}")
        return (None if packed is None or like is None else _packed_result(grouped, packed, like),)

    def pull(inputs: Any, y_bar: Tensor, needs: tuple[bool, ...]) -> tuple[Any, ...]:
        grouped, found = product(inputs, a=y_bar, wants_first=halves.needs(needs))
        return shaped(grouped, found.first, found.packed_first, inputs)

    @op.kernel(*_DEVICES)
    def primal(*args: Any) -> Tensor:
        """One launch: y."""
        grouped, found = product(op.signature.inputs_type(*args), wants_y=True)
        return grouped.row_result(found.y)

    @op.jvp.kernel(*_DEVICES)
    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
        """One launch: y once, and ẏ for every tangent."""
        pair = halves.pair(tangents)
        some = any(t is not None for t in pair)
        grouped, found = product(primals, pair, wants_y=True, wants_y_dot=some)
        y = grouped.shared_result(found.y, broadcast(*(t.shape for t in halves.pair(primals))))
        return y, grouped.row_result(found.y_dot) if some else None

    @op.vjp.kernel(*_DEVICES)
    def vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Any, ...]:
        """One launch: ḡ and ū."""
        return pull(inputs, cotangents.y, needs)

    @op.jvp.vjp.kernel(*_DEVICES)
    def jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Any, ...]:
        """One launch for the cotangents of primals and tangents."""
        a, b = cotangents.y_dot, cotangents.y
        if a is None:
            return *pull(inputs, b, needs[:count]), *(None for _ in halves.names)
        # A cotangent of y is shared by all tangents and counts once; a cotangent of ẏ counts for each.
        together = b is None or b.shape == a.shape
        dots = halves.pair(inputs, "_dot")
        grouped, found = product(
            inputs,
            dots,
            a,
            b if together else None,
            wants_first=tuple(n and t is not None for n, t in zip(halves.needs(needs[count:]), dots, strict=True)),
            wants_second=halves.needs(needs[:count]),
        )
        second = shaped(grouped, found.second, found.packed_second, inputs)
        if b is not None and not together:
            second = tuple(total(s, t) for s, t in zip(second, pull(inputs, b, needs[:count]), strict=True))
        return *second, *shaped(grouped, found.first, found.packed_first, inputs, "_dot")

    @op.vjp.jvp.kernel(*_DEVICES)
    def vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """One launch for Jᵀȳ and its tangent."""
        needs = halves.needs(tuple(primals.needs))
        grouped, found = product(
            primals, halves.pair(tangents), primals.y_bar, tangents.y_bar, wants_first=needs, wants_second=needs
        )
        first = shaped(grouped, found.first, found.packed_first, primals)
        return first, shaped(grouped, found.second, found.packed_second, primals)

    @op.vjp.vjp.kernel(*_DEVICES)
    def vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Any, ...]:
        """One launch for the cotangents of ȳ, gate and up."""
        grouped, found = product(
            inputs,
            halves.pair(cotangents, "_bar"),
            inputs.y_bar,
            wants_y_dot=needs[0],
            wants_second=halves.needs(needs[1:]),
        )
        first = None if found.y_dot is None else grouped.row_result(found.y_dot, inputs.y_bar)
        return first, *shaped(grouped, found.second, found.packed_second, inputs)


def _grouped(operands: list[Tensor | None]) -> Grouped:
    """(K, M, N) with N the last axis where all operands have it, so that rows may lie apart; else all in one row."""
    present = [t for t in operands if t is not None]
    if all(t.dim() and t.shape[-1] == present[0].shape[-1] for t in present):
        return group(operands, [], 1)
    grouped = group(operands, [], 0)
    return grouped._replace(rows=[None if t is None else t.transpose(1, 2) for t in grouped.rows])


def _packed_result(grouped: Grouped, packed: Tensor, like: Tensor) -> Tensor:
    """A launcher's (K, M, 2N) as the packed tensor it is the cotangent of."""
    full = packed.reshape((*grouped.group_shape, *grouped.row_shape, packed.shape[-1]))
    return sum_to(full, like.shape)
