"""The figures of attention that have a target, and their table and plot."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from _attention_contenders import COMPILED, FUSED, MATH, OURS, PEER
from _attention_modes import FORWARD, JVP, MODES, VJP, VJP_OF_JVP
from _report import Row, number

UNMEASURED = "not measured"
LONG = 4096


def key_figures(rows: Sequence[Row], device: torch.device) -> Row:
    """What has a target.

    Args:
        rows: All rows.
        device: Where they were measured.

    Returns:
        Figures, or "not measured" where no row shows them.
    """
    timed = {(*_case(r), r["contender"]): r for r in rows if "median_ms" in r}
    mine = [r for r in rows if r["contender"] == OURS]
    errors = [r["error_over_math"] for r in mine if "error_over_math" in r]
    figures: Row = {
        "our rows that are wrong or raise (target 0)": sum(bool(r["note"]) and not _left_out(r) for r in mine),
        "our largest error over MATH's in the same dtype (target <= 2)": _worst(errors, max),
    }
    if device.type == "cpu":
        ratios = {_named(r): q for r, q in _ratios(timed, MATH, tuple(MODES)) if r["shape"][2] >= 512}
        slow = {name: round(q, 2) for name, q in ratios.items() if q > 1}
        figures["our time over MATH's, largest, N >= 512 (target <= 1)"] = _worst(list(ratios.values()), max)
        figures["rows over 1 (target none)"] = slow
        return figures
    long = lambda r: r["shape"][2] >= LONG  # noqa: E731
    of = lambda other, mode, keep=long: [1 / q for r, q in _ratios(timed, other, (mode,)) if keep(r)]  # noqa: E731
    forward = {_case(r)[1:]: r["median_ms"] for r in mine if r["mode"] == FORWARD and "median_ms" in r}
    pushed = [r for r in mine if r["mode"] == JVP and "median_ms" in r]
    rates = [r["tflop_per_s"] for r in pushed if long(r) and r["shape"][3] == 128]
    bent = [r for r in mine if r["mode"] == VJP_OF_JVP and "median_ms" in r and r["shape"] == [2, 24, LONG, 128]]
    to_forward = [r["median_ms"] / forward[_case(r)[1:]] for r in pushed if _case(r)[1:] in forward]
    hosts = [r["host_us"] for r in mine if r["mode"] == FORWARD and r.get("host_us")]
    everywhere = lambda r: True  # noqa: E731
    exactly = lambda r: r["shape"][2] == LONG  # noqa: E731
    return figures | {
        f"forward: speed over {FUSED}, least (target >= 0.8)": _worst(of(FUSED, FORWARD, everywhere), min),
        f"backward: speed over {FUSED}, least (target >= 0.7)": _worst(of(FUSED, VJP, everywhere), min),
        "jvp: time over our forward, largest (target <= 3.2)": _worst(to_forward, max),
        "jvp: TFLOP/s at d = 128, N >= 4096, least (target >= 450)": _worst(rates, min),
        f"jvp: speed over {PEER}, least (target >= 4)": _worst(of(PEER, JVP, everywhere), min),
        f"jvp: speed over {COMPILED} at N = 4096, least (target >= 8)": _worst(of(COMPILED, JVP, exactly), min),
        "vjp of jvp: TFLOP/s at (2, 24, 4096, 128), least (target >= 250)": _worst(
            [r["tflop_per_s"] for r in bent], min
        ),
        f"vjp of jvp: speed over {MATH}, least (target >= 4)": _worst(of(MATH, VJP_OF_JVP, everywhere), min),
        "forward: host µs, least (target < 60)": _worst(hosts, min),
    }


def _case(row: Row) -> tuple[object, ...]:
    return row["mode"], tuple(row["shape"]), row["hiding"], row["dtype"]


def _named(row: Row) -> str:
    return f"{row['mode']} N={row['shape'][2]} {row['hiding']}"


def _left_out(row: Row) -> bool:
    return row["note"].startswith("not ")


def _ratios(timed: dict[tuple[object, ...], Row], other: str, modes: Sequence[str]) -> Iterator[tuple[Row, float]]:
    """Our rows of some modes with our time over another contender's."""
    for key, row in timed.items():
        if row["contender"] == OURS and row["mode"] in modes and (*key[:-1], other) in timed:
            yield row, row["median_ms"] / timed[*key[:-1], other]["median_ms"]


def _worst(values: Sequence[float], choose: Callable[[Sequence[float]], float]) -> object:
    return round(choose(values), 3) if values else UNMEASURED


def markdown(rows: Sequence[Row]) -> str:
    """One line for each case: our time and rate, and how many times as fast as the others we are.

    Args:
        rows: All rows.

    Returns:
        A Markdown table.
    """
    others = [c for c in (FUSED, MATH, COMPILED, PEER) if any(r["contender"] == c for r in rows)]
    cases: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(_case(row), {})[row["contender"]] = row
    lines = [
        "How many times as fast as each other attention; the worst error over MATH's.",
        "",
        "| B, H, N, d | hidden | mode | ms | TFLOP/s | " + " | ".join(others) + " | error / MATH's |",
        "|" + " --- |" * (6 + len(others)),
    ]
    for found in cases.values():
        mine = found.get(OURS)
        if mine is None:
            continue
        faster = [
            f"{number(found[c]['median_ms'] / mine['median_ms'])}x"
            if c in found and "median_ms" in found[c] and "median_ms" in mine
            else ""
            for c in others
        ]
        shown = (mine.get("median_ms"), mine.get("tflop_per_s"), mine.get("error_over_math"))
        ms, rate, error = (number(value) for value in shown)
        shape = ", ".join(map(str, mine["shape"]))
        cells = [shape, mine["hiding"], mine["mode"], ms or mine["note"], rate, *faster, error]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], plt: Any) -> Any:
    """Times by shape, one panel for each mode, without what hides keys.

    Args:
        rows: All rows.
        plt: ``matplotlib.pyplot``.

    Returns:
        The figure.
    """
    timed = [r for r in rows if "median_ms" in r and r["hiding"] == "none"]
    shapes = list(dict.fromkeys(tuple(r["shape"]) for r in timed))
    names = list(dict.fromkeys(r["contender"] for r in timed))
    figure, axes = plt.subplots(1, len(MODES), figsize=(3.4 * len(MODES), 4.2), squeeze=False)
    for axis, mode in zip(axes[0], MODES, strict=True):
        for place, name in enumerate(names):
            found = {tuple(r["shape"]): r for r in timed if r["mode"] == mode and r["contender"] == name}
            at = [i + (place - (len(names) - 1) / 2) * 0.8 / len(names) for i, s in enumerate(shapes) if s in found]
            heights = [found[s]["median_ms"] for s in shapes if s in found]
            axis.bar(at, heights, 0.8 / len(names), color=f"C{place}")
        axis.set_yscale("log")
        axis.set_xticks(range(len(shapes)), ["\n".join(map(str, s)) for s in shapes], fontsize=7)
        axis.set(title=mode)
    axes[0][0].set_ylabel("ms")
    axes[0][0].set_xlabel("B, H, N, d", fontsize=8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=f"C{place}") for place in range(len(names))]
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8, bbox_to_anchor=(0.5, 0.98))
    figure.tight_layout()
    return figure
