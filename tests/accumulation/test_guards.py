"""A plan, and what `jacobian` keeps, follow the function as it is at each call: nothing recorded outlives a change."""

import copy
import functools
import gc
import math
import pickle
import sys
import types
import weakref

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, randn
from torch import nn

from torch_jvpvjp.accumulation import cache, jacobian, plan_jacobian

GAIN = 2.0
GAINS = [1.5, 2.0]


def _helper(v):
    return v * 3.0


def _other_helper(v):
    return v * 4.0


class Scaled(nn.Module):
    slope = 2.0

    def __init__(self):
        super().__init__()
        self.gain, self.table, self.acts = 2.0, {"power": 2}, [nn.Tanh()]
        self.linear = nn.Linear(3, 3, dtype=F64)
        self.register_buffer("shift", torch.ones(3, dtype=F64))

    def forward(self, v):
        y = self.acts[0](self.linear(v) + self.shift) * self.gain * self.slope
        return y ** self.table["power"] if self.training else y


class Scaler:
    def __init__(self):
        self.gain = 2.0

    def __call__(self, v):
        return self.bound(v) * self.doubled

    def bound(self, v):
        return v.sin() * self.gain

    @property
    def doubled(self):
        return 2 * self.gain


def _closed_over():
    gain = 2.0

    def function(v):
        return v.sin() * gain

    def change(value):
        nonlocal gain
        gain = value

    function.change = change
    return function


def _by_globals():
    return lambda v: _helper(v).sin() * GAIN * GAINS[0]


def _with_defaults():
    def function(v, gain=2.0, *, gains=(2.5, 3.0)):
        return v.sin() * gain * gains[0]

    return function


def _by_class():
    kind = type("Settings", (), {"gain": 2.0})

    def function(v):
        return v.sin() * kind.gain

    function.kind = kind
    return function


def _by_module():
    module = types.ModuleType("settings")
    module.gain = 2.0

    def function(v):
        return v.sin() * module.gain

    function.settings = module
    return function


def _by_module_within():
    module, inner = types.ModuleType("settings"), types.ModuleType("settings.inner")
    module.inner, inner.gain = inner, 2.0

    def function(v):
        return v.sin() * module.inner.gain

    function.settings = module
    return function


class Configured:
    """A callable that keeps a Python module as an attribute."""

    def __init__(self):
        self.settings = types.ModuleType("settings")
        self.settings.gain = 2.0

    def __call__(self, v):
        return v.sin() * self.settings.gain


def _by_import():
    module = sys.modules.setdefault("settings_of_a_test", types.ModuleType("settings_of_a_test"))
    module.gain = 2.0

    def function(v):
        import settings_of_a_test

        return v.sin() * settings_of_a_test.gain

    function.settings = module
    return function


class Table(dict):
    """A dict with an attribute."""

    gain = 1.0


class Row(list):
    """A list with an attribute."""

    gain = 1.0


def _by_container(kind):
    table = kind()
    table.gain = 2.0

    def function(v):
        return v.sin() * table.gain

    function.table = table
    return function


def _by_attribute_of_tensor():
    gain = torch.full((3,), 2.0, dtype=F64)
    gain.factor = 2.0

    def function(v):
        return v.sin() * gain * gain.factor

    function.gain = gain
    return function


def _by_gradient():
    weight = torch.ones(3, dtype=F64, requires_grad=True)
    weight.grad = torch.full((3,), 2.0, dtype=F64)

    def function(v):
        return v.sin() * weight.grad

    function.weight = weight
    return function


def _by_tensor():
    gain = torch.full((3,), 2.0, dtype=F64)

    def function(v):
        return v.sin() * gain

    function.gain = gain
    return function


def _by_list_of_tensor():
    gain = torch.full((3,), 2.0, dtype=F64)

    def function(v):
        return v.sin() * gain.tolist()[0]

    function.gain = gain
    return function


def _by_tensor_of_tensors():
    gain = torch.tensor(2.0, dtype=F64)

    def function(v):
        return v.sin() * torch.tensor([gain, gain, 1.0], dtype=F64)

    function.gain = gain
    return function


def _by_matrix():
    weight = torch.arange(9.0, dtype=F64).reshape(3, 3)

    def function(v):
        return v.sin() * weight.reshape(9)[:3]

    function.weight = weight
    return function


def _by_attribute():
    def function(v):
        return v.sin() * function.gain

    function.gain = 2.0
    return function


