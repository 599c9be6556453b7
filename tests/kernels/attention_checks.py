"""What tests of attention's kernels do with a problem: run the launchers, and compare all of them with the oracle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import attention_oracle as oracle
import torch
from attention_oracle import Problem, draw_problem
from torch import Tensor

from torch_jvpvjp.testing.budget import assert_equal
from torch_jvpvjp.triton_kernels.attention import (
    Operands,
    attention_forward,
    attention_second_order,
    attention_vjp,
)

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available() else "cuda"


def problem_of(*sizes: Any, **options: Any) -> Problem:
    return draw_problem(*sizes, device=DEVICE, **options)


def needed(problem: Problem) -> Operands:
    return Operands(*(t is not None for t in problem.at))


def there(results: Sequence[Tensor | None]) -> list[Tensor]:
    return [t for t in results if t is not None]


def run_forward(problem: Problem) -> list[Tensor]:
    """o, ℓ and their tangents; with one primal and several directions o is there once, and shown for each."""
    moves = any(t is not None for t in problem.dots)
    o, lse, o_dot, lse_dot, _ = attention_forward(problem.at, problem.dots if moves else None, problem.options)
    if o_dot is None or lse_dot is None:
        return [o, lse]
    return [o.expand(o_dot.shape), lse.expand(lse_dot.shape), o_dot, lse_dot]


def run_second(problem: Problem) -> list[Tensor]:
    """The cotangents and their tangents, from what the forward kernel left."""
    o, lse, o_dot, lse_dot, rest = attention_forward(problem.at, problem.dots, problem.options)
    first, second = attention_second_order(
        problem.at, problem.dots, o, lse, o_dot, lse_dot, problem.w, problem.lse_bar, problem.u, problem.lse_bar_dot,
        problem.options, needed(problem), needed(problem), rest,
    )  # fmt: skip
    return there([*first, *second])


def run_vjp(problem: Problem) -> list[Tensor]:
    o, lse, _, _, rest = attention_forward(problem.at, None, problem.options)
    needs = needed(problem)
    return there(attention_vjp(problem.at, o, lse, problem.w, problem.lse_bar, problem.options, needs, rest))


def check(problem: Problem) -> None:
    """Value, tangents, pullback and both second orders, in float64; what goes in stays as it was."""
    tensors = [t for t in (*problem.at, *problem.dots, problem.w, problem.u) if t is not None]
    before = [t.clone() for t in tensors]
    moves = any(t is not None for t in problem.dots)
    assert_equal(run_forward(problem), oracle.forward(problem)[: 4 if moves else 2], "value and tangent: ")
    if problem.w is not None or problem.lse_bar is not None:
        first, second = oracle.second_order(problem)
        assert_equal(run_vjp(problem), first, "pullback: ")
        if moves:
            got = run_second(problem)
            assert_equal(got, (*first, *second), "forward over reverse: ")
            of_tangents, of_primals = oracle.pulled_back_jvp(problem)
            assert_equal(got, (*of_tangents, *of_primals), "reverse over forward: ")
    assert all(torch.equal(one, other) for one, other in zip(before, tensors, strict=True))
