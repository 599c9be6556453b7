"""Bad input is refused, by name, and nothing is returned."""

import numpy as np
import pytest
import torch
from torch import nn

from torch_jvpvjp.accumulation import Chain, jacobian, plan_jacobian

X = torch.ones(3)


@pytest.mark.parametrize("function", [jacobian, plan_jacobian], ids=["jacobian", "plan_jacobian"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0, 2.0], r"x \(leaf 0\) must be a floating tensor, got float; convert it by torch.as_tensor"),
        (np.ones(3), "x must be a floating tensor, got ndarray; convert it by torch.as_tensor"),
        (torch.ones(3, dtype=torch.int64), r"x must be a floating tensor, got torch.int64; convert it"),
        (torch.ones(3, dtype=torch.complex64), "x must be a floating tensor, got torch.complex64"),
        (None, "x must be a floating tensor, got NoneType"),
    ],
    ids=["list", "array", "integer", "complex", "none"],
)
def test_x_must_be_a_floating_tensor(function, x, message):
    with pytest.raises(TypeError, match=message):
        function(torch.sin, x)


def test_an_argument_that_has_no_jacobian_can_be_left_out():
    with pytest.raises(
        TypeError, match=r"x \(leaf 1\) must be .* got torch.int64; .* or leave that argument out by wrt"
    ):
        jacobian(torch.take, (X, torch.tensor([0])))
    with pytest.raises(TypeError, match=r"x \(leaf 1\) must be a floating tensor, got int, or leave that argument out"):
        jacobian(torch.mul, (X, 3))
    assert torch.equal(jacobian(torch.mul, (X, 3), wrt=0), 3 * torch.eye(3))
    with pytest.raises(TypeError, match=r"x\[1\] must be a floating tensor, got int"):
        jacobian(torch.mul, (X, 3), wrt=1)


def test_a_mode_of_the_compiler_is_checked_before_it_compiles():
    with pytest.raises(ValueError, match="Plan.compile: mode must be None or one of 'default', .*, got 'fast'"):
        plan_jacobian(torch.sin, X).compile("fast")


def test_a_parameter_is_named_once():
    with pytest.raises(ValueError, match=r"wrt must name each parameter once, got \('weight', 'weight'\)"):
        jacobian(nn.Linear(3, 2), X, wrt=["weight", "weight"])


def test_an_output_that_has_no_jacobian_can_be_left_out():
    with pytest.raises(
        TypeError, match=r"returns \(leaf 1\) must be a floating tensor, got torch.int64; leave it out, or"
    ):
        jacobian(lambda v: tuple(v.max(0)), X)


def test_whole_numbers_may_be_of_any_kind():
    x, one = torch.rand(2, 3), np.int64(1)
    assert torch.equal(jacobian(torch.sin, x, batch_dims=one, chunk_size=one), jacobian(torch.sin, x, batch_dims=1))
    assert torch.equal(jacobian(torch.mul, (X, 2 * X), wrt=one), torch.eye(3))
    assert torch.equal(jacobian(torch.mul, (X, 2 * X), wrt=(one,))[0], torch.eye(3))
    assert Chain.from_sizes(np.array([3, 2]), edges=np.array([4])).plan(tape_limit=np.int32(4)).cost == 8


def test_axes_of_a_batch_are_counted():
    with pytest.raises(TypeError, match="batch_dims must be an integer, got None"):
        jacobian(torch.sin, X, batch_dims=None)


def test_x_that_the_first_stage_does_not_take_is_no_result_of_another():
    with pytest.raises(ValueError, match=r"stage 1 \(Linear\) must take .* dtype torch.float32, which x is, got"):
        plan_jacobian(nn.Linear(4, 3), X)


def test_a_chain_is_made_of_several_callables():
    with pytest.raises(TypeError, match=r"functions must be several callables, got Linear; write Chain.from_module\(f"):
        Chain(nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"functions must be several callables, got .*; write Chain\(\[f\]\)"):
        Chain(torch.sin)


def test_an_executed_plan_checks_x_again():
    plan = plan_jacobian(torch.sin, X)
    with pytest.raises(TypeError, match="x must be a floating tensor, got torch.int32"):
        plan(X.int())
    with pytest.raises(ValueError, match=r"x must have the shape \(3,\) that the plan was made for, got \(3, 1\)"):
        plan(X[:, None])


