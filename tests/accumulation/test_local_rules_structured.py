"""The local derivatives of movement, reductions, products, norms and convolutions are those of autograd."""

import pytest
import torch
from local_rule_checks import Case, aten, check, positive, randn, take

from torch_jvpvjp.accumulation.structure import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Gather,
    Identity,
    Kronecker,
    LowerTriangular,
    Pattern,
    PlusLowRank,
    RowKronecker,
    Scatter,
    WeightedGather,
    WeightedScatter,
    Zero,
)

X, CUBE, IMAGE = randn(3, 4), randn(2, 3, 4), randn(1, 2, 6, 5)
Y = randn(3, 4, seed=1)

MOVEMENT = {
    "view": Case(aten.view.default, (X, [2, 6]), kind=Identity),
    "unsafe_view": Case(aten._unsafe_view.default, (X, [12]), kind=Identity),
    "reshape_copy": Case(aten._reshape_copy.default, (X, [12]), kind=Identity),
    "unsqueeze": Case(aten.unsqueeze.default, (X, 1), kind=Identity),
    "squeeze": Case(aten.squeeze.default, (randn(1, 3, 1),), kind=Identity),
    "squeeze_dim": Case(aten.squeeze.dim, (randn(1, 3, 1), 0), kind=Identity),
    "squeeze_dims": Case(aten.squeeze.dims, (randn(1, 3, 1), [0, 2]), kind=Identity),
    "t": Case(aten.t.default, (X,), kind=Gather),
    "t_of_a_row": Case(aten.t.default, (randn(1, 4),), kind=Identity),
    "transpose": Case(aten.transpose.int, (CUBE, 0, 2), kind=Gather),
    "permute": Case(aten.permute.default, (CUBE, [2, 0, 1]), kind=Gather),
    "expand": Case(aten.expand.default, (randn(3, 1), [2, 3, 4]), kind=Gather),
    "expand_same": Case(aten.expand.default, (X, [3, 4]), kind=Identity),
    "slice": Case(aten.slice.Tensor, (X, 1, 1, 9223372036854775807, 2), kind=Gather),
    "select": Case(aten.select.int, (X, 0, -1), kind=Gather),
    "diagonal": Case(aten.diagonal.default, (X, 1), kind=Gather),
    "flip": Case(aten.flip.default, (X, [0]), kind=Gather),
    "roll": Case(aten.roll.default, (X, [1], [0]), kind=Gather),
    "rot90": Case(aten.rot90.default, (X,), kind=Gather),
    "repeat": Case(aten.repeat.default, (X, [2, 1]), kind=Gather),
    "unfold": Case(aten.unfold.default, (X, 1, 2, 1), kind=Gather),
    "pixel_shuffle": Case(aten.pixel_shuffle.default, (randn(4, 2, 2), 2), kind=Gather),
    "pixel_unshuffle": Case(aten.pixel_unshuffle.default, (randn(1, 4, 4), 2), kind=Gather),
    "channel_shuffle": Case(aten.channel_shuffle.default, (randn(1, 4, 2, 2), 2), kind=Gather),
    "reflection_pad1d": Case(aten.reflection_pad1d.default, (X, [1, 2]), kind=Gather),
    "replication_pad2d": Case(aten.replication_pad2d.default, (CUBE, [1, 0, 2, 1]), kind=Gather),
    "pad": Case(aten.constant_pad_nd.default, (X, [1, 1], 5.0), kind=Scatter),
    "pad_and_crop": Case(aten.constant_pad_nd.default, (X, [-1, 1], 5.0), kind=WeightedGather),
    "crop": Case(aten.constant_pad_nd.default, (X, [-1, -1]), kind=Gather),
    "pad_and_crop_sizes": Case(aten.constant_pad_nd.default, (X, [-1, 2]), kind=WeightedGather),
    "diag_embed": Case(aten.diag_embed.default, (X,), kind=Scatter),
    "tril": Case(aten.tril.default, (X,), kind=Diagonal),
    "triu": Case(aten.triu.default, (X, 1), kind=Diagonal),
    "tril_of_nothing": Case(aten.tril.default, (X, -9), kind=Zero),
    "im2col": Case(aten.im2col.default, (IMAGE, [2, 2], [1, 1], [0, 0], [1, 1]), kind=Gather),
    "im2col_padded": Case(aten.im2col.default, (IMAGE, [2, 2], [1, 1], [1, 1], [1, 1]), kind=WeightedGather),
    "cat": Case(aten.cat.default, ([X, Y, randn(2, 4)],), active=(1, 0, 2), kind=Scatter),
    "cat_dim": Case(aten.cat.default, ([X, randn(3, 2)], 1), active=(1,), kind=Scatter),
    "stack": Case(aten.stack.default, ([X, Y], 1), active=(0, 1), kind=Scatter),
    "select_scatter": Case(aten.select_scatter.default, (X, randn(4), 0, 1), active=(0, 1), kind=Diagonal),
    "slice_scatter": Case(aten.slice_scatter.default, (X, randn(3, 2), 1, 1, 3), active=(1, 0), kind=Scatter),
    "diagonal_scatter": Case(aten.diagonal_scatter.default, (X, randn(3)), active=(1, 0), kind=Scatter),
    "fill": Case(aten.fill.Tensor, (X, randn()), active=(0, 1), kind=Zero),
    "split": Case(aten.split.Tensor, (X, 3, 1), kind=Gather, output=1),
    "split_with_sizes": Case(aten.split_with_sizes.default, (X, [1, 2]), kind=Gather, output=1),
    "unbind": Case(aten.unbind.int, (X, 1), kind=Gather, output=2),
}

