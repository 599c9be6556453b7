"""Plans of structured chains: prices by hand, compression, batches, and judges that know patterns only."""

import random
from functools import cache

import numpy as np
import pytest

from torch_jvpvjp.accumulation import Action, Chain, Factor, Fma, Mode, Plan
from torch_jvpvjp.accumulation.planners.counts import Kinds, ProductCounts
from torch_jvpvjp.accumulation.planners.matrix_chain import multiply_order
from torch_jvpvjp.accumulation.planning import plan_factors
from torch_jvpvjp.accumulation.problem import Problem
from torch_jvpvjp.accumulation.structure import (
    Banded,
    BlockDiagonal,
    Dense,
    Diagonal,
    Gather,
    IdentityPlus,
    LowerTriangular,
    LowRank,
    Pool,
    product,
)

# ---- by hand --------------------------------------------------------------------------------


def test_structure_decides_the_order():
    # pool (2, 4) · dense (4, 4) · diagonal (4): pooling first leaves 2 x 4; 4 · 4 + 8 = 24, the other order 16 + 16
    chain = Chain.from_sizes([4, 4, 4, 2], structures=[{"kind": "diag"}, None, {"kind": "pool"}])
    assert chain.plan().bracketing() == "((F3 F2) F1)" and chain.plan().cost == 16 + 8
    assert chain.plan(strategy="forward").cost == 16 + 16


def test_a_bandwidth_grows_with_each_product():
    # bidiagonal (4): Σ_l columns · rows = 2·1 + 2·2 + 2·2 + 1·2 = 12
    plan = Chain.from_sizes([4, 4, 4], structures=[Banded(4, 4, 1, 0)] * 2).plan()
    assert plan.cost == 12 and plan.steps[-1].structure == "banded" and plan.peak_entries == 4 + 3 + 2


def test_structures_with_costs_say_what_to_compress():
    # bidiagonal: 2 colours instead of 4 columns; pushing the 3 colours of the product on takes 30, less than 20 + 12
    chain = Chain.from_sizes([4, 4, 4], edges=[100, 10], structures=[Banded(4, 4, 1, 0)] * 2)
    assert not any(factor.given for factor in chain.factors)
    assert [(step.action, step.mode, step.fma) for step in chain.plan().steps] == [
        (Action.ACCUMULATE, Mode.COMPRESSED, 200),
        (Action.ELIMINATE, Mode.COMPRESSED, 30),
    ]


def test_one_compressed_sweep_serves_many_factors():
    chain = Chain.from_sizes([6, 6, 6, 6], edges=[1, 1, 1], structures=[BlockDiagonal(3, 6, 6)] * 3)
    plan = chain.plan()
    assert plan.cost == 2 * 3 and len(plan.steps) == 2 and plan.steps[1].bracket == (3, 1, 1)
    assert plan.bracketing() == "(F3 (F2 F1))"


def test_closed_forms_compete_with_sweeps():
    cheap, dear = (Factor(3, 4, 10, 10, 1, forming_cost=cost) for cost in (5, 500))
    assert [step.mode for step in plan_factors([cheap]).steps] == [Mode.CLOSED]
    assert plan_factors([cheap]).cost == 5 and plan_factors([cheap]).peak_entries == 12
    assert plan_factors([dear]).cost == 30


def test_a_product_of_shared_factors_is_paid_once():
    # (F3 F2) of weights is one 5 x 5 product of 5·5·5 = 125 for all samples, then 10 samples · 5·5 on the diagonal;
    # from the diagonal up it is 10 · (25 + 125).
    weight = Factor(5, 5, structure=Dense(5, 5), shared=True)
    slope = Factor(5, 5, structure=Diagonal(5))
    plan = plan_factors([slope, weight, weight], batch=10)
    assert plan.bracketing() == "((F3 F2) F1)" and plan.cost == 125 + 10 * 25
    assert plan_factors([slope, weight, weight]).cost == 125 + 25
    assert plan.steps[-1].fma == 250


def test_a_batch_changes_the_best_bracketing():
    # alone 9 -> 3 -> 9 -> 1 is pulled from the end: 27 + 27; but F2 F1 is shared by 100 samples and F3 is not
    shared = [Factor(9, 3, structure=Dense(3, 9), shared=True), Factor(3, 9, structure=Dense(9, 3), shared=True)]
    factors = [*shared, Factor(9, 1, structure=Dense(1, 9))]
    assert plan_factors(factors).bracketing() == "((F3 F2) F1)"
    assert plan_factors(factors, batch=100).cost == 100 * 54
    wide = [*shared, Factor(9, 9, structure=Diagonal(9))]
    assert plan_factors(wide).cost == 27 + 81 * 3
    assert plan_factors(wide, batch=100).bracketing() == "(F3 (F2 F1))"


