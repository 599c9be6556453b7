"""Functions that check their arguments, as distributions do, and that hand whole numbers from outside to Python."""

import pytest
import torch
from jacobian_checks import F64, assert_same, check_jacobian, judged, quiet_judge, randn
from torch import distributions as D  # noqa: N812 (as everywhere)
from torch.nn import functional as F  # noqa: N812

from torch_jvpvjp.accumulation import jacobian, plan_jacobian

POINTS = torch.linspace(-1, 1, 3, dtype=F64)
SHARES = torch.linspace(0.2, 0.7, 3, dtype=F64)


def _covariance(v):
    return torch.outer(v, v) + 2 * torch.eye(3, dtype=F64)


DENSITIES = {
    "normal": lambda v: D.Normal(v, v.exp()).log_prob(POINTS),
    "normal cdf": lambda v: D.Normal(v, v.exp()).cdf(POINTS),
    "normal icdf": lambda v: D.Normal(v, v.exp()).icdf(SHARES),
    "laplace cdf": lambda v: D.Laplace(v, v.exp()).cdf(POINTS),
    "gamma": lambda v: D.Gamma(v.exp(), 2.0).log_prob(SHARES),
    "beta": lambda v: D.Beta(v.exp(), 1 + v.exp()).log_prob(SHARES),
    "student": lambda v: D.StudentT(v.exp(), v).log_prob(POINTS),
    "a mixture": lambda v: D.MixtureSameFamily(D.Categorical(logits=v), D.Normal(v, v.exp())).log_prob(POINTS),
    "many variables": lambda v: D.MultivariateNormal(v, _covariance(v)).log_prob(POINTS)[None],
    "a flow": lambda v: D.TransformedDistribution(D.Normal(v, 1.0), [D.TanhTransform()]).log_prob(SHARES),
    "a divergence": lambda v: D.kl_divergence(D.Normal(v, v.exp()), D.Normal(POINTS, 1.0)),
    "a value on the way": lambda v: D.Exponential(2.0).log_prob(v.exp()),
}


@quiet_judge
@pytest.mark.parametrize("f", DENSITIES.values(), ids=DENSITIES)
def test_a_distribution_is_recorded(f):
    x = 0.5 * randn(3)
    check_jacobian(f, x, tolerance=1e-9)
    plan = plan_jacobian(f, x)
    assert plan.runtime is not None
    assert not plan.runtime.refusals()


def test_an_argument_that_does_not_pass_raises_in_every_call():
    def f(v):
        return D.Normal(v[:2], v[2:]).log_prob(POINTS[:2])

    x = torch.tensor([1.0, 2, 3, 4], dtype=F64)
    plan, compiled = plan_jacobian(f, x), plan_jacobian(f, x, create_graph=True)
    for call in (plan, plan, compiled, lambda v: jacobian(f, v, objective="fma"), lambda v: plan_jacobian(f, v)):
        call(x)
        with pytest.raises(ValueError, match="Expected parameter scale"):
            call(-x)
    assert_same(plan(x), judged(f, x))


def test_samples_of_a_batch_are_checked():
    def f(v):
        return D.Normal(v, 1 + v).log_prob(POINTS)

    x = torch.rand(4, 3, dtype=F64)
    plan = plan_jacobian(f, x, batch_dims=1)
    assert_same(plan(x), torch.stack([judged(f, row) for row in x]))
    x[2, 1] = -3
    with pytest.raises(ValueError, match="Expected parameter scale"):
        plan(x)


def test_other_arguments_and_what_is_closed_over_are_checked():
    scale = torch.ones(3, dtype=F64)

    def f(v, value):
        return D.LogNormal(v, scale).log_prob(value)

    x = randn(3)
    plan = plan_jacobian(f, (x, SHARES), wrt=0)
    assert_same(plan((x, 2 * SHARES)), judged(lambda v: f(v, 2 * SHARES), x))
    with pytest.raises(ValueError, match="Expected value argument"):
        plan((x, -SHARES))
    scale.neg_()
    with pytest.raises(ValueError, match="Expected parameter scale"):
        plan((x, SHARES))


def test_a_function_that_goes_on_after_a_check_has_failed():
    def f(v):
        try:
            return D.Normal(POINTS, v).log_prob(POINTS)
        except ValueError:
            return v * v

    x = 1 + torch.rand(3, dtype=F64)
    plan = plan_jacobian(f, x)
    assert_same(plan(x), judged(f, x))
    assert_same(plan(-x), judged(f, -x))
    batch = plan_jacobian(f, x[None], batch_dims=1)  # whose values are not looked at
    with pytest.raises(ValueError, match="plan_jacobian: f must go on as it did where it was recorded"):
        batch(-x[None])
    jacobian(f, x)
    assert_same(jacobian(f, -x), judged(f, -x))
    assert_same(plan_jacobian(f, -x)(-x), judged(f, -x))


