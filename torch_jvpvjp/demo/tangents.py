"""The second part of the demo: whose tangent is right."""

import copy

import torch
from rich.table import Table
from torch import Tensor, nn

from ..ops import rms_norm
from .training import Digits, wide_console


@torch.library.custom_op("torch_jvpvjp_demo::rms_norm", mutates_args=())
def custom_rms_norm(x: Tensor) -> Tensor:
    """The kernel of our op in a ``torch.library.custom_op``, as PyTorch's tutorial registers kernels."""
    return rms_norm(x, (x.shape[-1],), eps=1e-6)


def compare_tangents(net: nn.Module, digits: Digits) -> bool:
    """Compare JVPs with a central difference: of the network, of our op, and of the same kernel in a custom_op.

    Args:
        net: The trained network.
        digits: The data; the direction leads from one digit to another.

    Returns:
        Whether ours is right to 1e-6.
    """
    net = copy.deepcopy(net).double()
    x, v = digits.images[0].double(), (digits.images[1] - digits.images[0]).double()
    functions = {
        "the trained network, with our rms_norm": net,
        "our rms_norm alone": lambda t: rms_norm(t, (64,), eps=1e-6),
        "the same kernel in a torch.library.custom_op": custom_rms_norm,
    }
    table = Table(
        title="J·v from digit 0 towards digit 1, against a central difference in float64", title_justify="left"
    )
    for heading in ("function", "‖J·v‖ by func.jvp", "‖J·v‖ by difference", "relative error"):
        table.add_column(heading, justify="left" if heading == "function" else "right")
    errors = []
    for name, f in functions.items():
        h = 1e-5
        with torch.no_grad():
            difference = (f(x + h * v) - f(x - h * v)) / (2 * h)
        tangent = torch.func.jvp(f, (x,), (v,))[1].detach()
        error = float((tangent - difference).norm() / difference.norm())
        errors.append(error)
        table.add_row(name, f"{tangent.norm():.6f}", f"{difference.norm():.6f}", f"{error:.1e}")
    wide_console().print(table)
    print()
    return errors[0] < 1e-6 and errors[1] < 1e-6
