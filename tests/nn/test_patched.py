"""`tj.nn.patched`: which functions of PyTorch are ours inside, and that everything else is PyTorch's."""

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import nn
from torch.func import grad, hessian, jvp, vmap

from torch_jvpvjp import ops
from torch_jvpvjp.nn import patched
from torch_jvpvjp.nn.functions import OPS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the import of PyTorch's internals says is not ours to judge
    from torch.testing._internal.common_methods_invocations import op_db

F64 = torch.float64
X, W = torch.randn(4, 6, dtype=F64), torch.rand(6, dtype=F64)
Q = torch.randn(2, 4, 5, 8, dtype=F64)
CLASSES = torch.tensor([0, 3, 5, 1])
P = X.softmax(-1)
NORM, DENSE, LOSS = nn.LayerNorm(6, dtype=F64), nn.Linear(6, 2, dtype=F64), nn.CrossEntropyLoss()
CALLS = {  # how PyTorch is called, and how we are
    "F.layer_norm": (lambda: F.layer_norm(X, (6,), W), "layer_norm"),
    "torch.layer_norm": (lambda: torch.layer_norm(X, (6,), W, W, 1e-5, False), "layer_norm"),
    "nn.LayerNorm": (lambda: NORM(X), "layer_norm"),
    "F.rms_norm": (lambda: F.rms_norm(X, (6,), W, 1e-4), "rms_norm"),
    "torch.rms_norm": (lambda: torch.rms_norm(X, (6,), W), "rms_norm"),
    "F.group_norm": (lambda: F.group_norm(X, 2, W, eps=1e-3), "group_norm"),
    "torch.group_norm": (lambda: torch.group_norm(X, 3), "group_norm"),
    "F.linear": (lambda: F.linear(X, W[None], None), "linear"),
    "nn.Linear": (lambda: DENSE(X), "linear"),
    "F.scaled_dot_product_attention": (
        lambda: F.scaled_dot_product_attention(Q, Q, Q, is_causal=True, scale=0.1),
        "scaled_dot_product_attention",
    ),
    "F.gelu": (lambda: F.gelu(X, approximate="tanh"), "gelu"),
    "F.silu": (lambda: F.silu(X), "silu"),
    "F.mish": (lambda: F.mish(X), "mish"),
    "F.softplus": (lambda: F.softplus(X, 2, threshold=3), "softplus"),
    "F.relu": (lambda: F.relu(X), "relu"),
    "torch.relu": (lambda: torch.relu(X), "relu"),
    "Tensor.relu": (lambda: X.relu(), "relu"),
    "F.sigmoid": (lambda: F.sigmoid(X), "sigmoid"),
    "Tensor.sigmoid": (lambda: X.sigmoid(), "sigmoid"),
    "torch.tanh": (lambda: torch.tanh(X), "tanh"),
    "Tensor.tanh": (lambda: X.tanh(), "tanh"),
    "torch.sin": (lambda: torch.sin(X), "sin"),
    "Tensor.sin": (lambda: X.sin(), "sin"),
    "F.glu": (lambda: F.glu(X, 1), "glu"),
    "F.softmax": (lambda: F.softmax(X, dim=0), "softmax"),
    "F.softmax to float32": (lambda: F.softmax(X, 1, dtype=torch.float32), "softmax"),
    "torch.softmax": (lambda: torch.softmax(X, 1), "softmax"),
    "Tensor.softmax": (lambda: X.softmax(-1, torch.float32), "softmax"),
    "torch.special.softmax": (lambda: torch.special.softmax(X, 1), "softmax"),
    "F.softmin": (lambda: F.softmin(X, 1), "softmax"),
    "F.gumbel_softmax": (lambda: F.gumbel_softmax(X, dim=1), "softmax"),
    "F.log_softmax": (lambda: F.log_softmax(X, 1), "log_softmax"),
    "Tensor.log_softmax": (lambda: X.log_softmax(1), "log_softmax"),
    "torch.special.log_softmax": (lambda: torch.special.log_softmax(X, 1), "log_softmax"),
    "torch.logsumexp": (lambda: torch.logsumexp(X, (0, 1), keepdim=True), "logsumexp"),
    "Tensor.logsumexp": (lambda: X.logsumexp(1), "logsumexp"),
    "F.cross_entropy": (lambda: F.cross_entropy(X, CLASSES, W, label_smoothing=0.1), "cross_entropy"),
    "nn.CrossEntropyLoss": (lambda: LOSS(X, P), "cross_entropy"),
    "F.kl_div": (lambda: F.kl_div(X, P, reduction="batchmean"), "kl_div"),
    "F.mse_loss": (lambda: F.mse_loss(X, P, reduction="sum"), "mse_loss"),
    "F.mse_loss, weighted": (lambda: F.mse_loss(X, P, weight=P), "mse_loss"),
    "F.huber_loss": (lambda: F.huber_loss(X, P, delta=0.5), "huber_loss"),
}
OTHERS = {  # calls that stay PyTorch's
    "written elsewhere": lambda: torch.softmax(X, 1, out=torch.empty_like(X)),
    "written in place": lambda: F.relu(X.clone(), inplace=True),
    "in place by method": lambda: X.clone().relu_(),
    "integers": lambda: torch.relu(torch.arange(-2, 3)),
    "integers that become floats": lambda: torch.arange(3).sin(),
    "complex numbers": lambda: torch.tanh(X + 1j),
    "integers with a dtype": lambda: torch.softmax(torch.arange(3), 0, dtype=F64),
    "deprecated reduction": lambda: F.mse_loss(X, P, reduction="sum", reduce=None, size_average=None),
    "another function": lambda: torch.cos(X),
}


