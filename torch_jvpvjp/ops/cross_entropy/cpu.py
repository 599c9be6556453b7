"""Cross-entropy on the CPU: PyTorch's softmaxes, classes picked instead of compared, results worked on in place."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._onednn import products_stay_float32
from .._arithmetic import total, wide
from .._devices import triton_devices
from .arguments import WrongClassError
from .rules import op

# −log p over |L|, beyond which their sum, the logit, would not give L to its own precision.
_MOST_LOST = 3.0
_SHORT, _VECTOR = 48, 16  # PyTorch's softmax is slow at fewer classes that do not fill vectors


class Picked(NamedTuple):
    """A target, looked up once.

    Attributes:
        tau: τ for probabilities, else None.
        classes: t, 0 where ignored; None for probabilities.
        sharp: (1 − ε) w_t, 0 where ignored.
        even: (ε/n) w, or None without smoothing or for probabilities.
        counts: Which rows count, None for all.
        ignores: Whether one does not.
        sigma: Σ τ.
    """

    tau: Tensor | None
    classes: Tensor | None
    sharp: Tensor | None
    even: Tensor | float | None
    counts: Tensor | None
    ignores: bool
    sigma: Tensor


def is_plain(inputs: Any, *like: Tensor | None) -> bool:
    """Whether nothing is batched more than the input is.

    Args:
        inputs: The arguments of the op.
        *like: Tensors that have the input's shape then.

    Returns:
        True if so.
    """
    weight, x = inputs.weight, inputs.input
    alike = all(t is None or t.shape == x.shape for t in like)
    return alike and (weight is None or weight.numel() == x.shape[inputs.dim]) and x.shape[inputs.dim] > 0


def pick(inputs: Any) -> Picked:
    """The target of a call, looked up.

    Args:
        inputs: The arguments of the op.

    Returns:
        What the maps read of it.

    Raises:
        WrongClassError: If a class does not exist.
    """  # noqa: DOC502 -- _check_classes raises
    x, dim, epsilon = inputs.input, inputs.dim, inputs.label_smoothing
    n, weight = x.shape[dim], wide(inputs.weight, x)
    even = None if not epsilon else epsilon / n if weight is None else weight * (epsilon / n)
    target = inputs.target
    if target.is_floating_point():
        tau = wide(target, x)
        tau = tau * (1 - epsilon) + epsilon / n if epsilon else tau
        tau = tau if weight is None else tau * weight
        return Picked(tau, None, None, None, None, False, tau.sum(dim, keepdim=True))
    counts = target != inputs.ignore_index
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sharp = present = counts.to(dtype)
    ignores = present.numel() > 0 and bool(present.amin() == 0)  # Tensor.all takes ten times as long
    classes = torch.where(counts, target, 0).long() if ignores else target.long()
    _check_classes(classes, n)
    if weight is not None:
        sharp = sharp * weight.reshape(-1)[classes]
    if epsilon:
        sharp = sharp * (1 - epsilon)
    sigma = sharp
    if even is not None:
        sigma = sharp + present * (even.sum() if isinstance(even, Tensor) else epsilon)
    return Picked(None, classes, sharp, even, counts, ignores, sigma)


def _check_classes(classes: Tensor, n: int) -> None:
    if classes.numel():
        low, high = torch.aminmax(classes)
        if low < 0 or high >= n:
            raise WrongClassError("cross_entropy", n, int(low if low < 0 else high))


def aim(picked: Picked, values: Tensor, dim: int) -> Tensor:
    """Σ τ values.

    Args:
        picked: The target.
        values: One for each class.
        dim: The axis of the classes.

    Returns:
        A number for each row, 0 where it is ignored.
    """
    if picked.tau is not None:
        return (picked.tau * values).sum(dim, keepdim=True)
    assert picked.classes is not None and picked.sharp is not None and picked.counts is not None
    chosen = picked.sharp * values.gather(dim, picked.classes)
    aimed = torch.where(picked.counts, chosen, 0)
    if picked.even is None:
        return aimed
    if isinstance(picked.even, float):
        spread = values.sum(dim, keepdim=True) * picked.even
    else:
        spread = (values * picked.even).sum(dim, keepdim=True)
    return aimed + torch.where(picked.counts, spread, 0)


def softmax(z: Tensor, dim: int) -> Tensor:
    """Probabilities. PyTorch goes through rows of fewer numbers than a vector has one number at a time.

    Args:
        z: Logits.
        dim: The axis of the classes.

    Returns:
        p, a fresh tensor.
    """
    if not _is_narrow(z, dim):
        return torch.softmax(z, dim)
    powers = torch.sub(z, z.amax(dim, keepdim=True)).exp_()
    return powers.div_(sum_along(powers, dim))


def _log_softmax(z: Tensor, dim: int) -> Tensor:
    """Their logarithms."""
    if not _is_narrow(z, dim):
        return torch.log_softmax(z, dim)
    below = torch.sub(z, z.amax(dim, keepdim=True))
    return below.sub_(sum_along(below.exp(), dim).log_())


def _is_narrow(z: Tensor, dim: int) -> bool:
    return z.shape[dim] < _VECTOR and dim == -1 and z.is_contiguous()


def _cap(x: Tensor, kappa: float | None) -> tuple[Tensor, Tensor | None]:
    """z and z′."""
    if kappa is None:
        return x, None
    u = torch.tanh(x / kappa)
    return u * kappa, torch.addcmul(u.new_ones(()), u, u, value=-1)


def _forward(inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Picked]:
    """ℓ, L, log p, z′ and the target looked up."""
    dim, picked = inputs.dim, pick(inputs)
    z, slope = _cap(wide(inputs.input, inputs.input), inputs.softcap)
    log_p = _log_softmax(z, dim)
    return -aim(picked, log_p, dim), _log_sum(z, log_p, picked, dim), log_p, slope, picked


def _log_sum(z: Tensor, log_p: Tensor, picked: Picked, dim: int) -> Tensor:
    """L = z − log p of the target's class, or the first, unless log p dwarfs L and rounds it away; 0 where ignored."""
    z_there, log_p_there = (
        t.narrow(dim, 0, 1) if picked.classes is None else t.gather(dim, picked.classes) for t in (z, log_p)
    )
    lse = z_there - log_p_there
    kept = torch.add(log_p_there, lse.abs().clamp_(min=1), alpha=_MOST_LOST)
    if lse.numel() and not kept.min() >= 0:  # NaN is lost, too
        lost = ~(kept >= 0)
        lost = lost if picked.counts is None else lost & picked.counts
        lse[lost] = torch.logsumexp(z.movedim(dim, -1)[lost.squeeze(dim)], -1)
    return lse if picked.counts is None else torch.where(picked.counts, lse, 0)


