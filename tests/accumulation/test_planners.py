"""Costs that a reader can check by hand, and planners that judge one another."""

import random
from itertools import pairwise

import pytest

from torch_jvpvjp.accumulation import (
    STRATEGIES,
    Action,
    Banded,
    Bracket,
    Chain,
    Dense,
    Diagonal,
    Factor,
    Fma,
    Mode,
    register_strategy,
)
from torch_jvpvjp.accumulation.assemble import assemble
from torch_jvpvjp.accumulation.planners import dynamic_programming, exhaustive, greedy
from torch_jvpvjp.accumulation.planners.counts import Kinds
from torch_jvpvjp.accumulation.planners.tables import SweepPrices
from torch_jvpvjp.accumulation.problem import Problem

# Two factors n -> k -> m with 100 edges each: all tangent, all adjoint, preaccumulate and multiply, optimum, steps.
TWO_FACTORS = {
    "2-4-8": ((2, 4, 8), 400, 1600, 664, 400, ["accumulate tangent", "eliminate tangent"]),
    "4-2-32": ((4, 2, 32), 800, 6400, 656, 600, ["accumulate adjoint", "eliminate tangent"]),
    "8-4-2": ((8, 4, 2), 1600, 400, 664, 400, ["accumulate adjoint", "eliminate adjoint"]),
    "32-2-4": ((32, 2, 4), 6400, 800, 656, 600, ["accumulate tangent", "eliminate adjoint"]),
    "4-2-4": ((4, 2, 4), 800, 800, 432, 432, ["accumulate adjoint", "accumulate tangent", "multiply"]),
}


@pytest.mark.parametrize(
    ("dims", "tangent", "adjoint", "formed", "optimum", "steps"), TWO_FACTORS.values(), ids=TWO_FACTORS
)
def test_two_factors_by_hand(dims, tangent, adjoint, formed, optimum, steps):
    chain = Chain.from_sizes(dims, edges=[100, 100])
    assert chain.plan(strategy="forward").cost == tangent
    assert chain.plan(strategy="reverse").cost == adjoint
    assert chain.plan(matrix_free=False).cost == formed
    plan = chain.plan()
    assert plan.cost == optimum
    assert (plan.tangent_fma, plan.adjoint_fma) == (tangent, adjoint)
    assert [" ".join(filter(None, (s.action.value, s.mode and s.mode.value))) for s in plan.steps] == steps


def test_three_factors_by_hand():
    dims, edges = [3, 3, 1, 2], [29, 14, 7]

    def optimum(first, last):
        return Chain.from_sizes(dims[first - 1 : last + 1], edges=edges[first - 1 : last]).plan().cost

    blocks = [(1, 1), (2, 2), (3, 3), (1, 2), (2, 3), (1, 3)]
    assert [optimum(*block) for block in blocks] == [87, 14, 7, 43, 27, 56]
    chain = Chain.from_sizes(dims, edges=edges)
    assert chain.plan(strategy="forward").cost == 150
    assert chain.plan(strategy="reverse").cost == 100


def test_dense_chain_is_the_matrix_chain_problem():
    # 5x4, 4x6, 6x2 by hand: (5·4)(4·6·2 first) = 48 + 40 = 88, the other order 120 + 60 = 180
    chain = Chain.from_sizes([2, 6, 4, 5])
    assert chain.plan().cost == 88
    assert chain.plan(strategy="forward").cost == 2 * 6 * 4 + 2 * 4 * 5 == 88
    assert chain.plan(strategy="reverse").cost == 5 * 4 * 6 + 5 * 6 * 2 == 180
    assert chain.plan(strategy="forward").bracketing() == "(F3 (F2 F1))"
    assert chain.plan(strategy="reverse").bracketing() == "((F3 F2) F1)"
    assert {step.action for step in chain.plan().steps} == {Action.ACCUMULATE, Action.MULTIPLY}


