"""One workload measured in a process of its own, which may hang or die without taking the others with it.

A compilation cannot be broken off within a process: functorch can differentiate nothing any more afterwards. So the
process is ended, and started anew without the contender that it was busy with.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _jacobian_measure import Settings
from _report import Row

WORKER = (sys.executable, str(Path(__file__).resolve().parent / "_jacobian_worker.py"))
LONGEST = 600.0  # seconds for what has no limit of its own: the start, the peers that are not compiled, the timing


class Outcome(NamedTuple):
    """How a process ended.

    Attributes:
        row: What it measured; None if it hung or died.
        contender: Whom it was busy with then, if with one of them.
        why: A note on that.
    """

    row: Row | None
    contender: str | None = None
    why: str = ""


def measured(
    workload: str, settings: Settings, *, jax: bool = True, threads: int = 1, worker: Sequence[str] = WORKER
) -> Row:
    """Measure one workload.

    Args:
        workload: Its id.
        settings: Of the run.
        jax: Whether JAX takes part where it is installed.
        threads: Of PyTorch.
        worker: The command that does it; the request is added as its last argument.

    Returns:
        Its row; one with a note alone if nothing came of it.
    """
    begin = time.monotonic()
    request = {"workload": workload, "settings": settings.as_json(), "jax": jax, "threads": threads}
    left_out: dict[str, str] = {}
    while True:
        row, contender, why = _attempt([*worker, json.dumps(request | {"left_out": left_out})])
        if row is None and (contender is None or contender in left_out):
            row = {"workload": workload, "contenders": {}, "note": f"not measured: {why}"}
        if row is not None:
            return row | {"seconds": round(time.monotonic() - begin, 1)}
        assert contender is not None
        left_out[contender] = why


def _attempt(command: Sequence[str]) -> Outcome:
    """Run one process, which says in a line of JSON what it is busy with and for how long at most, and then its row."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(  # with a session of its own, so that a compiler's processes end with it
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=_environment()
        )
        try:
            return _followed(process, errors)
        finally:
            _end(process)


def _followed(process: subprocess.Popen[str], errors: Any) -> Outcome:
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    busy: Mapping[str, Any] = {"doing": "the start", "contender": None, "limit": None}
    while True:
        limit = busy["limit"] or LONGEST
        try:
            line = lines.get(timeout=limit)
        except queue.Empty:
            return Outcome(None, busy["contender"], f"not ready after {limit:g} s in {busy['doing']}")
        if line is None:
            return Outcome(
                None, busy["contender"], f"the process ended in {busy['doing']}: {_last_words(process, errors)}"
            )
        said = json.loads(line)
        if "row" in said:
            return Outcome(said["row"])
        busy = said


def _last_words(process: subprocess.Popen[str], errors: Any) -> str:
    code = process.wait()
    errors.seek(0)
    last = (errors.read().strip().splitlines() or [""])[-1]
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"{how}, {last[:120]}" if last else how


def _end(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)  # the package, where it is not installed
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}
