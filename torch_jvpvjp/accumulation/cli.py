"""The command `plan`: sizes and costs in, a plan out."""

from __future__ import annotations

import argparse
import json
import sys

from .chain import Chain
from .cost import OBJECTIVES
from .plan import Plan
from .planners import STRATEGIES


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command `plan` to a parser."""
    sizes = {"type": _integers, "metavar": "N,N,..."}
    parser.add_argument("--dims", required=True, **sizes, help="sizes d_0,..,d_q; factor i maps R^d_i to R^d_i+1")
    parser.add_argument(
        "--edges", **sizes, help="fma of one JVP or VJP and tape of each factor; without: Jacobians given"
    )
    parser.add_argument("--jvp-cost", **sizes, help="fma of one JVP of each factor, in place of --edges")
    parser.add_argument("--vjp-cost", **sizes, help="fma of one VJP of each factor, in place of --edges")
    parser.add_argument("--tape", **sizes, help="entries that one VJP of each factor holds, in place of --edges")
    parser.add_argument("--objective", default="fma", help=f"what to minimise: {', '.join(OBJECTIVES)} (default fma)")
    parser.add_argument(
        "--strategy", default="dynamic_programming", help=f"{', '.join(STRATEGIES)} (default dynamic_programming)"
    )
    parser.add_argument("--tape-limit", type=int, metavar="N", help="most entries that one adjoint sweep may hold")
    parser.add_argument("--no-matrix-free", action="store_true", help="form every factor's Jacobian and multiply")
    parser.add_argument("--plot", metavar="PATH", help="draw the bracket tree into an image file")
    parser.add_argument("--json", action="store_true", help="print cost, peak_entries, bracketing and steps as JSON")


def run_plan(args: argparse.Namespace) -> int:
    """Run the command `plan`.

    Args:
        args: What a parser with `add_plan_arguments` parsed.

    Returns:
        The exit code: 0, or 2 after a message on stderr if the arguments are wrong.
    """
    try:
        chain = Chain.from_sizes(
            args.dims, edges=args.edges, jvp_cost=args.jvp_cost, vjp_cost=args.vjp_cost, tape=args.tape
        )
        plan = chain.plan(
            objective=args.objective,
            strategy=args.strategy,
            tape_limit=args.tape_limit,
            matrix_free=not args.no_matrix_free,
        )
        if args.plot is not None:
            plan.plot(args.plot)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"plan: error: {str(error).removeprefix('plan: ')}", file=sys.stderr)
        return 2
    print(json.dumps(plan_summary(plan), indent=1) if args.json else plan)
    return 0


def plan_summary(plan: Plan) -> dict[str, object]:
    """Return what `--json` prints: cost, peak_entries, bracketing and steps."""
    from .serialise import steps_to_data

    return {
        "cost": plan.cost,
        "peak_entries": plan.peak_entries,
        "bracketing": plan.bracketing(),
        "steps": steps_to_data(plan),
    }


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