def _partial():
    return functools.partial(lambda table, v: v.sin() * table["gain"], {"gain": 2.0})


def _in_place(module):
    with torch.no_grad():
        module.linear.weight.mul_(3)


def _first_gain():
    GAINS[0] *= 3.0  # the tests compare with what it is, whatever that is


def _set_global(**values):
    return lambda patch, f: [patch.setitem(globals(), name, value) for name, value in values.items()]


# name: (what makes the function, the change)
CHANGES = {
    "a closed-over number": (_closed_over, lambda patch, f: f.change(5.0)),
    "a closed-over number becomes a tensor": (_closed_over, lambda patch, f: f.change(torch.tensor(5.0))),
    "a global number": (_by_globals, _set_global(GAIN=7.0)),
    "a global list": (_by_globals, lambda patch, f: _first_gain()),
    "a global list replaced": (_by_globals, _set_global(GAINS=[4.0])),
    "a global function": (_by_globals, _set_global(_helper=_other_helper)),
    "a default": (_with_defaults, lambda patch, f: setattr(f, "__defaults__", (5.0,))),
    "a keyword default": (_with_defaults, lambda patch, f: f.__kwdefaults__.update(gains=(7.0,))),
    "keyword defaults": (_with_defaults, lambda patch, f: setattr(f, "__kwdefaults__", {"gains": (7.0,)})),
    "an attribute of a class": (_by_class, lambda patch, f: setattr(f.kind, "gain", 5.0)),
    "an attribute of a Python module": (_by_module, lambda patch, f: setattr(f.settings, "gain", 5.0)),
    "of a Python module in one": (_by_module_within, lambda patch, f: setattr(f.settings.inner, "gain", 5.0)),
    "of a Python module in an object": (Configured, lambda patch, f: setattr(f.settings, "gain", 5.0)),
    "of a Python module that it imports": (_by_import, lambda patch, f: setattr(f.settings, "gain", 5.0)),
    "an attribute of a dict": (lambda: _by_container(Table), lambda patch, f: setattr(f.table, "gain", 5.0)),
    "an attribute of a list": (lambda: _by_container(Row), lambda patch, f: setattr(f.table, "gain", 5.0)),
    "an attribute of a tensor": (_by_attribute_of_tensor, lambda patch, f: setattr(f.gain, "factor", 5.0)),
    "the gradient of a tensor": (_by_gradient, lambda patch, f: setattr(f.weight, "grad", randn(3))),
    "the entries of a tensor, as a list": (_by_list_of_tensor, lambda patch, f: f.gain.mul_(3)),
    "the entries of a tensor, as another": (_by_tensor_of_tensors, lambda patch, f: f.gain.mul_(3)),
    "how a tensor lies in memory": (_by_matrix, lambda patch, f: setattr(f.weight, "data", f.weight.t() + 1)),
    "an attribute of the function": (_by_attribute, lambda patch, f: setattr(f, "gain", 5.0)),
    "a closed-over tensor, in place": (_by_tensor, lambda patch, f: f.gain.mul_(3)),
    "a closed-over tensor, its data": (_by_tensor, lambda patch, f: f.gain.data.copy_(torch.arange(3.0))),
    "what is bound": (_partial, lambda patch, f: f.args[0].update(gain=5.0)),
    "an attribute of an object": (Scaler, lambda patch, f: setattr(f, "gain", 5.0)),
    "an attribute behind a bound method": (lambda: Scaler().bound, lambda patch, f: setattr(f.__self__, "gain", 5.0)),
    "a method of a class": (Scaler, lambda patch, f: patch.setattr(Scaler, "bound", lambda self, v: v.cos() * 2.0)),
    "an attribute of a module": (Scaled, lambda patch, f: setattr(f, "gain", 5.0)),
    "a class attribute of a module": (Scaled, lambda patch, f: patch.setattr(Scaled, "slope", 5.0)),
    "an attribute that hides that of the class": (Scaled, lambda patch, f: setattr(f, "slope", 5.0)),
    "a parameter in place": (Scaled, lambda patch, f: _in_place(f)),
    "a parameter replaced": (Scaled, lambda patch, f: setattr(f.linear, "weight", nn.Parameter(randn(3, 3)))),
    "a buffer replaced": (Scaled, lambda patch, f: setattr(f, "shift", randn(3))),
    "a submodule replaced": (Scaled, lambda patch, f: setattr(f, "linear", nn.Linear(3, 3, dtype=F64))),
    "a forward method put in": (Scaled, lambda patch, f: setattr(f.acts[0], "forward", lambda v: v.sinh())),
    "a dict": (lambda: Scaled().train(), lambda patch, f: f.table.update(power=3)),
}  # fmt: skip


