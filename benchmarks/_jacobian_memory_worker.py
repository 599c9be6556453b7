"""The process that `_jacobian_memory` starts: one Jacobian, and the most memory held beyond what was there before."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _jacobian_case import Problem, Source, leaves
from _jacobian_chains import chain, ensemble, funnel, hourglass
from _jacobian_ours import make_plan
from _jacobian_peers import peers
from torch import nn


def image_autoencoder(source: Source, side: int, channels: int, code: int) -> Problem:
    """Convolutions that are far wider inside than the image, and a narrow code between encoder and decoder.

    With all rows at once, a reverse sweep holds side² · channels · side² entries, 2.7 GB, for every wide layer that it
    is crossing; from the code outwards there are only `code` rows, and `code` columns.

    Args:
        source: Of the numbers.
        side: Of the image.
        channels: Of the wide layers.
        code: Entries of the code.

    Returns:
        The problem.
    """
    net = source.module(
        lambda: nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(channels, 1, 4, stride=4),
            nn.Flatten(),
            nn.Linear((side // 4) ** 2, code),
            nn.Linear(code, (side // 4) ** 2),
            nn.Unflatten(1, (1, side // 4, side // 4)),
            nn.ConvTranspose2d(1, channels, 4, stride=4),
            nn.Tanh(),
            nn.Conv2d(channels, 1, 3, padding=1),
        )
    )
    return Problem(net, source.normal(1, 1, side, side))


# The problem, its sizes, and small ones: those that a test affords, which also wake up every library beforehand.
WORKLOADS: dict[str, tuple[Callable[..., Problem], dict[str, Any], dict[str, Any]]] = {
    "wide-autoencoder": (chain, {"widths": (4096, 1024, 32, 1024, 4096)}, {"widths": (12, 8, 2, 8, 12)}),
    "wide-funnel": (chain, {"widths": funnel(4, 8192, 512)}, {"widths": (12, 8, 2)}),
    "deep-hourglass": (chain, {"widths": hourglass(40, 2048, 16)}, {"widths": hourglass(8, 8, 2)}),
    "batch-of-networks": (
        ensemble,
        {"batch": 256, "members": 8, "n": 128, "hidden": 256, "m": 32},
        {"batch": 3, "members": 2, "n": 4, "hidden": 5, "m": 2},
    ),
    "image-autoencoder": (
        image_autoencoder,
        {"side": 64, "channels": 40, "code": 32},
        {"side": 8, "channels": 2, "code": 2},
    ),
}


def main() -> int:
    """Read the request, measure, print one line of JSON.

    Returns:
        0; an exception is the other way out.
    """
    request = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (request["address_space"],) * 2)
    build, full, small = WORKLOADS[request["workload"]]
    awake = _problem(build, small, request["options"])
    _contender(request["contender"], awake)[0]()
    torch.mm(torch.ones(512, 4096), torch.ones(4096, 8192))  # the buffers that BLAS keeps for large products
    problem = awake if request["small"] else _problem(build, full, request["options"])
    call, predicted = _contender(request["contender"], problem)
    first = _measure(call)
    later = _measure(call) if request["contender"] == "plan" else first  # the first call of a plan may do more
    answer = first | {"first_bytes": first["measured_bytes"], "later_bytes": later["measured_bytes"]}
    answer["measured_bytes"] = measured = max(first["measured_bytes"], later["measured_bytes"])
    print(json.dumps(answer | {"predicted_bytes": predicted, "ratio": measured / predicted if predicted else None}))
    return 0


def _measure(call: Callable[[], Any]) -> dict[str, Any]:
    """Size of the result, seconds of the call, and the most bytes held beyond those before."""
    before = _reset_peak()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves(result))
    return {"jacobian_bytes": size, "measured_bytes": max(0, _status("VmHWM") - before), "seconds": seconds}


def _problem(build: Callable[..., Problem], sizes: dict[str, Any], options: dict[str, Any]) -> Problem:
    problem = build(Source(torch.float32, torch.device("cpu"), torch.Generator().manual_seed(0)), **sizes)
    return Problem(problem.f, problem.x, {**problem.options, **options})


def _contender(name: str, problem: Problem) -> tuple[Callable[[], Any], int | None]:
    """The call to be measured, and the bytes that it says it needs; planning is not measured."""
    if name == "plan":
        plan = make_plan(problem)
        return lambda: plan(problem.x), _predicted_bytes(plan, problem)
    peer = next(p for p in peers(problem, 1) if p.name == name)
    return lambda: peer.build(None)(problem.x), None


def _predicted_bytes(plan: Any, problem: Problem) -> int:
    """The peak that a plan predicts, in bytes; a plan that counts entries counts those of x's dtype."""
    stated = getattr(plan, "peak_bytes", None)
    return int(stated) if stated is not None else int(plan.peak_entries) * problem.x.element_size()


def _reset_peak() -> int:
    """Bytes held now, from which the peak starts anew where the system lets it; else the peak so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    raise SystemExit(main())
