"""Parts: one recorded op with what is known of its derivative, and what it costs to use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._torch import (
    FakeTensorMode,
    has_jvp_rules,
    inside_transform,
    jvp_by_own_rules,
    jvp_of,
    load_jvp_rules,
    unharmed,
)
from ..bending import is_pulled_alone, smooth_target
from ..count import FOURIER, FmaCounter, fma_of_fourier
from ..measure import Profile
from ..rules.registry import Call, Local, Meta, Operand, local_derivatives
from ..structure import Dense, Structure
from .samples import fma_of_tangent, samples_of
from .tape import Ref, Tape, TapeOp, fill

_RUNS: dict[tuple[Any, str], bool] = {}  # which derivatives PyTorch has, by op
_LAUNCHES: dict[tuple[Any, str], int] = {}  # how many ops they launch, as far as is known


_aten = torch.ops.aten
_LINEAR = frozenset({
    _aten.view.default, _aten._unsafe_view.default, _aten.permute.default, _aten.transpose.int, _aten.t.default,
    _aten.slice.Tensor, _aten.select.int, _aten.expand.default, _aten.unsqueeze.default, _aten.squeeze.default,
    _aten.squeeze.dim, _aten.squeeze.dims, _aten.sum.default, _aten.sum.dim_IntList, _aten.mean.default,
    _aten.mean.dim, _aten.cat.default, _aten.stack.default, _aten.unbind.int, _aten.split.Tensor,
    _aten.split_with_sizes.default, _aten.clone.default, _aten.alias.default, _aten.flip.default, _aten.roll.default,
    _aten.repeat.default, _aten.diagonal.default, _aten.tril.default, _aten.triu.default, _aten.cumsum.default,
    _aten.neg.default, _aten.unfold.default, _aten.movedim.int, _aten.view_as_real.default,
    _aten.view_as_complex.default, _aten.complex.default, _aten._conj.default, _aten._conj_physical.default,
    _aten.conj_physical.default, _aten.resolve_conj.default, _aten._fft_r2c.default, _aten._fft_c2r.default,
    _aten._fft_c2c.default, _aten.real.default, _aten.imag.default,
})  # fmt: skip


_BILINEAR = frozenset({_aten.mm.default, _aten.bmm.default, _aten.mv.default, _aten.dot.default})


_FEW_LAUNCHES = 3  # of each operand, where nothing is known


class Arc(NamedTuple):
    """The Jacobian of one output of an op in one operand, in closed form."""

    op: TapeOp
    output: int  # a value
    operand: int  # a value
    local: Local


class Part:
    """One op that the derivative passes through.

    `arcs` are its local Jacobians; None where one of them has no closed form, and the op is then differentiated by
    JVP and VJP, in all its operands at once. Of an op that treats `samples` one by one the Jacobian is block-diagonal.
    """

    def __init__(self, tape: Tape, op: TapeOp, active_outputs: tuple[int, ...], profile: Profile | None = None) -> None:
        self.op = op
        self.outputs = active_outputs
        self.metas = {index: tape.metas[index] for index in (*op.operands, *active_outputs)}
        self.all_metas = tape.metas
        self.known = {index: tape.known[index] for index in op.operands if index in tape.known}
        self.profile = profile
        self.arcs = None if op.opaque else self._closed_form()
        self.samples = 1 if op.opaque or self.arcs is not None else samples_of(op, self.metas, active_outputs)

    def _closed_form(self) -> list[Arc] | None:
        operands = self.op.operands
        arcs: list[Arc] = []
        for output in self.outputs:
            call = self._call(output)
            known = local_derivatives(call)
            if any(position not in known for position in call.active):
                return None
            arcs += [Arc(self.op, output, operands[position], known[position]) for position in call.active]
        return arcs

    def _call(self, output: int) -> Call:
        """Return the op with sizes in the place of tensors."""
        target: Any = self.op.target
        operands = self.op.operands
        places = iter(range(len(operands)))
        args, kwargs = _numbered(self.op.args, places), _numbered(dict(self.op.kwargs), places)
        return Call(
            target,
            args,
            kwargs,
            tuple(self.metas[index] for index in operands),
            self.metas[output],
            tuple(position for position, index in enumerate(operands) if index in self.op.active),
            output_index=self.op.outputs.index(output),
            known={position: self.known[index] for position, index in enumerate(operands) if index in self.known},
        )

    @cached_property
    def column_fma(self) -> int:
        """The fma of carrying one tangent or one cotangent through the op where it has no closed form.

        Matrix products, convolutions and attention count half their flops for each operand, four times that of complex
        numbers; Fourier transforms as in `FmaCounter`; linear algebra as in `fma_of_tangent`; any other op one fma for
        each real number of its largest tensor and operand.
        """
        from torch.utils.flop_counter import flop_registry  # imports Triton where there is one, which is slow

        if self.profile is not None:
            known = [cost for cost in (self.profile.jvp_cost, self.profile.vjp_cost) if cost is not None]
            return max(known)
        packet = getattr(self.op.target, "overloadpacket", None)
        count = len(self.op.active)
        if packet in flop_registry:
            out = [torch.empty(self.all_metas[i].shape, device="meta") for i in self.op.outputs if i is not None]
            args, kwargs = (
                fill(tree, lambda index: torch.empty(self.metas[index].shape, device="meta"))
                for tree in (self.op.args, dict(self.op.kwargs))
            )
            flops = flop_registry[packet](*args, **kwargs, out_val=out[0] if len(out) == 1 else out)
            return count * flops * (4 if self.metas[self.outputs[0]].dtype.is_complex else 1) // 2
        of_matrices = fma_of_tangent(self.op, self.metas, self.outputs[0])
        if of_matrices is not None:
            return of_matrices
        if packet in FOURIER:
            return fma_of_fourier(self.metas[self.op.active[0]].shape, self.op.args[1])
        if packet is not None and self._moves():
            return 0
        return count * max(meta.numel for meta in self.metas.values())

    def _moves(self) -> bool:
        target: Any = self.op.target
        return target.is_view or target.overloadpacket in {torch.ops.aten.clone, torch.ops.aten.cat}

    @cached_property
    def jvp_cost(self) -> int | None:
        """The fma of one tangent; None where the op has no JVP."""
        if self.profile is not None:
            return self.profile.jvp_cost
        if is_pulled_alone(self.op):
            return None
        return self.column_fma if self._runs(self._push_fake) else None

    @cached_property
    def vjp_cost(self) -> int | None:
        """The fma of one cotangent; None where the op has no VJP."""
        if self.profile is not None:
            return self.profile.vjp_cost
        return self.column_fma if self._runs(self._pull_fake) else None

    def _runs(self, derivative: Callable[[Callable[..., Any], tuple[Tensor, ...]], Any]) -> bool:
        """Return whether a derivative of the op runs on fake tensors; asked once for each op."""
        key = self.op.target, derivative.__name__
        if key not in _RUNS:
            if inside_transform():
                load_jvp_rules()
            runs, launched = self._tried(derivative)
            if launched is None and not has_jvp_rules():  # which a few ops need
                load_jvp_rules()
                runs, launched = self._tried(derivative)
            _RUNS[key] = runs
            if launched is not None:
                _LAUNCHES[key] = launched
        return _RUNS[key]

    def _tried(self, derivative: Callable[[Callable[..., Any], tuple[Tensor, ...]], Any]) -> tuple[bool, int | None]:
        """Return whether a derivative of the op runs on fake tensors, and how many ops it launches if that is seen."""
        with unharmed(), FakeTensorMode(), FmaCounter() as counter:
            made = {i: torch.empty(m.shape, dtype=m.dtype, device=m.device) for i, m in self.metas.items()}
            try:
                derivative(self.function(made.__getitem__), tuple(made[index] for index in self.op.active))
            except NotImplementedError:
                return False, None
            except Exception:  # noqa: BLE001 (a fake tensor may be refused where a real one is not)
                return True, None
            return True, counter.launched

    def launches(self, *, forwards: bool) -> int:
        """Return how many ops the derivative of an op without closed form launches, the axis of vectors moved twice."""
        derivative = self._push_fake if forwards else self._pull_fake
        known = _LAUNCHES.get((self.op.target, derivative.__name__)) if self._runs(derivative) else None
        return _FEW_LAUNCHES * len(self.op.active) if known is None else known + 2

    @staticmethod
    def _push_fake(function: Callable[..., Any], primals: tuple[Tensor, ...]) -> None:
        push = jvp_of if has_jvp_rules() else jvp_by_own_rules
        push(function, primals, primals)

    @staticmethod
    def _pull_fake(function: Callable[..., Any], primals: tuple[Tensor, ...]) -> None:
        results: Any = torch.func.vjp(function, *primals)
        results[1](results[0])

    def samples_in(self, block: Structure) -> int:
        """Return how many samples of the op a block keeps to, which it does unless it is dense."""
        return 1 if type(block) is Dense else self.samples

    def arcs_from(self, operand: int) -> list[Arc]:
        """Return the local Jacobians in an operand; none where the op has no closed form."""
        return [arc for arc in self.arcs or () if arc.operand == operand]

    def is_linear_in(self, operands: Sequence[int]) -> bool:
        """Return whether the op is a linear map of these operands, with no others."""
        return self.op.target in _LINEAR and set(self.op.operands) == set(operands)

    def is_linear_in_each_of(self, operands: Sequence[int]) -> bool:
        """Return whether the op is linear in each of these operands while the others stay."""
        return self.op.target in _BILINEAR and all(self.op.operands.count(index) == 1 for index in operands)

    def function(
        self, value: Callable[[int], Tensor], operands: Sequence[int] | None = None, *, live: bool = False
    ) -> Callable[..., tuple[Tensor, ...]]:
        """Return the op as a function of its active operands, or of some of them, to its active outputs.

        Args:
            value: The values that a run has passed.
            operands: Which operands; all active ones if None.
            live: Whether its forward mode is to be differentiated.

        Returns:
            The function.
        """
        op = replace(self.op, target=smooth_target(self.op.target)) if live else self.op
        places = {index: place for place, index in enumerate(operands or self.op.active)}

        def applied(*tensors: Tensor) -> tuple[Tensor, ...]:
            results = op.call(lambda index: tensors[places[index]] if index in places else value(index))
            made: Mapping[int | None, Any] = dict(zip(op.outputs, results, strict=True))
            return tuple(made[output] for output in self.outputs)

        return applied

    def meta(self, index: int) -> Meta:
        """Return what is known of one of its values."""
        return self.metas[index]


def _numbered(tree: Any, places: Iterator[int]) -> Any:
    """Return a tree of arguments with an `Operand` in the place of each value, numbered in order."""
    if isinstance(tree, Ref):
        return Operand(next(places))
    if isinstance(tree, (tuple, list)):
        return type(tree)(_numbered(leaf, places) for leaf in tree)
    return {key: _numbered(leaf, places) for key, leaf in tree.items()} if isinstance(tree, dict) else tree