def _of_the_first(v):
    return torch.eye(2, dtype=F64) * v[0]


FACTORISED = {
    "cholesky": lambda v: torch.linalg.cholesky(_of_the_first(v)).sum() * v,
    "inv": lambda v: torch.linalg.inv(_of_the_first(v)).sum() * v,
    "inv of a stack": lambda v: torch.linalg.inv(torch.diag_embed(v[:, None] * torch.ones(3, 2, dtype=F64))).sum(),
    "solve": lambda v: torch.linalg.solve(_of_the_first(v), v[:2]).sum() * v,
    "written before": lambda v: torch.linalg.inv(torch.zeros(2, 2, dtype=F64).copy_(_of_the_first(v))).sum() * v,
    "without gradients": lambda v: torch.no_grad()(torch.linalg.inv)(_of_the_first(v)).sum() * v,
    "_assert_async": lambda v: torch._assert_async(v[0] > 0, "is not there") or v.sin(),
}


@pytest.mark.parametrize("f", FACTORISED.values(), ids=FACTORISED)
def test_what_cannot_be_factorised_raises_in_every_call(f):
    x = torch.tensor([0.5, 1, -1], dtype=F64)
    where_not = torch.cat([-x[:1] if f is FACTORISED["cholesky"] else 0 * x[:1], x[1:]])
    plan, compiled = plan_jacobian(f, x), plan_jacobian(f, x, create_graph=True)
    assert not plan.runtime.refusals()
    calls = [plan, plan, compiled, lambda v: jacobian(f, v, objective="fma")]
    if f is not FACTORISED["_assert_async"]:  # of which a plan can be made, by calling it as it stands
        calls.append(lambda v: plan_jacobian(f, v))
    for call in calls:
        call(x)
        with pytest.raises(RuntimeError, match=r"singular|not positive-definite|is zero|is not there"):
            call(where_not)
    assert_same(plan(x), judged(f, x))


def test_a_function_that_goes_on_where_a_matrix_cannot_be_factorised():
    def f(v):
        covariance = torch.outer(v, v) * v[0]
        for power in range(-3, 3):
            try:
                return torch.linalg.cholesky(covariance + 10.0**power * torch.eye(3, dtype=F64)).sum(1)
            except torch.linalg.LinAlgError:
                continue
        return v.sin()

    x = torch.tensor([0.5, 1, -1], dtype=F64)
    plan = plan_jacobian(f, x)
    for scale in (1, 2, -1, -3, -40, 1, -3):
        assert_same(plan(scale * x), judged(f, scale * x))
        assert_same(jacobian(f, scale * x, objective="fma"), judged(f, scale * x))
    assert not plan.runtime.refusals()


@quiet_judge
def test_matrices_of_a_batch_are_checked():
    def f(v):
        return torch.linalg.cholesky(torch.diag_embed(v)).sum(-1) * v

    x = 1 + torch.rand(4, 3, dtype=F64)
    plan = plan_jacobian(f, x, batch_dims=1)
    expected = torch.stack([judged(f, row) for row in x])
    assert_same(plan(x), expected)
    assert_same(torch.func.vmap(plan_jacobian(f, x[0]))(x), expected)
    y = x.clone()
    y[2, 1] = -3
    for call in (plan, torch.func.vmap(plan_jacobian(f, x[0])), torch.func.vmap(lambda row: jacobian(f, row))):
        with pytest.raises(RuntimeError, match="not positive-definite"):
            call(y)


def test_matrices_are_checked_where_values_are_not_to_be_seen():
    def f(v):
        return torch.linalg.cholesky(torch.diag(v)).sum(-1) * v

    def g(v):
        try:
            return f(v)
        except torch.linalg.LinAlgError:
            return v.sin()

    x = 1 + torch.rand(4, 3, dtype=F64)
    y = x.clone()
    y[2, 1] = -3
    expected = torch.stack([judged(f, row) for row in x])
    for one, words in ((f, "not positive-definite"), (g, "f must go on as it did")):
        plan = plan_jacobian(one, x[0])
        assert_same(torch.func.vmap(plan)(x), expected)
        bent = torch.func.grad(lambda v, plan=plan: plan(v).sin().sum())(x[0])
        assert_same(bent, torch.func.grad(lambda v: torch.func.jacfwd(f)(v).sin().sum())(x[0]))
        assert next(iter(plan.runtime._branches.values())).unrecorded is None, "it was called as it stands"
        with pytest.raises((RuntimeError, ValueError), match=words):
            torch.func.vmap(plan)(y)


