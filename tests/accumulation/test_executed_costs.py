"""What a plan says it costs is what its execution does, and every plan of a chain gives the same matrix."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structure_cases import block_of, chains, plain_structures, structures

from torch_jvpvjp.accumulation import STRATEGIES, Chain
from torch_jvpvjp.accumulation.bracket import Action
from torch_jvpvjp.accumulation.given import multiply_given
from torch_jvpvjp.accumulation.structure import Dense, Diagonal

OURS = ("forward", "reverse", "greedy", "dynamic_programming", "exhaustive")


def chain_of(kinds):
    return Chain.from_sizes([kinds[0].n, *(kind.m for kind in kinds)], structures=kinds)


def expected(blocks):
    like = torch.zeros((), dtype=torch.float64)
    product = blocks[0].dense(like)
    for block in blocks[1:]:
        product = block.dense(like) @ product
    return product


def check(kinds):
    chain, blocks = chain_of(kinds), [block_of(kind, seed) for seed, kind in enumerate(kinds)]
    costs = {}
    for strategy in OURS:
        plan = chain.plan(strategy=strategy)
        product, fma = multiply_given(plan, blocks)
        matrix = product.dense(torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(matrix, expected(blocks), rtol=1e-10, atol=1e-10)
        assert fma == plan.cost, (strategy, plan.bracketing())
        costs[strategy] = plan.cost
    assert costs["dynamic_programming"] == costs["exhaustive"] == min(costs.values())


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_costs_counted_while_executing_are_those_planned_for_patterns(length):
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.data())
    def holds(data):
        check(data.draw(chains(plain_structures, length))[::-1])

    holds()


@pytest.mark.parametrize("length", [2, 3, 4])
def test_costs_counted_while_executing_are_those_planned_for_factored_structures(length):
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.data())
    def holds(data):
        check(data.draw(chains(structures, length))[::-1])

    holds()


@pytest.mark.parametrize("strategy", OURS)
def test_matrices_that_a_plan_carries_blocks_through_are_multiplied_one_by_one(strategy):
    dims = [4, 3, 5, 2, 6]
    costs = {"jvp_cost": [3, 20, 7, 2], "vjp_cost": [3, 2, 7, 20]}
    blocks = [block_of(Dense(m, n), seed=m) for n, m in pairwise(dims)]
    plan = Chain.from_sizes(dims, **costs).plan(strategy=strategy)
    assert any(step.decision.action is Action.ELIMINATE for step in plan.steps)
    matrix = multiply_given(plan, blocks)[0].dense(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(matrix, expected(blocks), rtol=1e-10, atol=1e-10)


def test_every_strategy_is_checked():
    assert set(OURS) <= set(STRATEGIES)


def test_matrices_of_another_chain_are_refused():
    plan = chain_of([Dense(2, 3), Diagonal(2)]).plan()
    with pytest.raises(ValueError, match="must have the structures of the plan's 2 factors"):
        multiply_given(plan, [block_of(Dense(2, 3)), block_of(Dense(2, 2))])
