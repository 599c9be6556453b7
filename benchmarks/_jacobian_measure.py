"""One workload measured: every contender checked against float64, then all that are right timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from _jacobian_case import Case, Problem
from _jacobian_jax import jax_peers
from _jacobian_judge import JacobianJudge, entries
from _jacobian_ours import COMPILED, ours
from _jacobian_peers import Peer, peers
from _jacobian_timing import SLOW_SECONDS, Contender, summarise, time_in_turn, timed_row
from _report import Row, number
from _report import problem as problem_text
from torch.utils._python_dispatch import TorchDispatchMode

FLOOR = "floor"
FIRST_CALL = "first call of a peer"
HOPELESS = 5.0  # a peer that takes this many times the best eager peer is not compiled


@dataclass(frozen=True)
class Settings:
    """What a run of the benchmark does.

    Attributes:
        device: Where.
        seconds: For the timing of one workload.
        compile_seconds: For a contender that is compiled, with its check; the process is ended then.
        plan_seconds: For one of ours that is not compiled, with its check.
        compile_ops: A function that runs more ops than this is not compiled by the peers.
        compiled: Whether anything is compiled.
        compiled_peers: Whether peers are, too.
        everything: Whether to compile what is known to be long or hopeless as well.
        small: Whether at the sizes of the test.
    """

    device: torch.device
    seconds: float = 10.0
    compile_seconds: float = 120.0
    plan_seconds: float = 60.0
    compile_ops: int = 400
    compiled: bool = True
    compiled_peers: bool = True
    everything: bool = False
    small: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self) | {"device": str(self.device)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Settings:
        """Return the settings of which that is the JSON."""
        return cls(**{**stored, "device": torch.device(stored["device"])})


Say = Callable[..., None]
"""Told what is being done: `doing`, in words; `contender`, whom it is about; `limit`, in seconds; None for none."""


class Measurement:
    """The contenders of one workload, and what became of each.

    Args:
        case: The workload.
        settings: Of the run.
        jax: The module, or None.
        left_out: Contenders that do not take part, and why.
        say: Told what is being done.
    """

    def __init__(
        self, case: Case, settings: Settings, jax: Any, left_out: Mapping[str, str], say: Say = lambda **_: None
    ) -> None:
        self.case, self.settings, self.jax, self.left_out, self.say = case, settings, jax, left_out, say
        say(doing="a reference in float64", contender=None, limit=None)
        self.problem = self._make()
        self.judge = JacobianJudge(case, small=settings.small, device=settings.device)
        self.m, self.n = entries(self.problem)
        self.found: dict[str, Row] = {}
        self.contenders: dict[str, Contender] = {}

    def _make(self) -> Problem:
        return self.case.make(small=self.settings.small, device=self.settings.device)

    def row(self) -> Row:
        """Check and time everybody.

        Returns:
            The row of the workload.
        """
        self._enter_peers()
        if self.problem.floor is not None:
            floor = self.problem.floor
            self.enter(FLOOR, "floor", lambda: Contender(partial(floor, self.problem.x)))
        self._enter_jax()
        fresh = lambda: self._make().f  # noqa: E731
        for name, make in ours(self.problem, fresh, compiled=self.settings.compiled).items():
            limit = self.settings.compile_seconds if name == COMPILED else self.settings.plan_seconds
            self.enter(name, "ours", make, limit=limit)
        self.say(doing="the timing", contender=None, limit=None)
        warm = {name: c for name, c in self.contenders.items() if c.seconds <= SLOW_SECONDS}
        for name, times in time_in_turn(warm, self.settings.device, self.settings.seconds).items():
            self.found[name] |= timed_row(times)
        return self._described() | {"contenders": self.found}

    def enter(self, name: str, kind: str, make: Callable[[], Contender], **options: Any) -> None:
        """Make a contender, check it and let it take part; what it raises is noted.

        Args:
            name: Of the contender.
            kind: "peer", "compiled peer", "jax", "floor", "ours", or FIRST_CALL.
            make: Makes it.
            **options: limit, the seconds that making and checking may take, and what else its row records.
        """
        limit = options.pop("limit", None)
        row = self.found[name] = {"kind": kind, "note": "", **options}
        if name in self.left_out:
            row["note"] = f"not measured: {self.left_out[name]}"
            return
        self.say(doing=f"{name} and its check", contender=name, limit=limit)
        try:
            contender = make()
            row |= contender.facts
            seconds, result = contender.run(self.settings.device)
            row["error_over_budget"] = error = self.judge(result)
            del result
            if seconds <= SLOW_SECONDS or kind != "peer":  # the first call of any other may record or compile
                seconds = min(contender.run(self.settings.device)[0] for _ in range(2))
        except Exception as failure:  # noqa: BLE001 (whatever a contender raises belongs in its row)
            row["note"] = f"raises: {problem_text(failure)}"
        else:
            contender.seconds = seconds
            if error > 1:
                row["note"] = f"wrong: error is {number(error)} times the budget"
                return
            self.contenders[name] = contender
            if seconds > SLOW_SECONDS:
                row |= asdict(summarise([1e3 * seconds]))

    def _enter_peers(self) -> None:
        best: dict[str, int | None] = {}
        ways = peers(self.problem, self.m)
        for peer in ways:
            best[peer.name] = self._enter_best_chunk(peer)
        eager = {peer.name: self.contenders[peer.name].seconds for peer in ways if peer.name in self.contenders}
        if eager:
            name = min(eager, key=lambda known: eager[known])
            self._enter_first_call(name, best[name])
        if not (self.settings.compiled and self.settings.compiled_peers):
            return
        ops = count_ops(self.problem)
        for peer in ways:
            name = f"{peer.name}, compiled"
            reason = self._hopeless(peer.name, eager, ops)
            if reason is not None:
                self.found[name] = {"kind": "compiled peer", "note": f"not compiled: {reason}"}
                continue
            call = torch.compile(peer.build(best[peer.name]))
            self.enter(
                name,
                "compiled peer",
                lambda call=call: Contender(partial(call, self.problem.x)),
                limit=self.settings.compile_seconds,
                chunk=best[peer.name],
            )

    def _enter_best_chunk(self, peer: Peer) -> int | None:
        """Enter a peer with its best chunk size; a slow one, with all rows at once, is not tried again."""
        x = self.problem.x
        build = lambda chunk: lambda: Contender(partial(peer.build(chunk), x))  # noqa: E731
        tried: dict[int | None, tuple[float, Row, Contender]] = {}
        for chunk in peer.chunks:
            self.enter(peer.name, "peer", build(chunk), chunk=chunk)
            contender = self.contenders.pop(peer.name, None)
            if contender is not None:
                tried[chunk] = (contender.seconds, self.found[peer.name], contender)
                if contender.seconds > SLOW_SECONDS:
                    break
        if not tried:
            return None
        chunk = min(tried, key=lambda c: tried[c][0])
        _, self.found[peer.name], self.contenders[peer.name] = tried[chunk]
        return chunk

    def _enter_first_call(self, name: str, chunk: int | None) -> None:
        """Enter a peer with a function that nobody has called, as our one-shot gets it: its weights are in no cache."""

        def fresh() -> Callable[[], Any]:
            problem = replace(self.problem, f=self._make().f)
            (peer,) = (peer for peer in peers(problem, self.m) if peer.name == name)
            return partial(peer.build(chunk), problem.x)

        self.enter(FIRST_CALL, FIRST_CALL, lambda: Contender(lambda call: call(), prepare=fresh), of=name, chunk=chunk)

    def _hopeless(self, name: str, eager: dict[str, float], ops: int) -> str | None:
        """Why a peer is not compiled, if it is not."""
        if self.settings.everything:
            return None
        if self.case.unfit_to_compile:
            return self.case.unfit_to_compile
        if ops > self.settings.compile_ops:
            return f"the function runs {ops} ops, more than {self.settings.compile_ops}"
        if name not in eager:
            return "it fails without"
        ratio = eager[name] / min(eager.values())
        return f"it takes {number(ratio)} times the best eager peer" if ratio > HOPELESS else None

    def _enter_jax(self) -> None:
        if self.jax is None or self.problem.twin is None:
            return
        for name, call in jax_peers(self.jax, self.problem).items():
            self.enter(name, "jax", lambda call=call: Contender(call), limit=self.settings.compile_seconds)

    def _described(self) -> Row:
        return {
            "workload": self.case.id,
            "dtype": str(self.problem.x.dtype).removeprefix("torch."),
            "m": self.m,
            "n": self.n,
            "options": dict(self.problem.options),
            "bottleneck": self.case.bottleneck,
            "plain_chain": self.case.plain_chain,
        }


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += 1
        return func(*args, **(kwargs or {}))


def count_ops(problem: Problem) -> int:
    """How many ops one call of the function runs."""
    with torch.no_grad(), _Counter() as counter:
        problem.f(problem.x)
    return counter.ops


def measure(
    case: Case, settings: Settings, jax: Any, left_out: Mapping[str, str] | None = None, say: Say = lambda **_: None
) -> Row:
    """Measure one workload.

    Args:
        case: The workload.
        settings: Of the run.
        jax: The module, or None.
        left_out: Contenders that do not take part, and why.
        say: Told what is being done.

    Returns:
        Its row; one with a note alone if not even the peers run.
    """
    start = time.monotonic()
    try:
        row = Measurement(case, settings, jax, left_out or {}, say).row()
    except Exception as failure:  # noqa: BLE001 (a row is never dropped)
        row = {"workload": case.id, "contenders": {}, "note": f"not measured: {problem_text(failure)}"}
    return row | {"seconds": round(time.monotonic() - start, 1)}