def test_forward_is_all_tangents_and_reverse_all_adjoints():
    dims, jvp, vjp = [7, 3, 9, 4, 5], [11, 13, 17, 19], [23, 29, 31, 37]
    chain = Chain.from_sizes(dims, jvp_cost=jvp, vjp_cost=vjp)
    assert chain.plan(strategy="forward").cost == 7 * sum(jvp)
    assert chain.plan(strategy="reverse").cost == 5 * sum(vjp)
    assert len(chain.plan(strategy="forward").steps) == len(chain.plan(strategy="reverse").steps) == 2


@pytest.mark.parametrize("strategy", ["dynamic_programming", "exhaustive"])
def test_ties_go_to_fewer_and_longer_sweeps(strategy):
    # All sizes equal and products dear: one sweep of any length costs the same as many.
    plan = Chain.from_sizes([5] * 5, edges=[1] * 4).plan(strategy=strategy)
    assert [(step.action, step.mode, step.bracket) for step in plan.steps] == [
        (Action.ACCUMULATE, Mode.TANGENT, (1, 1, 1)),
        (Action.ELIMINATE, Mode.TANGENT, (4, 1, 1)),
    ]


@pytest.mark.parametrize("base", [2**31, 2**63, 10**40], ids=["2^31", "2^63", "10^40"])
def test_exact_beyond_machine_integers(base):
    # (F3 F2) F1 costs d_3 d_2 d_1 + d_3 d_1 d_0, and F3 (F2 F1) d_2 d_1 d_0 + d_3 d_2 d_0: more, by 3 in 2 base.
    d0, d1, d2, d3 = base + 1, base, base + 2, base
    left, right = d3 * d2 * d1 + d3 * d1 * d0, d2 * d1 * d0 + d3 * d2 * d0
    plan = Chain.from_sizes([d0, d1, d2, d3]).plan()
    assert left < right and plan.cost == left and type(plan.cost) is int
    assert plan.bracketing() == "((F3 F2) F1)"
    swept = Chain.from_sizes([d0, d1, d2, d3], edges=[base, base + 1, base + 2]).plan()
    assert swept.cost == d3 * (3 * base + 3) == sum(step.fma for step in swept.steps)


@pytest.mark.parametrize("seed", range(8))
def test_seconds_of_sizes_beyond_machine_integers(seed):
    rng = random.Random(seed)
    dims = [2 ** rng.randint(0, 90) for _ in range(rng.randint(3, 6))]
    edges = None if seed % 2 else [2 ** rng.randint(0, 90) for _ in dims[1:]]
    chain = Chain.from_sizes(dims, edges=edges)
    best, judge = (chain.plan(objective="time", strategy=name) for name in ("dynamic_programming", "exhaustive"))
    assert best.cost == pytest.approx(judge.cost, rel=1e-9)


@pytest.mark.parametrize("strategy", ["dynamic_programming", "exhaustive", "greedy"])
@pytest.mark.parametrize("size", [2**400, 2**4000])
def test_seconds_that_no_float_holds_are_refused(size, strategy):
    with pytest.raises(ValueError, match=r"a float holds the prices by objective='time', .*use objective='fma'"):
        Chain.from_sizes([size] * 4).plan(objective="time", strategy=strategy)


def test_exact_where_thirty_two_bits_wrap():
    sizes = [1000 + index % 7 for index in range(501)]
    plan = Chain.from_sizes(sizes).plan()
    assert plan.cost == sum(step.fma for step in plan.steps) > 499 * 1000**3
    assert len(plan.steps) == 2 * 500 - 1


def random_chain(rng, *, matrix_free, length=None):
    dims = [rng.randint(1, 12) for _ in range((length or rng.randint(1, 6)) + 1)]
    if not matrix_free:
        return Chain.from_sizes(dims)
    costs = [[rng.randint(0, 60) for _ in dims[1:]] for _ in range(3)]
    return Chain.from_sizes(dims, jvp_cost=costs[0], vjp_cost=costs[1], tape=costs[2])


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("matrix_free", [False, True], ids=["dense", "matrix_free"])
def test_dynamic_programming_is_optimal_and_nothing_beats_it(seed, matrix_free):
    rng = random.Random(seed)
    chain = random_chain(rng, matrix_free=matrix_free)
    for options in ({}, {"matrix_free": False}, {"tape_limit": rng.randint(0, 80)} if matrix_free else {}):
        judge = chain.plan(strategy="exhaustive", **options)
        plan = chain.plan(**options)
        assert plan.cost == judge.cost == sum(step.fma for step in plan.steps)
        assert len(plan.steps) == len(judge.steps)
        for strategy in ("forward", "greedy"):
            assert chain.plan(strategy=strategy, **options).cost >= judge.cost


