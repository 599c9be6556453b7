"""The table of local derivatives: what it covers, and what its values work under."""

from functools import partial

import pytest
import torch
from local_rule_checks import Case, Taken, aten, autograd, dense, positive, primal, randn, take
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map_only

from torch_jvpvjp.accumulation.rules import LOCAL_RULES, Call, Meta, Operand, local_derivatives, local_rule
from torch_jvpvjp.accumulation.rules.arguments import fill
from torch_jvpvjp.accumulation.structure import Dense, LowerTriangular, PlusLowRank

X, W = randn(3, 4), randn(4, 5)
ROW, GAIN, IMAGE = randn(1, 4), randn(4, seed=2), randn(1, 2, 5, 4)

SAMPLES = {
    "tanh": Case(aten.tanh.default, (X,)),
    "gelu": Case(aten.gelu.default, (X,)),
    "relu": Case(aten.relu.default, (X,)),
    "sinc": Case(aten.sinc.default, (X,)),
    "mul": Case(aten.mul.Tensor, (X, GAIN), active=(0, 1)),
    "mul_number": Case(aten.mul.Tensor, (X, 3.0)),
    "mul_one": Case(aten.mul.Tensor, (X, randn(1)), active=(0, 1)),
    "div": Case(aten.div.Tensor, (X, positive(4)), active=(0, 1)),
    "maximum": Case(aten.maximum.default, (X, GAIN), active=(0, 1)),
    "atan2": Case(aten.atan2.default, (X, GAIN), active=(0, 1)),
    "clamp": Case(aten.clamp.default, (X, -0.5, 0.5)),
    "clamp_row": Case(aten.clamp.Tensor, (X, GAIN - 1, None), active=(0, 1)),
    "fmax": Case(aten.fmax.default, (X, GAIN), active=(0, 1)),
    "tril": Case(aten.tril.default, (X,)),
    "pad": Case(aten.constant_pad_nd.default, (X, [-1, 2])),
    "mean": Case(aten.mean.dim, (X, [0])),
    "norm": Case(aten.linalg_vector_norm.default, (X, 2, [1])),
    "logsumexp": Case(aten.logsumexp.default, (X, [1])),
    "std": Case(aten.std.correction, (X, [1])),
    "amax": Case(aten.amax.default, (X, [1])),
    "max": Case(aten.max.dim, (X, 0)),
    "max_pool": Case(aten.max_pool2d_with_indices.default, (IMAGE, [2, 2], [1, 1])),
    "glu": Case(aten.glu.default, (X, 1)),
    "huber": Case(aten.huber_loss.default, (X, randn(3, 4, seed=1)), active=(0, 1)),
    "cumsum": Case(aten.cumsum.default, (randn(4), 0)),
    "mse": Case(aten.mse_loss.default, (X, randn(3, 4, seed=1)), active=(0, 1)),
    "mm": Case(aten.mm.default, (X, W), active=(0, 1)),
    "addmm": Case(aten.addmm.default, (randn(5), ROW, W), {"alpha": 2.0}, active=(0, 1, 2)),
    "bmm": Case(aten.bmm.default, (randn(2, 3, 4), randn(2, 4, 5)), active=(0, 1)),
    "linear": Case(aten.linear.default, (X, randn(5, 4), randn(5)), active=(0, 1, 2)),
    "softmax": Case(aten._softmax.default, (X, 1, False)),
    "softmax_one_row": Case(aten._softmax.default, (ROW, 1, False)),
    "log_softmax": Case(aten._log_softmax.default, (X, 1, False)),
    "log_softmax_one_row": Case(aten._log_softmax.default, (ROW, 1, False)),
    "logcumsumexp": Case(aten.logcumsumexp.default, (X, 1)),
    "logcumsumexp_one_row": Case(aten.logcumsumexp.default, (ROW, 1), kind=LowerTriangular),
    "layer_norm": Case(aten.native_layer_norm.default, (X, [4], GAIN, GAIN, 1e-5), active=(0, 1, 2)),
    "layer_norm_one_row": Case(aten.native_layer_norm.default, (ROW, [4], GAIN, GAIN, 1e-5)),
    "rms_norm": Case(aten._fused_rms_norm.default, (X, [4], GAIN, 1e-5), active=(0, 1)),
    "batch_norm": Case(
        aten.native_batch_norm.default, (IMAGE, randn(2), None, randn(2), positive(2), False, 0.1, 1e-5), active=(0, 1)
    ),
    "group_norm": Case(aten.native_group_norm.default, (IMAGE, randn(2), None, 1, 2, 20, 2, 1e-5), active=(0, 1)),
    "cross": Case(aten.linalg_cross.default, (randn(5, 3), randn(5, 3, seed=1)), active=(0, 1)),
    "inverses": Case(aten.linalg_inv_ex.default, (randn(4, 3, 3) + 3 * torch.eye(3, dtype=torch.float64),)),
    "convolution": Case(
        aten.convolution.default,
        (IMAGE, randn(3, 2, 2, 2), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        active=(0, 1),
    ),
    "avg_pool": Case(aten.avg_pool2d.default, (IMAGE, [3, 3], [2, 2], [1, 1], False, False)),
    "bilinear": Case(aten.upsample_bilinear2d.default, (IMAGE, [7, 6], False)),
}
ALL = pytest.mark.parametrize("case", SAMPLES.values(), ids=SAMPLES)


def _derivative(taken: Taken, position: int, operands):
    """The dense Jacobian as a function of the operands."""
    call = taken.call
    outputs = call.target(*fill(call.args, operands), **fill(call.kwargs, operands))
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return dense(taken.locals[position], operands, outputs)


@ALL
def test_values_of_a_batch_are_those_of_its_samples(case):
    taken = take(case)
    moved = [operand + 0.1 for operand in taken.operands]
    batch = [torch.stack(pair) for pair in zip(taken.operands, moved, strict=True)]
    for position in taken.locals:
        together = torch.func.vmap(lambda *operands, at=position: _derivative(taken, at, list(operands)))(*batch)
        for index, operands in enumerate((taken.operands, moved)):
            torch.testing.assert_close(together[index], _derivative(taken, position, operands))


@ALL
def test_values_keep_float32(case):
    narrow = tree_map_only(torch.Tensor, torch.Tensor.float, case.args)
    taken = take(case._replace(args=narrow))
    for position, local in taken.locals.items():
        values = local.values(taken.operands, taken.outputs)
        assert all(leaf.dtype == torch.float32 for leaf in tree_leaves(values))
        found = dense(local, taken.operands, taken.outputs)
        torch.testing.assert_close(found, autograd(taken, position), rtol=1e-4, atol=1e-5)


@ALL
def test_values_can_be_differentiated_again(case):
    # the pullback through the values is the second derivative of the op
    taken = take(case)
    for position in taken.locals:
        x, function = taken.operands[position], primal(taken, position)
        taped = [operand if place != position else x for place, operand in enumerate(taken.operands)]

        def ours(z, at=position, taped=taped):
            return _derivative(taken, at, [z if place == at else other for place, other in enumerate(taped)])

        expected = torch.func.jacrev(torch.func.jacrev(function))(x).reshape(-1, x.numel())
        found = torch.func.jacrev(ours)(x).reshape(-1, x.numel())
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@ALL
def test_values_can_be_traced(case):
    taken = take(case)
    for position, local in taken.locals.items():
        if not tree_leaves(local.values(taken.operands, taken.outputs)):
            continue
        traced = make_fx(partial(_derivative, taken, position))(taken.operands)
        moved = [operand * 1.1 + 0.01 for operand in taken.operands]
        torch.testing.assert_close(traced(moved), _derivative(taken, position, moved))


@ALL
def test_planning_sees_no_tensor_and_works_while_another_mode_records(case):
    taken = take(case)
    with FakeTensorMode(), torch.device("meta"):
        found = local_derivatives(taken.call)
    assert {p: local.structure for p, local in found.items()} == {
        p: local.structure for p, local in taken.locals.items()
    }
    for local in found.values():
        values = local.values(taken.operands, taken.outputs)
        assert all(leaf.device.type == "cpu" for leaf in tree_leaves(values))


TRANSFORMS = {
    "grad": lambda function: torch.func.grad(function)(torch.ones(())),
    "jvp": lambda function: torch.func.jvp(function, (torch.ones(()),), (torch.ones(()),)),
    "vmap": lambda function: torch.func.vmap(function)(torch.ones(2)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("name", ["tril", "pad", "avg_pool", "convolution"])
def test_planning_inside_a_transform_is_planning_outside(transform, name):
    taken, found = take(SAMPLES[name]), {}

    def function(x):
        found.update(local_derivatives(taken.call))
        return x * x

    transform(function)
    assert found[0].structure == taken.locals[0].structure


def test_a_single_row_of_a_norm_stores_a_few_vectors_and_no_matrix():
    structure = take(SAMPLES["layer_norm_one_row"]).locals[0].structure
    assert isinstance(structure, PlusLowRank)
    assert structure.entries == 4 + 2 * 8


def test_weights_cost_nothing_to_form_and_a_diagonal_one_product_an_entry():
    assert [local.fma for local in take(SAMPLES["mm"]).locals.values()] == [0, 0]
    assert take(SAMPLES["tanh"]).locals[0].fma == 12
    assert take(SAMPLES["pad"]).locals[0].fma == 0
    assert take(SAMPLES["addmm"]).locals[1].fma == 20


def test_only_active_operands_are_answered():
    assert take(SAMPLES["mul"]._replace(active=(1,))).locals.keys() == {1}
    assert take(SAMPLES["mul"]._replace(active=())).locals == {}


def test_the_same_tensor_in_two_places_has_a_derivative_in_each():
    assert take(Case(aten.mul.Tensor, (X, X), active=(0, 1))).locals.keys() == {0, 1}


def test_an_op_without_a_rule_is_left_to_autograd():
    assert aten.linalg_matrix_exp.default not in LOCAL_RULES
    assert take(Case(aten.linalg_matrix_exp.default, (torch.eye(2),))).locals == {}


def test_a_second_result_is_left_to_autograd_unless_the_rule_says_so():
    assert take(Case(aten.log_sigmoid_forward.default, (X,), output=0)).locals.keys() == {0}
    assert take(Case(aten.native_layer_norm.default, (X, [4], None, None, 1e-5), output=2)).locals == {}


def test_a_rule_can_be_added():
    op = aten.linalg_matrix_exp.default
    try:

        @local_rule(op)
        def rule(call):
            return None

        assert LOCAL_RULES[op] is rule
        assert take(Case(op, (torch.eye(2),))).locals == {}
    finally:
        del LOCAL_RULES[op]


@pytest.mark.parametrize("op", [aten.add.Tensor, aten.fmax.default, aten.copysign.Tensor, aten.mul.Tensor])
def test_a_broadcast_over_too_many_entries_is_left_to_autograd(op):
    row, cube = (Meta(torch.Size(shape), torch.float32, torch.device("cpu")) for shape in ((1, 1), (5000, 5000)))
    call = Call(op, (Operand(0), Operand(1)), {}, (cube, row), cube, (0, 1))
    assert local_derivatives(call).keys() == {0}


def test_a_full_reduction_to_one_number_is_one_row():
    assert take(Case(aten.mean.default, (X,))).locals[0].structure == Dense(1, 12)


FAMILIES = {
    "activations": """relu gelu silu mish elu celu leaky_relu hardtanh hardswish hardsigmoid softplus softshrink
        hardshrink threshold log_sigmoid_forward sigmoid tanh _prelu_kernel native_dropout glu""",
    "functions": """exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh asinh acosh atanh sqrt
        rsqrt reciprocal abs neg pow erf erfc erfinv lgamma digamma polygamma sinc logit i0 clamp clamp_min clamp_max
        nan_to_num""",
    "arithmetic": """add sub rsub mul div addcmul addcdiv lerp where masked_fill maximum minimum fmax fmin atan2 hypot
        logaddexp logaddexp2 fmod remainder xlogy copysign""",
    "copies": "copy fill clone alias _to_copy lift_fresh positive frac",
    "steps": "floor ceil round trunc sign sgn gt lt ge le eq ne zeros_like ones_like randn_like bernoulli argmax",
    "movement": """view _unsafe_view reshape t transpose permute expand slice select unsqueeze squeeze split
        split_with_sizes unbind cat stack flip roll repeat constant_pad_nd reflection_pad2d replication_pad2d diagonal
        diag_embed tril triu unfold select_scatter slice_scatter pixel_shuffle im2col""",
    "reductions": "sum mean logsumexp linalg_vector_norm var std cumsum amax amin max min",
    "losses": "mse_loss huber_loss smooth_l1_loss nll_loss_forward nll_loss2d_forward",
    "products": "mm addmm mv addmv dot vdot bmm baddbmm outer linear matmul",
    "norms": """_softmax _log_softmax native_layer_norm _fused_rms_norm native_group_norm native_batch_norm
        cudnn_batch_norm""",
    "images": """convolution max_pool2d_with_indices
        avg_pool2d avg_pool3d _adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d""",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_complete(family):
    known = {op._schema.name.removeprefix("aten::") for op in LOCAL_RULES}
    assert set(FAMILIES[family].split()) <= known