@pytest.fixture
def called(monkeypatch):
    """The ops that are called, by name."""
    names, seen = {op: name for name in OPS for op in [getattr(ops, name)]}, []
    from torch_jvpvjp.nn import functions

    def spied(adapter):
        def adapted(*args, **kwargs):
            result = adapter(*args, **kwargs)
            seen.append(result is not NotImplemented)
            return result

        return adapted

    for name, pairs in functions._ADAPTERS.items():
        monkeypatch.setitem(functions._ADAPTERS, name, [(f, spied(adapter)) for f, adapter in pairs])
    assert len(names) == len(OPS)
    return seen


@pytest.mark.parametrize(("call", "name"), CALLS.values(), ids=CALLS)
def test_calls_of_pytorch_are_ours(call, name, called):
    torch.manual_seed(0)
    expected = call()
    torch.manual_seed(0)
    with patched():
        found = call()
    assert any(called)
    torch.testing.assert_close(found, expected)
    assert found.dtype == expected.dtype
    called.clear()
    with patched(only=[name]):
        call()
    assert any(called)
    called.clear()
    with patched(only=[other for other in OPS if other != name]):
        call()
    assert not any(called)


@pytest.mark.parametrize("call", OTHERS.values(), ids=OTHERS)
@pytest.mark.filterwarnings("ignore:size_average")
def test_what_an_op_does_not_take_stays_pytorchs(call, called):
    expected = call()
    with patched():
        found = call()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_result_is_written_where_it_is_asked_for():
    out, x = torch.empty_like(X), X.clone()
    with patched():
        assert torch.softmax(X, 1, out=out) is out
        assert F.silu(x, inplace=True) is x
    torch.testing.assert_close(out, X.softmax(1))
    torch.testing.assert_close(x, F.silu(X))


NAMES = {name for name in OPS if name != "scaled_dot_product_attention"}  # whose masks have kinds; judged elsewhere
INFOS = [info for info in op_db if info.name.removeprefix("nn.functional.").removeprefix("special.") in NAMES]


@pytest.mark.parametrize("info", INFOS, ids=lambda info: f"{info.name}-{info.variant_test_name}")
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_samples_of_pytorch_have_the_values_of_pytorch(info, dtype):
    """Its OpInfo database: in every way that a function can be called, at every edge of its shapes."""
    if dtype not in info.supported_dtypes("cpu"):
        pytest.skip("PyTorch has no samples in it")
    ways = [way for way in (info.op, info.method_variant) if way is not None]
    count = 0
    for sample in info.sample_inputs("cpu", dtype):
        for way in ways:
            expected = way(sample.input, *sample.args, **sample.kwargs)
            with patched():
                found = way(sample.input, *sample.args, **sample.kwargs)
            torch.testing.assert_close(found, expected)
            count += 1
    assert count


@pytest.mark.parametrize("info", INFOS, ids=lambda info: f"{info.name}-{info.variant_test_name}")
def test_what_pytorch_refuses_is_refused(info):
    if info.error_inputs_func is None:
        pytest.skip("PyTorch has no error inputs of it")
    for error in info.error_inputs("cpu"):
        sample = error.sample_input
        if not sample.input.numel():
            continue  # of nothing our ops make nothing, where PyTorch may refuse it
        with patched(), pytest.raises((error.error_type, TypeError, ValueError)):
            info.op(sample.input, *sample.args, **sample.kwargs)


