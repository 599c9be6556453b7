"""Modules of PyTorch made ours in place, and back."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from torch import nn

from . import modules
from .functions import chosen

M = TypeVar("M", bound=nn.Module)

# By PyTorch's class: ours, and the op that it is of; those of several ops have none.
_CLASSES: dict[type[nn.Module], tuple[type[nn.Module], str | None]] = {
    nn.LayerNorm: (modules.LayerNorm, "layer_norm"),
    nn.RMSNorm: (modules.RMSNorm, "rms_norm"),
    nn.GroupNorm: (modules.GroupNorm, "group_norm"),
    nn.Linear: (modules.Linear, "linear"),
    nn.GELU: (modules.GELU, "gelu"),
    nn.SiLU: (modules.SiLU, "silu"),
    nn.Mish: (modules.Mish, "mish"),
    nn.ReLU: (modules.ReLU, "relu"),
    nn.Softplus: (modules.Softplus, "softplus"),
    nn.Sigmoid: (modules.Sigmoid, "sigmoid"),
    nn.Tanh: (modules.Tanh, "tanh"),
    nn.GLU: (modules.GLU, "glu"),
    nn.Softmax: (modules.Softmax, "softmax"),
    nn.LogSoftmax: (modules.LogSoftmax, "log_softmax"),
    nn.CrossEntropyLoss: (modules.CrossEntropyLoss, "cross_entropy"),
    nn.KLDivLoss: (modules.KLDivLoss, "kl_div"),
    nn.MSELoss: (modules.MSELoss, "mse_loss"),
    nn.HuberLoss: (modules.HuberLoss, "huber_loss"),
    nn.MultiheadAttention: (modules.MultiheadAttention, None),
    nn.TransformerEncoderLayer: (modules.TransformerEncoderLayer, None),
    nn.TransformerDecoderLayer: (modules.TransformerDecoderLayer, None),
    nn.TransformerEncoder: (modules.TransformerEncoder, None),
}
_BACK = {ours: theirs for theirs, (ours, _) in _CLASSES.items()}


def patch(model: M, only: Collection[str] | None = None) -> M:
    """Make modules of PyTorch in a model those of `torch_jvpvjp.nn`, in place.

    Each module whose class is exactly one of PyTorch's gets the class of the same name here: the same object with the
    same parameters, hooks and state dict, whose forward calls our ops. Subclasses, and modules that others have changed
    (parametrized ones), stay as they are; so do functions that a forward calls by itself, such as
    ``F.scaled_dot_product_attention``, for which there is `patched`.

    Args:
        model: The model; it may be one such module itself.
        only: Names of the ops whose modules take part, as in `patched`; None for all, and for the modules that are made
            of several: MultiheadAttention and the layers of Transformer.

    Returns:
        The model.

    Raises:
        TypeError: If model is no module, or only no collection of names.
        ValueError: If only names what is no such op.
    """  # noqa: DOC502 (raised further down)
    names = chosen("patch", only)
    for module in _modules("patch", model):
        ours, op = _CLASSES.get(type(module), (None, None))
        if ours is not None and (only is None if op is None else op in names):
            module.__class__ = ours
    return model


def unpatch(model: M) -> M:
    """Make what `patch` has changed what it was, in place.

    Args:
        model: The model.

    Returns:
        The model.

    Raises:
        TypeError: If it is no module.
    """  # noqa: DOC502 (raised further down)
    for module in _modules("unpatch", model):
        module.__class__ = _BACK.get(type(module), type(module))
    return model


def _modules(caller: str, model: object) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model must be an nn.Module, got {type(model).__name__}.")
    return list(model.modules())
