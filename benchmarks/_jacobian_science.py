"""Workloads from science: scalars and curves, a robot arm, option prices, a Roe flux, a recurrence, an ODE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _jacobian_case import Problem, Source
from torch import Tensor

# a, α and d of each joint of a Puma 560 (Denavit and Hartenberg's parameters; metres and radians)
JOINTS = (
    (0.0, 1.5708, 0.0),
    (0.4318, 0.0, 0.0),
    (0.0203, -1.5708, 0.15),
    (0.0, 1.5708, 0.4318),
    (0.0, -1.5708, 0.0),
    (0.0, 0.0, 0.0),
)
GAMMA = 1.4  # ratio of specific heats of air


def rosenbrock(source: Source, n: int) -> Problem:
    """R^n -> R: a gradient."""

    def f(x: Any) -> Any:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    return Problem(f, source.normal(n), twin=lambda _jax, _weights, x: f(x))


def curve(source: Source, n: int) -> Problem:
    """R -> R^n: a tangent of a curve."""
    frequency = torch.arange(n, dtype=source.dtype, device=source.device) / n

    def f(xp: Any, frequency: Any, t: Any) -> Any:
        return xp.exp(-frequency * t) * xp.sin(8 * frequency * t)

    t = torch.tensor(0.7, dtype=source.dtype, device=source.device)
    return Problem(lambda t: f(torch, frequency, t), t, twin=lambda jax, w, t: f(jax.numpy, w, t), weights=frequency)


def robot_arm(source: Source) -> Problem:
    """Six joint angles to the pose of the hand: position and three axes."""
    axes = torch.eye(3, dtype=source.dtype, device=source.device)
    return Problem(
        lambda angles: kinematics(torch, axes, angles),
        source.normal(len(JOINTS)),
        twin=lambda jax, w, angles: kinematics(jax.numpy, w, angles),
        weights=axes,
    )


def kinematics(xp: Any, axes: Any, angles: Any) -> Any:
    """The pose of the last joint's frame, 12 numbers.

    Args:
        xp: torch or jax.numpy.
        axes: The identity of size 3, the frame of the base.
        angles: Of the joints.

    Returns:
        Its origin and its three axes.
    """
    x, y, z = axes[0], axes[1], axes[2]
    origin = 0 * x
    cosines, sines = xp.cos(angles), xp.sin(angles)
    for joint, (a, alpha, d) in enumerate(JOINTS):
        c, s = cosines[joint], sines[joint]
        x, y = c * x + s * y, c * y - s * x  # turn about z
        origin = origin + d * z + a * x
        c, s = xp.cos(0 * c + alpha), xp.sin(0 * c + alpha)
        y, z = c * y + s * z, c * z - s * y  # turn about x
    return xp.concatenate([origin, x, y, z])


def black_scholes(source: Source, batch: int) -> Problem:
    """Sensitivities of a European call and put to spot, strike, expiry, rate and volatility, one set an option."""
    low, high = torch.tensor([[80.0, 80.0, 0.2, 0.0, 0.1], [120.0, 120.0, 2.0, 0.05, 0.5]]).to(source.device).unbind()
    x = (low + (high - low) * source.uniform(batch, 5)).to(source.dtype)
    return Problem(
        lambda x: prices(torch, torch.erf, x),
        x,
        {"batch_dims": 1},
        twin=lambda jax, _weights, x: prices(jax.numpy, jax.lax.erf, x),
    )


def prices(xp: Any, erf: Callable[[Any], Any], x: Any) -> Any:
    """Prices of a European call and put.

    Args:
        xp: torch or jax.numpy.
        erf: The error function.
        x: Spot, strike, expiry, rate, volatility along the last axis.

    Returns:
        Call and put along the last axis.
    """
    spot, strike, expiry, rate, volatility = (x[..., k] for k in range(5))
    spread = volatility * xp.sqrt(expiry)
    d1 = (xp.log(spot / strike) + (rate + volatility**2 / 2) * expiry) / spread
    below = lambda d: 0.5 * (1 + erf(d * 0.5**0.5))  # noqa: E731
    discounted = strike * xp.exp(-rate * expiry)
    call = spot * below(d1) - discounted * below(d1 - spread)
    return xp.stack([call, call - spot + discounted], -1)  # put-call parity


def roe_flux(source: Source, batch: int | None = None) -> Problem:
    """The flux between two states of a gas, R^6 -> R^3, at one face of a grid or at many."""
    shape = () if batch is None else (batch,)
    density, pressure = source.uniform(2, *shape, low=0.5, high=2.0), source.uniform(2, *shape, low=0.5, high=2.0)
    speed = source.uniform(2, *shape, low=-0.3, high=0.5)
    energy = pressure / (GAMMA - 1) + density * speed**2 / 2
    state = torch.stack([density, density * speed, energy], -1)
    x = torch.cat([state[0], state[1]], -1)
    return Problem(
        lambda x: flux(torch, x),
        x,
        {} if batch is None else {"batch_dims": 1},
        twin=lambda jax, _weights, x: flux(jax.numpy, x),
    )


def flux(xp: Any, x: Any) -> Any:
    """Roe's approximate flux of the Euler equations in one dimension.

    Args:
        xp: torch or jax.numpy.
        x: Density, momentum and energy on the left, then on the right, along the last axis.

    Returns:
        The flux of density, momentum and energy, along the last axis.

    Source: Roe (1981), Approximate Riemann Solvers, Parameter Vectors, and Difference Schemes.
    """
    (rho_l, u_l, p_l, h_l, flux_l), (rho_r, u_r, p_r, h_r, flux_r) = (_side(x, 0), _side(x, 3))
    # Roe's averages, weighted by √ρ
    root_l, root_r = xp.sqrt(rho_l), xp.sqrt(rho_r)
    u = (root_l * u_l + root_r * u_r) / (root_l + root_r)
    h = (root_l * h_l + root_r * h_r) / (root_l + root_r)
    rho, c = root_l * root_r, xp.sqrt((GAMMA - 1) * (h - u * u / 2))
    # The jump as three waves: strength |λ| α, and the eigenvector (1, u − c | u | u + c, ...)
    d_rho, d_u, d_p = rho_r - rho_l, u_r - u_l, p_r - p_l
    back = xp.abs(u - c) * (d_p - rho * c * d_u) / (2 * c * c)
    middle = xp.abs(u) * (d_rho - d_p / (c * c))
    front = xp.abs(u + c) * (d_p + rho * c * d_u) / (2 * c * c)
    upwind = (
        back + middle + front,
        back * (u - c) + middle * u + front * (u + c),
        back * (h - u * c) + middle * u * u / 2 + front * (h + u * c),
    )
    return xp.stack([(a + b - w) / 2 for a, b, w in zip(flux_l, flux_r, upwind, strict=True)], -1)


def _side(x: Any, first: int) -> tuple[Any, Any, Any, Any, tuple[Any, Any, Any]]:
    """Density, speed, pressure, enthalpy and flux of one state."""
    rho, momentum, energy = x[..., first], x[..., first + 1], x[..., first + 2]
    u = momentum / rho
    p = (GAMMA - 1) * (energy - momentum * u / 2)
    return rho, u, p, (energy + p) / rho, (momentum, momentum * u + p, (energy + p) * u)


def recurrence(source: Source, steps: int, hidden: int, inputs: int) -> Problem:
    """The last state of a recurrent network with respect to the first: h ← tanh(W h + U u_t + b)."""
    # A recurrence near the identity, or 200 steps would leave nothing of the first state.
    w = torch.eye(hidden, dtype=source.dtype, device=source.device) + source.normal(hidden, hidden, scale=0.003)
    u, b = source.normal(hidden, inputs, scale=0.1), source.normal(hidden, scale=0.01)
    sequence = source.normal(steps, inputs, scale=0.1)

    def f(h: Tensor) -> Tensor:
        for entry in sequence:
            h = torch.tanh(w @ h + u @ entry + b)
        return h

    def floor(h: Tensor) -> Tensor:
        driven = torch.addmm(b, sequence, u.mT)
        jacobian = None
        for drive in driven.unbind():
            h = torch.tanh(torch.addmv(drive, w, h))
            jacobian = (1 - h * h).unsqueeze(1) * (w if jacobian is None else w @ jacobian)
        assert jacobian is not None
        return jacobian

    def twin(jax: Any, weights: Any, h: Any) -> Any:
        w, u, b, sequence = weights
        return jax.lax.scan(lambda h, entry: (jax.numpy.tanh(w @ h + u @ entry + b), None), h, sequence)[0]

    return Problem(f, source.normal(hidden), floor=floor, twin=twin, weights=(w, u, b, sequence))


def explicit_ode(source: Source, steps: int, n: int) -> Problem:
    """The flow map of ẏ = tanh(A y) by Euler's explicit method."""
    a, dt = source.normal(n, n, scale=n**-0.5), 2.0 / steps

    def f(y: Tensor) -> Tensor:
        for _ in range(steps):
            y = y + dt * torch.tanh(a @ y)
        return y

    def floor(y: Tensor) -> Tensor:
        jacobian = torch.eye(n, dtype=y.dtype, device=y.device)
        for _ in range(steps):
            t = torch.tanh(a @ y)
            y = y + dt * t
            jacobian = jacobian + (dt * (1 - t * t)).unsqueeze(1) * (a @ jacobian)
        return jacobian

    def twin(jax: Any, a: Any, y: Any) -> Any:
        return jax.lax.fori_loop(0, steps, lambda _, y: y + dt * jax.numpy.tanh(a @ y), y)

    return Problem(f, source.normal(n), floor=floor, twin=twin, weights=a)
