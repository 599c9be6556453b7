"""A plan, and what `jacobian` keeps, see every change of the tensors and modules that a function refers to."""

import pytest
import torch
from guard_checks import Scaled, assert_change_is_seen
from jacobian_checks import F64, assert_same, judged, randn
from torch import nn

from torch_jvpvjp.accumulation import cache, jacobian, plan_jacobian


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


def _by_what_is_asked(asked):
    weight = torch.full((3,), 2.0, dtype=F64)

    def function(v):
        return v.sin() * (2.0 if asked(weight) else 3.0)

    function.weight = weight
    return function


def _in_place(module):
    with torch.no_grad():
        module.linear.weight.mul_(3)


# name: (what makes the function, the change)
CHANGES = {
    "an attribute of a tensor": (_by_attribute_of_tensor, lambda patch, f: setattr(f.gain, "factor", 5.0)),
    "the gradient of a tensor": (_by_gradient, lambda patch, f: setattr(f.weight, "grad", randn(3))),
    "the entries of a tensor, as a list": (_by_list_of_tensor, lambda patch, f: f.gain.mul_(3)),
    "the entries of a tensor, as another": (_by_tensor_of_tensors, lambda patch, f: f.gain.mul_(3)),
    "how a tensor lies in memory": (_by_matrix, lambda patch, f: setattr(f.weight, "data", f.weight.t() + 1)),
    "a closed-over tensor, in place": (_by_tensor, lambda patch, f: f.gain.mul_(3)),
    "a closed-over tensor, its data": (_by_tensor, lambda patch, f: f.gain.data.copy_(torch.arange(3.0))),
    "an attribute of a module": (Scaled, lambda patch, f: setattr(f, "gain", 5.0)),
    "a class attribute of a module": (Scaled, lambda patch, f: patch.setattr(Scaled, "slope", 5.0)),
    "an attribute that hides that of the class": (Scaled, lambda patch, f: setattr(f, "slope", 5.0)),
    "a parameter in place": (Scaled, lambda patch, f: _in_place(f)),
    "a parameter replaced": (Scaled, lambda patch, f: setattr(f.linear, "weight", nn.Parameter(randn(3, 3)))),
    "a buffer replaced": (Scaled, lambda patch, f: setattr(f, "shift", randn(3))),
    "a submodule replaced": (Scaled, lambda patch, f: setattr(f, "linear", nn.Linear(3, 3, dtype=F64))),
    "a forward method put in": (Scaled, lambda patch, f: setattr(f.acts[0], "forward", lambda v: v.sinh())),
    "a dict": (lambda: Scaled().train(), lambda patch, f: f.table.update(power=3)),
    "whether a tensor requires grad": (
        lambda: _by_what_is_asked(lambda w: w.requires_grad), lambda patch, f: f.weight.requires_grad_()
    ),
    "whether a tensor has a gradient": (
        lambda: _by_what_is_asked(lambda w: w.grad is None), lambda patch, f: setattr(f.weight, "grad", randn(3))
    ),
    "the size of a tensor that is not used": (
        lambda: _by_what_is_asked(lambda w: w.numel() == 3), lambda patch, f: f.weight.resize_(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_function_is_seen(make, change, jacobian_of, monkeypatch):
    f = make()
    assert_change_is_seen(jacobian_of(f), f, lambda: change(monkeypatch, f))


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
        assert_same(plan(x), judged(net, x))


def test_a_parameter_of_another_dtype_is_seen():
    net, x = nn.Linear(3, 2).double(), randn(3)

    def function(v):
        return net(v.to(net.weight.dtype)).to(v.dtype).tanh()

    plan = plan_jacobian(function, x)
    for _ in range(3):
        assert_same(plan(x), judged(function, x))
    net.float()
    assert_same(plan(x), judged(function, x), 1e-6)
