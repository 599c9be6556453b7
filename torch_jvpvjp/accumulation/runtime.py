"""What stands behind a plan that can be called: the traced function, kept true, and its recorded program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._torch import compile_modes, set_grad_enabled, wraps_transform
from .application import applied
from .branches import AT_ONCE, MOST_KEPT, Branches, kind_of
from .cache import Remembered
from .calls import MOST_FOLDED
from .checks import check_passes
from .differentiable import Replay
from .execute import Execution
from .gradients import differentiable_parts
from .held import held_bytes
from .nesting import is_differentiated
from .options import Options
from .primal import OtherValue
from .program import ProgramRecorder
from .remaking import Planning, fitted_or_remade
from .repeating import alike, marks, repeated
from .replay import Worth
from .shortcut import STEADY, Shortcut
from .subject import Subject
from .tracings import Tracing, trace_subject
from .verifying import Stopwatch, verification

if TYPE_CHECKING:
    from .factor import Factor
    from .plan import Plan
    from .timing import Verification
    from .tracing.results import Known


class Runtime:
    """A function that a plan is for.

    Args:
        caller: The function to name in errors.
        stages: The function, as a chain of one stage or more.
        options: How the Jacobian is taken.
        arguments: What the function is called with where a call is given x; x itself if not given.
        watched: The functions whose change makes a recording stale; the stages if not given.
        planning: How a plan for it is made; None where plans are not made for it, but given.
    """

    def __init__(
        self,
        caller: str,
        stages: Sequence[Callable[..., Any]],
        options: Options,
        arguments: Callable[[Any], Any] | None = None,
        watched: Sequence[Callable[..., Any]] | None = None,
        planning: Planning | None = None,
    ) -> None:
        self.caller, self.stages, self.options = caller, tuple(stages), options
        self.arguments = arguments or _as_given
        self.watching = self.stages if watched is None else tuple(watched)
        self.only_recorded = False  # whether a function that cannot be recorded is refused
        self.at_once = AT_ONCE  # ways by what it sees that are recorded at once
        self.apart: Callable[[Any, Remembered], Any] | None = None  # calls in ways that are not recorded
        self.planning = planning
        self.is_remade = False  # whether it stands for another one, whose function has become another chain
        told = getattr(getattr(arguments, "__self__", None), "way", None)  # of a product of recordings, for that alone
        self._key = kind_of if told is None else lambda given: (kind_of(given), told())
        self._tracings: dict[Any, Tracing] = {}  # the last that was used for tensors of a kind
        self._branches: dict[Any, Branches] = {}  # all of those that look at data
        self._shortcut: Shortcut | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or one that was pickled, is of the same function and has recorded nothing yet."""
        return Runtime, (self.caller, self.stages, self.options, self.arguments, self.watching, self.planning)

    def tracing(self, x: Any) -> Tracing:
        """Return the function traced for tensors such as x, anew if it is no longer what it was."""
        given = self.arguments(x)
        found = self._way(given)
        return self._branches[self._key(given)].as_it_stands(given) if found is None else found

    def _way(self, x: Any) -> Tracing | None:
        """Return the way that the function goes at x, recorded anew if it is no longer that; None if that is apart."""
        key = self._key(x)
        known = self._tracings.get(key)
        if key in self._branches:
            known = self._branches[key].of(x)
            if known is not None and known is not self._branches[key].unrecorded:
                self._tracings[key] = known
        elif known is None or not known.holds():
            known = self._traced(x)
            self._keep(key, known)
        return known

    def _traced(self, x: Any, as_it_stands: str | None = None) -> Tracing:
        subject = Subject(self.caller, self.stages, x, self.options.wrt, self.options.batch_dims)
        how = {"only_recorded": self.only_recorded and as_it_stands is None, "as_it_stands": as_it_stands}
        return trace_subject(subject, self.watching, self.options.sparse, **how)

    def _keep(self, key: Any, tracing: Tracing) -> None:
        while len(self._tracings) >= MOST_KEPT:
            self._tracings.pop(next(iter(self._tracings)))
        self._tracings[key] = tracing
        self._branches.pop(key, None)
        if tracing.conditions is not None:
            apart = self.apart is not None
            self._branches[key] = Branches(tracing, self._traced, self.at_once, apart=apart)

    def adopt(self, x: Any, tracing: Tracing) -> None:
        """Take over the tracing of another runtime of the same function."""
        self._keep(self._key(self.arguments(x)), tracing)

    def refusals(self) -> dict[str, str]:
        """Return why functions could not be recorded, by their names."""
        return {name: why for known in self._tracings.values() for name, why in known.traced.refusals.items()}

    @property
    def conditions(self) -> int:
        """How many times the function looks at data, where it was called last."""
        return max((len(known.traced.tape.conditions) for known in self._tracings.values()), default=0)

    def is_for(self, stages: Sequence[Callable[..., Any]], options: Options) -> bool:
        """Return whether this is that function with those options, or with more that a plan may choose by itself."""
        same = len(stages) == len(self.stages) and all(a is b for a, b in zip(stages, self.stages, strict=True))
        return (
            same and replace(self.options, chunk_size=None, compile=False, compile_mode=None, together=True) == options
        )

    def with_options(self, options: Options) -> Runtime:
        """Return the same function with other options."""
        return Runtime(self.caller, self.stages, options, self.arguments, self.watching, self.planning)

    def compiled(self, mode: str | None) -> Runtime:
        """The same function, to be run compiled.

        Args:
            mode: As in `torch.compile`.

        Returns:
            The function.

        Raises:
            ValueError: If it cannot be recorded, and hence not be compiled, or the mode is unknown.
        """
        if mode is not None and mode not in compile_modes():
            known = ", ".join(map(repr, compile_modes()))
            raise ValueError(f"Plan.compile: mode must be None or one of {known}, got {mode!r}.")
        refusals = self.refusals()
        if refusals:
            why = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
            raise ValueError(
                f"Plan.compile: the function must be recordable, got one that is not ({why}); compile what is inside "
                f"of it, or call the plan uncompiled."
            )
        runtime = self.with_options(replace(self.options, compile=True, compile_mode=mode))
        runtime._tracings = {
            key: replace(tracing, program=None, compiled=None, gradients=None)
            for key, tracing in self._tracings.items()
        }
        for key in self._branches:
            runtime._keep(key, runtime._tracings[key])
        return runtime

    def __call__(self, plan: Plan, x: Any) -> Any:
        """The Jacobian at x, as the plan says.

        Args:
            plan: The plan.
            x: The point.

        Returns:
            The Jacobian, as `jacobian` returns it.

        Raises:
            ValueError: If x or the function is not what the plan was made for.
        """
        shortcut = self._shortcut
        if shortcut is not None and shortcut.takes(plan, x):
            grad = torch.is_grad_enabled()
            set_grad_enabled(False)
            try:
                if shortcut.outcome is None:
                    return shortcut.run(x, *shortcut.constants)[0]
                found = shortcut.unless_another_way(x)
            finally:
                set_grad_enabled(grad)
            if found is not None:
                return found
            self._shortcut = None
        given = self.arguments(x)
        tracing, branches = self._way(given), self._branches.get(self._key(given)) if self._branches else None
        if tracing is None:
            assert branches is not None, "a function of one way has no other"
            found = self._made_apart(branches, given)
            if found is not None:
                return found
            tracing = branches.as_it_stands(given)
        with nullcontext() if branches is None else branches.paying(tracing):
            return self.called(plan, tracing, x)

    def _made_apart(self, branches: Branches, x: Any) -> Any | None:
        """Return the Jacobian at x on a way that is not recorded; None where that takes a plan."""
        assert self.apart is not None
        begin = perf_counter()
        found = self.apart(x, known := Remembered(plannable=False))
        if found is not None and known.last is not None:
            branches.went(x, known.last, perf_counter() - begin)
        return found

    def called(self, plan: Plan, tracing: Tracing, x: Any) -> Any:
        """Return the Jacobian at x of the function as it was traced, by a plan for it as it is now or was before."""
        try:
            return self._called(plan, tracing, x)
        except OtherValue:  # of a black box, which is not watched: it is taken apart once more
            if self.is_remade:  # whoever has made this one does that
                raise
            given = self.arguments(x)
            branches = self._branches.get(self._key(given))
            if branches is not None and branches.unrecorded is tracing:
                branches.unrecorded = None
                anew = branches.as_it_stands(given)
            else:
                self._keep(self._key(given), anew := self._traced(given))
            return self._called(plan, anew, x)

    def _called(self, plan: Plan, tracing: Tracing, x: Any) -> Any:
        subject, traced = tracing.subject, tracing.traced
        given, plan = plan, fitted_or_remade(self, plan, tracing, x)
        other = plan.runtime
        if other is not None and other is not self and tracing.remade:
            if tracing.conditions is None:
                return plan(x)
            found = other.called(plan, tracing, x)
            self._shortcut = other._shortcut and other._shortcut._replace(steps=given.steps)
            return found
        leaves, extras = subject.bind_leaves(self.arguments(x))
        check_passes(tracing, self.arguments(x), leaves, extras)
        transformed = is_differentiated() or any(map(wraps_transform, leaves))
        outside = transformed or (self.options.create_graph and tracing.requires_grad([*leaves, *extras]))
        if outside and not (transformed or traced.opaque or tracing.apart) and tracing.replayable:
            if not self.options.limited:
                executed = partial(self.executed, plan, how=Execution(live=True))
                compiled = self.options.compile, self.options.compile_mode
                replay = Replay(self._most_folded, self._worth(leaves[0]), *compiled)
                return tracing.planted(differentiable_parts(tracing, executed, leaves, extras, replay))
            if self.options.compile:
                raise ValueError(
                    f"{self.caller}: with create_graph and compile a dense Jacobian is taken all at once, got a "
                    f"chunk_size, memory_limit, progress or sparse as well; leave out that, or compile."
                )
        live = outside or not tracing.replayable or traced.opaque or self.options.progress
        # A black box runs with gradients on, as its user runs it: some (an LSTM on the CPU) keep only then what their
        # derivative needs.
        with nullcontext() if outside else torch.set_grad_enabled(traced.opaque):
            if not live:
                return tracing.planted(self._replayed(plan, tracing, leaves, extras))
            how = Execution(self.options.chunk_size, live=outside)
            matrix = self.executed(plan, tracing, subject.source_of(leaves), extras, how)
        return tracing.planted(tracing.parts(matrix if outside else matrix.detach()))

    def verify(self, plan: Plan, x: Any, runs: int = 11) -> Verification:
        """Return predicted and measured time of each step at x and of a call; the median of some runs counts."""
        tracing = self.tracing(x)
        plan = fitted_or_remade(self, plan, tracing, x)
        if plan.runtime is not self and tracing.remade:
            return plan.verify(x)
        leaves, extras = tracing.subject.bind_leaves(self.arguments(x))
        source, inputs = tracing.subject.source_of(leaves), [*leaves, *extras, *tracing.constants.values()]
        with torch.no_grad():
            if tracing.program is None and tracing.replayable and not tracing.traced.opaque:
                self._replayed(plan, tracing, leaves, extras)
            if tracing.program is not None and tracing.replayable:
                timed, segments = partial(tracing.timed, inputs), tracing.program.segments
                return verification(plan, source, segments, timed, partial(plan, x), runs)
            watch = Stopwatch(source.device)
            how = Execution(self.options.chunk_size, before=watch.start)

            def watched() -> list[float]:
                self.executed(plan, tracing, source, extras, how)
                return watch.stop()

            return verification(plan, source, watch.tasks, watched, partial(plan, x), runs)

    def peak_bytes(self, plan: Plan, chunk_size: int | None = None, known: Known | None = None) -> int | None:
        """Return the most bytes that a call holds, executed on tensors without data, whose results are known or not."""
        # By now the function may go another way than where the plan was made.
        sizes = _sizes(plan.factors)
        tracing = next((one for one in self._tracings.values() if _sizes(one.traced.factors) == sizes), None)
        if tracing is None or tracing.traced.opaque:
            return None
        # Two chunks hold what all of them do, each being like the one before.
        how = Execution(chunk_size or self.options.chunk_size, most_chunks=2)
        worth = self._worth(tracing.subject.sample) if how.chunk_size is None else None
        return held_bytes(tracing, partial(self.executed, plan, tracing, how=how), self._most_folded, worth, known)

    def primal_seconds(self) -> float:
        """Return the seconds that running f takes by the launches of its ops, which is the same in every plan."""
        from .timing.current import device_model

        tracing = next(iter(self._tracings.values()), None)
        if tracing is None:
            return 0.0
        meta = tracing.traced.output
        return tracing.traced.tape.launches * device_model(meta.device, meta.dtype).launch

    def _replayed(
        self, plan: Plan, tracing: Tracing, leaves: Sequence[Tensor], extras: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Return the parts of the Jacobian by the recorded program; the first run records it."""
        # A recording holds for one layout of x.
        given = [one.contiguous() for one in (*leaves, *extras)]
        if tracing.program is None:
            return self._recorded(plan, tracing, given, len(leaves))
        inputs = [*given, *tracing.constants.values()]
        if self.options.compile and tracing.compiled is None:
            tracing.compiled = tracing.program.compiled(self.options.compile_mode)
        run = tracing.compiled or tracing.program.run
        parts = run(*inputs)
        if not self.options.create_graph and (self._is_plain(tracing) or self._is_plain(tracing, of_samples=True)):
            x, constants = leaves[0], tuple(tracing.constants.values())
            outcome = tracing.conditions.outcome if tracing.conditions is not None else None
            if outcome is None or (tracing.sees_beside and tracing.in_a_row >= STEADY):
                self._shortcut = Shortcut(plan.steps, x.shape, x.dtype, x.device, constants, run, tracing, outcome)
        return parts[:-1] if tracing.sees_beside else parts

    def _recorded(self, plan: Plan, tracing: Tracing, given: Sequence[Tensor], count: int) -> Sequence[Tensor]:
        """Return the parts of the Jacobian at so many leaves with extras behind them; record how they are made."""
        given = [one.view_as(one) for one in given]  # one that is given twice, or is a constant too, counts as two

        def made() -> list[Tensor]:
            source = tracing.subject.source_of(given[:count])
            return tracing.parts(self.executed(plan, tracing, source, given[count:], how))

        inputs = [*given, *tracing.constants.values()]
        recorder = ProgramRecorder(inputs, self._most_folded)
        how = Execution(self.options.chunk_size, before=recorder.begin)
        seen: list[Tensor] = []
        with recorder:
            parts = made()
            # Where nothing else is done in a call, the program gives the conditions behind the Jacobian.
            asked = tracing.conditions is not None and not tracing.conditions.one_by_one
            tracing.sees_beside = asked and self._is_plain(tracing) and self.options.together
            if tracing.conditions is not None and tracing.sees_beside:
                seen = [tracing.conditions.computed(tracing, given, count)]
        numbers = recorder.numbers([*parts, *seen])
        tracing.program = recorder.program(numbers, self._worth(given[0]))
        if tracing.program is None or tracing.program.random:  # what draws random numbers cannot be compared
            tracing.replayable = tracing.program is not None
            return parts
        expected, width = marks(parts), len(parts)
        del parts  # two of them may not fit
        again = repeated(tracing.program, inputs, width)
        tracing.replayable = again is not None and alike(marks(again), expected)
        if not tracing.replayable:  # a block that is 0 but for rounding, which is not that of the recording
            tracing.program = recorder.program(numbers, exact=True)
            assert tracing.program is not None, "what was a program is none with fewer rewritings"
            again = repeated(tracing.program, inputs, width)
            tracing.replayable = again is not None and alike(marks(again), expected)
        how = Execution(self.options.chunk_size)
        return again if again is not None and tracing.replayable else made()

    @property
    def _most_folded(self) -> int:
        """The most entries of a value that is held between calls: none where memory is limited."""
        return MOST_FOLDED if self.options.together else 0

    def _worth(self, source: Tensor) -> Worth | None:
        """Return when like calls are worth running as one; None where memory is limited, since stacks take more."""
        limited = self.options.chunk_size is not None or not self.options.together
        return None if limited else Worth.on(source.device, source.dtype)

    def _is_plain(self, tracing: Tracing, *, of_samples: bool = False) -> bool:
        """Return whether a call is nothing but a run of the program on x, or on the samples along its first axis."""
        subject, dims = tracing.subject, self.options.batch_dims
        bare = subject.source.bare and subject.output is not None and subject.output.bare
        batched = dims == 1 and tracing.conditions is None if of_samples else not dims
        elsewhere = self.options.sparse or subject.in_parameters or subject.extras or tracing.traced.tape.checked
        return bare and batched and not elsewhere and self.arguments is _as_given and subject.has_one_argument

    def executed(
        self, plan: Plan, tracing: Tracing, source: Tensor, extras: Sequence[Tensor], how: Execution | None = None
    ) -> Tensor:
        """Return the Jacobian, (*batch as one axis, *outputs, *inputs), or its entries if it is sparse."""
        return applied(plan, tracing, source, extras, self.options, how or Execution(self.options.chunk_size))


def _sizes(factors: Sequence[Factor]) -> list[tuple[int, int]]:
    return [(factor.n, factor.m) for factor in factors]


def _as_given(x: Any) -> Any:
    return x
