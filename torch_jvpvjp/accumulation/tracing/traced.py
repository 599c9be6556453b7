"""A function as a chain of regions, with what the planner must know of each."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..factor import Factor
from ..measure import Point, Profile, profile_of
from ..problem import is_shared_weight
from ..rules.registry import Meta
from ..stages import ByAutograd, ByRows, label_of
from ..structure import Dense, Structure, Zero
from .checks import checks_of, inspected
from .cuts import regions
from .known import known_numbers
from .parts import Arc, Part
from .record import NotRecordable, record
from .region import REGULAR, Region
from .simplify import simplified
from .tape import Ref, Tape, TapeOp

Function = Callable[[Tensor], Any]


@dataclass(eq=False)
class Traced:
    """A function of one tensor, taken apart.

    Attributes:
        tape: What it does.
        regions: Its stages; none if the result does not depend on x.
        factors: What the planner sees of them.
        refusals: Why a function could not be recorded, by its name; it is then one stage, called as it stands.
        numbers: The tensors from outside whose whole numbers structures were made of.
    """

    tape: Tape
    regions: list[Region]
    factors: tuple[Factor, ...]
    refusals: dict[str, str]
    numbers: Sequence[Tensor] = ()

    @property
    def opaque(self) -> bool:
        """Whether a part of it is called as it stands, and so may do something else at another point."""
        return bool(self.refusals)

    @property
    def looks(self) -> bool:
        """Whether it is a recording for those points alone at which the function goes the same way."""
        return bool(self.tape.conditions)

    @property
    def by_autograd(self) -> bool:
        """Whether a part of it is differentiated by autograd, which `vmap` does not go around."""
        return any(isinstance(op.target, ByAutograd) for op in self.tape.ops)

    @property
    def output(self) -> Meta:
        """Shape, dtype and device of y."""
        return self.tape.metas[self.tape.result]


def trace(
    functions: Sequence[Function],
    x: Tensor,
    *,
    keep_patterns: bool = False,
    as_it_stands: str | None = None,
    settle: Callable[[], object] | None = None,
    varying: Sequence[Tensor] = (),
    only_recorded: bool = False,
    seen: bool = False,
) -> Traced:
    """Take the composition of some functions apart.

    All are recorded at once; if that fails, one by one, and one that cannot be recorded is a stage of its own.

    Args:
        functions: The functions, applied in this order.
        x: The point; its values are read only where a function cannot be recorded.
        keep_patterns: Whether irregular patterns are kept even where they are large, so that the result is sparse.
        as_it_stands: Why no function is to be recorded; None if they are.
        settle: What is called before a function that was not recorded is run in another way.
        varying: Tensors from outside that are others in each call.
        only_recorded: Whether one function that cannot be recorded is refused, and not looked at any further.
        seen: Whether a recording may look at the values of x, where a function does.

    Returns:
        What was found.

    Raises:
        NotRecordable: If that is so.
        ValueError: If a function cannot take what the one before it returns.
        NotImplementedError: If one of them can be differentiated neither by torch.func nor by autograd.
    """  # noqa: DOC502 (raised by profile_of)
    meta = Meta(x.shape, x.dtype, x.device)
    profiles: dict[int, Profile] = {}
    refusals: dict[str, str] = {}
    try:
        if as_it_stands is not None:
            raise NotRecordable(as_it_stands)
        tape = record(_composed(functions), meta, varying, (lambda: x) if seen else None)
    except NotRecordable as whole:
        if only_recorded and len(functions) == 1:
            raise
        tape = Tape()
        tape.source = tape.result = tape.new_value(meta)
        for place, function in enumerate(functions):
            at, reason = tape.metas[tape.result], str(whole)
            if len(functions) > 1 and as_it_stands is None:
                try:
                    _append(tape, record(function, at, varying, _point(functions[:place], x, seen and not refusals)))
                    continue
                except NotRecordable as alone:
                    reason = str(alone)
            if settle is not None and not refusals:
                settle()
            refusals[label_of(function)] = reason
            profile = profile_of(functions, place, Point(*at), x)
            output = tape.new_value(Meta(*profile.output))
            profiles[output] = profile
            called = ByAutograd(function) if profile.by_autograd else ByRows(function) if profile.by_rows else function
            tape.ops.append(TapeOp(called, (Ref(tape.result),), {}, (output,), (tape.result,)))
            tape.result = output
        _mark(tape)
    tape = simplified(tape)
    tape.known, numbers = known_numbers(tape, varying)
    numbers = list({id(tensor): tensor for tensor in (*numbers, *tape.looked_at)}.values())
    most = _MOST_IN_PATTERNS if keep_patterns else _MOST_IRREGULAR
    limits = {"most_pairs": most, "least": 0} if keep_patterns else {"most_pairs": 10 * most}
    found = regions(tape, lambda tape, op, outputs: Part(tape, op, outputs, profiles.get(outputs[0])), limits)
    fixed = _fixed_values(tape)
    factors = tuple(factor_of(region, most, fixed) for region in found) or (_constant(tape),)
    return Traced(tape, found, factors, refusals, numbers)


def _constant(tape: Tape) -> Factor:
    """Return the one factor of a function whose result does not depend on x."""
    n, m = tape.metas[tape.source].numel, tape.metas[tape.result].numel
    return Factor(n, m, 0, 0, 0, Zero(m, n), "constant")


def factor_of(region: Region, most: int, constants: Container[int]) -> Factor:
    """Return what the planner must know of a region."""
    first, last = region.parts[0], region.parts[-1]
    n, m = first.meta(region.source).numel, last.meta(region.target).numel
    closed = region.closed
    structure = None if closed is None else _planned(closed.structure, most)
    given = closed is not None and closed.fma == 0 and structure is not None
    return Factor(
        n,
        m,
        region.column_cost(forwards=True),
        region.column_cost(forwards=False),
        region.tape_entries,
        structure,
        region.name,
        given=given,
        forming_cost=closed.fma if closed is not None and not given else None,
        shared=_is_shared(region, constants),
        launches=region.launches(forwards=True),
        pull_launches=None if all(part.arcs is not None for part in region.parts) else region.launches(forwards=False),
    )


def _is_shared(region: Region, fixed: Container[int]) -> bool:
    """Return whether the Jacobian of a region is the same at every x, as no local Jacobian reads what depends on x."""
    arcs = [arc for part in region.parts for arc in part.arcs or ()]
    return all(part.arcs is not None for part in region.parts) and all(
        arc.local.structure.constant
        or (arc.local.fma == 0 and all(i in fixed or i == arc.operand for i in arc.op.operands) and _linear(arc))
        for arc in arcs
    )


def _linear(arc: Arc) -> bool:
    """Return whether an op is linear in the operand, so that its Jacobian does not read it."""
    return arc.op.target in _LINEAR and arc.op.operands.count(arc.operand) == 1


_aten = torch.ops.aten
_LINEAR = frozenset({
    _aten.linear.default,
    _aten.mm.default,
    _aten.addmm.default,
    _aten.mv.default,
    _aten.addmv.default,
})


def _fixed_values(tape: Tape) -> set[int]:
    """Return the values that do not depend on x at all."""
    fixed = set(tape.constants)
    for op in tape.ops:
        if all(index in fixed for index in op.operands) and not op.draws:
            fixed.update(index for index in op.outputs if index is not None)
    return fixed


def _planned(structure: Structure, most: int) -> Structure | None:
    """Return the structure that the planner is shown: dense for one that has hardly a zero, None for a costly one."""
    if (structure.listed or structure.constant) and _fills(structure):
        return Dense(structure.m, structure.n)
    return structure if _plannable(structure, most) else None


def _plannable(structure: Structure, most: int) -> bool:
    """Return whether a structure does not depend on the bracketing, and its products are quickly planned.

    A factored Jacobian (low rank, I + J) is not shown to the planner: it is cheap to push and pull through, and that is
    what a plan then does with it.
    """
    if is_shared_weight(structure):
        return True
    known = structure.listed or structure.constant
    return known and (isinstance(structure, REGULAR) or structure.entries <= most)


def _fills(structure: Structure) -> bool:
    """Return whether a structure that is not dense has hardly fewer entries than a dense one."""
    return not isinstance(structure, Dense) and 2 * structure.nnz > structure.m * structure.n > 1


_MOST_IRREGULAR = 20_000  # entries of an irregular pattern whose products are still planned in milliseconds
_MOST_IN_PATTERNS = 5_000_000  # in seconds


def _composed(functions: Sequence[Function]) -> Function:
    def composition(x: Tensor) -> Any:
        for function in functions:
            x = function(x)
        return x

    return functions[0] if len(functions) == 1 else composition


def _point(functions: Sequence[Function], x: Tensor, seen: bool) -> Callable[[], Tensor] | None:
    """Return what gives the value that some functions make of x; None where it is not to be seen."""

    def value() -> Tensor:
        with torch.no_grad():
            return _composed(functions)(x.clone()) if functions else x

    return value if seen else None


def _append(tape: Tape, following: Tape) -> None:
    """Continue a tape with the tape of a function of its result."""
    numbers = {following.source: tape.result}
    for index, meta in enumerate(following.metas):
        if index != following.source:
            numbers[index] = tape.new_value(meta)
    tape.constants |= {numbers[index]: tensor for index, tensor in following.constants.items()}

    def renumbered(tree: Any) -> Any:
        if isinstance(tree, Ref):
            return Ref(numbers[tree.index])
        if isinstance(tree, (tuple, list)):
            return type(tree)(renumbered(leaf) for leaf in tree)
        return {key: renumbered(leaf) for key, leaf in tree.items()} if isinstance(tree, dict) else tree

    def moved(op: TapeOp) -> TapeOp:
        outputs = tuple(None if index is None else numbers[index] for index in op.outputs)
        active = tuple(numbers[index] for index in op.active)
        return TapeOp(op.target, renumbered(op.args), renumbered(dict(op.kwargs)), outputs, active)

    known = dict.fromkeys((*tape.ops, *tape.checks))  # what checks alone need comes behind, and stays in order
    here = {op: moved(op) for op in dict.fromkeys((*following.ops, *following.checks))}
    tape.ops += [here[op] for op in following.ops]
    tape.checked += [numbers[index] for index in following.checked]
    tape.conditions += [numbers[index] for index in following.conditions]
    tape.outcome += following.outcome
    tape.raising |= {numbers[index]: moved(op) for index, op in following.raising.items()}
    if wanted := inspected(tape):  # what they look at is made of what came before, too
        tape.checks = checks_of([*known, *here.values()], wanted)
    tape.looked_at += following.looked_at
    tape.restores |= following.restores
    tape.result = numbers[following.result]


def _mark(tape: Tape) -> None:
    """Leave active only what lies between the source of a joined tape and its result."""
    reaching = {tape.result}
    for op in reversed(tape.ops):
        if not reaching.isdisjoint(op.outputs):
            reaching.update(op.active)
    between = {tape.source} & reaching
    ops: list[TapeOp] = []
    for op in tape.ops:
        active = tuple(index for index in op.active if index in between)
        live = active and not reaching.isdisjoint(op.outputs)
        between.update(index for index in op.outputs if live and index in reaching and index is not None)
        ops.append(TapeOp(op.target, op.args, op.kwargs, op.outputs, active if live else ()))
    tape.ops = ops