REDUCTIONS = {
    "sum": Case(aten.sum.default, (X,), kind=Scatter),
    "sum_dims": Case(aten.sum.dim_IntList, (CUBE, [0, 2]), kind=Scatter),
    "sum_keepdim": Case(aten.sum.dim_IntList, (CUBE, [-2], True), kind=Scatter),
    "sum_no_dims": Case(aten.sum.dim_IntList, (CUBE, None), kind=Scatter),
    "mean": Case(aten.mean.default, (X,), kind=Dense),
    "mean_dim": Case(aten.mean.dim, (CUBE, [1]), kind=WeightedScatter),
    "logsumexp": Case(aten.logsumexp.default, (CUBE, [1], True), kind=WeightedScatter),
    "logsumexp_all": Case(aten.logsumexp.default, (CUBE, [0, 1, 2]), kind=Dense),
    "norm": Case(aten.linalg_vector_norm.default, (X,), kind=Dense),
    "norm_dim": Case(aten.linalg_vector_norm.default, (CUBE, 2, [1], True), kind=WeightedScatter),
    "norm_of_zero": Case(aten.linalg_vector_norm.default, (X * torch.tensor([[1.0], [0.0], [1.0]]).double(), 2, [1])),
    "norm_one": Case(aten.linalg_vector_norm.default, (CUBE, 1, [0]), kind=WeightedScatter),
    "var": Case(aten.var.correction, (CUBE, [1]), {"correction": 1}, kind=WeightedScatter),
    "var_all": Case(aten.var.correction, (CUBE,), {"correction": 0}, kind=Dense),
    "std": Case(aten.std.correction, (CUBE, [-1]), {"correction": 1, "keepdim": True}, kind=WeightedScatter),
    "cumsum": Case(aten.cumsum.default, (randn(5), 0), kind=LowerTriangular),
    "amax": Case(aten.amax.default, (CUBE, [1, 2]), kind=WeightedScatter),
    "amin_of_ties": Case(aten.amin.default, (CUBE.round(), [1]), kind=WeightedScatter),
    "max_all": Case(aten.max.default, (X,), kind=Dense),
    "min_of_ties": Case(aten.min.default, (X.round(),), kind=Dense),
    "max_dim": Case(aten.max.dim, (CUBE, 1), kind=WeightedScatter),
    "min_dim_keepdim": Case(aten.min.dim, (CUBE, -1, True), kind=WeightedScatter),
    "max_dim_of_a_vector": Case(aten.max.dim, (randn(5), 0), kind=Dense),
    "max_dim_of_a_number": Case(aten.max.dim, (randn(), 0), kind=Identity),
    "median_dim": Case(aten.median.dim, (X, 1), kind=WeightedScatter),
    "glu": Case(aten.glu.default, (randn(2, 6, 3), 1), kind=Pattern),
    "huber": Case(aten.huber_loss.default, (X, Y, 1, 0.7), active=(0, 1), kind=Dense),
    "huber_each": Case(aten.huber_loss.default, (X, Y, 0, 0.7), active=(0, 1), kind=Diagonal),
    "smooth_l1": Case(aten.smooth_l1_loss.default, (X, Y, 2, 0.4), active=(0, 1), kind=Dense),
    "smooth_l1_sharp": Case(aten.smooth_l1_loss.default, (X, Y, 1, 0.0), active=(0, 1), kind=Dense),
    "mse": Case(aten.mse_loss.default, (X, Y), active=(0, 1), kind=Dense),
    "mse_each": Case(aten.mse_loss.default, (X, Y, 0), active=(0, 1), kind=Diagonal),
    "mse_sum": Case(aten.mse_loss.default, (X, Y, 2), active=(1, 0), kind=Dense),
}