@pytest.fixture(params=["plan", "jacobian"])
def jacobian_of(request, monkeypatch):
    """The Jacobian by a plan, and by the one-shot function once that keeps a plan."""
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    if request.param == "jacobian":
        return lambda f: functools.partial(jacobian, f)
    return lambda f: plan_jacobian(f, torch.ones(3, dtype=F64))


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_function_is_seen(make, change, jacobian_of, monkeypatch):
    f, x = make(), randn(3)
    found = jacobian_of(f)
    before = judged(f, x)
    for _ in range(3):
        assert_same(found(x), before)
    change(monkeypatch, f)
    expected = judged(f, x)
    assert not torch.allclose(expected, before)
    for _ in range(3):
        assert_same(found(x), expected)


OTHER_CHAINS = {
    "a hook": (Scaled, lambda f: f.linear.register_forward_hook(lambda module, args, out: out**2)),
    "a list": (Scaled, lambda f: f.acts.__setitem__(0, nn.Sequential(nn.Tanh(), nn.Softmax(-1)))),
    "the mode": (lambda: Scaled().eval(), lambda f: f.train()),
}


@pytest.mark.parametrize(("make", "change"), OTHER_CHAINS.values(), ids=OTHER_CHAINS)
def test_a_function_that_became_another_chain_is_planned_anew(make, change, monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    f, x = make(), randn(3)
    plan = plan_jacobian(f, x)
    for _ in range(2):
        assert_same(jacobian(f, x), judged(f, x))
    change(f)
    for _ in range(3):
        assert_same(jacobian(f, x), judged(f, x))
    try:  # a plan is for one chain: it fits the new one, or says that it does not
        found = plan(x)
    except ValueError as error:
        assert "make" in str(error)
    else:
        assert_same(found, judged(f, x))


def test_the_default_dtype_is_seen(jacobian_of):
    def function(v):
        return v * torch.full((3,), 1 / 3).double()

    x = randn(3)
    found = jacobian_of(function)
    single = [found(x) for _ in range(2)]
    torch.set_default_dtype(F64)
    try:
        for _ in range(2):
            assert_same(found(x), torch.eye(3, dtype=F64) / 3, 1e-15)
    finally:
        torch.set_default_dtype(torch.float32)
    for one in [*single, found(x)]:
        assert (one.diagonal() - 1 / 3).abs().min() > 1e-10


def test_what_cannot_be_watched_is_not_kept(jacobian_of):
    numpy = pytest.importorskip("numpy")
    gains = numpy.array([1.0, 2.0, 3.0])

    def function(v):
        return v.sin() * float(gains[0])

    x = randn(3)
    found = jacobian_of(function)
    for factor in (1.0, 3.0, 0.5):
        gains *= factor
        for _ in range(2):
            assert_same(found(x), judged(function, x))


def test_a_name_looked_up_by_hand_is_not_kept(jacobian_of, monkeypatch):
    def function(v):
        return v.sin() * globals()["GAIN"]

    x = randn(3)
    found = jacobian_of(function)
    for gain in (2.0, 5.0):
        monkeypatch.setitem(globals(), "GAIN", gain)
        for _ in range(2):
            assert_same(found(x), judged(function, x))


def test_autocast_is_seen(monkeypatch):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(3)
    found = functools.partial(jacobian, net)
    plain = [found(x) for _ in range(2)]
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            half = found(x)
            expected = torch.func.jacrev(net)(x)
        assert half.dtype == torch.bfloat16 and expected.dtype == torch.float32
        torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.02)
        torch.testing.assert_close(found(x), plain[0])


def _cubed(v):
    return (v**3).sum()


def _copied(f):
    made = copy.copy(f)
    made.gain = 7.0
    return made


OTHERS = {
    "wrapped": (lambda: _cubed, lambda f: functools.wraps(f)(lambda v: 5 * f(v))),
    "gradient": (lambda: _cubed, torch.func.grad),
    "copied object": (Scaler, _copied),
    "copied module": (Scaled, _copied),
}


