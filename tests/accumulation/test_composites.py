"""Ops of ours inside of functions: the accumulator sees the steps that they are made of, and so their structure."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from jacobian_checks import F64
from torch import Tensor, nn

import torch_jvpvjp as tj
from torch_jvpvjp import ops
from torch_jvpvjp.registration.composite import are_formulas

X, GAIN = torch.randn(6, 8, dtype=F64), torch.rand(8, dtype=F64)
WEIGHT, BIAS = torch.randn(5, 8, dtype=F64), torch.randn(5, dtype=F64)
IMAGE, CLASSES = torch.randn(2, 6, 4, dtype=F64), torch.tensor([0, 3, 7, 1, 2, 2])
ANGLES = torch.outer(torch.arange(6.0, dtype=F64), torch.rand(4, dtype=F64))
P = torch.rand(6, 8, dtype=F64).softmax(-1)
CASES = {  # ours, a point, and the same by PyTorch's functions, None where it has none
    "gelu": (ops.gelu, X, F.gelu),
    "gelu by tanh": (lambda x: ops.gelu(x, "tanh"), X, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (ops.silu, X, F.silu),
    "mish": (ops.mish, X, F.mish),
    "softplus": (lambda x: ops.softplus(x, 2.0), X, lambda x: F.softplus(x, 2.0)),
    "sin": (ops.sin, X, torch.sin),
    "tanh": (ops.tanh, X, torch.tanh),
    "relu": (ops.relu, X, torch.relu),
    "sigmoid": (ops.sigmoid, X, torch.sigmoid),
    "softmax": (lambda x: ops.softmax(x, 0), X, lambda x: x.softmax(0)),
    "softmax, masked": (lambda x: ops.softmax(x, -1, mask=P > 0.05), X, None),
    "log_softmax": (lambda x: ops.log_softmax(x, -1), X, lambda x: x.log_softmax(-1)),
    "logsumexp": (lambda x: ops.logsumexp(x, -1), X, lambda x: x.logsumexp(-1)),
    "layer_norm": (lambda x: ops.layer_norm(x, (8,), GAIN, GAIN), X, lambda x: F.layer_norm(x, (8,), GAIN, GAIN)),
    "rms_norm": (lambda x: ops.rms_norm(x, (8,), GAIN), X, lambda x: F.rms_norm(x, (8,), GAIN)),
    "add_rms_norm": (lambda x: ops.add_rms_norm(x, P, (8,), GAIN)[0], X, lambda x: F.rms_norm(x + P, (8,), GAIN)),
    "modulated_layer_norm": (
        lambda x: ops.modulated_layer_norm(x[None], GAIN[None], GAIN[None]),
        X,
        lambda x: F.layer_norm(x[None], (8,), None, None, 1e-6) * (1 + GAIN) + GAIN,
    ),
    "group_norm": (lambda x: ops.group_norm(x, 3), IMAGE, lambda x: F.group_norm(x, 3)),
    "group_norm and silu": (
        lambda x: ops.group_norm(x, 3, activation="silu"),
        IMAGE,
        lambda x: F.silu(F.group_norm(x, 3)),
    ),
    "l2_norm": (ops.l2_norm, X, lambda x: F.normalize(x, dim=-1)),
    "pixel_norm": (ops.pixel_norm, IMAGE, None),
    "qk_rms_norm": (lambda x: ops.qk_rms_norm(x[None], x[None], GAIN)[0], X, None),
    "linear": (lambda x: ops.linear(x, WEIGHT, BIAS), X, lambda x: F.linear(x, WEIGHT, BIAS)),
    "linear and gelu": (
        lambda x: ops.linear(x, WEIGHT, BIAS, "gelu"),
        X,
        lambda x: F.gelu(F.linear(x, WEIGHT, BIAS)),
    ),
    "glu": (ops.glu, X, F.glu),
    "swiglu": (lambda x: ops.swiglu(x, P), X, lambda x: F.silu(x) * P),
    "swiglu, packed": (ops.swiglu, X, lambda x: F.silu(x[..., :4]) * x[..., 4:]),
    "geglu": (lambda x: ops.geglu(P, x), X, lambda x: F.gelu(P) * x),
    "mse_loss": (lambda x: ops.mse_loss(x, P, "none"), X, lambda x: F.mse_loss(x, P, reduction="none")),
    "huber_loss": (lambda x: ops.huber_loss(x, P, "none"), X, lambda x: F.huber_loss(x, P, "none")),
    "kl_div": (lambda x: ops.kl_div(x, P, "none"), X, lambda x: F.kl_div(x, P, reduction="none")),
    "js_div": (lambda x: ops.js_div(x, P, "none"), X.log_softmax(-1), None),
    "cross_entropy": (
        lambda x: ops.cross_entropy(x, CLASSES, reduction="none"),
        X,
        lambda x: F.cross_entropy(x, CLASSES, reduction="none"),
    ),
    "gated_residual": (lambda x: ops.gated_residual(x[None], GAIN[None], P[None]), X, lambda x: x[None] + GAIN * P),
    "dyt": (lambda x: ops.dyt(x, GAIN[0], GAIN, GAIN), X, lambda x: torch.tanh(GAIN[0] * x) * GAIN + GAIN),
    "fourier_features": (lambda x: ops.fourier_features(x, WEIGHT), X, None),
    "timestep_embedding": (lambda x: ops.timestep_embedding(x[:, 0], 8), X, None),
    "rope": (lambda x: ops.rope(x[None], None, ANGLES.cos(), ANGLES.sin())[0], X, None),
}  # fmt: skip
DENSE_SWEEP = X.numel() ** 2  # what one sweep of every column costs at least


@pytest.mark.parametrize(("ours", "x", "theirs"), CASES.values(), ids=CASES)
def test_an_op_is_known_by_the_structure_of_its_formula(ours, x, theirs):
    plan = tj.plan_jacobian(ours, x, objective="fma")
    names = " ".join(factor.label or "" for factor in plan.factors)
    assert "torch_jvpvjp" not in names, names
    assert all(factor.structure is not None for factor in plan.factors)
    expected = torch.func.jacrev(theirs or ours)(x)
    for _ in range(2):  # recorded, then replayed
        torch.testing.assert_close(plan(x), expected)
    torch.testing.assert_close(plan(x + 0.1), torch.func.jacrev(theirs or ours)(x + 0.1))
    if theirs is not None:
        assert plan.cost <= 2 * tj.plan_jacobian(theirs, x, objective="fma").cost + x.numel()


@pytest.mark.parametrize("name", ["layer_norm", "softmax", "rms_norm", "linear and gelu", "rope"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(name, dtype):
    ours, x, _ = CASES[name]
    cast = lambda x: ours(x.to(F64)).to(dtype)  # noqa: E731 (weights are of float64)
    if name == "softmax":
        cast = ours
    plan = tj.plan_jacobian(cast, x.to(dtype), objective="fma")
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(plan(x.to(dtype)), torch.func.jacrev(cast)(x.to(dtype)), **tolerance)


def test_a_patched_model_is_planned_as_the_model_was():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(40, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 8), nn.Softmax(-1), nn.Linear(8, 30)
    ).double()
    x = torch.randn(40, dtype=F64)
    before = tj.plan_jacobian(net, x, objective="fma")
    expected = torch.func.jacrev(net)(x).detach()
    tj.nn.patch(net)
    after = tj.plan_jacobian(net, x, objective="fma")
    assert after.cost == before.cost and after.bracketing() == before.bracketing()
    for _ in range(2):
        torch.testing.assert_close(after(x), expected)
    samples = torch.randn(3, 40, dtype=F64)
    batched = torch.func.vmap(torch.func.jacrev(net))(samples).detach()
    torch.testing.assert_close(tj.jacobian(net, samples, batch_dims=1), batched)
    of_parameters = tj.jacobian(net, x, wrt="parameters")
    torch.testing.assert_close(of_parameters["5.bias"], torch.eye(30, dtype=F64))


def test_jacobians_of_them_are_differentiated_again():
    f = lambda x: ops.layer_norm(ops.gelu(x), (8,), GAIN)  # noqa: E731
    plan = tj.plan_jacobian(f, X, create_graph=True, objective="fma")
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(plan(x).square().sum(), x)
    plain = lambda x: F.layer_norm(F.gelu(x), (8,), GAIN)  # noqa: E731
    expected = torch.func.grad(lambda x: torch.func.jacrev(plain)(x).square().sum())(X)
    torch.testing.assert_close(found, expected)


def test_derivatives_inside_of_a_function_are_recorded():
    def f(x):
        return torch.func.jvp(lambda t: ops.layer_norm(ops.silu(t), (8,)), (x,), (P,))[1]

    plan = tj.plan_jacobian(f, X, objective="fma")
    for _ in range(2):
        torch.testing.assert_close(plan(X), torch.func.jacfwd(f)(X))


@tj.differentiable_op("composites::soft_clip")
def soft_clip(x: Tensor, limit: float = 1.0) -> Tensor:
    """A formula alone."""
    return limit * torch.tanh(x / limit)


@tj.differentiable_op("composites::rounded")
def rounded(x: Tensor) -> Tensor:
    """Rounded, with the derivative of the identity: a rule that is not the formula's."""
    return torch.round(x)


