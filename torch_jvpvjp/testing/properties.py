"""Properties of values: what must hold of an op's primal, JVP and VJP on one sample, each as one function.

Each takes a case and raises AssertionError where the property does not hold.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

from .._process_state import Exchanged, without_warnings
from .budget import NEIGHBOURS, assert_equal, assert_in_budget, assert_within
from .case import Case
from .compositions import Point, TensorFunction, along, loss_of

Property = Callable[[Case], None]


def first_order(f: TensorFunction, p: Point) -> list[Tensor]:
    """Value (of a call that is differentiated backward, and of one forward), tangent and cotangents at a point.

    Args:
        f: The function.
        p: The point.

    Returns:
        All of them in one list.
    """
    y, y_dot, *_ = jvp(f, p.primals, p.tangents[0])
    xs = tuple(x.detach().requires_grad_() for x in p.primals)
    recorded = f(*xs)
    x_bars = torch.autograd.grad(recorded, xs, p.cotangents)
    return [*(t.detach() for t in recorded), *y, *y_dot, *x_bars]


def _rounded_as_values(f: TensorFunction, p: Point) -> list[Tensor]:
    """`first_order` with tangents in their values' dtype, which PyTorch 2.11's of `F.rms_norm` on a GPU are not."""
    found, n = first_order(f, p), len(p.cotangents)
    return [t.to(found[i - n].dtype) if 2 * n <= i < 3 * n else t for i, t in enumerate(found)]


def primal(case: Case) -> None:  # noqa: D103 -- the name says it
    """Every output, differentiable or not, has the reference's value, shape and dtype."""
    ours, theirs = case.outputs(case.op), case.outputs(case.reference)
    if len(ours) != len(theirs):
        raise AssertionError(f"{len(ours)} outputs where the reference gives {len(theirs)}")
    for j, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.dtype != b.dtype:
            raise AssertionError(f"output {j} has dtype {a.dtype} where the reference has {b.dtype}")
    assert_equal(ours, theirs)


def central_difference(case: Case) -> None:
    """J ẋ agrees with (f(x + hẋ) − f(x − hẋ)) / 2h, which no rule was written from."""
    p, f = case.point, case.function(case.op)
    h = torch.finfo(torch.float64).eps ** (1 / 3)
    ahead = f(*(x + h * t for x, t in zip(p.primals, p.tangents[0], strict=True)))
    behind = f(*(x - h * t for x, t in zip(p.primals, p.tangents[0], strict=True)))
    push = p.tangents[0]
    third: Any = along(along(along(case.function(case.reference), push), push), push)(*p.primals)
    for j, (y_dot, a, b, bent) in enumerate(
        zip(jvp(f, p.primals, p.tangents[0])[1], ahead, behind, third, strict=True)
    ):
        if y_dot.numel() == 0:
            continue
        # Truncation h²/6 · |f‴| (ten times it, since f‴ moves), and rounding eps · |f| / h.
        scale = max(float(a.abs().max()), float(y_dot.abs().max()))
        budget = 10 * h**2 * float(bent.abs().max()) + 64 * torch.finfo(torch.float64).eps / h * scale
        assert_within(y_dot, (a - b) / (2 * h), budget, f"tangent {j}: ")


def duality(case: Case) -> None:
    """⟨ȳ, J ẋ⟩ = ⟨Jᵀ ȳ, ẋ⟩: JVP and VJP judge each other, no reference needed."""
    p, f = case.point, case.function(case.op)
    y_dots = jvp(f, p.primals, p.tangents[0])[1]
    x_bars = vjp(f, *p.primals)[1](p.cotangents)
    _assert_same_inner_product(p.cotangents, y_dots, x_bars, p.tangents[0])


def symmetry(case: Case) -> None:
    """uᵀ H v = vᵀ H u for the Hessian of a scalar, forward over reverse."""
    p = case.point
    gradient = torch.func.grad(loss_of(case.function(case.op), p), argnums=tuple(range(len(p.primals))))
    hu = jvp(gradient, p.primals, p.tangents[0])[1]
    hv = jvp(gradient, p.primals, p.tangents[1])[1]
    _assert_same_inner_product(p.tangents[1], hu, hv, p.tangents[0])


def _assert_same_inner_product(
    a: tuple[Tensor, ...], b: tuple[Tensor, ...], c: tuple[Tensor, ...], d: tuple[Tensor, ...]
) -> None:
    left = sum((s * t).sum() for s, t in zip(a, b, strict=True))
    right = sum((s * t).sum() for s, t in zip(c, d, strict=True))
    size = sum((s * t).abs().sum() for s, t in [*zip(a, b, strict=True), *zip(c, d, strict=True)])
    assert isinstance(left, Tensor) and isinstance(right, Tensor)
    assert_within(left, right, 1e3 * torch.finfo(torch.float64).eps * float(size), "inner products: ")


def gradcheck(case: Case) -> None:
    """PyTorch's own numerical check, forward, backward and batched."""
    xs = tuple(x.clone().requires_grad_() for x in case.point.primals)
    with _QUIET:
        torch.autograd.gradcheck(
            case.function(case.op),
            xs,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            check_undefined_grad=True,
            fast_mode=True,  # along random directions; whole Jacobians are compared with the reference
        )


def gradgradcheck(case: Case) -> None:
    """PyTorch's own numerical check of the second order, reverse over reverse and forward over reverse."""
    xs = tuple(x.clone().requires_grad_() for x in case.point.primals)
    with _QUIET:
        torch.autograd.gradgradcheck(
            case.function(case.op),
            xs,
            check_fwd_over_rev=True,
            check_rev_over_rev=True,
            fast_mode=True,
        )