def test_factored_structures_keep_their_factors():
    # I + u vᵀ of size 50: a product of two is I + a rank of 2; never 50³
    residual = Factor(50, 50, structure=IdentityPlus(LowRank(50, 50, 1)))
    plan = plan_factors([residual] * 3)
    assert plan.cost < 50 * 50 and plan.cost == plan_factors([residual] * 3, strategy="exhaustive").cost
    assert Plan.from_json(plan.to_json()) == plan


# ---- judges --------------------------------------------------------------------------------


def random_structure(rng, size):
    kind = rng.choice(["dense", "diagonal", "banded", "triangle", "blocks", "gather", "pool"])
    if kind == "diagonal":
        return Diagonal(size)
    if kind == "banded":
        return Banded(size, size, rng.randint(0, 2), rng.randint(0, 2))
    if kind == "triangle":
        return LowerTriangular(size, size)
    if kind == "blocks" and size % 2 == 0:
        return BlockDiagonal(2, 2 * rng.randint(1, 3), size)
    if kind == "gather":
        return Gather(size, [rng.randrange(size) for _ in range(rng.randint(1, 6))])
    if kind == "pool" and size % 2 == 0:
        return Pool(size // 2, size)
    return Dense(rng.randint(1, 6), size)


def random_factors(rng, length):
    size, factors = rng.randint(1, 6), []
    for _ in range(length):
        structure = random_structure(rng, size)
        given = rng.random() < 0.5
        costs = [rng.randint(1, 30) for _ in range(3)] if not given or rng.random() < 0.5 else []
        forming = rng.choice([None, rng.randint(0, 80)]) if not given else None
        shared = rng.random() < 0.4
        factors.append(
            Factor(size, structure.m, *costs, structure=structure, given=given, forming_cost=forming, shared=shared)
        )
        size = structure.m
    return factors


@pytest.mark.parametrize("seed", range(80))
def test_dynamic_programming_is_optimal_with_structure_batches_and_compression(seed):
    rng = random.Random(seed)
    factors = random_factors(rng, rng.randint(1, 4))
    options = {"batch": rng.choice([1, 1, 7]), "tape_limit": rng.choice([None, 25]), "matrix_free": rng.random() < 0.8}
    plan, judge = (plan_factors(factors, strategy=name, **options) for name in ("dynamic_programming", "exhaustive"))
    assert (plan.cost, len(plan.steps)) == (judge.cost, len(judge.steps))
    assert plan.cost == sum(step.fma for step in plan.steps)
    for strategy in ("forward", "greedy"):
        try:
            assert plan_factors(factors, strategy=strategy, **options).cost >= judge.cost
        except ValueError as error:
            assert strategy == "forward" and "must have a tangent evaluation" in str(error)


def least_by_patterns(factors):
    """The optimum by boolean matrices alone, which know nothing of structures; colours are asked for."""
    patterns = [np.asarray(factor.jacobian.pattern().todense()) for factor in factors]

    @cache
    def block(j, i):
        return patterns[i] if i == j else patterns[j].astype(int) @ block(j - 1, i) > 0

    def multiply(a, b):
        return int(a.sum(axis=0) @ b.sum(axis=1))

    @cache
    def structure(j, i):
        return factors[i].jacobian if i == j else product(factors[j].jacobian, structure(j - 1, i)).result

    def colours(j, i):
        dense = isinstance(structure(j, i), Dense)
        return factors[i].n if dense else structure(j, i).colours

    def leaf(factor, place):
        if factor.given:
            return 0
        prices = [factor.forming_cost] if factor.forming_cost is not None else []
        columns = min(factor.n, colours(place, place))
        return min([*prices, columns * factor.jvp_cost, factor.m * factor.vjp_cost])

    def push(j, k, i, columns):
        return sum(
            multiply(patterns[at], block(at - 1, i)) if factors[at].given else columns * factors[at].jvp_cost
            for at in range(k + 1, j + 1)
        )

    def pull(j, k, i):
        return sum(
            multiply(block(j, at + 1), patterns[at]) if factors[at].given else factors[j].m * factors[at].vjp_cost
            for at in range(i, k + 1)
        )

    @cache
    def least(j, i):
        if i == j:
            return leaf(factors[i], i)
        prices = []
        for k in range(i, j):
            prices.append(least(k, i) + least(j, k + 1) + multiply(block(j, k + 1), block(k, i)))
            if all(factor.jvp_cost is not None for factor in factors[k + 1 : j + 1]):
                prices.append(least(k, i) + push(j, k, i, factors[i].n))
                if not any(factor.given for factor in factors[k + 1 : j + 1]):
                    prices.append(least(k, i) + push(j, k, i, colours(j, i)))
            if all(factor.vjp_cost is not None for factor in factors[i : k + 1]):
                prices.append(least(j, k + 1) + pull(j, k, i))
        return min(prices)

    return least(len(factors) - 1, 0)


@pytest.mark.parametrize("seed", range(60))
def test_a_judge_that_knows_boolean_patterns_only_agrees(seed):
    rng = random.Random(1000 + seed)
    factors = random_factors(rng, rng.randint(2, 8))
    assert plan_factors(factors).cost == least_by_patterns(factors)


@pytest.mark.parametrize("seed", range(10))
def test_counts_of_rows_and_columns_give_the_cost_of_every_product(seed):
    rng = random.Random(seed)
    problem = Problem(tuple(random_factors(rng, 7)), Fma())
    counts = ProductCounts.of(problem, Kinds(problem))
    if counts is None:
        assert problem.all_dense
        return
    for k in range(6):
        for i in range(k + 1):
            for j in range(k + 1, 7):
                expected = product(problem.structure(j + 1, k + 2), problem.structure(k + 1, i + 1)).fma
                assert counts.fma(np.array(i), np.array(k), np.array(j)) == expected


# ---- dense chains by their geometry --------------------------------------------------------------------------------


def least_by_recurrence(dims):
    q, least = len(dims) - 1, {}
    for s in range(q):
        for i in range(1, q - s + 1):
            j = i + s
            splits = (least[k, i] + least[j, k + 1] + dims[j] * dims[k] * dims[i - 1] for k in range(i, j))
            least[j, i] = min(splits, default=0)
    return least[q, 1]


@pytest.mark.parametrize("most", [2, 3, 12, 1000, 10**30])
@pytest.mark.parametrize("shape", ["random", "funnel", "hourglass", "barrel"])
def test_the_geometry_of_a_dense_chain_gives_the_optimum_of_the_recurrence(most, shape):
    rng = random.Random(f"{most} {shape}")
    for length in [*range(1, 14)] * 3 + [40]:
        dims = [rng.randint(1, most) for _ in range(length + 1)]
        if shape != "random":
            dims.sort(reverse=shape != "barrel")
        if shape in {"hourglass", "barrel"}:
            dims = dims[::2] + dims[1::2][::-1]
        products = multiply_order(dims)
        assert len(products) == length - 1
        assert sum(dims[b.j] * dims[b.k] * dims[b.i - 1] for b in products) == least_by_recurrence(dims)


# ---- what is refused --------------------------------------------------------------------------------

WRONG = {
    "number": ([{"kind": "diag"}], ValueError, "structures must hold one for each of the 2 factors, got 1"),
    "shape": ([Diagonal(3), None], ValueError, r"factor F1 must be of shape \(2, 3\) as dims say, got diagonal"),
    "kind": (
        [{"kind": "magic"}, None],
        ValueError,
        r"factor F1 must be a known one of shape \(2, 3\), got .*kind must be one of",
    ),
    "type": ([None, "diag"], TypeError, "factor F2 must be a Structure, an object .*, or None, got str"),
    "object": ({"kind": "diag"}, TypeError, "structures must be a sequence of structures, got dict"),
    "missing size": ([{"kind": "banded", "kl": 1}, None], ValueError, "factor F1 .* must have 'ku'"),
}


def test_kinds_go_by_either_spelling():
    named = [Chain.from_sizes([3, 3], structures=[{"kind": kind}]) for kind in ("scaled-identity", "scaled_identity")]
    assert named[0].factors == named[1].factors


@pytest.mark.parametrize(("structures", "error", "message"), WRONG.values(), ids=WRONG)
def test_structures_that_do_not_fit_are_refused(structures, error, message):
    with pytest.raises(error, match=message):
        Chain.from_sizes([3, 2, 2], structures=structures)


def test_factors_that_do_not_fit_one_another_are_refused():
    with pytest.raises(ValueError, match="factor F2 must take the 2 outputs of F1, got one of 3 inputs"):
        plan_factors([Factor(3, 2, 1, 1, 1), Factor(3, 1, 1, 1, 1)])
    with pytest.raises(ValueError, match="factors must hold at least one factor"):
        plan_factors([])
