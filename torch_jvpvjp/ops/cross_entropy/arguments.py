"""The arguments of cross-entropy and linear cross-entropy, looked at before anything is computed."""

from typing import Any

import torch
from torch import Tensor

from .._arguments import check_dense, check_floating, kind_of

_CLASSES = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))
_REDUCTIONS = ("none", "mean", "sum")


def check_options(
    name: str, ignore_index: Any, reduction: Any, label_smoothing: Any, z_loss: Any, softcap: Any
) -> None:
    """Refuse options that are not of their type or out of range.

    Args:
        name: The function.
        ignore_index: An int.
        reduction: "none", "mean" or "sum".
        label_smoothing: A number from 0 to 1.
        z_loss: A finite number, at least 0.
        softcap: A finite number above 0, or None.

    Raises:
        TypeError: If one is not of its type.
        ValueError: If one is out of range.
    """
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"{name}: ignore_index must be an int, got {ignore_index!r}.")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name}: reduction must be 'none', 'mean' or 'sum', got {reduction!r}.")
    for option, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss), ("softcap", softcap)):
        if option == "softcap" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}: {option} must be a number, got {type(value).__name__}.")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing must be from 0 to 1, got {label_smoothing}.")
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"{name}: z_loss must be at least 0 and finite, got {z_loss}.")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ValueError(f"{name}: softcap must be positive and finite, or None, got {softcap}.")


def check_target(name: str, target: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse a target that is not one class for each row.

    Args:
        name: The function.
        target: What came.
        shape: The shape of the rows.
        device: The input's device.

    Raises:
        TypeError: If it is no integer tensor.
        ValueError: If its shape or device does not fit.
    """
    if not isinstance(target, Tensor) or target.dtype not in _CLASSES:
        kind = f"{target.dtype}; use .long()" if isinstance(target, Tensor) else kind_of(target)
        raise TypeError(f"{name}: target must be an integer Tensor of classes, got {kind}.")
    check_dense(name, "target", target)
    if tuple(target.shape) != shape:
        raise ValueError(
            f"{name}: target must have shape {shape}, one class for each row of input, got {tuple(target.shape)}."
        )
    if target.device != device:
        raise ValueError(f"{name}: target must be on input's device {device}, got {target.device}; use .to().")


def classes_of(target: Tensor, ignore_index: int) -> Tensor:
    """Classes in a dtype that tells ignore_index from all of them: −100 in uint8 is class 156.

    Args:
        target: Classes.
        ignore_index: The class to ignore.

    Returns:
        The target, in int64 if its dtype does not hold ignore_index.
    """
    held = torch.iinfo(target.dtype)
    return target if held.min <= ignore_index <= held.max else target.long()


def check(x: Any, target: Any, weight: Any, ignore_index: int) -> None:
    """Refuse what is no cross-entropy.

    Args:
        x: Logits.
        target: Classes or probabilities.
        weight: Weights of the classes, or None.
        ignore_index: The class to ignore.

    Raises:
        TypeError: If an argument is not of its type.
        ValueError: If shapes or devices do not agree.
    """
    name = "cross_entropy"
    check_floating(name, "input", x)
    if not x.dim():
        raise ValueError("cross_entropy: input must have an axis of classes, (n), (N, n) or (N, n, ...), got a scalar.")
    axis = 0 if x.dim() == 1 else 1
    n, shape = x.shape[axis], (*x.shape[:axis], *x.shape[axis + 1 :])
    if not n:
        raise ValueError(f"cross_entropy: input must have at least one class along axis {axis}, got {tuple(x.shape)}.")
    if isinstance(target, Tensor) and target.is_floating_point():
        check_floating(name, "target", target)
        if target.shape != x.shape:
            raise ValueError(
                f"cross_entropy: target of probabilities must have input's shape {tuple(x.shape)}, got "
                f"{tuple(target.shape)}; classes must be integers of shape {shape}."
            )
        if target.device != x.device:
            raise ValueError(f"cross_entropy: target must be on input's device {x.device}, got {target.device}.")
        if ignore_index >= 0:
            raise ValueError(
                f"cross_entropy: ignore_index={ignore_index} needs a target of classes, not probabilities."
            )
    else:
        check_target(name, target, shape, x.device)
    if weight is not None:
        check_floating(name, "weight", weight)
        if tuple(weight.shape) != (n,):
            raise ValueError(
                f"cross_entropy: weight must have shape ({n},), one for each class, got {tuple(weight.shape)}."
            )
        if weight.device != x.device:
            raise ValueError(f"cross_entropy: weight must be on input's device {x.device}, got {weight.device}.")


class WrongClassError(IndexError):
    """A class that does not exist.

    Args:
        name: The function.
        n: How many classes there are.
        wrong: What came.
    """

    def __init__(self, name: str, n: int, wrong: int) -> None:
        super().__init__(f"{name}: target must be classes from 0 to {n - 1} or ignore_index, got {wrong}.")
        self.n, self.wrong = n, wrong
