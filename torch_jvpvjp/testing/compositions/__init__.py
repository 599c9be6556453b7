"""Every way of composing derivatives that an op must survive.

A composition takes a function f of tensors with a tuple of tensors out, a point and directions, and returns tensors.
The checks run it once on the op and once on its reference, whose derivatives PyTorch takes itself.
"""

from .orders import FIRST_ORDER, SECOND_ORDER, THIRD_ORDER
from .point import Composition, Point, TensorFunction, Tensors, along, loss_of
from .vmapped import VMAP

EAGER: dict[str, Composition] = {**FIRST_ORDER, **SECOND_ORDER, **THIRD_ORDER, **VMAP}

# What one compiles is a transform of a function. A backward pass runs outside of the compiled region (its row compiles
# the function alone), and PyTorch has no double backward through a compiled function: compile(grad∘grad) is that.
OUTSIDE_OF_COMPILE = (
    "backward",
    "backward, one input",
    "backward, one output",
    "backward through a dual",
    "backward, tangent stopped",
)
NOT_COMPILED = ("double backward", "backward, batched cotangents")

__all__ = [
    "EAGER",
    "FIRST_ORDER",
    "NOT_COMPILED",
    "OUTSIDE_OF_COMPILE",
    "SECOND_ORDER",
    "THIRD_ORDER",
    "VMAP",
    "Composition",
    "Point",
    "TensorFunction",
    "Tensors",
    "along",
    "loss_of",
]
