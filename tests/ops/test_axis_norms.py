"""L2 norm and pixel norm: the facts particular to them (every property is checked in test_every_op)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from torch_jvpvjp import ops


@pytest.mark.parametrize("dim", [-1, 0, 1, -2])
@pytest.mark.parametrize("eps", [1e-12, 1.5])
def test_l2_norm_is_pytorch_s_normalize_with_its_gradient(dim: int, eps: float, device: str) -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64, device=device, requires_grad=True)
    ours, theirs = ops.l2_norm(x, dim, eps), F.normalize(x, dim=dim, eps=eps)
    torch.testing.assert_close(ours, theirs)
    cotangent = torch.randn_like(x)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, cotangent)[0] for y in (ours, theirs)))


def test_the_jacobian_of_l2_norm_is_the_projection_off_x_over_its_length(device: str) -> None:
    x = torch.randn(5, dtype=torch.float64, device=device)
    jacobian = torch.func.jacfwd(ops.l2_norm)(x)
    assert isinstance(jacobian, Tensor)
    unit = x / x.norm()
    projection = torch.eye(5, dtype=x.dtype, device=device) - torch.outer(unit, unit)
    torch.testing.assert_close(jacobian, projection / x.norm())
    torch.testing.assert_close(ops.l2_norm(3 * x), ops.l2_norm(x))


def test_at_zero_l2_norm_is_linear(device: str) -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, device=device)
    y, y_dot = torch.func.jvp(lambda x: ops.l2_norm(x, eps=0.5), (x,), (torch.ones_like(x),))
    assert not y.any() and torch.equal(y_dot, torch.full_like(x, 2.0))


def test_pixels_have_unit_mean_square(device: str) -> None:
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64, device=device)
    y = ops.pixel_norm(x, eps=1e-14)
    torch.testing.assert_close(y.square().mean(1), torch.ones(2, 3, 3, dtype=x.dtype, device=device))


@pytest.mark.parametrize("norm", [ops.l2_norm, ops.pixel_norm])
def test_channels_last_stays_channels_last(norm: Callable[..., Tensor], device: str) -> None:
    x = torch.randn(2, 4, 3, 2, device=device)
    y = norm(x.to(memory_format=torch.channels_last), 1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, norm(x, 1))


def test_half_precision_does_not_overflow(device: str) -> None:
    x = torch.full((2, 4), 6e4, dtype=torch.float16, device=device)
    torch.testing.assert_close(ops.l2_norm(x), torch.full_like(x, 0.5))
    torch.testing.assert_close(ops.pixel_norm(x), torch.ones_like(x))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter computes in NumPy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_propagate_as_in_pytorch(value: float, device: str) -> None:
    x = torch.randn(2, 4, device=device)
    x[0, 1] = value
    torch.testing.assert_close(ops.l2_norm(x), F.normalize(x, dim=-1), equal_nan=True)


@pytest.mark.usefixtures("interpreted")
def test_offsets_of_64_bits_are_taken_where_32_are_too_few(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_jvpvjp.triton_kernels.axis_norm as kernels
    from torch_jvpvjp.triton_kernels._launch import record_launches

    for n, is_far in ((1 << 10, False), (1 << 16, True)):
        with record_launches() as launches:
            kernels.axis_norm(torch.empty(1, 1, n, 1 << 15, device="meta"), None, 1e-8, False, wants_y=True)
        assert launches[-1].options["WIDE"] is is_far
    x = torch.randn(2, 3, 5, 7, device=device)
    near = kernels.axis_norm(x, x.sin(), 1e-8, False, wants_y=True)
    monkeypatch.setattr(kernels, "reaches_far", lambda *_: True)
    far = kernels.axis_norm(x, x.sin(), 1e-8, False, wants_y=True)
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(near, far, strict=True))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("norm", [ops.l2_norm, ops.pixel_norm])
def test_launches(norm: Callable[..., Tensor], device: str) -> None:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    x, rows = torch.randn(2, 4, device=device), torch.randn(5, 2, 4, device=device)
    pull = torch.func.vjp(norm, x)[1]
    for run in (
        lambda: norm(x),
        lambda: torch.func.jvp(norm, (x,), (x,)),
        lambda: torch.func.vmap(lambda t: torch.func.jvp(norm, (x,), (t,)))(rows),
        lambda: pull(x),
        lambda: torch.func.vmap(pull)(rows),
    ):
        with count_launches() as count:
            run()
        assert count.total == 1


X = torch.randn(2, 4)


@pytest.mark.parametrize("norm", [ops.l2_norm, ops.pixel_norm])
@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (([1.0],), TypeError, r"must be a Tensor, got list"),
        ((X.long(),), TypeError, r"must be float16, .* got torch.int64"),
        ((X, 2), ValueError, r"dim must be an axis of .*'s shape \(2, 4\), from -2 to 1, got 2"),
        ((torch.tensor(1.0), 0), ValueError, r"dim must be an axis of .*'s shape \(\), .* got 0"),
        ((X, (0, 1)), TypeError, r"dim must be an int, got tuple"),
        ((X, 1, "1"), TypeError, r"eps must be a number, got str"),
        ((X, 1, -1.0), ValueError, r"eps must not be negative, got -1.0"),
    ],
)
def test_bad_input(norm: Callable[..., Tensor], args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"{norm.__name__}: .*{message}"):
        norm(*args)