def _primal(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """ℓ and L; no pullback here reads what L lacks."""
    inputs = op.signature.inputs_type(*args)
    if not is_plain(inputs):
        return op.formula(*args)
    loss, lse = _forward(inputs)[:2]
    return loss, lse, torch.zeros_like(lse)


def _jvp(primals: Any, tangents: Any) -> Any:
    """ℓ, L and ℓ̇, L̇."""
    if not is_plain(primals, tangents.input, tangents.target):
        return op.jvp.op.formula(primals, tangents)
    dim = primals.dim
    loss, lse, log_p, slope, picked = _forward(primals)
    loss_dot, lse_dot = None, torch.zeros_like(lse)
    if tangents.input is not None:
        z_dot = wide(tangents.input, primals.input)
        z_dot = z_dot if slope is None else z_dot * slope
        lse_dot = (log_p.exp() * z_dot).sum(dim, keepdim=True)
        lse_dot = lse_dot if picked.counts is None else torch.where(picked.counts, lse_dot, 0)
        loss_dot = picked.sigma * lse_dot - aim(picked, z_dot, dim)
    if tangents.target is not None:
        moved = wide(tangents.target, primals.input) * log_p
        moved = moved if primals.weight is None else moved * wide(primals.weight, primals.input)
        by_target = moved.sum(dim, keepdim=True) * (primals.label_smoothing - 1)
        loss_dot = total(loss_dot, by_target)
    return (loss, lse, torch.zeros_like(lse)), (loss_dot, lse_dot)


def _vjp(cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """x̄ = ((c σ + e) p − c τ) z′ in the place of p, q̄ = w (1 − ε) c (L − z)."""
    x, dim = inputs.input, inputs.dim
    if not is_plain(inputs):
        return op.vjp.op.formula(cotangents, inputs, outputs, needs=needs)
    picked = pick(inputs)
    z, slope = _cap(wide(x, x), inputs.softcap)
    c, e = (wide(t, x) for t in (cotangents.y0, cotangents.y1))
    if picked.counts is not None and picked.ignores:  # a mean over nothing has ∞ there
        c, e = (None if t is None else torch.where(picked.counts, t, 0) for t in (c, e))
    by_target = None if c is None or picked.tau is None or not needs[1] else c * (1 - inputs.label_smoothing)
    x_bar = q_bar = mass = None
    if needs[0]:
        along = total(None if c is None else c * picked.sigma, e)
        assert along is not None
        short = x.shape[dim] < _SHORT and (dim != -1 or x.shape[dim] % _VECTOR > 0)
        slow = short or (by_target is not None and x.stride(dim) != 1)  # two softmaxes, by lines
        if slow and outputs[1].dtype == z.dtype:
            x_bar = torch.sub(z, outputs[1]).exp_()  # as wrong as L, whose rounding is relative to L, ...
            mass = sum_along(x_bar, dim)  # ... and to be mended by this
            x_bar.mul_(along / mass)
        else:
            x_bar = softmax(z, dim).mul_(along)
        if c is not None:
            subtract_target(x_bar, picked, c, dim)
        if slope is not None:
            x_bar.mul_(slope)
        if picked.counts is not None and picked.ignores:
            x_bar.masked_fill_(~picked.counts, 0)  # whatever stands in an ignored row
        x_bar = x_bar.to(x.dtype)
    if by_target is not None:
        if mass is None:
            q_bar = _log_softmax(z, dim).mul_(-by_target)
        else:
            q_bar = torch.sub(outputs[1], z)
            q_bar.add_(mass.log_()).mul_(by_target)
        q_bar = (q_bar if inputs.weight is None else q_bar.mul_(wide(inputs.weight, x))).to(inputs.target.dtype)
    return x_bar, q_bar


def sum_along(x: Tensor, dim: int) -> Tensor:
    """Sum over an axis, which is kept; of rows of few numbers by a product, as a sum of these goes number by number.

    Args:
        x: A tensor.
        dim: The axis.

    Returns:
        The sums.
    """
    if dim != -1 or not x.is_contiguous() or not products_stay_float32():
        return x.sum(dim, keepdim=True)
    return torch.matmul(x, x.new_ones(x.shape[-1], 1))


def subtract_target(x_bar: Tensor, picked: Picked, c: Tensor, dim: int) -> None:
    """Take c τ off, in place.

    Args:
        x_bar: From what.
        picked: The target.
        c: A number for each row.
        dim: The axis of the classes.
    """
    if picked.tau is not None:
        x_bar.addcmul_(picked.tau, c, value=-1)
        return
    assert picked.classes is not None and picked.sharp is not None and picked.counts is not None
    x_bar.scatter_add_(dim, picked.classes, -c * picked.sharp)
    if picked.even is not None:
        x_bar.sub_(c * picked.even)


if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(_primal)
    op.jvp.kernel("cpu")(_jvp)
    op.vjp.kernel("cpu")(_vjp)
