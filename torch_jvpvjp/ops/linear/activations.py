"""The activations of a linear layer: entries of the pointwise table with their options fixed at PyTorch's defaults."""

from typing import Any, NamedTuple

from ..pointwise.table import GELU, MISH, RELU, SIGMOID, SILU, SOFTPLUS, TANH, Pointwise


class Activation(NamedTuple):
    """An entry and the options it takes."""

    function: Pointwise
    options: tuple[Any, ...] = ()


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(RELU),
    "gelu": Activation(GELU, ("none",)),
    "gelu_tanh": Activation(GELU, ("tanh",)),
    "silu": Activation(SILU),
    "tanh": Activation(TANH),
    "sigmoid": Activation(SIGMOID),
    "softplus": Activation(SOFTPLUS, (1.0, 20.0)),
    "mish": Activation(MISH),
}
IDENTITY = "identity"  # in the dispatcher, for None
