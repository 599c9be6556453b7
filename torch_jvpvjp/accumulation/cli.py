"""The command `plan`: chains by their sizes, costs and structures in, plans out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .chain import Chain
from .cost import OBJECTIVES
from .plan import Plan
from .planners import STRATEGIES

_COSTS = ("edges", "jvp_cost", "vjp_cost", "tape")
KEYS = ("dims", *_COSTS, "factors")
_REFUSALS = (ValueError, TypeError, NotImplementedError, OverflowError)

DESCRIPTION = """\
FILE holds one chain, or a list of chains:
  {"dims": [d_0, .., d_q], "edges": [..], "factors": [{"kind": "banded", "kl": 1, "ku": 0}, ..]}
edges (optional) are the fma of one JVP or VJP of each factor and the size of its tape, jvp_cost, vjp_cost and tape each
of them by itself; without them the Jacobians are given. factors (optional) are the structures, of kind dense, diag,
banded, block_diag, lower_tri, pool, gather or any other that the library knows, with the sizes m, n, kl, ku, b, idx
that the kind has.
The exit code is 0; 1 if a chain of FILE has no plan; 2 if the arguments or FILE are wrong."""


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command `plan` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    sizes = {"type": _integers, "metavar": "N,N,..."}
    parser.add_argument("file", nargs="?", metavar="FILE", help="JSON file with one chain or a list of them")
    parser.add_argument("--dims", **sizes, help="in place of FILE: sizes d_0,..,d_q; factor i maps R^d_i to R^d_i+1")
    parser.add_argument(
        "--edges", **sizes, help="fma of one JVP or VJP and tape of each factor; without: Jacobians given"
    )
    parser.add_argument("--jvp-cost", **sizes, help="fma of one JVP of each factor, in place of --edges")
    parser.add_argument("--vjp-cost", **sizes, help="fma of one VJP of each factor, in place of --edges")
    parser.add_argument("--tape", **sizes, help="entries that one VJP of each factor holds, in place of --edges")
    names = ", ".join((*OBJECTIVES, "time"))
    parser.add_argument("--objective", default="fma", help=f"what to minimise: {names} (default fma)")
    parser.add_argument(
        "--strategy", default="dynamic_programming", help=f"{', '.join(STRATEGIES)} (default dynamic_programming)"
    )
    parser.add_argument("--tape-limit", type=int, metavar="N", help="most entries that one adjoint sweep may hold")
    parser.add_argument("--peak-entries", type=int, metavar="N", help="most entries of computed blocks held at a step")
    parser.add_argument("--no-matrix-free", action="store_true", help="form every factor's Jacobian and multiply")
    parser.add_argument("--threads", type=int, metavar="P", help="schedule the steps on P workers")
    parser.add_argument("--plot", metavar="PATH", help="draw the bracket tree of one chain into an image file")
    parser.add_argument("--json", action="store_true", help="print cost, peak_entries, bracketing and steps as JSON")


def run_plan(args: argparse.Namespace) -> int:
    """Run the command `plan`.

    Args:
        args: What a parser with `add_plan_arguments` parsed.

    Returns:
        The exit code: 0; 1 if a chain of FILE has no plan; 2 after a message on stderr if the arguments are wrong.
    """
    try:
        if args.file is None:
            return _print_plan(_plan_arguments(args), args)
        return _run_file(args)
    except (*_REFUSALS, OSError, ImportError) as error:
        message = _message(error)
        print(f"plan: error: {message}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": message}))
        return 2


def plan_summary(plan: Plan) -> dict[str, object]:
    """Return what `--json` prints: cost, peak_entries, bracketing and steps; with threads makespan and timetable."""
    from .serialise import steps_to_data

    summary: dict[str, object] = {
        "cost": plan.cost,
        "peak_entries": plan.peak_entries,
        "bracketing": plan.bracketing(),
        "steps": steps_to_data(plan),
    }
    if plan.timetable is not None:
        summary |= {"makespan": plan.makespan, "timetable": [slot._asdict() for slot in plan.timetable]}
    return summary


def _plan_arguments(args: argparse.Namespace) -> Plan:
    """The plan of the chain that the arguments describe.

    Args:
        args: With dims.

    Returns:
        The plan.

    Raises:
        ValueError: If there is neither FILE nor dims.
    """
    if args.dims is None:
        raise ValueError("give a FILE with chains, or --dims.")
    return _plan(Chain.from_sizes(args.dims, **{name: getattr(args, name) for name in _COSTS}), args)


def _plan(chain: Chain, args: argparse.Namespace) -> Plan:
    return chain.plan(
        objective=args.objective,
        strategy=args.strategy,
        tape_limit=args.tape_limit,
        peak_entries=args.peak_entries,
        matrix_free=not args.no_matrix_free,
        threads=args.threads,
    )


def _print_plan(plan: Plan, args: argparse.Namespace) -> int:
    if args.plot is not None:
        plan.plot(args.plot)
    print(json.dumps(plan_summary(plan), indent=1) if args.json else plan)
    return 0


def _run_file(args: argparse.Namespace) -> int:
    """Plan the chains of a file, all that can be.

    Args:
        args: With the name of the file.

    Returns:
        The exit code.

    Raises:
        ValueError: If an argument is wrong, or FILE takes its place, or the file is not JSON, or --plot would draw
            several chains.
    """
    beside = [name for name in ("dims", *_COSTS) if getattr(args, name) is not None]
    if beside:
        raise ValueError(f"FILE must not be joined by --{beside[0].replace('_', '-')}; say it in the file.")
    _plan(Chain.from_sizes([1, 1]), args)  # which nothing but a wrong argument can keep from being planned
    try:
        data = json.loads(Path(args.file).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{args.file} must hold JSON, got an error at line {error.lineno}: {error.msg}.") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{args.file} must hold JSON, got what is none: {error}.") from error
    several = isinstance(data, list)
    if args.plot is not None and several and len(data) != 1:
        raise ValueError(f"--plot draws one chain, got {len(data)} in {args.file}.")
    found = [_chain_plan(chain, args) for chain in (data if several else [data])]
    if args.json:
        summaries = [plan_summary(plan) if isinstance(plan, Plan) else {"error": plan} for plan in found]
        print(json.dumps(summaries if several else summaries[0], indent=1))
    for place, plan in enumerate(found, 1):
        name = f"chain {place}: " if several else ""
        if isinstance(plan, str):
            print(f"plan: error: {name}{plan}", file=sys.stderr)
        elif not args.json:
            print(f"{name}{plan}" + ("\n" if place < len(found) else ""))
    return int(any(isinstance(plan, str) for plan in found))


def _chain_plan(data: object, args: argparse.Namespace) -> Plan | str:
    """Return the plan of a chain of a file, or why there is none."""
    try:
        plan = _plan(chain_from_data(data), args)
    except _REFUSALS as error:
        return _message(error)
    if args.plot is not None:
        plan.plot(args.plot)
    return plan


def chain_from_data(data: object) -> Chain:
    """The chain that an object of a file describes.

    Args:
        data: What JSON made of it.

    Returns:
        The chain.

    Raises:
        ValueError: If it is no object, or has unknown keys or no dims.
        TypeError: If dims, edges or factors are not lists.
    """
    if not isinstance(data, dict):
        raise ValueError(f"a chain must be an object with the keys {', '.join(KEYS)}, got {type(data).__name__}.")
    chain: dict[str, Any] = data
    unknown = [key for key in chain if key not in KEYS]
    if unknown or "dims" not in chain:
        wrong = f"the unknown key {unknown[0]!r}" if unknown else "no dims"
        raise ValueError(f"a chain must have the key dims and may have {', '.join(KEYS[1:])}, got {wrong}.")
    for key, value in chain.items():
        if not isinstance(value, list) and (key == "dims" or value is not None):
            raise TypeError(f"{key} of a chain must be a list, got {type(value).__name__}.")
    costs = {name: chain.get(name) for name in _COSTS}
    return Chain.from_sizes(chain["dims"], **costs, structures=chain.get("factors"))


def _message(error: BaseException) -> str:
    return str(error).removeprefix("plan: ")


def _integers(text: str) -> list[int]:
    """The integers in "784,512,32".

    Args:
        text: Integers with commas between.

    Returns:
        The integers.

    Raises:
        argparse.ArgumentTypeError: If one is not an integer.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be integers with commas between, as in 784,512,32, got {text!r}"
        ) from None
