"""The local derivatives of ops that work entry by entry are those of autograd, kinks included."""

import math

import pytest
import torch
from local_rule_checks import Case, aten, check, positive, randn, take

from torch_jvpvjp.accumulation.rules.linear_entrywise import STEPS
from torch_jvpvjp.accumulation.structure import (
    Diagonal,
    Gather,
    Identity,
    ScaledIdentity,
    WeightedGather,
    Zero,
)

X = randn(3, 4)
INSIDE = X.tanh() * 0.9  # in (−1, 1)
ABOVE_ONE = positive(3, 4) + 1
KINKS = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0, 6.0, 20.0, math.inf, -math.inf, math.nan]).double()

EVERYWHERE = """abs angle atan asinh ceil cos cosh deg2rad erf erfc exp exp2 expm1 floor frac hardsigmoid hardswish i0
mish nan_to_num neg positive rad2deg relu round sgn sigmoid sign silu sin sinc sinh special_bessel_j0 special_erfcx
special_i0e special_i1 special_i1e special_log_ndtr square tan tanh trunc alias clone log_sigmoid_forward
hardtanh leaky_relu elu celu gelu softplus softshrink hardshrink""".split()
POSITIVE = "digamma lgamma log log10 log1p log2 reciprocal rsqrt special_entr sqrt".split()
UNARY = (
    {name: (name, X) for name in EVERYWHERE if name != "square"}
    | {name: (name, positive(3, 4)) for name in POSITIVE}
    | {name: (name, INSIDE) for name in ("acos", "asin", "atanh", "erfinv")}
    | {
        "acosh": ("acosh", ABOVE_ONE),
        "logit": ("logit", positive(3, 4) / 5),
        "special_ndtri": ("special_ndtri", INSIDE / 3 + 0.5),
    }
)


@pytest.mark.parametrize(("name", "x"), UNARY.values(), ids=UNARY)
def test_a_function_of_one_tensor_has_the_diagonal_of_autograd(name, x):
    check(Case(getattr(aten, name).default, (x,)))


WITH_PARAMETERS = {
    "celu": Case(aten.celu.default, (X, 0.5), kind=Diagonal),  # autograd rounds 1/α to float32, so α is a power of 2
    "clamp": Case(aten.clamp.default, (X, -0.5, 0.5), kind=Diagonal),
    "clamp_lower": Case(aten.clamp.default, (X, -0.5)),
    "clamp_max": Case(aten.clamp_max.default, (X, 0.5)),
    "clamp_min": Case(aten.clamp_min.default, (X, 0.5)),
    "elu": Case(aten.elu.default, (X, 1.3, 1.1, 0.9)),
    "gelu_tanh": Case(aten.gelu.default, (X,), {"approximate": "tanh"}),
    "hardshrink": Case(aten.hardshrink.default, (X, 0.3)),
    "hardtanh": Case(aten.hardtanh.default, (X, -0.2, 0.4)),
    "leaky_relu": Case(aten.leaky_relu.default, (X, 0.2)),
    "logit_eps": Case(aten.logit.default, (X, 0.1)),
    "polygamma": Case(aten.polygamma.default, (2, positive(3))),
    "pow_cube": Case(aten.pow.Tensor_Scalar, (X, 3)),
    "pow_half": Case(aten.pow.Tensor_Scalar, (positive(3), 0.5)),
    "pow_of_number": Case(aten.pow.Scalar, (2, X)),
    "pow_of_zero": Case(aten.pow.Scalar, (0, torch.tensor([0.0, 1.0, 2.0]).double())),
    "pow_zero": Case(aten.pow.Tensor_Scalar, (X, 0)),
    "round_decimals": Case(aten.round.decimals, (X,), {"decimals": 1}, kind=Zero),
    "softplus": Case(aten.softplus.default, (X, 2.0, 1.0)),
    "softshrink": Case(aten.softshrink.default, (X, 0.3)),
    "threshold": Case(aten.threshold.default, (X, 0.1, 7.0)),
    "cast": Case(aten._to_copy.default, (X,), {"dtype": torch.float64}, kind=Identity),
    "add_number": Case(aten.add.Tensor, (X, 2.5), kind=Identity),
    "div_number": Case(aten.div.Tensor, (X, 4), kind=ScaledIdentity),
    "fmod_number": Case(aten.fmod.Scalar, (X, 0.4), kind=Identity),
    "mul_number": Case(aten.mul.Tensor, (X, 2.5), kind=ScaledIdentity),
    "mul_scalar": Case(aten.mul.Scalar, (X, 2), kind=ScaledIdentity),
    "neg": Case(aten.neg.default, (X,), kind=ScaledIdentity),
    "remainder_number": Case(aten.remainder.Scalar, (X, 0.4), kind=Identity),
    "rsub_number": Case(aten.rsub.Scalar, (X, 2, 3), kind=ScaledIdentity),
    "sub_number": Case(aten.sub.Tensor, (X, 2), kind=Identity),
}