class Block(nn.Module):
    """As models are written: attention as a function, norms and layers as modules."""

    def __init__(self):
        super().__init__()
        self.norm, self.into, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.into(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(F.gelu(attended.transpose(1, 2).flatten(-2)))


def _block():
    torch.manual_seed(1)
    net = Block().double()
    x, v = torch.randn(2, 2, 5, 8, dtype=F64)
    return net, x, v


def _central(f, x, v, h=1e-6):
    with torch.no_grad():
        return (f(x + h * v) - f(x - h * v)) / (2 * h)


def test_forward_mode_goes_through_a_model_that_it_does_not_go_through_without():
    net, x, v = _block()
    with pytest.raises(NotImplementedError, match="forward AD"):
        jvp(net, (x.float(),), (v.float(),)) if net.float() else None
    net.double()
    with patched():
        y, y_dot = jvp(net, (x,), (v,))
    torch.testing.assert_close(y, net(x))
    torch.testing.assert_close(y_dot, _central(net, x, v), rtol=1e-6, atol=1e-8)


def test_transforms_compose_inside():
    net, x, v = _block()
    pushed = lambda x: jvp(net, (x,), (v,))[1]  # noqa: E731
    with patched():
        second = jvp(pushed, (x,), (v,))[1]
        of_loss = grad(lambda x: pushed(x).square().sum())(x)
        rows = vmap(lambda v: jvp(net, (x,), (v,))[1])(torch.stack([v, 2 * v]))
        curved = hessian(lambda t: net(x * t).sum())(torch.ones((), dtype=F64))
    torch.testing.assert_close(second, _central(lambda x: _pushed(net, x, v), x, v), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(rows[1], 2 * rows[0])
    along = _central(lambda x: _pushed(net, x, v).square().sum(), x, v)
    torch.testing.assert_close((of_loss * v).sum(), along, rtol=1e-5, atol=1e-7)
    t, h = torch.ones((), dtype=F64), 1e-4
    with torch.no_grad():
        expected = (net(x * (t + h)).sum() - 2 * net(x).sum() + net(x * (t - h)).sum()) / h**2
    torch.testing.assert_close(curved, expected, rtol=1e-4, atol=1e-5)


def _pushed(net, x, v):
    with patched():
        return jvp(net, (x,), (v,))[1]


@pytest.mark.parametrize("need_weights", [False, True], ids=["fused", "with weights"])
def test_pytorchs_multihead_attention_calls_ours(need_weights):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    x, v = torch.randn(2, 2, 5, 8, dtype=F64)
    hidden = torch.tensor([[False] * 5, [False, False, True, True, True]])
    f = lambda x: attention(x, x, x, need_weights=need_weights, key_padding_mask=hidden)[0]  # noqa: E731
    with patched():
        y, y_dot = jvp(f, (x,), (v,))
    torch.testing.assert_close(y, f(x))
    torch.testing.assert_close(y_dot, _central(f, x, v), rtol=1e-6, atol=1e-8)


@pytest.mark.compiled
@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
def test_it_is_compiled(inside):
    net, x, v = _block()
    with patched():
        expected = jvp(net, (x,), (v,))[1]

    def pushed(x, v):
        return jvp(net, (x,), (v,))[1]

    def entered(x, v):
        with patched():
            return pushed(x, v)

    torch._dynamo.reset()
    if inside:
        found = torch.compile(entered, fullgraph=True, backend="aot_eager")(x, v)
    else:
        with patched():
            found = torch.compile(pushed, fullgraph=True, backend="aot_eager")(x, v)
    torch.testing.assert_close(found, expected)


# Dynamo never asks a mode about this one, whose derivatives are right in PyTorch.
SEEN = {name: call for name, call in CALLS.items() if name != "F.sigmoid"}


@pytest.mark.compiled
@pytest.mark.parametrize("call", SEEN.values(), ids=SEEN)
def test_each_call_is_found_in_what_is_compiled(call):
    """Of a value that is computed before, too: Dynamo has another way to name its methods."""
    graphs = []

    def kept(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compared(_):
        return call[0]()

    torch._dynamo.reset()
    with patched(only=[call[1]]):
        torch.compile(compared, fullgraph=True, backend=kept)(X)
    (graph,) = graphs
    assert any("torch_jvpvjp" in str(node.target) for node in graph.graph.nodes), graph.code


def test_it_ends_where_it_ends_and_holds_for_one_thread(called):
    with patched():
        worker = threading.Thread(target=lambda: F.silu(X))
        worker.start()
        worker.join()
        assert not called
        F.silu(X)
        assert called == [True]
    F.silu(X)
    assert called == [True]


def test_subclasses_keep_their_way(called):
    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return "loud"

    loud = X.as_subclass(Loud)
    with patched():
        assert F.silu(loud) == "loud"
    assert called == [False]


@pytest.mark.parametrize(
    ("only", "error", "message"),
    [
        ("gelu", TypeError, r"patched: only must be a list of names of ops, got 'gelu'; write \['gelu'\]"),
        (["gelu", "dropout"], ValueError, r"patched: only must name ops among layer_norm, .*, got 'dropout'"),
        (3, TypeError, r"patched: only must be a list of names"),
    ],
    ids=["text", "unknown", "number"],
)
def test_bad_names(only, error, message):
    with pytest.raises(error, match=message):
        patched(only=only)
