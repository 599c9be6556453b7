"""The table of local derivatives: which Jacobian an ATen op has, in closed form and with its structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reals import real_numbers
from ..structure import Structure, Values


class Meta(NamedTuple):
    """What is known of a tensor before any run."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def numel(self) -> int:
        """The number of real numbers that it holds: two for each complex entry."""
        return real_numbers(self.shape, self.dtype)


@dataclass(frozen=True)
class Operand:
    """The place of a tensor among the arguments of a call: the tensor operands are counted as they come."""

    position: int


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an ATen op, with sizes in the place of tensors.

    Attributes:
        target: The op.
        args: Its positional arguments, an `Operand` in the place of each tensor.
        kwargs: Its keyword arguments, likewise.
        operands: What is known of each tensor operand, in order.
        output: What is known of the result that is differentiated.
        active: The operands that the Jacobian is taken with respect to.
        output_index: The place of that result among the results of the op; 0 for an op of one result.
        known: The values of operands that are whole numbers and the same in every call, by position.
    """

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operands: tuple[Meta, ...]
    output: Meta
    active: tuple[int, ...]
    output_index: int = 0
    known: Mapping[int, Tensor] = field(default_factory=dict)


Carry = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]
"""From the tensor operands of a call, all its outputs, and vectors (c, n) behind one axis to J times each, (c, m)."""


class Final(NamedTuple):
    """The push and the pull of a `Through` whose results are not differentiated."""

    push: Carry
    pull: Carry


class Through(NamedTuple):
    """How vectors are carried through a Jacobian in fewer operations than a product with its entries takes.

    `push` takes tangents (c, n) to (c, m), `pull` cotangents (c, m) to (c, n); `fma` is what either costs for one
    vector. Both are as `Local.values` is. `final` does the same by an op of PyTorch's own that computes all of it at
    once; what it returns is not differentiated, and nothing is batched.
    """

    fma: int
    push: Carry
    pull: Carry
    final: Final | None = None


class Local(NamedTuple):
    """The Jacobian of the output of a call in one operand, both flattened row by row.

    `values` computes the stored entries from the tensor operands and all the outputs of the call; it holds no state,
    runs plain differentiable PyTorch ops, and works under autograd and `torch.func.vmap`. `fma` is what that costs.
    A dense block goes `through` it without those entries where that is given.
    """

    structure: Structure
    fma: int
    values: Callable[[Sequence[Tensor], Sequence[Tensor]], Values]
    through: Through | None = None


LocalRule = Callable[[Call], Mapping[int, Local] | None]

LOCAL_RULES: dict[torch._ops.OpOverload, LocalRule] = {}


COMPLEX_RULES: dict[torch._ops.OpOverload, LocalRule] = {}
"""The same where the result or an operand is complex, in the real numbers that it holds; see `reals`."""


_EVERY_OUTPUT: set[torch._ops.OpOverload] = set()


def complex_rule(*targets: torch._ops.OpOverload, every_output: bool = False) -> Callable[[LocalRule], LocalRule]:
    """Return a decorator as `local_rule` is, for calls in which complex values are differentiated."""
    return local_rule(*targets, every_output=every_output, table=COMPLEX_RULES)


def local_rule(
    *targets: torch._ops.OpOverload,
    every_output: bool = False,
    table: dict[torch._ops.OpOverload, LocalRule] = LOCAL_RULES,
) -> Callable[[LocalRule], LocalRule]:
    """Return a decorator that makes a rule the local derivative of some ops.

    A rule takes a `Call` and returns a `Local` for each of its active operands; None, or a mapping that leaves an
    active operand out, says that there is no closed form for these arguments, and the op is differentiated by JVP and
    VJP.

    Args:
        *targets: The ops.
        every_output: The rule looks at `Call.output_index`; without it, only the first result has a closed form.
        table: Where the rule goes.

    Returns:
        The decorator, which returns the rule unchanged.
    """

    def register(rule: LocalRule) -> LocalRule:
        for target in targets:
            table[target] = rule
            if every_output:
                _EVERY_OUTPUT.add(target)
        return rule

    return register


def local_derivatives(call: Call) -> Mapping[int, Local]:
    """Return what is known in closed form of the Jacobians of a call: a `Local` for each operand that has one."""
    metas = [call.output, *(call.operands[position] for position in call.active)]
    rule = (COMPLEX_RULES if any(meta.dtype.is_complex for meta in metas) else LOCAL_RULES).get(call.target)
    if (
        rule is None
        or (call.output_index and call.target not in _EVERY_OUTPUT)
        or any(not meta.numel for meta in metas)
    ):
        return {}
    found = rule(call) or {}
    return {position: local for position, local in found.items() if position in call.active}
