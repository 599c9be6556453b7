"""Functions whose control flow looks at data, as people write them."""

import math

import torch
from jacobian_checks import F64

N = 6
WEIGHT = torch.linspace(-1, 1, N * N, dtype=F64).reshape(N, N).sin()
OTHER = torch.linspace(0, 3, N * N, dtype=F64).reshape(N, N).cos()


def _slope(y):
    return torch.tanh(WEIGHT @ y) - y / 2


def adaptive_steps(x):
    y, t, dt = x, 0.0, 0.25
    while t < 1 - 1e-12:
        dt = min(dt, 1 - t)
        first = _slope(y)
        second = _slope(y + dt * first)
        if (dt / 2 * (second - first)).norm() < 0.05:
            y, t, dt = y + dt / 2 * (first + second), t + dt, 1.5 * dt
        else:
            dt /= 2
    return y


def controlled_steps(x):
    """The next step is a number that was read, which goes on into the values."""
    y, t, dt = x, 0.0, 0.25
    while t < 1 - 1e-12:
        dt = min(dt, 1 - t)
        first = _slope(y)
        second = _slope(y + dt * first)
        error = (dt / 2 * (second - first)).norm().item()
        if error < 0.05:
            y, t = y + dt / 2 * (first + second), t + dt
        dt = dt * min(5.0, max(0.2, 0.9 * (0.05 / error) ** 0.5))
    return y


def newton(x):
    z = torch.zeros_like(x)
    residual = z + 0.3 * torch.tanh(WEIGHT @ z) - x
    while residual.norm() > 1e-10:
        slope = 1 - torch.tanh(WEIGHT @ z) ** 2
        z = z - torch.linalg.solve(torch.eye(N, dtype=F64) + 0.3 * slope[:, None] * WEIGHT, residual)
        residual = z + 0.3 * torch.tanh(WEIGHT @ z) - x
    return z


def clipped(x):
    x = torch.tanh(WEIGHT @ x)
    if x.norm() > 1:
        x = x / x.norm()
    return torch.tanh(OTHER @ x)


def line_search(x):
    def value(z):
        return (torch.tanh(WEIGHT @ z) ** 2).sum() + 0.1 * (z * z).sum()

    y = x
    for _ in range(2):
        bent = torch.tanh(WEIGHT @ y)
        g, step = 2 * WEIGHT.T @ ((1 - bent**2) * bent) + 0.2 * y, 1.0
        while value(y - step * g) > value(y) - 1e-4 * step * (g * g).sum() and step > 1e-6:
            step /= 2
        y = y - step * g
    return y


def refusing(x):
    if (x < -3).any():
        raise ValueError("x must not be below -3")
    if not torch.isfinite(x).all():
        raise FloatingPointError
    return torch.sin(WEIGHT @ x)


def piecewise(x):
    size = (x * x).mean()
    if size.item() > 0.8:
        return torch.sin(WEIGHT @ x)
    return torch.tanh(OTHER @ torch.tanh(WEIGHT @ x)) if size.item() > 0.3 else x**3


def bisection(x):
    low, high, wanted = torch.zeros((), dtype=F64), torch.full((), 10.0, dtype=F64), (x * x).sum()
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if middle**3 + middle > wanted else (middle, high)
    middle = (low + high) / 2
    return (middle - (middle**3 + middle - wanted) / (3 * middle**2 + 1)) * x


def counted(x):
    y = x
    for _ in range(int(x.abs().sum() / 2) + 1):
        y = torch.tanh(WEIGHT @ y) + y
    return y


def scaled(x):
    largest = x.abs().max().item()
    return torch.tanh(WEIGHT @ (x / largest)) * largest


def written(x):
    y = x.clone()
    y[0] = y.norm().item()
    if y[0] > 1:
        y[1:] *= 2
    return y * x


def listed(x):
    first, *_, last = x.tolist()
    return WEIGHT @ x * (first if first > last else last + 1)


def picked(x):
    return x[x.argmax()] * x


def rounded(x):
    size = x.norm().item()
    return x * (round(size) + math.ceil(size) * size + math.floor(size)) + torch.tensor(size, dtype=F64)


def bounded(x):
    size = x.mean().item()
    return torch.where(x > size, x.clamp(max=2 * size + 1), size) * (-size if -size == abs(size) else 2 - size)


def compared(x):
    return x.sin() if torch.equal(x.sort().values[:2], x[:2]) or torch.allclose(x, x.abs()) else x * x


def rooted(x):
    """On its second way the first way's op does not take its operand."""
    return torch.linalg.cholesky(torch.diag(x + 1)).sum(1) * x if x.min() > -1 else x[x.abs().argmax()] + x


FUNCTIONS = [
    adaptive_steps, controlled_steps, newton, clipped, line_search, refusing, piecewise, bisection, counted, scaled,
    written, listed, picked, rounded, bounded, compared, rooted,
]  # fmt: skip
