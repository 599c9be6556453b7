"""How far a result may be from the float64 reference: a budget derived from the reference's own error, never tuned.

    err(op) ≤ 2 · (err(reference in that dtype) + eps(dtype) · max|y₆₄|)

with errors measured against float64, the reference's at the point and at neighbours of it. In float64 itself there is
no better judge: there the budget counts roundings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..registration import _torch_private as private

# Roundings a float64 derivative of third order may accumulate; a wrong formula is wrong by many orders more.
FLOAT64_ROUNDINGS = 1 << 20
# A small tensor may be rounded luckily. The reference's own error is the greatest at points this much apart.
NEIGHBOURS = (1.0, 0.99, 1.01, 0.98, 1.02)


def leaves(nest: object) -> list[Tensor | None]:
    """The tensors of a nest of tuples, lists and dicts, in order.

    Args:
        nest: What a composition returned.

    Returns:
        The leaves.
    """
    return private.tree_leaves(nest, is_leaf=lambda value: value is None)


def assert_equal(actual: object, expected: object, what: str = "") -> None:
    """Two nests of float64 tensors agree to rounding; the message shows the worst entry of the worst tensor.

    Args:
        actual: What the op gave.
        expected: What the reference gave.
        what: Put in front of the message.

    Raises:
        AssertionError: If they do not.
    """
    ours, theirs = leaves(actual), leaves(expected)
    if len(ours) != len(theirs):
        raise AssertionError(f"{what}{len(ours)} tensors where the reference gives {len(theirs)}")
    scale = max((_scale(t) for t in theirs if t is not None), default=0.0)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        where = f"{what}tensor {number}: "
        if a is None or b is None:
            if a is not b and _scale(a if b is None else b) != 0:  # an absent derivative is a zero one
                raise AssertionError(f"{where}{'absent' if a is None else 'present'}, but not in the reference")
            continue
        if a.dtype.is_floating_point:
            budget = FLOAT64_ROUNDINGS * torch.finfo(a.dtype).eps * max(_scale(b), 1e-3 * scale, 1e-12)
        else:
            budget = 0.0
        assert_within(a, b, budget, where)


def assert_within(actual: Tensor, expected: Tensor, budget: float, what: str = "") -> None:
    """No entry is further from the expected one than the budget; NaN and infinity must stand where they are expected.

    Args:
        actual: What the op gave.
        expected: What it should be, in at least that precision.
        budget: Largest allowed absolute error.
        what: Put in front of the message.

    Raises:
        AssertionError: If one is.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}shape {tuple(actual.shape)} where the reference has {tuple(expected.shape)}")
    a, b = actual.detach().double(), expected.detach().double()
    error = (a - b).abs()
    error[a.eq(b) | (a.isnan() & b.isnan())] = 0.0  # infinities agree too
    if error.numel() == 0:
        return
    worst = int(error.nan_to_num(nan=float("inf")).argmax())
    if not bool(error.flatten()[worst] <= budget):
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
        raise AssertionError(
            f"{what}at {index} {a.flatten()[worst]:.9g} where the reference has {b.flatten()[worst]:.9g}: error "
            f"{error.flatten()[worst]:.3g} over a budget of {budget:.3g}"
        )


def assert_in_budget(
    actual: Sequence[Tensor],
    low: Sequence[Sequence[Tensor]],
    high: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
    what: str = "",
) -> None:
    """The op's error is within twice the reference's own error in that dtype, plus a rounding.

    Args:
        actual: What the op gave in the dtype.
        low: What the reference gives in the dtype, at the same point and then at ``NEIGHBOURS`` of it.
        high: What the reference gives in float64 on the same numbers.
        dtype: The dtype.
        what: Put in front of the message.

    Raises:
        AssertionError: If a value is out of budget, or a result has another dtype than the reference's.
    """
    errors = [
        [_scale(b.double() - c) for b, c in zip(lows, highs, strict=True)]
        for lows, highs in zip(low, high, strict=True)
    ]
    for number, (a, b, c, *own) in enumerate(zip(actual, low[0], high[0], *errors, strict=True)):
        if a.dtype != b.dtype:
            raise AssertionError(f"{what}tensor {number} has dtype {a.dtype} where the reference has {b.dtype}")
        assert_within(a, c, 2 * (max(own) + torch.finfo(dtype).eps * _scale(c)), f"{what}tensor {number}: ")


def _scale(tensor: Tensor | None) -> float:
    if tensor is None or tensor.numel() == 0:
        return 0.0
    finite = tensor.detach().abs().double().nan_to_num(nan=0.0, posinf=0.0)
    return float(finite.max())