W, LEFT, RIGHT = randn(4, 5), randn(2, 3, 4), randn(2, 4, 5)
PRODUCTS = {
    "mm": Case(aten.mm.default, (X, W), active=(0, 1), kind=Kronecker),
    "mm_one_row": Case(aten.mm.default, (randn(1, 4), W), active=(0, 1), kind=Dense),
    "mm_one_column": Case(aten.mm.default, (X, randn(4, 1)), active=(1, 0), kind=Dense),
    "addmm": Case(aten.addmm.default, (randn(5), X, W), active=(0, 1, 2), kind=Gather),
    "addmm_scaled": Case(aten.addmm.default, (randn(3, 5), X, W), {"alpha": 2, "beta": 0.5}, active=(0, 1, 2)),
    "addmm_one_row": Case(aten.addmm.default, (randn(5), randn(1, 4), W), active=(1, 0, 2), kind=Dense),
    "mv": Case(aten.mv.default, (X, randn(4)), active=(1, 0), kind=Dense),
    "addmv": Case(aten.addmv.default, (randn(3), X, randn(4)), {"alpha": 3, "beta": 2}, active=(0, 1, 2)),
    "dot": Case(aten.dot.default, (randn(4), randn(4, seed=1)), active=(0, 1), kind=Dense),
    "vdot": Case(aten.vdot.default, (randn(4), randn(4, seed=1)), active=(0, 1), kind=Dense),
    "outer": Case(aten.outer.default, (randn(3), randn(4)), active=(0, 1)),
    "linear": Case(aten.linear.default, (CUBE, randn(5, 4), randn(5)), active=(1, 0, 2), kind=RowKronecker),
    "linear_vector": Case(aten.linear.default, (randn(4), randn(5, 4)), active=(0, 1), kind=Dense),
    "matmul": Case(aten.matmul.default, (CUBE, W), active=(0, 1), kind=Kronecker),
    "matmul_vector": Case(aten.matmul.default, (CUBE, randn(4)), active=(0, 1)),
    "matmul_of_vectors": Case(aten.matmul.default, (randn(4), randn(4, seed=1)), active=(0, 1), kind=Dense),
    "bmm": Case(aten.bmm.default, (LEFT, RIGHT), active=(0, 1), kind=BlockDiagonal),
    "bmm_one_row": Case(aten.bmm.default, (randn(2, 1, 4), RIGHT), active=(0, 1), kind=BlockDiagonal),
    "bmm_one_column": Case(aten.bmm.default, (LEFT, randn(2, 4, 1)), active=(1, 0), kind=BlockDiagonal),
    "bmm_one_sample": Case(aten.bmm.default, (randn(1, 3, 4), randn(1, 4, 5)), active=(0, 1), kind=Kronecker),
    "bmm_right": Case(aten.bmm.default, (LEFT, RIGHT), active=(1,), kind=Pattern),
    "baddbmm": Case(aten.baddbmm.default, (randn(2, 3, 5), LEFT, RIGHT), {"alpha": 2, "beta": 3}, active=(0, 1, 2)),
}