def structured_factors(rng, length):
    """A chain as a network has it: given dense, given diagonal and raw factors with costs of their own."""
    size, factors = rng.randint(1, 8), []
    for _ in range(length):
        kind, m = rng.choice(["dense", "diagonal", "raw"]), rng.randint(1, 8)
        if kind == "diagonal":
            factors.append(Factor(size, size, size, size, size, Diagonal(size)))
        elif kind == "dense":
            factors.append(Chain.from_sizes([size, m]).factors[0])
        else:
            factors.append(Factor(size, m, rng.randint(1, 50), rng.randint(1, 50), rng.randint(1, 30)))
        size = factors[-1].m
    return tuple(factors)


@pytest.mark.parametrize("seed", range(60))
def test_dynamic_programming_is_optimal_with_structure(seed):
    rng = random.Random(seed)
    problem = Problem(structured_factors(rng, rng.randint(1, 6)), Fma(), tape_limit=rng.choice([None, 40]))
    costs = [sum(map(problem.price, plan(problem))) for plan in (exhaustive, dynamic_programming, greedy)]
    assert costs[0] == costs[1] <= costs[2]
    assert assemble(problem, dynamic_programming(problem), strategy="test").cost == costs[0]


def test_structure_decides():
    # diag(100) · dense(100, 2): 200 as a row scaling, 20,000 as a dense product
    factors = (Chain.from_sizes([2, 100]).factors[0], Factor(100, 100, structure=Diagonal(100)))
    problem = Problem(factors, Fma())
    plan = assemble(problem, dynamic_programming(problem), strategy="dynamic_programming")
    assert plan.cost == 200


@pytest.mark.parametrize("tape_limit", [0, 5, 10, 30])
def test_no_adjoint_sweep_holds_more_than_the_limit(tape_limit):
    dims, edges = [9, 8, 7, 6, 5, 2], [10, 5, 20, 5, 10]
    chain = Chain.from_sizes(dims, edges=edges)
    for strategy in ("greedy", "dynamic_programming", "exhaustive"):
        for step in chain.plan(strategy=strategy, tape_limit=tape_limit).steps:
            if step.mode is Mode.ADJOINT:
                assert sum(edges[index - 1] for index in step.decision.raw_factors) <= tape_limit
    assert chain.plan(tape_limit=0).cost == chain.plan(strategy="exhaustive", tape_limit=0).cost > chain.plan().cost


def test_reverse_splits_its_sweep_at_the_tape_limit():
    chain = Chain.from_sizes([9, 8, 7, 6, 2], edges=[10, 10, 10, 10])
    plan = chain.plan(strategy="reverse", tape_limit=25)
    assert [step.bracket for step in plan.steps] == [(4, 4, 4), (4, 3, 2), (4, 1, 1)]
    assert plan.cost == chain.plan(strategy="reverse").cost == 2 * 40


def test_peak_entries_counts_what_is_held_and_the_result():
    # (F4 F3)(F2 F1), preaccumulated: 6x5, 5x3 | 4x6... checked by hand in the order that holds least
    chain = Chain.from_sizes([3, 5, 2, 4, 6], edges=[1, 1, 1, 1])
    plan = chain.plan(strategy="forward")
    assert plan.peak_entries == 5 * 3 + 6 * 3  # J_1 held, and the 6 x 3 result of the sweep
    given = Chain.from_sizes([3, 5, 2, 4, 6]).plan()
    assert given.bracketing() == "((F4 F3) (F2 F1))"
    assert given.peak_entries == 2 * 3 + 6 * 2 + 6 * 3  # two products held, and theirs; the given ones are resident