@rounded.jvp
def _rounded_jvp(primals, tangents):
    return torch.round(primals.x), tangents.x.clone()


@rounded.vjp
def _rounded_vjp(cotangents, inputs):
    return cotangents.y.clone()


@tj.differentiable_op("composites::seen", composite=True)
def seen(x: Tensor) -> Tensor:
    """One with rules whose formula is to be seen all the same."""
    return x.sin() * 2


@seen.vjp
def _seen_vjp(cotangents, inputs):
    return 2 * cotangents.y * inputs.x.cos()


def test_ops_of_users():
    clipped = tj.plan_jacobian(lambda x: soft_clip(x, 2.0), X, objective="fma")
    assert clipped.cost < DENSE_SWEEP and "soft_clip" not in clipped.factors[0].label
    torch.testing.assert_close(clipped(X), torch.func.jacrev(lambda x: 2 * torch.tanh(x / 2))(X))
    straight = tj.plan_jacobian(rounded, X, objective="fma")
    assert "rounded" in straight.factors[0].label
    torch.testing.assert_close(straight(X).reshape(48, 48), torch.eye(48, dtype=F64))
    looked_into = tj.plan_jacobian(seen, X, objective="fma")
    assert "seen" not in looked_into.factors[0].label and looked_into.cost < DENSE_SWEEP
    torch.testing.assert_close(looked_into(X), torch.func.jacrev(lambda x: 2 * x.sin())(X))


