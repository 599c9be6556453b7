"""The device model: rates between measured sizes, JSON, stated defaults."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from torch_jvpvjp.accumulation.timing import Curve, DeviceModel, default_model

CURVE = Curve((1.0, 4.0, 64.0), (2.0, 16.0, 8.0))


def model(kind: str = "cpu", dtype: torch.dtype = torch.float32, threads: int = 1) -> DeviceModel:
    return default_model("a device", kind, dtype, threads)


def test_a_curve_is_exact_on_its_knots_and_constant_outside() -> None:
    assert [CURVE.at(size) for size in (0.5, 1, 4, 64, 1000)] == [2.0, 2.0, 16.0, 8.0, 8.0]
    assert [1 / CURVE.inverse(size) for size in (1, 4, 64, 10**30)] == pytest.approx([2.0, 16.0, 8.0, 8.0])


def test_a_curve_is_monotone_between_knots_and_straight_in_the_logarithms() -> None:
    rising = [CURVE.at(1 + 0.1 * step) for step in range(31)]
    falling = [CURVE.at(size) for size in range(4, 65)]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    assert CURVE.at(2) == pytest.approx(math.sqrt(2 * 16))
    assert CURVE.at(16) == pytest.approx(math.sqrt(16 * 8))


def test_arrays_give_what_single_sizes_give() -> None:
    sizes = np.array([1, 2, 3, 4, 5, 63, 64, 65, 5000])
    expected = [1 / CURVE.at(size) for size in sizes.tolist()]
    assert CURVE.inverse_of(sizes).tolist() == pytest.approx(expected)
    assert CURVE.inverse_at(sizes.astype(float)).tolist() == pytest.approx(expected)
    assert CURVE.inverse_of(np.array([2**70, 3], object)).tolist() == pytest.approx([1 / 8, 1 / CURVE.at(3)])
    assert Curve.constant(4.0).inverse_at(np.array([1.0, 9.0])).tolist() == [0.25, 0.25]


def test_a_curve_of_seconds_never_takes_less_time_for_more() -> None:
    curve = Curve.of_seconds([1, 2, 4, 8], [1.0, 3.0, 2.0, 5.0])
    times = [size / curve.at(size) for size in np.linspace(1, 8, 50).tolist()]
    assert all(a <= b * (1 + 1e-12) for a, b in zip(times, times[1:], strict=False))
    assert [size / curve.at(size) for size in (1, 2, 8)] == [1.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("knots", "rates", "message"),
    [
        ((), (), "at least one"),
        ((1.0, 2.0), (1.0,), "2 and 1"),
        ((1.0, 1.0), (1.0, 1.0), "knots must increase"),
        ((1.0,), (0.0,), "positive and finite"),
        ((1.0,), (math.nan,), "positive and finite"),
    ],
)
def test_a_curve_says_what_it_needs(knots: tuple[float, ...], rates: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curve(knots, rates)


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_model_survives_json(kind: str, dtype: torch.dtype) -> None:
    assert DeviceModel.from_json(model(kind, dtype, 4).to_json()) == model(kind, dtype, 4)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": "x"}', "null"])
def test_what_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"DeviceModel.from_json: text must be what to_json wrote"):
        DeviceModel.from_json(text)


def test_a_model_with_an_impossible_number_is_refused() -> None:
    with pytest.raises(ValueError, match="launch must be positive and finite, got 0"):
        dataclasses.replace(model(), launch=0)
    with pytest.raises(ValueError, match="launch must be positive"):
        DeviceModel.from_json(model().to_json().replace('"launch": 3e-06', '"launch": -1'))


def test_the_defaults_of_a_device_type_are_positive_and_say_what_they_are() -> None:
    for kind in ("cpu", "cuda", "mps"):
        single, double = model(kind), model(kind, torch.float64)
        assert single.source == f"stated default for {kind}"
        assert single.launch < single.gemm(512, 512, 512) < double.gemm(512, 512, 512)
    assert model(threads=4).gemm(512, 512, 512) < model(threads=1).gemm(512, 512, 512)
    assert model("cuda").gemm(4096, 4096, 4096) < model("cpu").gemm(4096, 4096, 4096) / 10


def test_a_product_takes_its_launch_and_the_time_of_its_sides() -> None:
    flat = dataclasses.replace(
        model(),
        launch=1.0,
        gemm_launch=2.0,
        gemm_rows=Curve((1.0, 10.0), (5.0, 10.0)),
        gemm_inner=Curve.constant(10.0),
        gemm_columns=Curve.constant(10.0),
        traffic=Curve.constant(1e9),
    )
    assert flat.gemm(10, 10, 10) == pytest.approx(2 + 1000 / 10)
    assert flat.gemm(1, 10, 10) == pytest.approx(2 + 100 / 5)
    assert flat.move(1e9, 3) == pytest.approx(3 * (1 + 4))
    slow = dataclasses.replace(flat, traffic=Curve.constant(4.0))
    assert slow.gemm(10, 10, 10) == pytest.approx(2 + 300)  # bound by its 300 entries of 4 bytes


def test_products_of_arrays_of_sides_take_what_each_of_them_takes() -> None:
    generator = np.random.default_rng(0)
    sides = generator.integers(1, 3000, (3, 40))
    for kind in ("cpu", "cuda", "mps"):
        found = model(kind).gemm_array(*sides)
        assert found.tolist() == pytest.approx([model(kind).gemm(*map(int, each)) for each in sides.T])
    huge = model().gemm_array(np.array([[10**20], [5]], object), np.array([7, 8], object), 3)
    assert huge.shape == (2, 2) and huge.dtype == np.float64 and bool((huge > 0).all())


def test_a_larger_product_takes_no_less_time_where_rates_rise() -> None:
    times = [model("cuda").gemm(side, side, side) for side in range(1, 5000, 7)]
    assert times == sorted(times)