@pytest.mark.parametrize(
    ("mode", "order", "peak"),
    [
        (Mode.ADJOINT, [(2, 2, 2), (3, 2, 2), (1, 1, 1), (3, 1, 1)], 1000 + 10),
        (Mode.TANGENT, [(1, 1, 1), (2, 2, 2), (3, 2, 2), (3, 1, 1)], 100 + 1000 + 10),
    ],
    ids=["adjoint", "tangent"],
)
def test_the_operand_with_the_higher_peak_is_formed_first_unless_tangents_are_pushed(mode, order, peak):
    brackets = [
        Bracket(Action.ACCUMULATE, mode, 1, 1, 1),  # 10 x 10
        Bracket(Action.ACCUMULATE, Mode.TANGENT, 2, 2, 2),  # 100 x 10
        Bracket(Action.ELIMINATE, Mode.TANGENT, 3, 2, 2),  # 1 x 10
        Bracket(Action.MULTIPLY, None, 3, 1, 1),
    ]
    chain = Chain.from_sizes([10, 10, 100, 1], edges=[1, 1, 1])
    plan = assemble(Problem(chain.factors, Fma()), brackets, strategy="test")
    assert [step.bracket for step in plan.steps] == order
    assert plan.peak_entries == peak


def test_long_chains_are_planned_without_recursion():
    dims = [2 + (7 * index) % 11 for index in range(1201)]
    for strategy in ("forward", "reverse", "dynamic_programming"):
        plan = Chain.from_sizes(dims).plan(strategy=strategy)
        assert plan.bracketing().count("F") == 1200
    assert plan.cost <= Chain.from_sizes(dims).plan(strategy="forward").cost


@pytest.fixture
def scratch_strategy():
    yield "scratch"
    STRATEGIES.pop("scratch", None)


def test_a_strategy_of_ones_own(scratch_strategy):
    @register_strategy(scratch_strategy)
    def halves(problem):
        def split(j, i):
            if i == j:
                return [problem.best_leaf(i)]
            k = (i + j) // 2
            return [Bracket(Action.MULTIPLY, None, j, k, i), *split(k, i), *split(j, k + 1)]

        return split(problem.length, 1)

    plan = Chain.from_sizes([5, 4, 3, 2, 6]).plan(strategy=scratch_strategy)
    assert plan.bracketing() == "((F4 F3) (F2 F1))"
    assert plan.strategy == "scratch"
    assert plan.cost == 3 * 4 * 5 + 6 * 2 * 3 + 6 * 3 * 5
    with pytest.raises(ValueError, match="name must be new, got 'scratch'"):
        register_strategy(scratch_strategy)


def test_a_strategy_is_a_function_with_a_name(scratch_strategy):
    with pytest.raises(TypeError, match=r"register_strategy: name must be a str, got 3; write @register_strategy"):
        register_strategy(3)
    with pytest.raises(
        TypeError, match=f"register_strategy: strategy '{scratch_strategy}' must be a function, got int"
    ):
        register_strategy(scratch_strategy)(3)


@pytest.mark.parametrize("returned", [None, [None], [(1, 1, 1)]], ids=["nothing", "none", "numbers"])
def test_what_is_no_bracket_is_refused(returned, scratch_strategy):
    register_strategy(scratch_strategy)(lambda problem: returned)
    with pytest.raises(
        TypeError, match=f"plan: strategy '{scratch_strategy}' must return a Bracket for each step, got"
    ):
        Chain.from_sizes([2, 3]).plan(strategy=scratch_strategy)


WRONG = {
    "missing block": ([Bracket(Action.MULTIPLY, None, 2, 1, 1)], "got no step for"),
    "not the whole": ([Bracket(Action.ACCUMULATE, Mode.GIVEN, 1, 1, 1)], r"got no step for \(2, 1\)"),
    "forbidden mode": ([Bracket(Action.ELIMINATE, Mode.TANGENT, 2, 1, 1)], "allowed steps only"),
    "twice": ([Bracket(Action.ACCUMULATE, Mode.GIVEN, 1, 1, 1)] * 2, r"got \(1, 1\) twice"),
    "unused": (
        [Bracket(Action.MULTIPLY, None, 2, 1, 1)]
        + [Bracket(Action.ACCUMULATE, Mode.GIVEN, index, index, index) for index in (1, 2, 3)],
        r"unused blocks \[\(3, 3\)\]",
    ),
    "split outside": ([Bracket(Action.MULTIPLY, None, 2, 2, 1)], "allowed steps only"),
}