def test_a_rule_that_is_declared_later_counts():
    @tj.differentiable_op("composites::stepped")
    def stepped(x: Tensor) -> Tensor:
        return torch.round(x)

    plan = tj.plan_jacobian(stepped, X)
    assert not plan(X).any() and not tj.jacobian(stepped, X).any()

    @stepped.vjp
    def vjp(cotangents, inputs):  # of the identity
        return cotangents.y.clone()

    @stepped.jvp
    def jvp(primals, tangents):
        return torch.round(primals.x), tangents.x.clone()

    for found in (plan(X), plan(X), tj.jacobian(stepped, X)):
        torch.testing.assert_close(found.reshape(48, 48), torch.eye(48, dtype=F64))


SCALE = [2.0]


@tj.differentiable_op("composites::scaled_sine")
def scaled_sine(x: Tensor) -> Tensor:
    """A formula that refers to a number outside."""
    return SCALE[0] * x.sin()


def test_what_a_formula_refers_to_is_watched():
    plan = tj.plan_jacobian(lambda x: scaled_sine(x) + 1, X)
    for scale in (2.0, 5.0, 3.0):
        SCALE[0] = scale
        expected = torch.diag_embed(scale * X.cos().reshape(-1))
        torch.testing.assert_close(plan(X).reshape(48, 48), expected)


def test_attention_stays_whole_and_holds_no_matrix_of_its_own():
    q = torch.randn(1, 2, 5, 4, dtype=F64)
    f = lambda q: ops.scaled_dot_product_attention(q, q, q)  # noqa: E731
    plan = tj.plan_jacobian(f, q, objective="fma")
    assert any("attention" in (factor.label or "") for factor in plan.factors)
    torch.testing.assert_close(plan(q), torch.func.jacrev(f)(q))


def test_nothing_is_left_open():
    tj.plan_jacobian(ops.gelu, X)
    assert not are_formulas()
    with pytest.raises(ValueError, match="stop"):
        tj.plan_jacobian(_stopping, X)
    assert not are_formulas()


def _stopping(x):
    raise ValueError("stop")


def test_autocast_inside_of_a_function_is_kept():
    def f(x):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.linear(x, WEIGHT.float()).float()

    x = X.float()
    torch.testing.assert_close(tj.plan_jacobian(f, x)(x), torch.func.jacrev(f)(x), rtol=2e-2, atol=2e-2)