def inputs_unmodified(case: Case) -> None:
    """Nothing that goes in, tangents and cotangents included, is written into."""
    p = case.point
    watched = [*p.primals, *p.tangents[0], *p.cotangents]
    before = [(t.clone(), t._version) for t in watched]
    first_order(case.function(case.op), p)
    for number, (tensor, (copy, version)) in enumerate(zip(watched, before, strict=True)):
        if tensor._version != version or not torch.equal(tensor.nan_to_num(), copy.nan_to_num()):
            kinds = ["input"] * len(p.primals) + ["tangent"] * len(p.primals) + ["cotangent"] * len(p.cotangents)
            raise AssertionError(f"a {kinds[number]} (number {number}) was written into")


def fresh_outputs(case: Case) -> None:
    """No output shares memory with an input or another output: an op is not a view."""
    ours = case.outputs(case.op)
    for j, y in enumerate(ours):
        others = [*case.point.primals, *ours[:j]]
        if y.numel() and any(y.untyped_storage().data_ptr() == o.untyped_storage().data_ptr() for o in others):
            raise AssertionError(f"output {j} shares memory with an input or another output")


def determinism(case: Case) -> None:
    """Value, tangent and cotangents are the same to the bit twice."""
    f = case.function(case.op)
    for number, (a, b) in enumerate(zip(first_order(f, case.point), first_order(f, case.point), strict=True)):
        if not torch.equal(a.nan_to_num(), b.nan_to_num()):
            raise AssertionError(f"tensor {number} differs between two runs by {float((a - b).abs().max()):.3g}")


def poisoned_memory(case: Case) -> None:
    """Results do not depend on what fresh memory holds: every new buffer is filled with NaN first."""
    expected = first_order(case.function(case.reference), case.point)
    with poisoned():
        actual = first_order(case.function(case.op), case.point)
    assert_equal(actual, expected)


def _changed(p: Point, change: Callable[[Tensor], Tensor]) -> Point:
    """The point with primals, first tangents and cotangents changed."""
    to = lambda tensors: tuple(map(change, tensors))  # noqa: E731
    return replace(p, primals=to(p.primals), tangents=(to(p.tangents[0]), *p.tangents[1:]), cotangents=to(p.cotangents))


def _relaid(case: Case, relay: Callable[[Tensor], Tensor]) -> None:
    moved = _changed(case.point, relay)
    assert_equal(first_order(case.function(case.op), moved), first_order(case.function(case.reference), moved))


def strided(case: Case) -> None:
    """Inputs, tangents and cotangents whose last axis is not the one adjacent in memory."""
    _relaid(case, lambda t: t.mT.contiguous().mT if t.dim() > 1 else _every_second(t))


def offset(case: Case) -> None:
    """Views of every second element of a larger buffer, starting off its beginning."""
    _relaid(case, _every_second)


def expanded(case: Case) -> None:
    """Stride 0 along the first axis."""
    _relaid(case, lambda t: t[:1].expand(t.shape) if t.dim() > 1 and t.shape[0] else t)


def zero_stride(case: Case) -> None:
    """Stride 0 along every axis of tangents and cotangents, as the backward of a sum gives them."""
    p = case.point
    flat = lambda t: torch.full((), 0.7, dtype=t.dtype, device=t.device).expand(t.shape)  # noqa: E731
    moved = replace(_changed(p, flat), primals=p.primals)
    assert_equal(first_order(case.function(case.op), moved), first_order(case.function(case.reference), moved))


def _every_second(tensor: Tensor) -> Tensor:
    if tensor.dim() == 0:
        return torch.stack([tensor, tensor])[1]
    buffer = torch.full(
        (*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"), dtype=tensor.dtype, device=tensor.device
    )
    view = buffer[..., 1::2]
    view.copy_(tensor)
    return view


def dtype_budget(dtype: torch.dtype) -> Property:
    """The property that value, tangent and cotangents in a dtype stay within the derived error budget.

    Args:
        dtype: The dtype.

    Returns:
        The property.
    """

    def within_budget(case: Case) -> None:
        low = case.at(dtype)
        f, g, p = low.function(low.op), low.function(low.reference), low.point
        if dtype == torch.float64:  # the reference has no error to compare with
            assert_equal(first_order(f, p), first_order(g, p))
            return
        points = [_changed(p, lambda t, factor=factor: t * factor) for factor in NEIGHBOURS]
        # The same numbers in float64: what is judged is the arithmetic, not the rounding of the inputs.
        exact = [first_order(g, _changed(point, lambda t: t.double())) for point in points]
        assert_in_budget(first_order(f, p), [_rounded_as_values(g, point) for point in points], exact, dtype)

    return within_budget


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill every freshly allocated tensor with NaN (integers with their greatest value).

    Yields:
        Nothing.
    """
    with _QUIET, _POISONED:
        yield


def _poison() -> Callable[[], object]:
    was, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # a module whose attribute is a property
    filled = settings.fill_uninitialized_memory

    def put_back() -> None:
        torch.use_deterministic_algorithms(was, warn_only=warn)
        settings.fill_uninitialized_memory = filled

    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    return put_back


_POISONED = Exchanged(_poison)
_QUIET = without_warnings()  # PyTorch's checks warn about performance and determinism, which are not what is judged


VALUES: dict[str, Property] = {
    "primal": primal,
    "central difference": central_difference,
    "duality": duality,
    "symmetry of the Hessian": symmetry,
    "inputs unmodified": inputs_unmodified,
    "fresh outputs": fresh_outputs,
    "determinism": determinism,
    "NaN-poisoned memory": poisoned_memory,
    "layout: strided": strided,
    "layout: offset": offset,
    "layout: expanded": expanded,
    "layout: zero stride": zero_stride,
}
NUMERICAL: dict[str, Property] = {"gradcheck": gradcheck, "gradgradcheck": gradgradcheck}
