"""The second order of cross-entropy on a CPU, in place: the formula beside it is the judge, and is not asked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from torch_jvpvjp.ops._devices import triton_devices
from torch_jvpvjp.ops.cross_entropy.cpu import softmax
from torch_jvpvjp.ops.cross_entropy.rules import op

pytestmark = pytest.mark.skipif("cpu" in triton_devices(), reason="CPU tensors take the kernels there")
F64 = torch.float64


def arguments(classes: int, options: dict[str, Any], dtype: torch.dtype = F64) -> dict[str, Any]:
    """Those of all points: rows of an inner axis too, one of them ignored and full of NaN."""
    last, weighted = options.get("last", False), options.get("weighted", False)
    x, x_dot, x_bar_bar = torch.randn(3, 4, classes, 3, dtype=dtype)
    target = torch.randint(0, classes, (4, 1, 3))
    target[1, 0, 2] = -100
    x[1, :, 2] = float("nan")  # nobody reads an ignored row
    weight = torch.rand(classes, 1, dtype=dtype) if weighted else None
    if last:
        x, x_dot, x_bar_bar, target = (t.movedim(1, -1).contiguous() for t in (x, x_dot, x_bar_bar, target))
        weight = None if weight is None else weight.flatten()
    wide = torch.promote_types(dtype, torch.float32)
    numbers = torch.zeros(target.shape, dtype=wide)  # of the outputs, which formulas compute anew
    return {
        **{"input": x, "target": target, "weight": weight, "dim": -1 if last else -2, "ignore_index": -100},
        **{"label_smoothing": options.get("smoothing", 0.0), "softcap": None, "input_dot": x_dot, "target_dot": None},
        **{"input_bar_bar": x_bar_bar, "target_bar_bar": None, "y0_dot": None, "y1_dot": None},
        **dict.fromkeys(("y0", "y1", "rest"), numbers),
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows": {"last": True},
    "weighted": {"weighted": True},
    "smoothed": {"smoothing": 0.1, "last": True},
    "both": {"weighted": True, "smoothing": 0.2},
}
PRESENT = [(1, 1, 1, 1), (1, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 1), (1, 0, 1, 0)]
# By the point: which of its arguments the four numbers for each row are, and what is wanted.
POINTS: dict[str, tuple[tuple[str, ...], dict[str, list[bool]]]] = {
    "jvp.vjp": (("y0_bar", "y1_bar", "y0_dot_bar", "y1_dot_bar"), {"needs": [True, False, True, False]}),
    "vjp.jvp": (("y0_bar", "y1_bar", "y0_bar_dot", "y1_bar_dot"), {"needs": [True, False]}),
    "vjp.vjp": (
        ("y0_bar", "y1_bar", "", ""),
        {"needs": [True, False], "needs2": [True, True, True, False, False, False]},
    ),
}


def both(
    point: str, given: dict[str, Any], present: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Tensor, Tensor]]:
    """Results of a point's kernel and of its formula, which the kernel may not call."""
    names, wanted = POINTS[point]
    if "needs2" in wanted:
        wanted = {**wanted, "needs2": [present[0] > 0, present[1] > 0, *wanted["needs2"][2:]]}
    numbers = {n: torch.randn_like(given["y0"]) if there else None for n, there in zip(names, present, strict=True)}
    there = op.points()[point]
    args = tuple({**given, **numbers, **wanted}[a.name] for a in there.signature.arguments)
    expected = there.convention.flatten(there.formula)(args)
    monkeypatch.setattr(there, "formula", None)
    return list(zip(there.compute(args), expected, strict=True))


@pytest.mark.parametrize("present", PRESENT, ids=str)
@pytest.mark.parametrize("classes", [2, 5, 17])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("point", POINTS)
def test_it_is_that_of_the_formula(
    point: str, name: str, classes: int, present: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(present[:2]) and point != "jvp.vjp":
        pytest.skip("a pullback has a cotangent")
    for found, expected in both(point, arguments(classes, OPTIONS[name]), present, monkeypatch):
        torch.testing.assert_close(found, expected)
        assert found.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("point", POINTS)
def test_results_have_the_dtypes_of_the_formula(
    point: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found, expected in both(point, arguments(5, OPTIONS["both"], dtype), PRESENT[0], monkeypatch):
        torch.testing.assert_close(found, expected)


def test_a_class_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(5, {})
    given["target"] = torch.where(given["target"] == -100, 0, given["target"])
    given["target"][2, 0, 1] = 7
    with pytest.raises(IndexError, match=r"cross_entropy: .*7"):
        both("jvp.vjp", given, PRESENT[0], monkeypatch)


@pytest.mark.parametrize("special", [float("inf"), -float("inf"), float("nan"), 80.0])
@pytest.mark.parametrize("classes", [3, 20])
def test_probabilities_of_few_classes_are_pytorch_s(classes: int, special: float) -> None:
    z = torch.randn(7, classes)
    z[2, 1], z[3] = special, -float("inf")
    torch.testing.assert_close(softmax(z, -1), torch.softmax(z, -1), equal_nan=True)
    torch.testing.assert_close(softmax(z.T, 0), torch.softmax(z.T, 0), equal_nan=True)