@pytest.mark.parametrize(("brackets", "message"), WRONG.values(), ids=WRONG)
def test_what_a_strategy_returns_is_checked(brackets, message):
    problem = Problem(Chain.from_sizes([2, 3, 4]).factors, Fma())
    with pytest.raises(ValueError, match=message):
        assemble(problem, brackets, strategy="wrong")


def test_exhaustive_refuses_long_chains():
    with pytest.raises(ValueError, match=r"at most 1,000,000 plans, got [\d,]+ for 12 factors"):
        Chain.from_sizes([2] * 13, edges=[1] * 12).plan(strategy="exhaustive")


def test_infeasible_modes_are_named():
    chain = Chain.from_sizes([4, 3, 2], jvp_cost=[5, 5], vjp_cost=[5, 5], tape=[50, 7])
    with pytest.raises(ValueError, match="reverse: factor F2 must have an adjoint .* tape of 7; raise tape_limit"):
        chain.plan(strategy="reverse", tape_limit=6)
    with pytest.raises(ValueError, match="reverse: factor F1 must have"):
        chain.plan(strategy="reverse", tape_limit=20)
    only_adjoint = Problem((Factor(4, 3, None, 5, 50),), Fma(), tape_limit=20)
    with pytest.raises(
        ValueError, match="F1 has no tangent evaluation and its tape of 50 entries exceeds tape_limit=20"
    ):
        only_adjoint.check_feasible()


def test_prices_are_those_of_the_objective():
    class Products(Fma):
        """Counts products, and nothing else."""

        def accumulate(self, factor, mode):
            return 0

        def multiply(self, left, right):
            return 1

        def multiply_dense(self, m, k, n):
            return 1 + 0 * (m + k + n)

    plan = Chain.from_sizes([5, 1, 5, 1, 5]).plan(objective=Products(name="products", unit="product"))
    assert plan.objective == "products"
    assert plan.cost == 3
    assert plan.fma == sum(step.fma for step in plan.steps) > 3


def test_an_objective_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"objective must be a name such as 'fma', or an object with .*, got None"):
        Chain.from_sizes([3, 2]).plan(objective=None)


def test_unknown_names_list_the_known():
    chain = Chain.from_sizes(list(range(1, 5)))
    with pytest.raises(ValueError, match="objective must be one of 'fma', 'memory', 'time', got 'luck'"):
        chain.plan(objective="luck")
    with pytest.raises(ValueError, match="'dynamic_programming', .*'reverse', got 'best'"):
        chain.plan(strategy="best")


def test_consecutive_dims_are_the_factors():
    dims = [4, 9, 2]
    assert [(factor.n, factor.m) for factor in Chain.from_sizes(dims).factors] == list(pairwise(dims))


@pytest.mark.parametrize("batch", [1, 7])
def test_recurring_stages_are_priced_as_each_by_itself(batch):
    structures = [Diagonal(4), Dense(4, 4), Banded(4, 4, 1, 0)]
    factors = [
        Factor(4, 4, 16 + k % 2, 20, 8, structures[k % 3], f"stage {k}", given=k % 4 == 0, shared=k % 5 == 0)
        for k in range(12)
    ]
    problem = Problem(tuple(factors), Fma(), batch=batch)
    prices = SweepPrices(problem, Kinds(problem))
    for i in range(1, 12):
        for index in range(i + 1, 13):
            assert prices.push(index, i) == problem.push_price(index, i)
            assert prices.pull(i, index) == problem.pull_price(i, index)
            assert Kinds(problem).structures[Kinds(problem).of[index - 1, i - 1]] == problem.structure(index, i)