def test_matrices_are_checked_at_points_that_lie_otherwise_in_memory():
    def f(v):
        return torch.linalg.cholesky(torch.diag(v.reshape(-1))).sum(0) * v.reshape(-1)

    x = 1 + torch.rand(2, 3, dtype=F64)
    plan, turned = plan_jacobian(f, x), x.t().contiguous().t()
    assert_same(torch.func.vmap(plan, in_dims=2)(torch.stack([turned, 2 * turned], 2))[1], judged(f, 2 * x))
    bent = torch.func.grad(lambda v: plan(v).sin().sum())(turned)
    assert_same(bent, torch.func.grad(lambda v: torch.func.jacfwd(f)(v).sin().sum())(turned))
    of_samples = plan_jacobian(_of_rows, torch.stack([x, x]), batch_dims=1)
    found = of_samples(torch.stack([x.t(), 2 * x.t()]).transpose(1, 2))
    assert_same(found[1], judged(f, 2 * x))


def _of_rows(rows):
    flat = rows.reshape(len(rows), -1)
    return torch.linalg.cholesky(torch.diag_embed(flat)).sum(1) * flat


CLASSES = torch.tensor([0, 2, 1])
TAKING = {  # a function of fractions in (0, 1) and another argument; one that it takes, and one that it does not
    "targets": (F.binary_cross_entropy, SHARES, 2 * SHARES),
    "an index": (lambda v, index: F.embedding(index, v[:, None]), CLASSES, CLASSES + 1),
    "classes": (lambda v, classes: v * F.one_hot(classes, 3), CLASSES, CLASSES + 1),
    "negative classes": (lambda v, classes: v * F.one_hot(classes, 3), CLASSES, -CLASSES),
}


@pytest.mark.parametrize(("f", "taken", "refused"), TAKING.values(), ids=TAKING)
def test_what_derivatives_do_not_look_at_is_checked_all_the_same(f, taken, refused):
    plan = plan_jacobian(f, (SHARES, taken), wrt=0)
    for _ in range(3):  # the executor, then the recorded program
        assert_same(plan((SHARES, taken)), judged(lambda v: f(v, taken), SHARES))
        with pytest.raises((RuntimeError, IndexError, ValueError), match="between 0 and 1|out of range|Class values"):
            plan((SHARES, refused))
    assert not plan.runtime.refusals()


@pytest.mark.parametrize("options", [{}, {"create_graph": True}], ids=str)
def test_fractions_that_are_none_are_refused(options):
    plan = plan_jacobian(lambda v: F.binary_cross_entropy(v, SHARES, reduction="none"), SHARES, **options)
    for _ in range(3):
        assert_same(plan(SHARES), torch.zeros(3, 3, dtype=F64))
        for x in (1 + SHARES, -SHARES):
            with pytest.raises(RuntimeError, match="between 0 and 1"):
                plan(x)


def test_a_check_inside_of_a_transform_is_left_to_pytorch():
    def f(v):
        return torch.func.vmap(lambda u: D.Normal(u, 1.0, validate_args=False).log_prob(u * u))(v)

    check_jacobian(f, randn(3))


def test_checks_of_pytorch_are_left_alone():
    definite = type(D.constraints.positive_definite)
    before = definite.check
    plan_jacobian(DENSITIES["many variables"], randn(3))
    assert definite.check is before


READERS = {"int": int, "item": lambda one: one.item(), "range": lambda one: range(one)[-1], "bool": bool}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_whole_number_from_outside_is_read_anew_once_it_is_another(read):
    shifts = torch.tensor([1, 2, 3])

    def f(v):
        return v.roll(int(read(shifts.flip(0)[0]))) * v

    x = randn(5)
    plan = plan_jacobian(f, x)
    assert plan.runtime is not None
    assert not plan.runtime.refusals()
    assert_same(plan(x), judged(f, x))
    shifts[2] = 5
    assert_same(plan(x), judged(f, x))
    assert_same(jacobian(f, x), judged(f, x))


def test_a_whole_number_that_is_an_argument_is_not_kept():
    def f(v, shift):
        return v.roll(int(shift)) * v

    x = randn(5)
    plan = plan_jacobian(f, (x, torch.tensor(1)), wrt=0)
    for shift in (torch.tensor(1), torch.tensor(3)):
        assert_same(plan((x, shift)), judged(lambda v, shift=shift: f(v, shift), x))