GAIN, SHIFT, VARIANCE = randn(2), randn(2, seed=1), positive(2)
NORMS = {
    "softmax": Case(aten._softmax.default, (X, -1, False), kind=BlockDiagonal),
    "softmax_one_row": Case(aten._softmax.default, (randn(5), 0, False), kind=PlusLowRank),
    "softmax_inner_size_one": Case(aten._softmax.default, (randn(3, 4, 1), 1, False), kind=BlockDiagonal),
    "log_softmax": Case(aten._log_softmax.default, (X, 1, False), kind=BlockDiagonal),
    "log_softmax_one_row": Case(aten._log_softmax.default, (randn(1, 5), 1, False), kind=PlusLowRank),
    "layer_norm": Case(
        aten.native_layer_norm.default, (X, [4], randn(4), randn(4), 1e-5), active=(0, 1, 2), kind=BlockDiagonal
    ),
    "layer_norm_one_row": Case(
        aten.native_layer_norm.default, (X, [3, 4], Y, None, 1e-5), active=(0, 1), kind=PlusLowRank
    ),
    "layer_norm_bare": Case(aten.native_layer_norm.default, (CUBE, [4], None, None, 1e-5), kind=BlockDiagonal),
    "rms_norm": Case(aten._fused_rms_norm.default, (X, [4], randn(4), 1e-5), active=(0, 1), kind=BlockDiagonal),
    "rms_norm_one_row": Case(aten._fused_rms_norm.default, (X[0], [4], None, None), kind=PlusLowRank),
    "group_norm": Case(
        aten.native_group_norm.default,
        (randn(2, 4, 3), randn(4), randn(4, seed=1), 2, 4, 3, 2, 1e-5),
        active=(0, 1, 2),
        kind=BlockDiagonal,
    ),
    "group_norm_one_group": Case(
        aten.native_group_norm.default, (IMAGE, GAIN, None, 1, 2, 30, 1, 1e-5), active=(0, 1), kind=PlusLowRank
    ),
    "group_norm_bare": Case(aten.native_group_norm.default, (IMAGE, None, None, 1, 2, 30, 2, 1e-5), kind=BlockDiagonal),
    "batch_norm": Case(
        aten.native_batch_norm.default,
        (IMAGE, GAIN, SHIFT, SHIFT, VARIANCE, False, 0.1, 1e-5),
        active=(0, 1, 2),
        kind=Diagonal,
    ),
    "batch_norm_bare": Case(
        aten._native_batch_norm_legit_no_training.default,
        (IMAGE, None, None, SHIFT, VARIANCE, 0.1, 1e-5),
        kind=Diagonal,
    ),
}


def convolution(
    x, w, bias=None, stride=1, padding=0, dilation=1, transposed=False, groups=1, active=(0,), kind=Pattern
):
    d = x.dim() - 2
    args = (x, w, bias, [stride] * d, [padding] * d, [dilation] * d, transposed, [0] * d, groups)
    return Case(aten.convolution.default, args, active=active, kind=kind)


CONVOLUTIONS = {
    "1d": convolution(randn(2, 3, 7), randn(4, 3, 3), randn(4), active=(0, 2)),
    "1d_weight": convolution(randn(1, 3, 7), randn(4, 3, 3), padding=1, active=(1, 0), kind=Kronecker),
    "1d_weight_one_channel": convolution(randn(1, 3, 7), randn(1, 3, 3), stride=2, active=(1, 0), kind=Dense),
    "2d": convolution(IMAGE, randn(3, 2, 3, 2), randn(3), stride=2, padding=1, active=(0, 1, 2)),
    "2d_dilated": convolution(IMAGE, randn(3, 2, 2, 2), dilation=2),
    "2d_groups": convolution(IMAGE, randn(4, 1, 2, 2), padding=1, groups=2),
    "3d": convolution(randn(1, 1, 3, 4, 3), randn(2, 1, 2, 2, 2), active=(0, 1)),
    "transposed": convolution(IMAGE, randn(2, 3, 2, 3), randn(3), stride=2, padding=1, transposed=True, active=(0, 2)),
    "transposed_groups": convolution(randn(2, 4, 5), randn(4, 3, 2), transposed=True, groups=2),
}

