"""Timing of contenders in turn, where some take a thousand times as long as others or need fresh arguments."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from _report import problem as problem_text

LEAST, MOST = 5, 100  # calls of one contender
SLOW_SECONDS = 3.0  # a call that takes longer is timed once


@dataclass
class Contender:
    """A call that returns a Jacobian.

    Attributes:
        call: Of no arguments, or of what `prepare` returned.
        prepare: Makes the argument of one call, outside of the time.
        seconds: What a call is known to take.
        facts: What its row records besides the times.
    """

    call: Callable[..., Any]
    prepare: Callable[[], Any] | None = None
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self, device: torch.device) -> tuple[float, Any]:
        """One call.

        Args:
            device: To wait for.

        Returns:
            Its seconds, and what it returned.
        """
        _leave_levels()
        arguments = () if self.prepare is None else (self.prepare(),)
        _wait(device)
        start = time.perf_counter()
        result = self.call(*arguments)
        _wait(device)
        return time.perf_counter() - start, result


def _leave_levels() -> None:
    """Leave transforms and dual levels: a compiled contender that raised may be in some still, and all after it too."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    while functorch.peek_interpreter_stack() is not None:
        functorch.pop_dynamic_layer_stack()
    while forward_ad._current_level >= 0:
        forward_ad.exit_dual_level()


@dataclass(frozen=True)
class Times:
    """Wall times of one contender in milliseconds: the quartiles, and of how many calls."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    repeats: int


def time_in_turn(
    contenders: Mapping[str, Contender], device: torch.device, seconds: float
) -> dict[str, Times | Exception]:
    """Time contenders round after round, the slow ones in fewer rounds, spread over all of them.

    Each round takes them in another order. What a call finds in the caches is what the one before it has left there: a
    small one after another of PyTorch takes half of what it takes after one of JAX. None is always after the same.

    Args:
        contenders: By name, warm, each with the seconds that a call takes.
        device: Where they work.
        seconds: About how long it shall take in all.

    Returns:
        The times of each, or what it raised: compiled peers do so in a later call now and then.
    """
    failures: dict[str, Exception] = {}
    share = seconds / max(1, len(contenders))
    repeats = {name: _repeats(share, c.seconds) for name, c in contenders.items()}
    rounds = max(repeats.values(), default=0)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names, orders = list(contenders), random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for r in range(rounds):
            for name in orders.sample(names, len(names)):
                if name not in failures and (r + 1) * repeats[name] // rounds > r * repeats[name] // rounds:
                    try:
                        samples[name].append(1e3 * contenders[name].run(device)[0])
                    except Exception as failure:  # noqa: BLE001 (whatever it raises belongs in its row)
                        failures[name] = failure
    finally:
        gc.enable()
    return {name: failures.get(name) or summarise(times) for name, times in samples.items()}


def timed_row(times: Times | Exception) -> dict[str, Any]:
    """What a row says of times, or of what was raised in place of them."""
    if isinstance(times, Times):
        return asdict(times)
    return {"note": f"raises in a later call: {problem_text(times)}"}


def summarise(samples_ms: list[float]) -> Times:
    """The quartiles of some times."""
    if len(samples_ms) == 1:
        return Times(samples_ms[0], samples_ms[0], samples_ms[0], 1)
    q1, _, q3 = statistics.quantiles(samples_ms, n=4, method="inclusive")
    return Times(statistics.median(samples_ms), q1, q3, len(samples_ms))


def _repeats(share: float, each: float) -> int:
    if each > SLOW_SECONDS:
        return 1
    return max(LEAST, min(MOST, int(share / max(each, 1e-7))))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
