"""The third part of the demo: the Jacobian of an autoencoder by plan, against jacrev and jacfwd, and what it shows."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

from ..accumulation import Plan, plan_jacobian
from .training import Digits, wide_console

REPEATS = 60


def accumulate(net: nn.Sequential, digits: Digits, folder: Path) -> bool:
    """Accumulate d(decoded digit)/d(digit) in three ways, print one table, save the plan and the leading directions.

    Args:
        net: The trained autoencoder, float64.
        digits: The data.
        folder: Where the pictures go.

    Returns:
        Whether the three Jacobians are equal to 1e-10.
    """
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    x = digits.images[3].double()
    plan = plan_jacobian(net, x)
    print(plan)
    print()
    ways: dict[str, Callable[[], Tensor]] = {
        "by plan": lambda: plan(x),
        "torch.func.jacrev": lambda: torch.func.jacrev(net)(x),  # pyright: ignore[reportReturnType]
        "torch.func.jacfwd": lambda: torch.func.jacfwd(net)(x),  # pyright: ignore[reportReturnType]
    }
    predicted = {"by plan": plan.fma, "torch.func.jacrev": plan.adjoint_fma, "torch.func.jacfwd": plan.tangent_fma}
    reference = ways["torch.func.jacrev"]()
    errors = {name: float((way() - reference).abs().max() / reference.abs().max()) for name, way in ways.items()}
    times = _interleaved_medians(ways)
    table = Table(title=f"one 64 × 64 Jacobian, medians of {REPEATS} interleaved runs", title_justify="left")
    for heading in (
        "",
        "max error against jacrev",
        "time (ms)",
        "times the plan's",
        "multiply-adds",
        "times the plan's ",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in ways:
        cost = predicted[name]
        table.add_row(
            name,
            f"{errors[name]:.1e}",
            f"{1e3 * times[name]:.2f}",
            f"{times[name] / times['by plan']:.2f}",
            "—" if cost is None else f"{cost:,}",
            "—" if cost is None else f"{cost / plan.fma:.2f}",
        )
    wide_console().print(table)
    drawing, directions = folder / "plan.png", folder / "directions.png"
    plan.plot(drawing)
    _draw_directions(plan, net, x, directions)
    print(f"\nsaved {drawing} (the plan) and {directions} (the Jacobian's leading directions)")
    return max(errors.values()) < 1e-10


def _interleaved_medians(ways: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Seconds each way takes, in turn, so that what else the machine does hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _draw_directions(plan: Plan, net: nn.Module, x: Tensor, path: Path) -> None:
    """The digit, its reconstruction, and the changes that the autoencoder passes on most: J = U Σ Vᵀ."""
    from matplotlib.figure import Figure

    left, size, right = torch.linalg.svd(plan(x))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(2, 7)
    pictures = [[("digit", x), *((f"direction {i + 1} in", right[i]) for i in range(6))]]
    with torch.no_grad():
        decoded = net(x)
    pictures.append([("decoded", decoded), *((f"out, gain {size[i]:.2f}", left[:, i]) for i in range(6))])
    for row, named in zip(axes, pictures, strict=True):
        for axis, (name, values) in zip(row, named, strict=True):
            signed = "direction" in name or "gain" in name
            limit = float(values.abs().max())
            axis.imshow(
                values.reshape(8, 8).numpy(),
                cmap="RdBu_r" if signed else "gray_r",
                vmin=-limit if signed else 0,
                vmax=limit if signed else 1,
            )
            axis.set_title(name, fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
    figure.suptitle("What the autoencoder's Jacobian passes on: its bottleneck of 8 lets 8 directions through")
    figure.savefig(path, dpi=120)
