"""Ops in contexts of PyTorch's: autocast, lazy and empty tensors, tracers. PyTorch's functions are the judge."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

import torch_jvpvjp as tj
from torch_jvpvjp import ops
from torch_jvpvjp.testing.case import Case
from torch_jvpvjp.testing.cases import CASES
from torch_jvpvjp.testing.properties import first_order

LOWER = [torch.bfloat16, torch.float16]
Unary = Callable[[Tensor], Tensor]


def negated(x: Tensor) -> Tensor:
    """The same numbers in memory that holds them with the other sign."""
    lazy = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert lazy.is_neg()
    return lazy


# ---- autocast and two dtypes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", LOWER, ids=str)
@pytest.mark.parametrize("of_mask", [*LOWER, torch.float32], ids=str)
@pytest.mark.parametrize("of_query", [*LOWER, torch.float32], ids=str)
def test_autocast_lowers_a_mask_of_any_dtype(
    of_query: torch.dtype, of_mask: torch.dtype, region: torch.dtype, device: str
) -> None:
    query, key, mask = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8), torch.randn(4, 4)
    operands = [t.to(device) for t in (query.to(of_query), key, key, mask.to(of_mask))]
    with torch.autocast(device, region):
        found, expected = (f(*operands) for f in (ops.scaled_dot_product_attention, F.scaled_dot_product_attention))
    assert found.dtype == expected.dtype == region
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("region", [None, *LOWER], ids=str)
@pytest.mark.parametrize(
    ("of_input", "of_target"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float64), (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_probabilities_widen_the_cross_entropy(
    of_input: torch.dtype, of_target: torch.dtype, region: torch.dtype | None, device: str
) -> None:
    x, q = torch.randn(4, 5, device=device).to(of_input), torch.rand(4, 5, device=device).softmax(-1).to(of_target)
    for reduction in ("none", "sum", "mean"):
        with torch.autocast(device, region or torch.bfloat16, enabled=region is not None):
            found = ops.cross_entropy(x, q, reduction=reduction)
            expected = F.cross_entropy(x, q, reduction=reduction)
            tangents = jvp(lambda *a, r=reduction: ops.cross_entropy(*a, reduction=r), (x, q), (x, q))
        assert [t.dtype for t in (found, *tangents)] == [expected.dtype] * 3
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def results(function: Callable[..., Any], case: Case) -> list[Tensor]:
    """Value, tangents and gradients, by transforms one in another and by backward."""
    f = case.function(function)
    along = lambda *xs: jvp(f, xs, case.point.tangents[0])[1]  # noqa: E731
    return [*first_order(f, case.point), *jvp(along, case.point.primals, case.point.tangents[1])[1]]


@pytest.mark.parametrize("name", [name for name, row in CASES.items() if row.op.autocast_policy != "lower"])
def test_nothing_is_lowered_inside_of_an_op(name: str, device: str) -> None:
    """A float32 product in a formula or kernel stays one in a region of autocast."""
    row = CASES[name]
    case = Case(row.function, row.reference, row.samples[0], device, torch.float32)
    expected = results(row.function, case)
    with torch.autocast(device, torch.bfloat16):
        found = results(row.function, case)
    torch.testing.assert_close(found, expected, equal_nan=True)


# ---- what lies in memory otherwise -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ops.silu, F.silu),
        (lambda x: ops.rms_norm(x, (6,)), lambda x: F.rms_norm(x, (6,))),
        (lambda x: ops.logsumexp(x, -1), lambda x: torch.logsumexp(x, -1)),
        (lambda x: ops.mse_loss(x, x.cos()), lambda x: F.mse_loss(x, x.cos())),
    ],
)
def test_signs_that_are_yet_to_be_flipped_go_through_hessians(ours: Unary, theirs: Unary, device: str) -> None:
    x = torch.randn(4, 6, dtype=torch.float64, device=device)
    for f, g in ((ours, theirs), (grad(lambda x: ours(x).square().sum()), grad(lambda x: theirs(x).square().sum()))):
        torch.testing.assert_close(f(negated(x)), g(x))
        torch.testing.assert_close(jvp(f, (negated(x),), (negated(x),)), jvp(f, (x,), (x,)))
    found = hessian(lambda x: ours(x).square().sum())(negated(x))
    torch.testing.assert_close(found, hessian(lambda x: theirs(x).square().sum())(x))


@pytest.mark.parametrize("function", [ops.pixel_norm, ops.l2_norm, ops.rms_norm, ops.silu], ids=lambda f: f.__name__)
def test_a_tangent_without_memory_may_be_an_argument(function: Any, device: str) -> None:
    zero = torch._efficientzerotensor((2, 4), device=device)
    f = (lambda x: function(x, (4,))) if function is ops.rms_norm else function
    torch.testing.assert_close(f(zero), f(torch.zeros(2, 4, device=device)))


def test_a_batch_of_nothing_has_its_shape(device: str) -> None:
    rows, weights = torch.randn(0, 4, 5, device=device), torch.rand(0, 5, device=device)
    target = torch.tensor([0, 2, 1, 4], device=device)
    losses = vmap(lambda x, w: ops.cross_entropy(x, target, w, reduction="none"))(rows, weights)
    assert losses.shape == (0, 4)


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mse_loss", "huber_loss", "kl_div"])
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning", "ignore:reduction:UserWarning")
def test_losses_that_broadcast_stay_pytorch_s_in_patched(name: str) -> None:
    f: Any = getattr(F, name)
    x, t = torch.rand(3, 4), torch.rand(4)
    expected = f(x, t), f(x, x.double())
    with tj.nn.patched():
        torch.testing.assert_close((f(x, t), f(x, x.double())), expected)


def traced_net() -> torch.nn.Sequential:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), layer, torch.nn.Softmax(-1)
    )
    return tj.nn.patch(net)


def test_symbolic_trace_keeps_ops_and_layers_whole() -> None:
    net, x = traced_net(), torch.randn(2, 3, 8)
    traced = torch.fx.symbolic_trace(net)
    assert {ops.linear, ops.layer_norm, ops.gelu, ops.softmax, "3"} <= {node.target for node in traced.graph.nodes}
    for again in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        torch.testing.assert_close(again(x), net(x))
        torch.testing.assert_close(jvp(again, (x,), (x.cos(),)), jvp(net, (x,), (x.cos(),)))


def test_symbolic_trace_of_a_name_that_was_imported_says_what_to_do() -> None:
    silu = ops.silu
    with pytest.raises(TypeError, match=r"got Proxy of torch.fx, which sees calls through the module torch_jvpvjp.ops"):
        torch.fx.symbolic_trace(lambda x: silu(x))  # noqa: PLW0108 -- a function of its own is what is traced


def test_patched_nets_are_copied_pickled_and_called_by_their_parameters() -> None:
    net, x = traced_net(), torch.randn(2, 3, 8)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(again[1]) is tj.nn.LayerNorm
        torch.testing.assert_close(jvp(again, (x,), (x.cos(),)), jvp(net, (x,), (x.cos(),)))
    halves = {name: 0.5 * p for name, p in net.named_parameters()}
    tangents = {name: p.cos() for name, p in halves.items()}
    call = lambda p: torch.func.functional_call(net, p, (x,))  # noqa: E731
    y, y_dot = jvp(call, (halves,), (tangents,))
    step = 1e-3
    ahead, behind = (call({n: p + s * tangents[n] for n, p in halves.items()}) for s in (step, -step))
    torch.testing.assert_close(y_dot, (ahead - behind) / (2 * step), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(y, call(halves))


BESIDE = {
    "attention with a mask": (
        lambda x, m: ops.scaled_dot_product_attention(x, x, x, m[:, :, None] > 0),
        torch.randn(2, 3, 4, 8),
        torch.randn(2, 1, 4).abs(),
    ),
    "modulation": (lambda x, s: ops.modulated_rms_norm(x, s, s), torch.randn(2, 3, 8), torch.randn(2, 1, 8)),
    "gated residual": (lambda x, g: ops.gated_residual(x, g, x), torch.randn(2, 3, 8), torch.randn(2, 8)),
    "softmax with a mask": (lambda x, m: ops.softmax(x, -1, mask=m > 0), torch.randn(2, 8), torch.randn(2, 8).abs()),
}


@pytest.mark.compiled
@pytest.mark.parametrize("name", BESIDE)
def test_export_takes_a_size_that_another_argument_fixes(name: str) -> None:
    """What has a size of its own, as a mask that a model keeps, tells the size that was left open."""

    class Model(torch.nn.Module):
        def forward(self, x: Tensor, beside: Tensor) -> Tensor:
            return BESIDE[name][0](x, beside)

    _, x, beside = BESIDE[name]
    exported = torch.export.export(Model(), (x, beside), strict=True, dynamic_shapes=({0: torch.export.Dim.AUTO}, None))
    torch.testing.assert_close(exported.module()(x, beside), Model()(x, beside))
