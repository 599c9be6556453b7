"""Norms of rows that share their tangents, and products behind them, are made of few rows, and give what they gave."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged
from replay_checks import program_of, recorded
from torch import nn
from torch.nn import functional

from torch_jvpvjp.accumulation import plan_jacobian

ATEN = torch.ops.aten
GENERATOR = torch.Generator().manual_seed(0)
TANGENTS, ROWS, SIZE, WIDTH = 24, 16, 48, 96


def _randn(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=F64)


X, GAIN, WEIGHT = _randn(ROWS, SIZE), _randn(SIZE), _randn(SIZE, WIDTH)
SHARED = _randn(TANGENTS, SIZE)


def norm_of(t, x):
    """The layer norm of tangents (tangents, rows, entries) at x, without gain."""
    x = x.expand(t.shape).contiguous()
    _, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], None, None, 1e-5)
    return ATEN.native_layer_norm_backward(t, x, [x.shape[-1]], mean, rstd, None, None, [True, False, False])[0]


def expanded(e):
    return e.unsqueeze(1).expand(-1, ROWS, -1).contiguous()


def constant(x):
    return torch.eye(SIZE, dtype=x.dtype)[:TANGENTS].unsqueeze(1).expand(-1, ROWS, -1).contiguous()


def behind(y, w):
    return y.reshape(-1, SIZE) @ w


CASES = {
    "an expansion": (lambda e, x, w, g: behind(norm_of(expanded(e), x), w), True),
    "with a gain": (lambda e, x, w, g: behind(g * norm_of(expanded(e), x), w), True),
    "a constant": (lambda e, x, w, g: behind(norm_of(constant(x), x) * g.view(1, SIZE), w), True),
    "transposed weights": (lambda e, x, w, g: behind(norm_of(constant(x), x), w.t().contiguous().t()), True),
    "seen in another shape": (
        lambda e, x, w, g: norm_of(expanded(e), x).view(TANGENTS, -1).view(-1, SIZE).mm(w).view(TANGENTS, -1).t(), True
    ),
    "tangents that differ": (lambda e, x, w, g: behind(norm_of(expanded(e) + x, x), w), False),
    "a constant that differs": (
        lambda e, x, w, g: behind(norm_of(torch.ones(TANGENTS, ROWS, SIZE, dtype=x.dtype).triu(), x), w), False
    ),
    "rows that differ by the tangent": (lambda e, x, w, g: behind(norm_of(expanded(e), expanded(e) + x), w), False),
    "used again": (lambda e, x, w, g: (behind(y := norm_of(expanded(e), x), w), y.abs().amax()), False),
    "returned": (lambda e, x, w, g: (behind(y := norm_of(expanded(e), x), w), y), False),
    "a gain for each row": (lambda e, x, w, g: behind(x * norm_of(expanded(e), x), w), False),
    "other columns": (lambda e, x, w, g: norm_of(expanded(e), x).reshape(-1, 2 * SIZE) @ torch.cat([w, w]), False),
    "few tangents": (lambda e, x, w, g: behind(norm_of(expanded(e[:2]), x), w), False),
    "narrow weights": (lambda e, x, w, g: behind(norm_of(expanded(e), x), w[:, :2]), False),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("function", "few"), CASES.values(), ids=CASES)
def test_products_of_few_rows_give_what_those_of_all_gave(function, few, dtype):
    inputs = [tensor.to(dtype) for tensor in (SHARED, X, WEIGHT, GAIN)]
    program = recorded(function, *inputs)
    calls = program._quickened(program.replayed)
    assert any(call.target is ATEN.native_layer_norm_backward.default for call in calls) is not few
    for moved in (0, 1):
        given = [tensor + moved for tensor in inputs]
        expected = function(*(tensor.double() for tensor in given))
        for one, other in zip(program(*given), expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert one.stride() == other.stride()
            assert (one.double() - other).abs().max() <= 32 * torch.finfo(dtype).eps * other.abs().max()


@pytest.mark.parametrize("affine", [True, False])
def test_a_plan_of_what_is_added_to_all_tokens(affine):
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(SIZE, elementwise_affine=affine).double(), nn.Linear(SIZE, WIDTH).double()
    if affine:
        nn.init.normal_(norm.weight)

    def function(v):
        tokens = v + X
        return tokens.sum() + functional.gelu(layer(norm(tokens)))

    x = _randn(SIZE)
    plan = plan_jacobian(function, x, strategy="forward")
    program = program_of(plan, x)
    calls = program._quickened(program.replayed)
    assert not any(call.target is ATEN.native_layer_norm_backward.default for call in calls)
    for point in (x, x + 1):
        assert_same(plan(point), judged(function, point))
