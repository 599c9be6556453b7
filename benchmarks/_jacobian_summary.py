"""What the rows of the Jacobian benchmark say: the table, the targets, the plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from _jacobian_measure import FIRST_CALL, FLOOR
from _jacobian_ours import AGAIN, COMPILED, ONE_SHOT, OURS, REUSED
from _report import Column, Row, number

PEERS = ("peer", "compiled peer")
JAX_LEAST_MS = 10.0  # JAX is compared on workloads where it, or we, take longer


def fastest(row: Row, kinds: Sequence[str]) -> tuple[str, float] | None:
    """The fastest contender of some kinds, by its median.

    Args:
        row: Of a workload.
        kinds: The kinds of contender.

    Returns:
        Its name and milliseconds, or None.
    """
    timed = {n: c["median_ms"] for n, c in row["contenders"].items() if c["kind"] in kinds and "median_ms" in c}
    return min(timed.items(), key=lambda item: item[1]) if timed else None


def milliseconds(row: Row, name: str) -> float | None:
    """The median of one contender, None where it was not timed."""
    return row["contenders"].get(name, {}).get("median_ms")


def ratio(row: Row, name: str, kinds: Sequence[str]) -> float | None:
    """Time of a contender over that of the fastest of some kinds, None where one is missing."""
    time, other = milliseconds(row, name), fastest(row, kinds)
    return None if time is None or other is None else time / other[1]


def _cell(row: Row, name: str) -> str:
    contender = row["contenders"].get(name)
    if contender is None:
        return "-"
    if "median_ms" not in contender:
        return contender["note"].split(":")[0]
    return number(contender["median_ms"])


def _peer_name(row: Row) -> str:
    best = fastest(row, PEERS)
    if best is None:
        return "none"
    chunk = row["contenders"][best[0]].get("chunk")
    return best[0] + (f", chunk {chunk}" if chunk else "")


def _fastest_ms(row: Row, kinds: Sequence[str]) -> str:
    best = fastest(row, kinds)
    return "-" if best is None else number(best[1])


def _prediction(row: Row) -> str:
    plan = row["contenders"].get(REUSED, {})
    if "predicted_cost" not in plan:
        return "-"
    cost, objective = float(plan["predicted_cost"]), plan["objective"]
    return f"{number(1e3 * cost)} ms" if objective == "time" else f"{number(cost, 4)} {objective}"  # time is in seconds


def _planning(row: Row) -> str:
    seconds = row["contenders"].get(REUSED, {}).get("planning_seconds")
    return "-" if seconds is None else number(1e3 * seconds)


def _compiling(row: Row) -> str:
    seconds = row["contenders"].get(COMPILED, {}).get("compiling_seconds")
    return "-" if seconds is None else number(seconds)


COLUMNS: tuple[Column, ...] = (
    ("workload", lambda r: r["workload"]),
    ("m x n", lambda r: f"{r['m']} x {r['n']}" if "m" in r else ""),
    ("best PyTorch peer", _peer_name),
    ("ms", lambda r: _fastest_ms(r, PEERS)),
    ("eager ms", lambda r: _fastest_ms(r, ["peer"])),
    ("first call", lambda r: _fastest_ms(r, [FIRST_CALL])),
    ("JAX ms", lambda r: _fastest_ms(r, ["jax"])),
    ("floor ms", lambda r: _fastest_ms(r, [FLOOR])),
    (REUSED, lambda r: _cell(r, REUSED)),
    ("/ peer", lambda r: number(ratio(r, REUSED, PEERS))),
    ("/ floor", lambda r: number(ratio(r, REUSED, [FLOOR]))),
    (COMPILED, lambda r: _cell(r, COMPILED)),
    ("compiling s", _compiling),
    (ONE_SHOT, lambda r: _cell(r, ONE_SHOT)),
    (AGAIN, lambda r: _cell(r, AGAIN)),
    ("predicted", _prediction),
    ("planning ms", _planning),
)


def failures(rows: Iterable[Row]) -> list[str]:
    """What raised, was wrong or was left out, one line each; peers that were not compiled on purpose in one line.

    Args:
        rows: All rows.

    Returns:
        The lines.
    """
    lines: list[str] = []
    for row in rows:
        if row.get("note"):
            lines.append(f"{row['workload']}: {row['note']}")
        skipped = []
        for name, contender in row["contenders"].items():
            if contender["note"].startswith("not compiled"):
                skipped.append(f"{name} ({contender['note'].removeprefix('not compiled: ')})")
            elif contender["note"]:
                lines.append(f"{row['workload']}: {name}: {contender['note']}")
        if skipped:
            lines.append(f"{row['workload']}: not compiled: {'; '.join(skipped)}")
    return lines


def key_figures(rows: Sequence[Row]) -> Row:
    """Every target, the figure measured for it, and whether it passes.

    Args:
        rows: All rows of the main table.

    Returns:
        Figures by the sentence that states the target.
    """
    floors, jax = [r for r in rows if r.get("plain_chain")], [r for r in rows if _long_for_jax(r)]
    chains = [r for r in rows if r.get("bottleneck")]
    figures: Row = {
        "one-shot / best PyTorch peer, worst (target <= 1.3)": _worst(rows, ONE_SHOT, PEERS, 1.3),
        "one-shot / best eager PyTorch peer, worst": _worst(rows, ONE_SHOT, ["peer"], 1.3),
        "one-shot / first call of the best eager PyTorch peer, worst": _worst(rows, ONE_SHOT, [FIRST_CALL], 1.3),
        "one-shot again / best PyTorch peer, worst": _worst(rows, AGAIN, PEERS, 1.1),
    }
    for name in (REUSED, COMPILED):
        figures |= {
            f"{name} / best PyTorch peer, worst (target <= 1.1)": _worst(rows, name, PEERS, 1.1),
            f"{name} / best eager PyTorch peer, worst": _worst(rows, name, ["peer"], 1.1),
            f"best PyTorch peer / {name}, geometric mean over chains with a bottleneck (target >= 5)": _mean(
                chains, name, PEERS, 5.0
            ),
            f"best PyTorch peer / {name}, geometric mean over all workloads": _mean(rows, name, PEERS, None),
            f"{name} / floor, worst of Linear and elementwise chains (target <= 1.5)": _worst(
                floors, name, [FLOOR], 1.5
            ),
            f"{name} / JAX, worst of workloads over {JAX_LEAST_MS:g} ms (target <= 1)": _worst(jax, name, ["jax"], 1.0),
        }
    return figures


def failing(rows: Sequence[Row]) -> bool:
    """Whether a contender of ours is wrong or raises."""
    ours = [c for r in rows for c in r["contenders"].values() if c["kind"] == "ours"]
    return any("median_ms" not in c for c in ours)


def _long_for_jax(row: Row) -> bool:
    jax, ours = fastest(row, ["jax"]), milliseconds(row, REUSED)
    return jax is not None and max(jax[1], ours or 0.0) > JAX_LEAST_MS


def _worst(rows: Sequence[Row], name: str, kinds: Sequence[str], limit: float) -> str:
    """The largest ratio, where, and every workload over the limit; contenders that have no time are named."""
    found = {r["workload"]: ratio(r, name, kinds) for r in rows}
    timed = {workload: value for workload, value in found.items() if value is not None}
    if not timed:
        return "not measured"
    worst = max(timed, key=lambda w: timed[w])
    over = [f"{w} {number(v)}" for w, v in sorted(timed.items(), key=lambda item: -item[1]) if v > limit]
    missing = [r["workload"] for r in rows if found[r["workload"]] is None and fastest(r, kinds) is not None]
    text = f"{number(timed[worst])} on {worst}, {len(timed)} workloads: "
    if over:
        text += f"FAIL, {len(over)} over {limit:g}: {', '.join(over)}"
    else:
        text += "incomplete" if missing else "pass"
    return text + (f"; without a time: {', '.join(missing)}" if missing else "")


def _mean(rows: Sequence[Row], name: str, kinds: Sequence[str], least: float | None) -> str:
    """How many times as fast as the best, in the geometric mean; workloads without a time are counted out aloud."""
    speedups = [1 / r for r in (ratio(row, name, kinds) for row in rows) if r is not None]
    if not speedups:
        return "not measured"
    mean = math.exp(sum(map(math.log, speedups)) / len(speedups))
    text = f"{number(mean)} over {len(speedups)} of {len(rows)} workloads"
    if least is None:
        return text
    return f"{text}: {'FAIL' if mean < least else 'pass' if len(speedups) == len(rows) else 'incomplete'}"


def draw(rows: Sequence[Row], plt: Any) -> Any:
    """Time over that of the best PyTorch peer, by workload, on a logarithmic axis.

    Args:
        rows: All rows.
        plt: ``matplotlib.pyplot``.

    Returns:
        The figure.
    """
    rows = [row for row in rows if fastest(row, PEERS) is not None]
    marks: dict[str, tuple[str, Callable[[Row], float | None]]] = {
        **{name: (mark, lambda r, name=name: milliseconds(r, name)) for name, mark in zip(OURS, "oDsv", strict=True)},
        "floor": ("|", lambda r: milliseconds(r, FLOOR)),
        "JAX": ("x", lambda r: (fastest(r, ["jax"]) or (None, None))[1]),
    }
    figure, axis = plt.subplots(figsize=(10, 1.8 + 0.32 * len(rows)))
    for name, (mark, time) in marks.items():
        points = [
            (value / best[1], place)
            for place, row in enumerate(rows)
            if (best := fastest(row, PEERS)) is not None and (value := time(row)) is not None
        ]
        if points:
            axis.plot(*zip(*points, strict=True), mark, label=name, markersize=7, alpha=0.8)
    axis.axvline(1.0, color="gray", linewidth=1)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [row["workload"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="time over that of the best PyTorch peer", title="Jacobians")
    axis.legend(fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    return figure
