"""Bad input is refused, by name, and nothing is returned."""

import dataclasses

import pytest
import torch
from torch import nn

from torch_jvpvjp.accumulation import Chain, jacobian, plan_jacobian

X = torch.ones(3)


@pytest.mark.parametrize("function", [jacobian, plan_jacobian], ids=["jacobian", "plan_jacobian"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0, 2.0], "x must be a floating tensor, got list"),
        (torch.ones(3, dtype=torch.int64), r"x must be a floating tensor, got torch.int64; convert it"),
        (torch.ones(3, dtype=torch.complex64), "x must be a floating tensor, got torch.complex64"),
        (None, "x must be a floating tensor, got NoneType"),
    ],
    ids=["list", "integer", "complex", "none"],
)
def test_x_must_be_a_floating_tensor(function, x, message):
    with pytest.raises(TypeError, match=message):
        function(torch.sin, x)


def test_an_executed_plan_checks_x_again():
    plan = plan_jacobian(torch.sin, X)
    with pytest.raises(TypeError, match="x must be a floating tensor, got torch.int32"):
        plan(X.int())
    with pytest.raises(ValueError, match=r"x must have the shape \(3,\) that the plan was made for, got \(3, 1\)"):
        plan(X[:, None])
    loaded = dataclasses.replace(plan, input_shape=None)
    with pytest.raises(ValueError, match="x must have the 3 entries that the plan is for, got 4"):
        loaded(torch.ones(4))


FUNCTIONS = {
    "no callable": (3, TypeError, "f must be a callable, or a list or tuple of callables, got int"),
    "not all callable": ([torch.sin, 3], TypeError, r"functions\[1\] must be callable, got int"),
    "empty": ([], ValueError, "functions must hold at least one callable"),
    "empty sequential": (nn.Sequential(), ValueError, "at least one stage, got an empty nn.Sequential"),
    "tuple out": (lambda v: (v, v), TypeError, "<lambda> must return one tensor, got tuple"),
    "number out": (lambda v: 3.0, TypeError, "<lambda> must return one tensor, got float"),
    "integers out": (torch.argmax, TypeError, "argmax must return a floating tensor, got torch.int64"),
    "in place": (lambda v: v.mul_(2), ValueError, "must not write into its input"),
    "sizes": (Chain.from_sizes([3, 2]), ValueError, "f must be a chain of callables, got one that was made from sizes"),
    "linear does not fit": (
        [nn.Linear(3, 4), nn.Tanh(), nn.Linear(5, 2)],
        ValueError,
        r"stage 3 \(Linear\) does not fit: its input must have a last axis of 5, got shape \(4,\)",
    ),
    "linear of other dtype": (
        [nn.Linear(3, 4).double()],
        ValueError,
        r"stage 1 \(Linear\) does not fit: its input must have the dtype .*torch.float64, got torch.float32",
    ),
    "black box does not fit": (
        [nn.Linear(3, 4), lambda v: v @ torch.ones(5, 5)],
        ValueError,
        r"stage 2 \(<lambda>\) must take a tensor of shape \(4,\) and dtype torch.float32",
    ),
}


@pytest.mark.parametrize(("f", "error", "message"), FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("function", [jacobian, plan_jacobian], ids=["jacobian", "plan_jacobian"])
def test_f_must_be_a_chain_of_tensor_functions(function, f, error, message):
    with pytest.raises(error, match=message):
        function(f, X.clone())


def test_a_stage_that_writes_into_its_input_is_found_when_executed_too():
    quiet = [True]

    def sly(v):
        return v.sin() if quiet[0] else v.sin_()

    for strategy, error, message in (
        ("forward", ValueError, "sly must not write into its input"),
        ("reverse", RuntimeError, "in-place operation"),  # PyTorch's own
    ):
        quiet[0] = True
        plan = plan_jacobian([torch.cos, sly, sly], X, strategy=strategy)
        quiet[0] = False
        with pytest.raises(error, match=message):
            plan(X)


def test_a_function_that_cannot_be_differentiated_says_why():
    class Closed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            return v.clone()

    with pytest.raises(NotImplementedError, match=r"stage 1 \(apply\) must be differentiable .* got .*setup_context"):
        jacobian(Closed.apply, X)


def test_a_plan_must_fit_the_chain():
    net = [nn.Linear(3, 2), nn.Tanh()]
    plan = plan_jacobian(net, X)
    with pytest.raises(ValueError, match=r"plan must be for a chain of 1 stages, got one for 2; make a new one"):
        jacobian(net[:1], X, plan=plan)
    with pytest.raises(ValueError, match="it expects 2 entries after factor F1 and Linear returned 5"):
        jacobian([nn.Linear(3, 5), nn.Tanh()], X, plan=plan)
    with pytest.raises(ValueError, match="takes the Jacobian of factor F2 as given and that of <lambda> is not"):
        jacobian([nn.Linear(3, 2), lambda v: v], X, plan=plan_jacobian(net, X, matrix_free=False))
    with pytest.raises(TypeError, match="plan must be a Plan, got str"):
        jacobian(net, X, plan="plan")
    with pytest.raises(ValueError, match="objective and strategy must be left out where a plan is given, .*'forward'"):
        jacobian(net, X, plan=plan, strategy="forward")
    with pytest.raises(ValueError, match="f must be a chain of callables"):
        jacobian(Chain.from_sizes([3, 2, 2]), X, plan=plan)


SIZES = {
    "float": (dict(dims=[3, 2.5]), TypeError, r"dims must be a sequence of integers, got \[3, 2.5\]"),
    "negative cost": (dict(dims=[3, 2], edges=[-1]), ValueError, "edges must be at least 0 each, got -1"),
    "one cost only": (dict(dims=[3, 2], jvp_cost=[1]), ValueError, r".*given together, .* got \['jvp_cost'\]"),
    "tape alone": (dict(dims=[3, 2], tape=[1]), ValueError, r".*given together, .* got \['tape'\]"),
    "too many": (
        dict(dims=[3, 2], vjp_cost=[1, 2], jvp_cost=[1]),
        ValueError,
        "vjp_cost must hold one number .* 1 factors, got 2",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), SIZES.values(), ids=SIZES)
def test_sizes_are_checked(arguments, error, message):
    with pytest.raises(error, match=f"Chain.from_sizes: {message}"):
        Chain.from_sizes(**arguments)


def test_a_plan_of_a_chain_checks_its_arguments():
    sizes, callables = Chain.from_sizes([3, 2]), Chain([torch.sin])
    with pytest.raises(ValueError, match="x must be None for a chain that was made from sizes"):
        sizes.plan(X)
    with pytest.raises(TypeError, match="Chain.plan: x must be a floating tensor, got NoneType"):
        callables.plan()
    with pytest.raises(ValueError, match="tape_limit must not be negative, got -3"):
        sizes.plan(tape_limit=-3)
    with pytest.raises(TypeError, match="float"):
        sizes.plan(tape_limit=2.5)
    with pytest.raises(ValueError, match="tape_limit=5 needs the tape of each factor"):
        Chain.from_sizes([3, 2], jvp_cost=[1], vjp_cost=[1]).plan(tape_limit=5)
    with pytest.raises(TypeError, match="must be made of callables, got one made from sizes"):
        sizes(X)
    with pytest.raises(TypeError, match="module must be an nn.Module, got list"):
        Chain.from_module([torch.sin])


def test_options_of_later_releases_are_not_swallowed():
    with pytest.raises(TypeError, match="batch_dims"):
        jacobian(torch.sin, X, batch_dims=1)