@pytest.mark.parametrize(("make", "other"), OTHERS.values(), ids=OTHERS)
def test_what_takes_over_the_attributes_of_a_function_does_not_take_over_its_plans(make, other, monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    f, x = make(), randn(3)
    for _ in range(2):
        assert_same(jacobian(f, x), judged(f, x))
    made = other(f)
    for _ in range(2):
        assert_same(jacobian(made, x), judged(made, x))
        assert_same(jacobian(f, x), judged(f, x))


def _product(x, y, z):
    return (x * y.exp() * z).sin()


def test_a_tensor_given_twice_may_be_two_later():
    x, y, z = randn(3), randn(3), randn(3)
    for first in [(x, x, x), (x, y, y), (x, y, x)]:
        plan = plan_jacobian(_product, first, wrt=0)
        for point in (first, first, (x, y, z), (z, x, y)):
            assert_same(plan(point), judged(_product, point, 0))


def test_an_argument_that_the_function_closes_over_is_another_tensor():
    x, gain = randn(3), randn(3)
    for point, wrt in ((gain, None), ((x, gain), 0)):

        def function(v, other=None):
            return (v * gain.exp() * (v if other is None else other)).sin()

        plan = plan_jacobian(function, point, wrt=wrt)
        others = [randn(3) if wrt is None else (randn(3), randn(3)) for _ in range(2)]
        for at in (point, point, *others):
            expected = judged(function, at) if wrt is None else judged(function, at, 0)
            assert_same(plan(at), expected)


def test_a_parameter_of_another_shape_is_seen(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double(), randn(3)
    plan = plan_jacobian(net, x)
    for _ in range(3):
        assert_same(jacobian(net, x), plan(x))
    net[0].weight.data, net[0].bias.data = randn(5, 3), randn(5)
    for _ in range(2):
        assert_same(jacobian(net, x), judged(net, x))
    with pytest.raises(ValueError, match="expects 3 → 3 entries.*takes 3 → 5 entries"):
        plan(x)


def test_a_parameter_of_another_dtype_is_seen():
    net, x = nn.Linear(3, 2).double(), randn(3)

    def function(v):
        return net(v.to(net.weight.dtype)).to(v.dtype).tanh()

    plan = plan_jacobian(function, x)
    for _ in range(3):
        assert_same(plan(x), judged(function, x))
    net.float()
    assert_same(plan(x), judged(function, x), 1e-6)


def test_an_argument_that_is_no_tensor_is_watched():
    x, settings = randn(3), types.SimpleNamespace(gain=2.0)

    def function(v, given):
        return v.sin() * given.gain

    plan = plan_jacobian(function, (x, settings), wrt=0)
    for gain in (2.0, 2.0, 5.0):
        settings.gain = gain
        assert_same(plan((x, settings)), torch.diag(gain * x.cos()))


def test_numbers_that_compare_equal_are_told_apart():
    x = randn(3)

    def function(v, number):
        return v * math.copysign(2.0, number)

    plan = plan_jacobian(function, (x, math.nan), wrt=0)
    assert_same(plan((x, float("nan"))), 2 * torch.eye(3, dtype=F64))
    for number in (0.0, 0.0, -0.0):
        found = jacobian(function, (x, number), wrt=0, objective="fma")
        assert_same(found, math.copysign(2.0, number) * torch.eye(3, dtype=F64))


def test_a_plan_is_copied_and_pickled_without_what_it_has_recorded():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), randn(3)
    plan = plan_jacobian(net, x)
    expected = [plan(x) for _ in range(3)][-1]
    for made in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        for _ in range(2):
            assert_same(made(x), expected)


def test_a_plan_keeps_no_argument_alive():
    net, x, other = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), randn(3), randn(4)

    def function(v, w):
        return net(v) * w

    plan = plan_jacobian(function, (x, other), wrt=0)
    for _ in range(3):
        plan((x, other))
    alive = [weakref.ref(x), weakref.ref(other)]
    storages = [weakref.ref(tensor.untyped_storage()) for tensor in (x, other)]
    del x, other
    gc.collect()
    assert [one() for one in alive + storages] == [None] * 4


def test_a_function_and_its_plans_die_together(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), randn(3)
    weight = weakref.ref(net[0].weight)
    for _ in range(3):
        jacobian(net, x)
    net[0].weight = nn.Parameter(randn(4, 3))
    for _ in range(3):
        jacobian(net, x)
    gc.collect()
    assert weight() is None
    whole = weakref.ref(net)
    del net
    gc.collect()
    assert whole() is None
