"""A tour of the Jacobian accumulator: what it finds in a function, the plan, its limits, and what it gives back.

Run it with ``python examples/jacobians.py``; every result is compared with that of ``torch.func``.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, vmap
from torch.testing import assert_close

import torch_jvpvjp as tj
from torch_jvpvjp.accumulation import Banded, Diagonal


class Residual(nn.Module):
    """x + W₂ gelu(W₁ norm(x)), narrow in the middle."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def heat(u: Tensor) -> Tensor:
    """One explicit step of a non-linear heat equation, whose Jacobian has three diagonals."""
    flux = u[1:] ** 2 - u[:-1] ** 2
    return u + 0.1 * (nn.functional.pad(flux, (0, 1)) - nn.functional.pad(flux, (1, 0)))


if __name__ == "__main__":
    torch.manual_seed(0)
    net = nn.Sequential(Residual(40, 12), nn.Linear(40, 6), nn.Tanh(), nn.Linear(6, 40), Residual(40, 12))
    net = net.double().requires_grad_(False)
    x = torch.randn(40, dtype=torch.float64)
    expected: Tensor = jacrev(net)(x)  # pyright: ignore[reportAssignmentType]

    print("A function is recorded and taken apart where everything passes through one tensor:\n")
    plan = tj.plan_jacobian(net, x, objective="fma", explain=True)
    print(f"\n{plan}\n")
    assert_close(plan(x), expected)
    assert_close(plan(2 * x), jacrev(net)(2 * x))  # any x of the shape
    assert_close(tj.jacobian(net, x), expected)  # in one call; plans are kept with the function

    frugal = tj.plan_jacobian(net, x, objective="memory")
    print(f"held at most: {plan.peak_entries:,} entries by least fma, {frugal.peak_entries:,} by least memory")
    assert_close(frugal(x), expected)
    try:
        tj.plan_jacobian(net, x, peak_entries=100)
    except tj.InfeasiblePlanError as error:
        print(f"within 100 entries: {error}")

    batch = torch.randn(5, 40, dtype=torch.float64)
    assert_close(tj.jacobian(net, batch, batch_dims=1), vmap(jacrev(net))(batch))
    parameters = dict(net.named_parameters())
    by_name = jacrev(lambda p: functional_call(net, p, (x,)))(parameters)
    assert_close(tj.jacobian(net, x, wrt="parameters"), by_name)

    u = torch.rand(200, dtype=torch.float64)
    sparse = tj.jacobian(heat, u, sparse="auto")
    print(f"one step of the heat equation: {sparse.values().numel()} of {200 * 200:,} entries are stored")
    assert_close(sparse.to_dense(), jacrev(heat)(u))

    left, right = torch.randn(3, 40).double(), torch.randn(40, 2).double()
    seeded = tj.Chain([net]).plan(x, left=left, right=right)
    assert_close(seeded(x), left @ expected @ right)
    curvature: Tensor = hessian(lambda y: torch.logsumexp(y, -1))(net(x))  # pyright: ignore[reportAssignmentType]
    assert_close(tj.gauss_newton(net, x, curvature)(x), expected.T @ curvature @ expected)

    print("\nA chain may also be known by sizes alone:\n")
    chain = tj.Chain.from_sizes([90, 90, 90, 4], structures=[Banded(90, 90, 1, 1), Diagonal(90), None])
    print(chain.plan())
