"""The command ``check MODULE:OP``: check_op on an op of yours."""

import argparse
import importlib
import itertools
import os
import sys
from typing import Any

import torch

from ..registration import DifferentiableOp
from ..testing import CheckFailure, Sample, check_op


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command ``check`` to a parser."""
    parser.add_argument("op", metavar="MODULE:OP", help="where the op is, e.g. mylib.ops:soft_clip")
    parser.add_argument(
        "--samples", metavar="MODULE:NAME", help="a list of argument tuples (default: made from the schema)"
    )
    parser.add_argument("--reference", metavar="MODULE:NAME", help="plain PyTorch, if OP is a function around an op")
    parser.add_argument("--device", default="cpu", help="where the tensors go (default cpu)")
    parser.add_argument("--backends", default="aot_eager", help="backends of torch.compile, with commas; '' for none")


def run_check(args: argparse.Namespace) -> int:
    """Run the command ``check``.

    Args:
        args: What a parser with ``add_check_arguments`` parsed.

    Returns:
        0 if every property holds, 1 if one does not, 2 if the arguments are wrong.
    """
    sys.path.insert(0, os.getcwd())
    try:
        op = load(args.op)
        reference = None if args.reference is None else load(args.reference)
        samples = samples_for(op) if args.samples is None else load(args.samples)
        backends = tuple(b for b in args.backends.split(",") if b)
        report = check_op(op, samples, reference=reference, device=args.device, backends=backends)
    except CheckFailure as failure:
        print(failure.report)
        return 1
    except (ValueError, TypeError, ImportError) as error:
        print(f"check: error: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0


def load(spec: str) -> Any:
    """What ``MODULE:NAME`` names.

    Args:
        spec: A module and a name in it, with a colon between.

    Returns:
        The object.

    Raises:
        ValueError: If the text has no colon, or the module no such name.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not name:
        raise ValueError(f"name it as MODULE:NAME, e.g. mylib.ops:soft_clip, got {spec!r}")
    found: Any = importlib.import_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"{module_name} has no {name!r}; it has {[n for n in vars(found) if not n.startswith('_')]}"
            )
        found = getattr(found, part)
    return found


def samples_for(op: Any) -> list[Sample]:
    """Samples from an op's schema: every tensor of one shape, two shapes, each optional tensor present and absent.

    Args:
        op: A DifferentiableOp whose options all have defaults.

    Returns:
        The samples.

    Raises:
        ValueError: If that does not make arguments for the op.
    """
    if not isinstance(op, DifferentiableOp):
        raise ValueError(
            "samples can be made for a DifferentiableOp only; give --samples MODULE:NAME (and --reference)"
        )
    arguments, defaults = op.signature.arguments, op.signature.defaults
    required = len(arguments) - len(defaults)
    options = [a.name for a in arguments[:required] if not a.is_tensor]
    if options:
        raise ValueError(f"{op.qualname} has options without default {options}; give --samples MODULE:NAME")
    generator = torch.Generator().manual_seed(0)
    samples: list[Sample] = []
    kinds = [(True, False) if a.kind == "Tensor?" else (True,) for a in arguments]
    for present, shape in itertools.product(itertools.product(*kinds), ((3, 4), (2, 4), (0, 4))):
        values = []
        for position, (argument, here) in enumerate(zip(arguments, present, strict=True)):
            if argument.is_tensor:
                values.append(torch.randn(shape, generator=generator, dtype=torch.float64) if here else None)
            else:
                values.append(defaults[position - required])
        samples.append(Sample(tuple(values)))
    return samples
