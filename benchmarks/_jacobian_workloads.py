"""The workloads of the Jacobian benchmark: one row each."""

from __future__ import annotations

import torch
from _jacobian_case import Case
from _jacobian_chains import chain, ensemble, funnel, hourglass, tangent_kernel
from _jacobian_science import black_scholes, curve, explicit_ode, recurrence, robot_arm, roe_flux, rosenbrock
from _jacobian_vision import encoder, resnet, small_cnn

_DOUBLE = torch.float64


def _hourglass(depth: int, wide: int, narrow: int, activation: str = "tanh") -> Case:
    return Case(
        f"hourglass-{depth}",
        chain,
        {"widths": hourglass(depth, wide, narrow), "activation": activation},
        {"widths": hourglass(min(depth, 6), 8, 2), "activation": activation},
        bottleneck=True,
        plain_chain=True,
    )


def _funnel(depth: int, first: int, last: int) -> Case:
    small = (8, 2) if first > last else (2, 8)
    return Case(
        f"funnel-{depth}" if first > last else f"widening-{depth}",
        chain,
        {"widths": funnel(depth, first, last)},
        {"widths": funnel(min(depth, 6), *small)},
        plain_chain=True,
    )


def _encoder(pooled: str, layers: int, tokens: int, width: int, size: str = "") -> Case:
    fails = "a later call of one of them fails, and all that is differentiated after it in the process"
    return Case(
        f"encoder{size}-pooled-{pooled}",
        encoder,
        {"layers": layers, "tokens": tokens, "width": width, "heads": 4, "pooled": pooled},
        {"layers": 1, "tokens": 3, "width": 4, "heads": 2, "pooled": pooled},
        unfit_to_compile=fails if pooled == "input" else "",
    )


CASES: tuple[Case, ...] = (
    # chains with a bottleneck
    Case(
        "autoencoder",
        chain,
        {"widths": (784, 512, 32, 512, 784)},
        {"widths": (12, 8, 2, 8, 12)},
        bottleneck=True,
        plain_chain=True,
    ),
    Case(
        "autoencoder-deep",
        chain,
        {"widths": (1024, 256, 64, 16, 64, 256, 1024), "activation": "relu"},
        {"widths": (24, 16, 8, 6, 8, 16, 24), "activation": "relu"},
        bottleneck=True,
        plain_chain=True,
    ),
    Case(
        "autoencoder-skewed",
        chain,
        {"widths": (300, 400, 24, 64, 1200), "activation": "sigmoid"},
        {"widths": (8, 9, 2, 4, 14), "activation": "sigmoid"},
        bottleneck=True,
        plain_chain=True,
    ),
    _hourglass(4, 512, 16),
    _hourglass(12, 512, 16, "sigmoid"),
    _hourglass(40, 256, 8),
    # chains without
    _funnel(4, 512, 10),
    _funnel(12, 512, 10),
    _funnel(40, 256, 10),
    _funnel(12, 10, 512),
    # scalars, curves, and small functions of few numbers
    Case("scalar", rosenbrock, {"n": 4096}, {"n": 7}, _DOUBLE),
    Case("curve", curve, {"n": 4096}, {"n": 7}, _DOUBLE),
    Case("robot-arm", robot_arm, dtype=_DOUBLE),
    Case("black-scholes", black_scholes, {"batch": 256}, {"batch": 3}, _DOUBLE),
    Case("roe-flux", roe_flux, dtype=_DOUBLE),
    Case("roe-flux-256", roe_flux, {"batch": 256}, {"batch": 3}, _DOUBLE),
    # long loops
    Case("rnn-200", recurrence, {"steps": 200, "hidden": 32, "inputs": 8}, {"steps": 4, "hidden": 5, "inputs": 3}),
    Case("ode-200", explicit_ode, {"steps": 200, "n": 24}, {"steps": 4, "n": 5}),
    # networks
    Case("cnn", small_cnn, {"side": 16, "channels": 8}, {"side": 4, "channels": 2}),
    Case("resnet", resnet, {"side": 16, "widths": (16, 16, 32, 64)}, {"side": 4, "widths": (3, 3, 4)}),
    _encoder("input", 2, 16, 64),
    _encoder("output", 2, 16, 64),
    Case(
        "ensemble-256",
        ensemble,
        {"batch": 256, "members": 4, "n": 32, "hidden": 64, "m": 4},
        {"batch": 3, "members": 2, "n": 4, "hidden": 5, "m": 2},
        plain_chain=True,
    ),
    Case(
        "tangent-kernel", tangent_kernel, {"batch": 16, "widths": (32, 64, 64, 10)}, {"batch": 3, "widths": (4, 5, 2)}
    ),
    # the same at sizes that take tens of milliseconds
    Case(
        "rnn-200-wide",
        recurrence,
        {"steps": 200, "hidden": 256, "inputs": 32},
        {"steps": 4, "hidden": 5, "inputs": 3},
    ),
    Case("ode-200-wide", explicit_ode, {"steps": 200, "n": 256}, {"steps": 4, "n": 5}),
    Case("cnn-large", small_cnn, {"side": 64, "channels": 32}, {"side": 4, "channels": 2}),
    Case("resnet-large", resnet, {"side": 32, "widths": (24, 24, 48, 96)}, {"side": 4, "widths": (3, 3, 4)}),
    _encoder("input", 3, 24, 96, "-large"),
    _encoder("output", 3, 24, 96, "-large"),
)

QUICK = ("autoencoder", "hourglass-12", "funnel-4", "robot-arm", "roe-flux-256", "ode-200", "tangent-kernel")


def select(only: list[str] | None, quick: bool = False) -> list[Case]:
    """The workloads that were asked for.

    Args:
        only: Their ids, or None for all.
        quick: Whether a few will do where none is named.

    Returns:
        The cases, in the order of the table.

    Raises:
        ValueError: If an id is unknown.
    """
    known = [case.id for case in CASES]
    wanted = only or (list(QUICK) if quick else known)
    for name in wanted:
        if name not in known:
            raise ValueError(f"--only must name workloads of {', '.join(known)}; got {name}.")
    return [case for case in CASES if case.id in wanted]
