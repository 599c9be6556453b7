"""The command line: ``python -m torch_jvpvjp info | plan | calibrate | check | demo``."""

import argparse
import sys
from collections.abc import Sequence

from ._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after ``python -m torch_jvpvjp``; those of the process by default.

    Returns:
        The exit code: 0 on success, 1 if a check failed, 2 if the arguments are wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m torch_jvpvjp", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="versions, devices, and which op has a kernel for what")
    info.add_argument("--markdown", action="store_true", help="print the capability table alone, as in the README")
    # The rest is imported where it is used: `info` must work where an optional dependency is missing.
    from .accumulation.cli import add_plan_arguments

    add_plan_arguments(commands.add_parser("plan", help="plan a Jacobian chain from sizes and costs"))
    from .command_line.calibrate import add_calibrate_arguments

    add_calibrate_arguments(commands.add_parser("calibrate", help='measure the device for plans by objective="time"'))
    from .command_line.check import add_check_arguments

    add_check_arguments(commands.add_parser("check", help="run check_op on an op of yours"))
    demo = commands.add_parser("demo", help="train, differentiate and accumulate on handwritten digits")
    demo.add_argument(
        "--output", default="demo_output", metavar="FOLDER", help="where pictures go (default demo_output)"
    )
    demo.add_argument("--quick", action="store_true", help="a tenth of the training, to see that it runs")
    given = parser.parse_args(arguments)
    if given.command == "info":
        from .command_line.info import run_info

        return run_info(given)
    if given.command == "plan":
        from .accumulation.cli import run_plan

        return run_plan(given)
    if given.command == "calibrate":
        from .command_line.calibrate import run_calibrate

        return run_calibrate(given)
    if given.command == "check":
        from .command_line.check import run_check

        return run_check(given)
    from .demo import run_demo

    return run_demo(given.output, quick=given.quick)


if __name__ == "__main__":
    sys.exit(main())