FUNCTIONS = {
    "no callable": (3, TypeError, "f must be a callable, or a list or tuple of callables, got int"),
    "class": (nn.Linear, TypeError, r"f must be a module, got its class Linear; make one by Linear\(...\)"),
    "not all callable": ([torch.sin, 3], TypeError, r"functions\[1\] must be callable, got int"),
    "empty": ([], ValueError, "functions must hold at least one callable"),
    "number out": (lambda v: 3.0, TypeError, "what <lambda> returns must be a floating tensor, got float"),
    "integers out": (
        torch.argmax,
        TypeError,
        "what argmax returns must be a floating tensor, got torch.int64",
    ),
    "sizes": (Chain.from_sizes([3, 2]), ValueError, "f must be a chain of callables, got one that was made from sizes"),
}


@pytest.mark.parametrize(("f", "error", "message"), FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("function", [jacobian, plan_jacobian], ids=["jacobian", "plan_jacobian"])
def test_f_must_be_a_function_of_tensors(function, f, error, message):
    with pytest.raises(error, match=message):
        function(f, X.clone())


MISFITS = {
    "linear": ([nn.Linear(3, 4), nn.Tanh(), nn.Linear(5, 2)], r"stage 3 \(Linear\) must take a tensor of shape \(4,\)"),
    "dtype": (
        [nn.Linear(3, 4).double()],
        r"f must take a tensor of shape \(3,\) and dtype torch.float32",
    ),
    "function": (
        [nn.Linear(3, 4), lambda v: v @ torch.ones(5, 5)],
        r"stage 2 \(<lambda>\) must take a tensor of shape \(4,\) and dtype torch.float32",
    ),
}


@pytest.mark.parametrize(("f", "message"), MISFITS.values(), ids=MISFITS)
def test_stages_must_fit_one_another(f, message):
    with pytest.raises(ValueError, match=message):
        plan_jacobian(f, X)
    with pytest.raises((ValueError, RuntimeError), match="must take a tensor|mat1 and mat2|same dtype"):
        jacobian(f, X)  # PyTorch's own error, where no plan is made


@pytest.mark.parametrize("function", [jacobian, plan_jacobian], ids=["jacobian", "plan_jacobian"])
def test_f_must_not_write_into_x(function):
    x = X.clone()
    with pytest.raises((ValueError, RuntimeError), match="must not write into its input|in-place operation"):
        function(lambda v: v.mul_(2), x)
    assert torch.equal(x, X)


def test_a_function_that_cannot_be_differentiated_says_why():
    class Closed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            return v.clone()

    with pytest.raises(NotImplementedError, match=r"stage 1 \(apply\) must be differentiable .* got .*setup_context"):
        plan_jacobian(Closed.apply, X)
    with pytest.raises((NotImplementedError, RuntimeError), match="setup_context|must implement either the backward"):
        jacobian(Closed.apply, X)


def test_a_plan_must_fit_the_chain():
    net = [nn.Linear(3, 2), nn.Tanh()]
    plan = plan_jacobian(net, X)
    with pytest.raises(ValueError, match=r"plan must be for a chain of 1 stages, got one for 2; make a new one"):
        jacobian(net[:1], X, plan=plan)
    with pytest.raises(ValueError, match="it expects 3 → 2 entries, dense, at factor F1 and linear takes 3 → 5"):
        jacobian([nn.Linear(3, 5), nn.Tanh()], X, plan=plan)
    with pytest.raises(TypeError, match="plan must be a Plan, got str"):
        jacobian(net, X, plan="plan")
    with pytest.raises(ValueError, match="objective, strategy and memory_limit must be left out where a plan is given"):
        jacobian(net, X, plan=plan, strategy="forward")
    with pytest.raises(ValueError, match="f must be a chain of callables"):
        jacobian(Chain.from_sizes([3, 2, 2]), X, plan=plan)


SIZES = {
    "an iterator": (dict(dims=iter([3, 2])), TypeError, "dims must be a sequence of integers, got <list_iterator"),
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
    with pytest.raises(ValueError, match="tape_limit must be at least 0, got -3"):
        sizes.plan(tape_limit=-3)
    with pytest.raises(TypeError, match="tape_limit must be an integer, got 2.5"):
        sizes.plan(tape_limit=2.5)
    for name in ("tape_limit", "peak_entries", "threads"):
        with pytest.raises(TypeError, match=f"plan: {name} must be an integer, got True"):
            sizes.plan(**{name: True})
    with pytest.raises(ValueError, match="tape_limit=5 needs the tape of each factor"):
        Chain.from_sizes([3, 2], jvp_cost=[1], vjp_cost=[1]).plan(tape_limit=5)
    with pytest.raises(TypeError, match="must be made of callables, got one made from sizes"):
        sizes(X)
    with pytest.raises(TypeError, match="module must be an nn.Module, got list"):
        Chain.from_module([torch.sin])


OPTIONS = {
    "batch dims": (dict(batch_dims=-1), ValueError, "batch_dims must be at least 0, got -1"),
    "batch dims of a float": (dict(batch_dims=1.0), TypeError, "batch_dims must be an integer, got 1.0"),
    "a bool for a number": (dict(chunk_size=True), TypeError, "chunk_size must be an integer, got True"),
    "a text for a bool": (dict(compile="max-autotune"), TypeError, "compile must be True or False, got 'max-autotune'"),
    "a number for a bool": (dict(create_graph=1), TypeError, "create_graph must be True or False, got 1"),
    "progress": (dict(progress="yes"), TypeError, "progress must be True or False, got 'yes'"),
    "explain": (dict(explain=None), TypeError, "explain must be True or False, got None"),
    "sparse": (dict(sparse=1), ValueError, "sparse must be True, False or 'auto', got 1"),
    "the same argument twice": (dict(wrt=(0, -1)), ValueError, r"wrt must name each argument once, got \(0, -1\) of 1"),
    "a bool for an argument": (dict(wrt=(False,)), TypeError, r"wrt must be None, .*, got \(False,\)"),
    "objective": (dict(objective="speed"), ValueError, "objective must be .*got 'speed'"),
    "strategy": (dict(strategy="best"), ValueError, "strategy must be .*got 'best'"),
    "unknown": (dict(columns=3), TypeError, "unexpected keyword argument 'columns'"),
}


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("function", [jacobian, plan_jacobian], ids=["jacobian", "plan_jacobian"])
def test_options_are_checked(function, options, error, message):
    with pytest.raises(error, match=message):
        function(torch.sin, X, **options)


@pytest.mark.parametrize("batch", [None, 4], ids=["one", "batch"])
@pytest.mark.parametrize("function", [jacobian, plan_jacobian], ids=["jacobian", "plan_jacobian"])
def test_stages_that_do_not_fit_one_another_are_named(function, batch):
    stages = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(5, 2)]
    x, options = (X, {}) if batch is None else (torch.ones(batch, 3), {"batch_dims": 1})
    with pytest.raises(
        ValueError, match=r"stage [13] \(.*Linear.*\) must take a tensor of shape .*cannot be multiplied"
    ):
        function(stages, x, **options)


IN_TRAINING = {
    "dropout": (
        nn.Sequential(nn.Linear(3, 3), nn.Dropout()),
        r"f must draw no random numbers where batch_dims=1 and randomness='error', got .*\(Sequential; dropout in "
        r"training mode does this\); call f.eval\(\), or say by randomness='same' or 'different'",
    ),
    "batch normalisation": (
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
        r"f must treat the samples of batch_dims=1 independently, got one that takes no sample alone \(Sequential, by "
        r"batch normalisation in training mode\); call f.eval\(\), or .* batch_dims=0",
    ),
}


@pytest.mark.parametrize(("net", "message"), IN_TRAINING.values(), ids=IN_TRAINING)
@pytest.mark.parametrize("wrt", [None, "parameters"])
@pytest.mark.parametrize(
    "take",
    [
        lambda net, x, **options: [jacobian(net, x, **options) for _ in range(3)],
        lambda net, x, **options: plan_jacobian(net, x, **options)(x),
        lambda net, x, **options: jacobian(net, x, create_graph=True, **options),
    ],
    ids=["jacobian", "plan", "create_graph"],
)
def test_what_no_batch_of_samples_goes_through_in_training_is_said(net, message, wrt, take):
    net.train()
    with pytest.raises(ValueError, match=message):
        take(net, torch.ones(5, 3), batch_dims=1, wrt=wrt)
    net.eval()
    take(net, torch.ones(5, 3), batch_dims=1, wrt=wrt)