@pytest.mark.parametrize("case", WITH_PARAMETERS.values(), ids=WITH_PARAMETERS)
def test_parameters_of_a_function_are_kept(case):
    check(case)


AT_KINKS = {
    **{name: (getattr(aten, name).default, ()) for name in (
        "abs", "relu", "hardsigmoid", "hardswish", "nan_to_num", "sgn", "sign", "floor", "ceil", "round", "trunc",
        "hardtanh", "leaky_relu", "elu", "celu", "softshrink", "hardshrink", "tanh", "sigmoid", "sqrt", "log", "frac",
        "reciprocal", "rsqrt", "exp", "asin", "acosh", "log1p", "sinc",
    )},
    "clamp": (aten.clamp.default, (-1, 1)),
    "clamp_lower": (aten.clamp.default, (0.5,)),
    "clamp_max": (aten.clamp_max.default, (1,)),
    "clamp_min": (aten.clamp_min.default, (-1,)),
    "hardtanh_six": (aten.hardtanh.default, (0.0, 6.0)),
    "logit_eps": (aten.logit.default, (0.5,)),
    "pow_half": (aten.pow.Tensor_Scalar, (0.5,)),
    "pow_one": (aten.pow.Tensor_Scalar, (1,)),
    "pow_two": (aten.pow.Tensor_Scalar, (2,)),
    "pow_zero": (aten.pow.Tensor_Scalar, (0,)),
    "softplus": (aten.softplus.default, (1, 20)),
    "threshold": (aten.threshold.default, (1, 5)),
}  # fmt: skip


@pytest.mark.parametrize(("op", "parameters"), AT_KINKS.values(), ids=AT_KINKS)
def test_kinks_infinities_and_nan_have_the_derivative_that_autograd_has(op, parameters):
    # one entry at a time, since autograd's 0 · NaN off the diagonal is not part of the structure
    for x in KINKS:
        check(Case(op, (x.reshape(1), *parameters)))


