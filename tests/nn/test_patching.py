"""Drop-in modules, and `tj.nn.patch`: same parameters, same values, derivatives that PyTorch's do not have."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp

import torch_jvpvjp as tj
from torch_jvpvjp.nn import patch, unpatch
from torch_jvpvjp.nn.patching import _CLASSES

F64 = torch.float64
X, CLASSES = torch.randn(4, 6, dtype=F64), torch.tensor([0, 3, 5, 1])
P, LOG = X.softmax(-1), X.log_softmax(-1)
MODULES = {  # of PyTorch, with arguments
    "LayerNorm": (lambda m: m.LayerNorm(6, eps=1e-3), (X,)),
    "LayerNorm without affine": (lambda m: m.LayerNorm((4, 6), elementwise_affine=False), (X,)),
    "RMSNorm": (lambda m: m.RMSNorm(6), (X,)),
    "GroupNorm": (lambda m: m.GroupNorm(3, 6), (X,)),
    "Linear": (lambda m: m.Linear(6, 2, bias=False), (X,)),
    "GELU": (lambda m: m.GELU("tanh"), (X,)),
    "SiLU": (lambda m: m.SiLU(), (X,)),
    "Mish": (lambda m: m.Mish(), (X,)),
    "ReLU": (lambda m: m.ReLU(), (X,)),
    "Softplus": (lambda m: m.Softplus(2, 5), (X,)),
    "Sigmoid": (lambda m: m.Sigmoid(), (X,)),
    "Tanh": (lambda m: m.Tanh(), (X,)),
    "GLU": (lambda m: m.GLU(1), (X,)),
    "Softmax": (lambda m: m.Softmax(0), (X,)),
    "LogSoftmax": (lambda m: m.LogSoftmax(1), (X,)),
    "CrossEntropyLoss": (lambda m: m.CrossEntropyLoss(X[0].exp(), ignore_index=3), (X, CLASSES)),
    "CrossEntropyLoss, smoothed": (lambda m: m.CrossEntropyLoss(label_smoothing=0.2, reduction="sum"), (X, P)),
    "KLDivLoss": (lambda m: m.KLDivLoss(reduction="batchmean", log_target=True), (LOG, LOG.roll(1))),
    "MSELoss": (lambda m: m.MSELoss(reduction="none"), (X, P)),
    "HuberLoss": (lambda m: m.HuberLoss(delta=0.3), (X, P)),
    "MultiheadAttention": (lambda m: _First(m.MultiheadAttention(6, 2), need_weights=False), (X, X, X)),
    "MultiheadAttention with weights": (lambda m: _First(m.MultiheadAttention(6, 2)), (X, X, X)),
    "TransformerEncoderLayer": (lambda m: m.TransformerEncoderLayer(6, 2, 8, batch_first=True), (X[None],)),
    "TransformerDecoderLayer": (lambda m: m.TransformerDecoderLayer(6, 2, 8), (X[:, None], X[:, None])),
    "TransformerEncoder": (
        lambda m: m.TransformerEncoder(m.TransformerEncoderLayer(6, 2, 8, batch_first=True, activation="gelu"), 2),
        (X[None],),
    ),
}  # fmt: skip


class _First(nn.Module):
    """The first result of a module."""

    def __init__(self, inner, **options):
        super().__init__()
        self.inner, self.options = inner, options

    def forward(self, *args):
        return self.inner(*args, **self.options)[0]


def _made(make, where):
    torch.manual_seed(2)
    return make(where).double().eval()


@pytest.mark.parametrize(("make", "args"), MODULES.values(), ids=MODULES)
def test_a_module_of_ours_is_one_of_pytorchs(make, args):
    theirs, ours = _made(make, nn), _made(make, tj.nn)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    expected = theirs(*args)
    torch.testing.assert_close(ours(*args), expected)
    patched = patch(_made(make, nn))
    assert type(patched) is type(ours) and type(getattr(patched, "inner", None)) is type(getattr(ours, "inner", None))
    torch.testing.assert_close(patched(*args), expected)


@pytest.mark.parametrize(("make", "args"), MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("gradients", [False, True], ids=["without gradients", "with gradients"])
def test_forward_mode_through_a_module_is_right(make, args, gradients):
    module, (x, *others) = patch(_made(make, nn)), args
    v, h = torch.randn(x.shape, dtype=F64), 1e-6
    with torch.set_grad_enabled(gradients):  # without them PyTorch takes a way that cannot be differentiated
        y, y_dot = jvp(lambda x: module(x, *others), (x,), (v,))
        difference = (module(x + h * v, *others) - module(x - h * v, *others)) / (2 * h)
    torch.testing.assert_close(y, module(x, *others))
    torch.testing.assert_close(y_dot, difference, rtol=1e-5, atol=1e-7)


def test_every_module_is_in_the_table():
    assert {ours for ours, _ in _CLASSES.values()} == {
        getattr(tj.nn, name) for name in tj.nn.__all__ if name not in {"patch", "patched", "unpatch"}
    }
    named = {name.split(",")[0].split(" ")[0] for name in MODULES}
    assert named == {ours.__name__ for ours, _ in _CLASSES.values()}
    for theirs, (ours, _) in _CLASSES.items():
        assert issubclass(ours, theirs) and ours.__name__ == theirs.__name__


def _model():
    torch.manual_seed(3)
    shared = nn.Linear(6, 6)
    return nn.Sequential(nn.LayerNorm(6), shared, nn.SiLU(), shared, nn.Sequential(nn.Dropout(0.5), nn.Tanh()))


def test_a_model_keeps_parameters_hooks_and_state():
    model, seen = _model(), []
    model[0].register_forward_hook(lambda module, args, y: seen.append(type(module)))
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    x = torch.randn(3, 6)
    expected = model.eval()(x)
    assert patch(model) is model
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), expected)
    assert seen == [nn.LayerNorm, tj.nn.LayerNorm]
    assert [type(m) for m in model] == [tj.nn.LayerNorm, tj.nn.Linear, tj.nn.SiLU, tj.nn.Linear, nn.Sequential]
    assert type(model[4][0]) is nn.Dropout and model[1] is model[3]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(patch(_model()))).eval()):  # noqa: S301 (our own)
        assert [type(m) for m in copied.modules()] == [type(m) for m in model.modules()]
        torch.testing.assert_close(copied(x), expected)
    assert unpatch(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in _model().modules()]
    torch.testing.assert_close(model(x), expected)


def test_gradients_and_functional_calls_go_through():
    model, x = patch(_model()).eval(), torch.randn(3, 6)
    named = dict(model.named_parameters())
    loss = lambda named: functional_call(model, named, (x,)).square().sum()  # noqa: E731
    found = grad(loss)(named)
    expected = torch.autograd.grad(unpatch(model)(x).square().sum(), list(named.values()))
    torch.testing.assert_close(tuple(found.values()), expected)


def test_only_some_ops():
    model = patch(_model(), only=["silu", "tanh"])
    assert [type(m) for m in model[:3]] == [nn.LayerNorm, nn.Linear, tj.nn.SiLU] and type(model[4][1]) is tj.nn.Tanh
    assert type(patch(nn.MultiheadAttention(6, 2), only=["linear"])) is nn.MultiheadAttention
    with pytest.raises(ValueError, match=r"patch: only must name ops among .*, got 'SiLU'"):
        patch(_model(), only=["SiLU"])


def test_others_classes_stay_and_what_is_written_in_place_is():
    class Mine(nn.Linear):
        pass

    lazy = nn.LazyLinear(3)
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    model = patch(nn.Sequential(Mine(6, 6), weighted, lazy))
    assert [type(m) for m in model] == [Mine, type(weighted), nn.LazyLinear]
    x = torch.tensor([-1.0, 2.0])
    assert patch(nn.ReLU(inplace=True))(x) is x and x.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("function", [patch, unpatch], ids=["patch", "unpatch"])
def test_a_model_must_be_a_module(function):
    with pytest.raises(TypeError, match=f"{function.__name__}: model must be an nn.Module, got type"):
        function(nn.Linear)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["MultiheadAttention", "TransformerEncoderLayer"])
def test_the_tangent_of_a_patched_module_is_compiled(name):
    make, args = MODULES[name]
    module, (x, *others) = patch(_made(make, nn)), args
    v = torch.randn(x.shape, dtype=F64)
    pushed = lambda x, v: jvp(lambda x: module(x, *others), (x,), (v,))[1]  # noqa: E731
    torch._dynamo.reset()
    found = torch.compile(pushed, fullgraph=True, backend="aot_eager")(x, v)
    torch.testing.assert_close(found, pushed(x, v))
