"""Whether a Jacobian is right, by one in float64, before anybody times it."""

from __future__ import annotations

import math
from typing import Any

import torch
from _jacobian_case import Case, Problem, leaves
from _jacobian_peers import Peer, peers
from torch import Tensor

ROUNDINGS = 16  # of the largest entry, which every order of products is granted
SLACK = 4  # times the worse of PyTorch's two modes in that dtype


def entries(problem: Problem) -> tuple[int, int]:
    """Entries of f(x) and of x, of one sample each where there is a batch of Jacobians."""
    with torch.no_grad():
        y = problem.f(problem.x)
    samples = len(problem.x) if problem.batched else 1
    return y.numel() // samples, problem.x.numel() // samples


class JacobianJudge:
    """Errors of a Jacobian in units of a budget.

        budget = 4 · (max over both of PyTorch's modes of err(mode in that dtype) + 16 · eps(dtype) · max|J₆₄|)

    An order of products is not better or worse than another by itself, so both modes speak for what rounding does.

    Args:
        case: The workload.
        small: Whether at the sizes of the test.
        device: Where the contenders work.

    Raises:
        ArithmeticError: If the two modes disagree in float64, or the Jacobian is zero or not finite.
    """

    def __init__(self, case: Case, *, small: bool = False, device: torch.device | str = "cpu") -> None:
        exact = case.make(small=small, dtype=torch.float64, device=device)
        m, n = entries(exact)
        first, second = _both_modes(exact, m, n)
        self._reference = leaves(first.build(None)(exact.x))
        problem = case.make(small=small, device=device)
        modes = [leaves(p.build(None)(problem.x)) for p in _both_modes(problem, m, n)]
        checked = leaves(second.build(None)(exact.x))  # the other mode in float64: they must agree on what is right
        eps = torch.finfo(problem.x.dtype).eps
        self._budgets = [
            SLACK * (max(_distance(mode[k], self._reference[k]) for mode in modes) + ROUNDINGS * eps * _largest(j))
            for k, j in enumerate(self._reference)
        ]
        if not all(0 < budget < math.inf for budget in self._budgets):
            raise ArithmeticError(f"{case.id}: a Jacobian to compare with must be finite and not all zero.")
        if self._worst(checked) > 1:
            raise ArithmeticError(f"{case.id}: {first.name} and {second.name} disagree in float64.")

    def __call__(self, result: Any) -> float:
        """The worst error over its budget.

        Args:
            result: A tensor or array, or a tree of them.

        Returns:
            At most 1 if all is right; infinity where there is NaN or another shape.
        """
        return self._worst(leaves(result))

    def _worst(self, found: list[Tensor]) -> float:
        if [t.shape for t in found] != [t.shape for t in self._reference]:
            return math.inf
        pairs = zip(found, self._reference, self._budgets, strict=True)
        return max(_distance(f, j) / budget for f, j, budget in pairs)


def _both_modes(problem: Problem, m: int, n: int) -> tuple[Peer, Peer]:
    """PyTorch's two modes in the way that suits the problem, the one of fewer sweeps first."""
    by_name = {peer.name: peer for peer in peers(problem, m)}
    if problem.of_parameters:  # far too many parameters for tangents
        return by_name["jacrev"], by_name["vmap jacrev"]
    both = ("jacrev of the sum", "jacfwd of a shift") if problem.batched else ("jacrev", "jacfwd")
    reverse, forward = (by_name[name] for name in both)
    return (reverse, forward) if m <= n else (forward, reverse)


def _distance(found: Tensor, exact: Tensor) -> float:
    difference = (found.to(exact.device, torch.float64) - exact).abs()
    return float(difference.nan_to_num(nan=math.inf, posinf=math.inf).max()) if difference.numel() else 0.0


def _largest(exact: Tensor) -> float:
    return float(exact.abs().max()) if exact.numel() else 0.0