ROW, COLUMN, ONE = randn(4, seed=1), randn(3, 1, seed=2), randn(seed=3)
OTHER = randn(3, 4, seed=4)
MASK = OTHER > 0
BINARY = {
    "add": Case(aten.add.Tensor, (X, OTHER), active=(0, 1), kind=Identity),
    "add_alpha": Case(aten.add.Tensor, (X, OTHER), {"alpha": 3}, active=(1, 0), kind=ScaledIdentity),
    "add_row": Case(aten.add.Tensor, (X, ROW), active=(1, 0), kind=Gather),
    "add_row_alpha": Case(aten.add.Tensor, (X, ROW), {"alpha": 0.5}, active=(1, 0), kind=WeightedGather),
    "add_outer": Case(aten.add.Tensor, (COLUMN, ROW), active=(0, 1), kind=Gather),
    "sub": Case(aten.sub.Tensor, (X, OTHER), active=(0, 1)),
    "sub_one": Case(aten.sub.Tensor, (X, ONE), active=(1, 0), kind=WeightedGather),
    "rsub": Case(aten.rsub.Tensor, (X, OTHER), {"alpha": 2}, active=(0, 1)),
    "mul": Case(aten.mul.Tensor, (X, OTHER), active=(0, 1), kind=Diagonal),
    "mul_row": Case(aten.mul.Tensor, (X, ROW), active=(0, 1), kind=Diagonal),
    "mul_one": Case(aten.mul.Tensor, (X, ONE), active=(0, 1), kind=ScaledIdentity),
    "mul_one_by_one": Case(aten.mul.Tensor, (ONE, randn(1, 1)), active=(0, 1), kind=ScaledIdentity),
    "mul_outer": Case(aten.mul.Tensor, (COLUMN, ROW), active=(0, 1), kind=WeightedGather),
    "div": Case(aten.div.Tensor, (X, positive(3, 4)), active=(0, 1)),
    "div_one": Case(aten.div.Tensor, (X, ONE), active=(0, 1), kind=ScaledIdentity),
    "div_of_number": Case(aten.div.Tensor, (torch.tensor(2.0).double(), X), active=(1, 0)),
    "div_floor": Case(aten.div.Tensor_mode, (X, OTHER), {"rounding_mode": "floor"}, active=(0, 1), kind=Zero),
    "div_mode_none": Case(aten.div.Tensor_mode, (X, OTHER), {"rounding_mode": None}, active=(0, 1)),
    "maximum": Case(aten.maximum.default, (X, OTHER), active=(0, 1), kind=Diagonal),
    "minimum": Case(aten.minimum.default, (X, ROW), active=(0, 1)),
    "fmax": Case(aten.fmax.default, (X, OTHER), active=(0, 1)),
    "fmin": Case(aten.fmin.default, (X, OTHER), active=(0, 1)),
    "atan2": Case(aten.atan2.default, (X, COLUMN), active=(0, 1)),
    "pow": Case(aten.pow.Tensor_Tensor, (positive(3, 4), OTHER), active=(0, 1)),
    "hypot": Case(aten.hypot.default, (X, OTHER), active=(0, 1)),
    "logaddexp": Case(aten.logaddexp.default, (X, OTHER), active=(0, 1)),
    "logaddexp2": Case(aten.logaddexp2.default, (X, ROW), active=(0, 1)),
    "where": Case(aten.where.self, (MASK, X, OTHER), active=(1, 2), kind=Diagonal),
    "where_one": Case(aten.where.self, (MASK, X, ONE), active=(2, 1), kind=WeightedGather),
    "masked_fill": Case(aten.masked_fill.Scalar, (X, MASK, -math.inf), kind=Diagonal),
    "masked_fill_tensor": Case(aten.masked_fill.Tensor, (X, MASK, ONE), active=(0, 2)),
    "addcmul": Case(aten.addcmul.default, (X, OTHER, ROW), {"value": 1.5}, active=(0, 1, 2)),
    "addcdiv": Case(aten.addcdiv.default, (X, OTHER, positive(4)), {"value": 1.5}, active=(0, 1, 2)),
    "lerp_number": Case(aten.lerp.Scalar, (X, OTHER, 0.3), active=(0, 1), kind=ScaledIdentity),
    "lerp": Case(aten.lerp.Tensor, (X, OTHER, ROW), active=(0, 1, 2)),
    "prelu": Case(aten._prelu_kernel.default, (X, randn(1, 4)), active=(0, 1)),
    "fmod": Case(aten.fmod.Tensor, (X, OTHER), active=(0, 1)),
    "remainder": Case(aten.remainder.Tensor, (X, OTHER), active=(0, 1)),
    "clamp": Case(aten.clamp.Tensor, (X, OTHER, ROW), active=(0, 1, 2)),
    "clamp_upper": Case(aten.clamp.Tensor, (X, None, ROW), active=(0, 1)),
    "clamp_min": Case(aten.clamp_min.Tensor, (X, OTHER), active=(0, 1)),
    "clamp_max": Case(aten.clamp_max.Tensor, (X, OTHER), active=(0, 1)),
    "xlogy": Case(aten.xlogy.Tensor, (X, positive(3, 4)), active=(0, 1)),
    "xlog1py": Case(aten.special_xlog1py.default, (X, positive(4)), active=(0, 1)),
    "copysign": Case(aten.copysign.Tensor, (X, OTHER), active=(0,)),
    "ldexp": Case(aten.ldexp.Tensor, (X, OTHER), active=(0, 1)),
}


@pytest.mark.parametrize("case", BINARY.values(), ids=BINARY)
def test_a_function_of_several_tensors_has_the_derivatives_of_autograd(case):
    check(case)


PAIRS = [(a, b) for a in (0.0, 1.0, -1.0, math.nan, math.inf) for b in (0.0, 1.0, -2.0, math.nan)]


@pytest.mark.parametrize(
    "name", ["maximum", "minimum", "fmax", "fmin", "clamp_min", "clamp_max", "atan2", "hypot", "pow", "logaddexp"]
)
def test_ties_zeros_and_nan_of_two_tensors_have_the_derivatives_of_autograd(name):
    packet = getattr(aten, name)
    overloads = {"pow": "Tensor_Tensor", "clamp_min": "Tensor", "clamp_max": "Tensor"}
    op = getattr(packet, overloads.get(name, "default"))
    for a, b in PAIRS:
        check(Case(op, (torch.tensor([a]).double(), torch.tensor([b]).double()), active=(0, 1)))


def test_crossed_bounds_of_a_clamp_are_those_of_autograd():
    x, low, high = (torch.tensor(values).double() for values in ([0.0, 2.0, 5.0], [3.0, 3.0, 3.0], [1.0, 1.0, 1.0]))
    check(Case(aten.clamp.Tensor, (x, low, high), active=(0, 1, 2)))


@pytest.mark.parametrize("name", ["floor", "ceil", "sign", "sgn", "trunc", "round"])
def test_a_step_has_the_derivative_zero(name):
    op = getattr(aten, name).default
    assert op in STEPS
    check(Case(op, (X,), kind=Zero))


def test_what_only_takes_the_sizes_of_a_tensor_has_the_derivative_zero():
    for name in ("zeros_like", "ones_like", "randn_like"):
        assert type(take(Case(getattr(aten, name).default, (X,))).locals[0].structure) is Zero


def test_division_by_the_number_zero_is_left_to_autograd():
    assert take(Case(aten.div.Tensor, (X, 0))).locals == {}