RESAMPLING = {
    "avg_pool1d": Case(aten.avg_pool1d.default, (CUBE, [2]), kind=WeightedScatter),
    "avg_pool2d": Case(aten.avg_pool2d.default, (IMAGE, [2, 5]), kind=WeightedScatter),
    "avg_pool2d_overlapping": Case(aten.avg_pool2d.default, (IMAGE, [3], [2]), kind=Pattern),
    "avg_pool2d_padded": Case(aten.avg_pool2d.default, (IMAGE, [3, 2], [2, 1], [1, 1])),
    "avg_pool2d_padding_not_counted": Case(aten.avg_pool2d.default, (IMAGE, [3], [2], [1], False, False)),
    "avg_pool2d_ceil": Case(aten.avg_pool2d.default, (IMAGE, [2], [2], [1], True)),
    "avg_pool2d_divisor": Case(aten.avg_pool2d.default, (IMAGE, [2], [2], [1], False, True, 3)),
    "avg_pool3d": Case(aten.avg_pool3d.default, (randn(1, 2, 4, 3, 4), [2, 1, 2], [1, 1, 2])),
    "max_pool2d": Case(aten.max_pool2d_with_indices.default, (IMAGE, [2, 5]), kind=WeightedScatter),
    "max_pool2d_overlapping": Case(aten.max_pool2d_with_indices.default, (IMAGE, [3], [1, 2], [1], [1]), kind=Pattern),
    "max_pool2d_dilated": Case(aten.max_pool2d_with_indices.default, (IMAGE, [2], [2], [0], [2], True), kind=Pattern),
    "max_pool2d_of_one_image": Case(aten.max_pool2d_with_indices.default, (CUBE, [2]), kind=Pattern),
    "max_pool3d": Case(aten.max_pool3d_with_indices.default, (randn(2, 2, 4, 2, 4), [2]), kind=WeightedScatter),
    "adaptive_avg_pool1d": Case(aten.adaptive_avg_pool1d.default, (randn(2, 3, 5), [3]), kind=Pattern),
    "adaptive_avg_pool2d": Case(aten._adaptive_avg_pool2d.default, (IMAGE, [3, 2])),
    "adaptive_avg_pool3d": Case(aten._adaptive_avg_pool3d.default, (randn(1, 2, 4, 2, 4), [2, 2, 2])),
    "upsample_nearest1d": Case(aten.upsample_nearest1d.default, (CUBE, [7]), kind=Gather),
    "upsample_nearest2d": Case(aten.upsample_nearest2d.default, (IMAGE, [12, 10], 2.0, 2.0), kind=Gather),
    "upsample_nearest_exact2d": Case(aten._upsample_nearest_exact2d.default, (IMAGE, [4, 9]), kind=Gather),
    "upsample_linear1d": Case(aten.upsample_linear1d.default, (CUBE, [7], False), kind=Pattern),
    "upsample_bilinear2d": Case(aten.upsample_bilinear2d.default, (IMAGE, [9, 7], True), kind=Pattern),
    "upsample_trilinear3d": Case(aten.upsample_trilinear3d.default, (randn(1, 1, 2, 3, 2), [4, 4, 3], False)),
    "upsample_bicubic2d": Case(aten.upsample_bicubic2d.default, (IMAGE, [9, 7], False)),
}

POINTS, OTHERS = randn(2, 4, 3), randn(2, 5, 3, seed=1)
MEETING = torch.cat([POINTS[0, :2], OTHERS[0]])
DISTANCES = {
    "euclidean": Case(
        aten._cdist_forward.default, (POINTS[0], OTHERS[0], 2.0, None), active=(0, 1), kind=BlockDiagonal
    ),
    "of many sets": Case(aten._cdist_forward.default, (POINTS, OTHERS, 2.0, None), active=(0, 1), kind=BlockDiagonal),
    "from one point": Case(aten._cdist_forward.default, (POINTS[:, :1], OTHERS, 2.0, None), active=(0, 1)),
    "to one point": Case(aten._cdist_forward.default, (POINTS, OTHERS[:, :1], 2.0, None), active=(0, 1)),
    "of magnitudes": Case(aten._cdist_forward.default, (POINTS, OTHERS, 1.0, None), active=(0, 1)),
    "of cubes": Case(aten._cdist_forward.default, (POINTS, OTHERS, 3.0, None), active=(0, 1)),
    "between both": Case(aten._cdist_forward.default, (POINTS, OTHERS, 1.5, None), active=(0, 1)),
    "points that meet": Case(aten._cdist_forward.default, (POINTS[0], MEETING, 2.0, None), active=(0, 1)),
    "cubes that meet": Case(aten._cdist_forward.default, (POINTS[0], MEETING, 3.0, None), active=(0, 1)),
    "by a product": Case(aten._euclidean_dist.default, (POINTS, OTHERS), active=(0, 1), kind=BlockDiagonal),
}


