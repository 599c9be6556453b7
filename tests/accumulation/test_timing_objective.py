"""The objective `time`: prices of steps, and plans by them."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.bracket import Mode
from torch_jvpvjp.accumulation.cost import Objective
from torch_jvpvjp.accumulation.factor import Factor
from torch_jvpvjp.accumulation.planners.dynamic_programming import dynamic_programming
from torch_jvpvjp.accumulation.planners.exhaustive import exhaustive
from torch_jvpvjp.accumulation.problem import Problem
from torch_jvpvjp.accumulation.structure import (
    Banded,
    BlockDiagonal,
    Dense,
    Diagonal,
    Gather,
    Identity,
    Kronecker,
    LowerTriangular,
    Structure,
    Zero,
)
from torch_jvpvjp.accumulation.timing import Time, default_model, device_model, time_objective

TIME = Time(default_model("a device", "cpu", torch.float32, 1))
RAW = Factor(100, 50, jvp_cost=5000, vjp_cost=9000, tape=10)


def random_factor(generator: random.Random, n: int, m: int, *, square: bool) -> Factor:
    kind = generator.choice(["given", "raw", "diagonal"] if square else ["given", "raw"])
    if kind == "given":
        return Factor(n, m, structure=Dense(m, n))
    if kind == "diagonal":
        return Factor(n, n, structure=Diagonal(n))
    cost = generator.randint(1, 4) * n * m
    return Factor(n, m, jvp_cost=cost, vjp_cost=2 * cost, tape=n, launches=generator.randint(1, 9))


def random_problem(seed: int) -> Problem:
    generator = random.Random(seed)
    objective: Objective = TIME
    dims = [generator.choice([2, 8, 64, 500])]
    factors: list[Factor] = []
    for _ in range(generator.randint(2, 5)):
        square = generator.random() < 0.4
        dims.append(dims[-1] if square else generator.choice([1, 3, 16, 128, 700]))
        factors.append(random_factor(generator, dims[-2], dims[-1], square=dims[-1] == dims[-2]))
    if not seed % 4:
        shared = [replace(factor, shared=bool(factor.given and generator.random() < 0.6)) for factor in factors]
        return Problem(tuple(shared), objective, batch=64)
    return Problem(tuple(factors), objective)


@pytest.mark.parametrize("seed", range(40))
def test_dynamic_programming_finds_the_time_that_exhaustive_search_finds(seed: int) -> None:
    problem = random_problem(seed)
    best, found = (sum(map(problem.price, plan(problem))) for plan in (exhaustive, dynamic_programming))
    assert 0 < best < 1
    assert found == pytest.approx(best, rel=1e-9)


def test_every_price_is_a_positive_float_and_a_given_jacobian_is_free() -> None:
    formed = Factor(6, 6, structure=Diagonal(6), given=False, forming_cost=6)
    prices = [
        TIME.accumulate(RAW, Mode.TANGENT),
        TIME.accumulate(RAW, Mode.ADJOINT),
        TIME.accumulate(formed, Mode.CLOSED),
        TIME.multiply(Dense(3, 4), Dense(4, 5)),
        TIME.multiply(Diagonal(4), Dense(4, 5)),
        TIME.multiply_dense(3, 4, 5),
        TIME.push(RAW, Dense(100, 7)),
        TIME.pull(RAW, Dense(7, 50)),
        TIME.compressed(RAW, 3),
    ]
    assert all(type(price) is float and price > 0 for price in prices)
    assert TIME.accumulate(RAW, Mode.GIVEN) == 0.0


def test_prices_follow_the_roofline() -> None:
    launch = TIME.model.launch
    assert TIME.push(RAW, Dense(100, 7)) == TIME.compressed(RAW, 7)
    assert TIME.accumulate(RAW, Mode.TANGENT) == TIME.compressed(RAW, 100)
    ops = Factor(100, 50, jvp_cost=5000, vjp_cost=9000, launches=11)
    assert TIME.compressed(ops, 7) - TIME.compressed(RAW, 7) == pytest.approx(10 * launch, rel=0.5)
    assert TIME.compressed(RAW, 64) > TIME.compressed(RAW, 16) > 16 / 64 * TIME.compressed(RAW, 64)
    given = Factor(4, 4, structure=Diagonal(4))
    assert TIME.push(given, Dense(4, 9)) == TIME.multiply(Diagonal(4), Dense(4, 9))
    assert TIME.pull(given, Dense(9, 4)) == TIME.multiply(Dense(9, 4), Diagonal(4))


def test_a_batch_pays_for_its_launches_once() -> None:
    batch = TIME.batched(256)
    small, weight = Diagonal(32), Dense(32, 32)
    assert TIME.multiply(small, weight) < batch.multiply(small, weight) < 256 * TIME.multiply(small, weight) / 10
    assert TIME.push(RAW, weight) < batch.push(RAW, weight) <= 256 * TIME.push(RAW, weight)
    wide = Dense(2000, 2000)  # the launch is nothing to it
    assert batch.multiply(wide, wide) == pytest.approx(256 * TIME.multiply(wide, wide), rel=0.05)


def test_scaling_rows_is_a_matter_of_bytes_and_a_dense_product_is_not() -> None:
    scaled, full = TIME.multiply(Diagonal(1000), Dense(1000, 1000)), TIME.multiply(Dense(1000, 1000), Dense(1000, 1000))
    assert scaled < full / 20
    assert TIME.multiply(Dense(30, 40), Dense(40, 50)) == TIME.multiply_dense(30, 40, 50)


def test_products_of_arrays_of_sides_are_priced_at_once() -> None:
    m, k, n = np.array([[3], [70]]), np.array([[4, 5], [6, 900]]), np.array([[2], [8]])
    found = TIME.multiply_dense(m, k, n)
    expected = [
        [TIME.multiply_dense(*each) for each in row] for row in [[(3, 4, 2), (3, 5, 2)], [(70, 6, 8), (70, 900, 8)]]
    ]
    np.testing.assert_allclose(found, expected)


def test_few_fma_in_many_steps_can_take_longer_than_more_in_few() -> None:
    """Small chains: a launch outweighs what it saves."""
    ops = Factor(8, 8, jvp_cost=64, vjp_cost=64, tape=8, launches=20)
    once = TIME.push(ops, Dense(8, 8))
    assert TIME.multiply(Dense(8, 8), Dense(8, 8)) < once
    assert TIME.multiply_dense(8, 8, 8) + TIME.multiply_dense(8, 8, 8) > TIME.multiply_dense(8, 8, 16)


def test_the_objective_is_found_by_device_and_dtype() -> None:
    single, double = time_objective("cpu", torch.float32), time_objective("cpu", torch.float64)
    assert (single.name, single.unit) == ("time", "s")
    assert (single.model.dtype, double.model.dtype) == ("float32", "float64")
    assert time_objective().model.dtype == str(torch.get_default_dtype()).removeprefix("torch.")
    assert single.model.threads == torch.get_num_threads()


def structured_pairs() -> list[tuple[Structure, Structure]]:
    return [
        (BlockDiagonal(4, 16, 32), Dense(32, 10)),
        (Banded(40, 40, 1, 2), Dense(40, 10)),
        (Banded(4000, 4000, 1, 1), Banded(4000, 4000, 0, 1)),
        (Banded(4000, 4000, 1, 1), Dense(4000, 10)),
        (LowerTriangular(30, 30), LowerTriangular(30, 30)),
        (Gather(8, [1, 0, 3]), Dense(8, 5)),
        (Kronecker(Dense(2, 3), Dense(4, 5)), Dense(15, 6)),
        (Identity(5), Dense(5, 5)),
        (Zero(3, 5), Dense(5, 5)),
    ]


def test_every_kind_of_structure_has_a_price() -> None:
    for left, right in structured_pairs():
        price = TIME.multiply(left, right)
        assert 0 < price < 1, (left, right)


def test_the_ops_of_a_closed_form_share_its_bytes() -> None:
    """A formula of many ops reads and writes what each of them makes, not all of it in each of them."""
    model = TIME.model
    values, launches, batch = 6000, 30, 256
    factor = Factor(6, 3, jvp_cost=values, vjp_cost=values, tape=8, forming_cost=values, launches=launches)
    one = TIME.accumulate(factor, Mode.CLOSED)
    moved = 3 * values / launches * model.itemsize
    assert one == pytest.approx(launches * (model.launch + moved / model.traffic.at(moved)))
    all_of_them = 3 * values * batch / launches * model.itemsize
    seconds = TIME.batched(batch).accumulate(factor, Mode.CLOSED)
    assert seconds == pytest.approx(launches * (model.launch + all_of_them / model.traffic.at(all_of_them)))


def _roe_like(v: torch.Tensor) -> torch.Tensor:
    left, right = v[:3], v[3:]
    root = (left[0].abs() + 1).sqrt()
    speed = (left[1] * root + right[1]) / (root + 1)
    flux = torch.stack([left[1], left[1] * speed, (left[2] + right[2]) * speed])
    return flux - speed.abs() * (right - left) / 2


FUNCTIONS = {
    "scalars": (_roe_like, 6),
    "entrywise": (lambda v: (v.sin() * v.exp()).tanh() / (v * v + 1), 8),
    "network": (torch.nn.Sequential(*(torch.nn.Linear(8, 8) if k % 2 else torch.nn.Tanh() for k in range(21))), 8),
    "sum": (lambda v: (100 * (v[1:] - v[:-1] ** 2) ** 2 + (1 - v[:-1]) ** 2).sum(), 30),
}


@pytest.mark.parametrize(("f", "n"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_launches_are_those_of_the_recorded_program(f, n) -> None:
    plan = plan_jacobian(f, torch.linspace(0.1, 1, n))
    plan(torch.linspace(0.1, 1, n))
    (tracing,) = plan.runtime._tracings.values()
    primal = plan.runtime.primal_seconds() / device_model(torch.device("cpu"), torch.float32).launch
    priced = sum(region.launches(forwards=True) for region in tracing.traced.regions) + primal
    done = sum(not getattr(call.target, "is_view", False) for call in tracing.program.calls)
    assert done / 2 <= priced <= 2 * done


def test_a_plan_by_time_predicts_a_call_with_f_itself() -> None:
    plan = plan_jacobian(torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh()), torch.ones(2, 8))
    launch = device_model(torch.device("cpu"), torch.float32).launch
    assert plan.seconds == pytest.approx(plan.cost + 2 * launch)
    assert "s predicted, f itself included" in str(plan)
    assert plan_jacobian(torch.sin, torch.ones(8), objective="fma").seconds is None


def test_a_dense_block_is_carried_past_a_known_pattern_by_the_op_itself() -> None:
    """As the executor does: a convolution pulls rows, and multiplies no matrix of its entries."""
    band = Banded(2000, 2000, 4, 4)
    known = Factor(2000, 2000, 18_000, 18_000, structure=band)
    raw = Factor(2000, 2000, 18_000, 18_000)
    assert TIME.pull(known, Dense(10, 2000)) < 0.3 * TIME.multiply(Dense(10, 2000), band)
    assert TIME.push(known, Dense(2000, 10)) < 0.3 * TIME.multiply(band, Dense(2000, 10))
    # Sums of nine terms are no product of wide matrices.
    assert TIME.pull(known, Dense(400, 2000)) > 2 * TIME.pull(raw, Dense(400, 2000))
    assert TIME.pull(known, band) == TIME.multiply(band, band)
    alone = Factor(2000, 2000, structure=band)  # of which nothing but the entries is known
    assert TIME.pull(alone, Dense(10, 2000)) == TIME.multiply(Dense(10, 2000), band)


def test_convolutions_are_planned_by_adjoints_where_few_outputs_are_asked_for() -> None:
    net = torch.nn.Sequential(
        torch.nn.Unflatten(-1, (1, 16, 16)),
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.AvgPool2d(2),
        torch.nn.Flatten(-3),
        torch.nn.Linear(256, 10),
    )
    plan = plan_jacobian(net, torch.randn(16, 256), batch_dims=1)
    assert [(step.action.name, step.mode) for step in plan.steps][1:] == [("ELIMINATE", Mode.ADJOINT)]
