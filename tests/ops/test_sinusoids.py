"""Timestep embedding and Fourier features: the facts particular to them (every property is in test_every_op)."""

import math
from typing import Any

import pytest
import torch

from torch_jvpvjp import ops


@pytest.mark.parametrize("flip", [False, True])
def test_timestep_embedding_entry_by_entry(flip: bool, device: str) -> None:
    t = torch.tensor([0.0, 1.5, 40.0], dtype=torch.float64, device=device)
    options: Any = {"max_period": 50.0, "flip_sin_to_cos": flip, "downscale_freq_shift": 1, "scale": 2.0}
    y = ops.timestep_embedding(t, 7, **options)
    assert y.shape == (3, 7) and not y[:, 6].any()
    for i in range(3):
        for j in range(3):
            phase = 2.0 * float(t[i]) * math.exp(-math.log(50.0) * j / (3 - 1))
            sine, cosine = float(y[i, j + 3 * flip]), float(y[i, j + 3 * (not flip)])
            assert sine == pytest.approx(math.sin(phase), abs=1e-12)
            assert cosine == pytest.approx(math.cos(phase), abs=1e-12)


def test_integers_are_taken_as_float32_and_any_shape_is_kept(device: str) -> None:
    t = torch.arange(6, device=device).reshape(2, 3)
    y = ops.timestep_embedding(t, 4)
    assert y.dtype == torch.float32 and y.shape == (2, 3, 4)
    torch.testing.assert_close(y, ops.timestep_embedding(t.float(), 4))
    assert ops.timestep_embedding(torch.tensor(3.0, device=device), 4).shape == (4,)
    assert ops.timestep_embedding(t.bfloat16(), 4).dtype == torch.bfloat16


def test_float32_phases_at_large_t_err_by_their_own_rounding_only(device: str) -> None:
    t = torch.tensor([999.0, 123456.0], device=device)
    error = (ops.timestep_embedding(t, 64).double() - ops.timestep_embedding(t.double(), 64)).abs()
    # The phase t f is rounded twice, f and the product: 2 · eps/2 of it; sine and cosine have slope at most 1.
    assert (error.max(1).values <= torch.finfo(torch.float32).eps * (t.double() + 1)).all()


def test_the_second_derivative_in_t_is_minus_the_squared_frequencies(device: str) -> None:
    t = torch.tensor(0.7, dtype=torch.float64, device=device)
    f = lambda t: ops.timestep_embedding(t, 6)  # noqa: E731
    second = torch.func.jacfwd(torch.func.jacfwd(f))(t)
    frequencies = torch.exp(-math.log(1e4) * torch.arange(3, dtype=t.dtype, device=device) / 3).repeat(2)
    torch.testing.assert_close(second, -frequencies.square() * f(t))


def test_fourier_features_are_cosines_then_sines(device: str) -> None:
    x, f = torch.randn(4, 2, dtype=torch.float64, device=device), torch.randn(3, 2, dtype=torch.float64, device=device)
    y = ops.fourier_features(x, f)
    phase = 2 * math.pi * (x @ f.mT)
    torch.testing.assert_close(y, torch.cat([phase.cos(), phase.sin()], -1))
    torch.testing.assert_close(y[:, :3].square() + y[:, 3:].square(), torch.ones(4, 3, dtype=x.dtype, device=device))


def test_fourier_features_of_numbers(device: str) -> None:
    x, f = torch.randn(4, 2, device=device), torch.randn(3, device=device)
    y = ops.fourier_features(x, f)
    assert y.shape == (4, 2, 6)
    torch.testing.assert_close(y, ops.fourier_features(x.unsqueeze(-1), f.unsqueeze(-1)))
    assert ops.fourier_features(torch.tensor(1.0, device=device), f).shape == (6,)


def test_whole_turns_are_exact_in_float32(device: str) -> None:
    y = ops.fourier_features(torch.tensor([1e6, 3e5], device=device), torch.tensor([3.0, 2.0], device=device))
    torch.testing.assert_close(y, torch.tensor([1.0, 1, 0, 0], device=device).expand(2, 4), rtol=0, atol=0)


@pytest.mark.usefixtures("interpreted")
def test_launches(device: str) -> None:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    t, rows = torch.randn(3, device=device), torch.randn(5, 3, device=device)
    x, f = torch.randn(3, 2, device=device), torch.randn(4, 2, device=device)
    embed = lambda t: ops.timestep_embedding(t, 8)  # noqa: E731
    pull, pull_features = torch.func.vjp(embed, t)[1], torch.func.vjp(ops.fourier_features, x, f)[1]
    for run in (
        lambda: embed(t),
        lambda: torch.func.jvp(embed, (t,), (t,)),
        lambda: torch.func.vmap(lambda d: torch.func.jvp(embed, (t,), (d,)))(rows),
        lambda: pull(embed(t)) and None,
        lambda: ops.fourier_features(x, f),
        lambda: torch.func.jvp(ops.fourier_features, (x, f), (x, f)),
        lambda: torch.func.vmap(lambda d: torch.func.jvp(lambda x: ops.fourier_features(x, f), (x,), (d,)))(
            torch.randn(5, 3, 2, device=device)
        ),
        lambda: pull_features(torch.ones(3, 8, device=device)),
    ):
        with count_launches() as count:
            run()
        assert max(count.by_name.values()) == 1


T = torch.randn(3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (([1.0], 4), {}, TypeError, r"timesteps must be a Tensor, got list"),
        ((T.bool(), 4), {}, TypeError, r"timesteps must be float16, .* got torch.bool"),
        ((T.cfloat(), 4), {}, TypeError, r"got torch.complex64"),
        ((T, 4.0), {}, TypeError, r"dim must be an int, got float"),
        ((T, 1), {}, ValueError, r"dim must be at least 2, got 1"),
        ((T, 4), {"max_period": 0}, ValueError, r"max_period must be positive, got 0"),
        ((T, 4), {"scale": "1"}, TypeError, r"scale must be a number, got str"),
        ((T, 5), {"downscale_freq_shift": 2}, ValueError, r"must be less than dim // 2 = 2, got 2"),
    ],
)
def test_bad_timesteps(args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"timestep_embedding: .*{message}"):
        ops.timestep_embedding(*args, **options)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((T, 2.0), TypeError, r"frequencies must be a Tensor, got float"),
        ((T.long(), T), TypeError, r"x must be float16, .* got torch.int64"),
        ((T, T.to("meta")), ValueError, r"frequencies must be on x's device cpu, got meta"),
        ((T, torch.randn(2, 2, 2)), ValueError, r"must have shape \(m, d\) or \(m,\), got \(2, 2, 2\)"),
        ((T, torch.randn(4, 2)), ValueError, r"x must have shape \(..., 2\) to match .* \(4, 2\), got \(3,\)"),
    ],
)
def test_bad_features(args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"fourier_features: .*{message}"):
        ops.fourier_features(*args)