@pytest.mark.parametrize("case", DISTANCES.values(), ids=DISTANCES)
def test_distances_change_along_the_line_between_points(case):
    check(case)


@pytest.mark.parametrize("case", MOVEMENT.values(), ids=MOVEMENT)
def test_moving_entries_is_a_matrix_of_zeros_and_ones(case):
    check(case)


@pytest.mark.parametrize("case", REDUCTIONS.values(), ids=REDUCTIONS)
def test_a_reduction_scatters_its_entries(case):
    check(case)


@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_has_one_factor_as_the_derivative_in_the_other(case):
    check(case)


@pytest.mark.parametrize("case", NORMS.values(), ids=NORMS)
def test_a_normalisation_works_row_by_row(case):
    check(case)


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_is_a_sparse_toeplitz_matrix(case):
    check(case)


@pytest.mark.parametrize("case", RESAMPLING.values(), ids=RESAMPLING)
def test_pooling_and_upsampling_are_constant_sparse_matrices(case):
    check(case)


def test_a_copy_forgets_what_it_overwrites():
    # aten.copy has no derivative in autograd, so the matrices are written out
    locals_ = take(Case(aten.copy.default, (X, randn(4)), active=(0, 1))).locals
    assert locals_[0].structure == Zero(12, 12)
    assert locals_[1].structure == Gather(4, [0, 1, 2, 3] * 3)


def test_dropout_keeps_what_its_mask_keeps():
    torch.manual_seed(0)
    x = randn(50)
    taken = take(Case(aten.native_dropout.default, (x, 0.4, True)))
    y, mask = taken.outputs
    expected = torch.where(mask, y / x, 0)
    torch.testing.assert_close(taken.locals[0].values([x], [y, mask]), expected)
    assert 0 < mask.sum() < 50


def test_a_zero_in_the_weight_of_a_convolution_keeps_its_place():
    w = randn(2, 2, 2, 2)
    w[:, :, 0, 1] = 0
    taken = take(convolution(IMAGE, w))
    assert taken.locals[0].structure.entries == 2 * 20 * 8
    check(convolution(IMAGE, w))


def test_a_row_too_long_for_blocks_is_left_to_autograd_but_a_single_one_is_not():
    assert take(Case(aten._softmax.default, (torch.zeros(2, 3000), 1, False))).locals == {}
    assert take(Case(aten._softmax.default, (torch.zeros(3000), 0, False))).locals.keys() == {0}


LEFT_TO_AUTOGRAD = {
    "batch_norm_training": Case(
        aten.native_batch_norm.default, (IMAGE, GAIN, SHIFT, SHIFT * 1, VARIANCE * 1, True, 0.1, 1e-5)
    ),
    "convolution_too_large": convolution(torch.zeros(1, 64, 64, 64), torch.zeros(64, 64, 3, 3)),
    "cumsum_of_a_matrix": Case(aten.cumsum.default, (X, 0)),
    "layer_norm_mean": Case(aten.native_layer_norm.default, (X, [4], None, None, 1e-5), output=1),
    "matmul_of_batches": Case(aten.matmul.default, (LEFT, RIGHT)),
    "max_pool_indices": Case(aten.max_pool2d_with_indices.default, (IMAGE, [2]), output=1),
    "norm_three": Case(aten.linalg_vector_norm.default, (X, 3)),
    "softmax_first_dim": Case(aten._softmax.default, (X, 0, False)),
    "empty": Case(aten.tanh.default, (torch.zeros(0, 3),)),
    "complex, without a rule": Case(aten.silu.default, (torch.zeros(3, dtype=torch.complex64),)),
    "complex, broadcast": Case(aten.mul.Tensor, (torch.zeros(3, dtype=torch.complex64), torch.zeros(2, 3))),
    "var_without_freedom": Case(aten.var.correction, (torch.zeros(3, 2), [1]), {"correction": 2}),
}


@pytest.mark.parametrize("case", LEFT_TO_AUTOGRAD.values(), ids=LEFT_TO_AUTOGRAD)
@pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")
def test_what_has_no_cheap_closed_form_is_left_to_autograd(case):
    assert take(case).locals == {}
