"""Complex values between real ones: recorded, right in every derivative, and structured where the op is."""

import pytest
import torch
from jacobian_checks import F64, assert_same, check_jacobian, judged, moved, quiet_judge, randn
from local_rule_checks import Case, aten, check, take

from torch_jvpvjp.accumulation import jacobian, plan_jacobian
from torch_jvpvjp.accumulation.structure import BlockDiagonal, Dense, Diagonal, Identity, Kronecker, Scatter

C128 = torch.complex128
Z, W, ROW = (
    torch.randn(*shape, dtype=C128, generator=torch.Generator().manual_seed(shape[-1]))
    for shape in ((3, 4), (4, 2), (4,))
)
X, FILTER = randn(3, 4), torch.polar(torch.linspace(1, 2, 5, dtype=F64), torch.linspace(0, 3, 5, dtype=F64))

LOCALS = {
    "exp": Case(aten.exp.default, (Z,), kind=BlockDiagonal),
    "log": Case(aten.log.default, (Z,)),
    "sqrt": Case(aten.sqrt.default, (Z,)),
    "sin": Case(aten.sin.default, (Z,)),
    "cos": Case(aten.cos.default, (Z,)),
    "sinh": Case(aten.sinh.default, (Z,)),
    "cosh": Case(aten.cosh.default, (Z,)),
    "tan": Case(aten.tan.default, (Z,)),
    "tanh": Case(aten.tanh.default, (Z,)),
    "atan": Case(aten.atan.default, (Z,)),
    "acos": Case(aten.acos.default, (Z,)),
    "sigmoid": Case(aten.sigmoid.default, (Z,)),
    "log1p": Case(aten.log1p.default, (Z,)),
    "reciprocal": Case(aten.reciprocal.default, (Z,)),
    "pow": Case(aten.pow.Tensor_Scalar, (Z, 3)),
    "pow of two": Case(aten.pow.Tensor_Tensor, (Z, Z + 1), active=(0, 1)),
    "pow of a number": Case(aten.pow.Scalar, (2, Z)),
    "abs": Case(aten.abs.default, (Z,), kind=BlockDiagonal),
    "angle": Case(aten.angle.default, (Z,)),
    "mul": Case(aten.mul.Tensor, (Z, Z + 1), active=(0, 1), kind=BlockDiagonal),
    "mul by a real tensor": Case(aten.mul.Tensor, (Z, X), active=(0, 1)),
    "mul of a real row": Case(aten.mul.Tensor, (X[0], Z), active=(0, 1)),
    "mul by a real number": Case(aten.mul.Tensor, (X[0, 0], Z), active=(0, 1)),
    "mul by a complex number": Case(aten.mul.Tensor, (Z[0, 0], Z), active=(0, 1)),
    "mul by a number": Case(aten.mul.Tensor, (Z, 0.1 + 0.3j)),
    "mul of one": Case(aten.mul.Tensor, (Z[:1, 0], 2j), kind=Dense),
    "div": Case(aten.div.Tensor, (Z, Z + 1), active=(0, 1)),
    "div of a real tensor": Case(aten.div.Tensor, (X, Z), active=(0, 1)),
    "div by a number": Case(aten.div.Tensor, (Z, 0.3)),
    "div by a whole number": Case(aten.div.Scalar, (Z, 3)),
    "div by an imaginary number": Case(aten.div.Tensor, (X, 0.3j)),
    "add": Case(aten.add.Tensor, (Z, Z[0]), {"alpha": 2}, active=(0, 1)),
    "add of a real tensor": Case(aten.add.Tensor, (X, Z), active=(0, 1), kind=Scatter),
    "sub of a real row": Case(aten.sub.Tensor, (Z, X[0]), {"alpha": 2}, active=(0, 1)),
    "sub of a real tensor": Case(aten.sub.Tensor, (Z, X), {"alpha": 2.5}, active=(0, 1)),
    "rsub": Case(aten.rsub.Scalar, (Z, 1)),
    "complex": Case(aten.complex.default, (X, X + 1), active=(0, 1)),
    "polar": Case(aten.polar.default, (X.abs(), X), active=(0, 1)),
    "conj": Case(aten._conj.default, (Z,), kind=Diagonal),
    "view_as_real": Case(aten.view_as_real.default, (Z,), kind=Identity),
    "view_as_complex": Case(aten.view_as_complex.default, (randn(3, 2),), kind=Identity),
    "to complex": Case(aten._to_copy.default, (X,), {"dtype": C128}, kind=Scatter),
    "sum": Case(aten.sum.dim_IntList, (Z, [1]), kind=Scatter),
    "mean": Case(aten.mean.dim, (Z, [0])),
    "permute": Case(aten.permute.default, (Z, [1, 0])),
    "cat": Case(aten.cat.default, ([Z, Z[:1]],), active=(0, 1)),
    "split": Case(aten.split.Tensor, (Z, 2, 1), output=1),
    "where": Case(aten.where.self, (X > 0, Z, Z + 1), active=(1, 2)),
    "masked_fill": Case(aten.masked_fill.Scalar, (Z, X > 0, 1j)),
    "pad": Case(aten.constant_pad_nd.default, (Z, [1, 2])),
    "index": Case(aten.index.Tensor, (Z, [torch.tensor([2, 0, 0])])),
    "index_add": Case(aten.index_add.default, (Z, 0, torch.tensor([2, 0]), Z[:2]), active=(0, 2)),
    "neg": Case(aten.neg.default, (Z,)),
    "fft": Case(aten._fft_c2c.default, (Z, [1], 1, True), kind=Kronecker),
    "inverse fft of all": Case(aten._fft_c2c.default, (Z, [0, 1], 2, False), kind=Dense),
    "rfft": Case(aten._fft_r2c.default, (X, [1], 0, True), kind=Kronecker),
    "fft of real numbers": Case(aten._fft_r2c.default, (X, [0, 1], 1, False), kind=Dense),
    "rfft, odd": Case(aten._fft_r2c.default, (randn(2, 7), [1], 2, True)),
    "rfft of two axes": Case(aten._fft_r2c.default, (randn(2, 3, 4), [1, 2], 1, True)),
    "rfft of the first axis": Case(aten._fft_r2c.default, (randn(5, 3), [0], 1, True), kind=Dense),
    "irfft": Case(aten._fft_c2r.default, (Z, [1], 2, 6)),
    "irfft, odd": Case(aten._fft_c2r.default, (Z, [1], 0, 7)),
    "irfft of two axes": Case(aten._fft_c2r.default, (Z, [0, 1], 1, 6)),
}


@pytest.mark.parametrize("case", LOCALS.values(), ids=LOCALS)
def test_a_local_jacobian_is_that_of_the_real_numbers(case):
    check(case)


def test_complex_values_that_are_broadcast_are_left_to_autograd():
    assert take(Case(aten.mul.Tensor, (ROW, Z), active=(0, 1))).locals.keys() == {1}


def test_complex_factors_of_a_sum_are_left_to_autograd():
    assert not take(Case(aten.add.Tensor, (Z, X), {"alpha": 2j}, active=(0, 1))).locals


def _fourier_layer(v):
    spectrum = torch.fft.rfft2(v)
    low = torch.zeros_like(spectrum)
    low[:2, :2] = torch.einsum("ij,jk->ik", spectrum[:2, :2], W[:2, :2])
    low[-1:, :2] = spectrum[-1:, :2] * ROW[:2]
    return torch.fft.irfft2(low, s=v.shape).tanh()


def _envelope(v):
    return torch.fft.ifft(torch.fft.fft(v) * torch.tensor([1, 2, 2, 0, 0], dtype=F64)).abs()


def _characteristic(v):
    u = torch.linspace(0.5, 4, 6, dtype=F64)
    d = torch.sqrt((v[0] * 1j * u - v[1]) ** 2 + v[2] ** 2 * (1j * u + u**2))
    return torch.log((v[1] - d) / (v[1] + d) + 3).imag.cumsum(0)


def _impedance(v):
    z = v[0] + 1j * torch.arange(1, 4, dtype=F64) * v[1] + 1 / (1j * v[2])
    return torch.stack([z.abs(), z.angle(), (1 / z).real])


def _circuit(v):
    state = torch.tensor([1, 0, 0, 0], dtype=C128).reshape(2, 2)
    for wire in range(2):
        c, s = v[wire].cos(), v[wire].sin()
        gate = torch.stack([
            torch.stack([c + 0j, -s * torch.exp(-1j * v[2])]),
            torch.stack([s * torch.exp(1j * v[2]), c + 0j]),
        ])
        state = torch.tensordot(gate, state, ([1], [wire])).movedim(0, wire) * 1j
    return state.abs() ** 2


def _angles(v):
    z = torch.cat([v, v[:1]]) * 1j
    z[1:] = torch.complex(v, v * v + 1)
    return z.angle()[1:] + z.sgn().imag[1:]


FUNCTIONS = {
    "a filter": (lambda v: torch.fft.irfft(torch.fft.rfft(v) * FILTER, n=8).sin(), (8,)),
    "filters of a batch": (lambda v: torch.fft.irfft(torch.fft.rfft(v) * FILTER, n=9).sin(), (3, 9)),
    "a transform of the first axis": (lambda v: torch.fft.rfft(v, dim=0).abs().square(), (4, 3)),
    "a layer of a neural operator": (_fourier_layer, (4, 5)),
    "an analytic signal": (_envelope, (5,)),
    "a convolution": (lambda v: torch.fft.irfft(torch.fft.rfft(v, 9) * torch.fft.rfft(v.flip(0), 9), 9), (5,)),
    "a spectrogram": (lambda v: torch.stft(v, 4, 2, window=FILTER[:4].real, return_complex=True).abs(), (12,)),
    "a characteristic function": (_characteristic, (3,)),
    "an impedance": (_impedance, (3,)),
    "nodal analysis": (lambda v: torch.linalg.solve(torch.complex(v, v.cos()) + 4 * torch.eye(3), W[:3]).abs(), (3, 3)),
    "a quantum circuit": (_circuit, (3,)),
    "conjugates": (lambda v: torch.linalg.vecdot(torch.complex(v, v.sin()), torch.complex(v.cos(), v)).imag, (2, 3)),
    "a Gram matrix": (lambda v: (torch.complex(v, v.sin()) @ torch.complex(v, v.sin()).mH).abs(), (2, 3)),
    "eigenvalues": (lambda v: torch.linalg.eigvals(v + torch.diag(torch.arange(3)) * 9).real.sort().values, (3, 3)),
    "numbers": (lambda v: (0.1 * torch.complex(v, v.sin()) / 3 - 0.3j / torch.complex(v, v + 2)).abs(), (3,)),
    "written into": (lambda v: torch.view_as_real(torch.complex(v, v).mul_(2j).add_(v)), (3,)),
    "an angle of what was written": (_angles, (3,)),
    "polar": (lambda v: torch.polar(v.exp(), v * 2).sum().angle() * v, (3,)),
    "one number": (lambda v: ((v + 2j) ** 3).real, (1,)),
}  # fmt: skip


@quiet_judge
@pytest.mark.parametrize(("f", "shape"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_with_complex_values_on_the_way(f, shape):
    x = randn(*shape)
    check_jacobian(f, x, tolerance=1e-9)
    plan = plan_jacobian(f, x)
    assert plan.runtime is not None
    assert not plan.runtime.refusals()


@quiet_judge
@pytest.mark.parametrize("strategy", ["forward", "reverse"])
@pytest.mark.parametrize(("f", "shape"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_it_is_right_by_tangents_and_by_adjoints(f, shape, strategy):
    x = randn(*shape)
    assert_same(plan_jacobian(f, x, strategy=strategy)(x), judged(f, x), 1e-9)


@quiet_judge
@pytest.mark.parametrize(("f", "shape"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_its_jacobian_has_the_gradient_of_jacrev(f, shape):
    x = randn(*shape).requires_grad_()
    expected = torch.func.jacrev(f, chunk_size=1)(x)
    if not expected.requires_grad:  # of a linear function
        expected = expected + 0 * x.sum()
    gradient = torch.autograd.grad(expected.sin().sum(), x)
    for found in (plan_jacobian(f, x, create_graph=True)(x), jacobian(f, x, create_graph=True)):
        found = found + 0 * x.sum()
        assert_same(torch.autograd.grad(found.sin().sum(), x), gradient, 1e-8)


@quiet_judge
@pytest.mark.parametrize(("f", "shape"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_it_is_right_for_samples_of_a_batch(f, shape):
    x = torch.stack([randn(*shape), randn(*shape)])

    def of_batch(v):
        return torch.func.vmap(f)(v)

    expected = torch.stack([judged(f, row) for row in x])
    assert_same(plan_jacobian(of_batch, x, batch_dims=1)(x), expected, 1e-9)


def test_single_precision_stays_single():
    def f(v):
        return torch.fft.irfft(torch.fft.rfft(v) * FILTER.to(torch.complex64), n=8).tanh()

    x = randn(8).float()
    plan = plan_jacobian(f, x)
    expected = judged(lambda v: torch.fft.irfft(torch.fft.rfft(v) * FILTER, n=8).tanh(), x.double()).float()
    for _ in range(2):
        assert_same(plan(x), expected, 1e-5)


def test_transforms_of_a_batch_are_blocks():
    plan = plan_jacobian(lambda v: torch.fft.fft(v).abs(), torch.ones(4, 6, dtype=F64), objective="fma")
    assert [type(factor.structure) for factor in plan.factors] == [Kronecker, BlockDiagonal]


def test_a_transform_is_not_priced_as_a_matrix_that_is_there():
    plan = plan_jacobian(lambda v: torch.fft.fft(v).abs(), torch.ones(64, dtype=F64))
    assert plan.factors[0].forming_cost == 64 * plan.factors[0].jvp_cost
    assert plan.fma <= plan.tangent_fma


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_a_compiled_plan_has_complex_values_on_the_way():
    f, shape = FUNCTIONS["an analytic signal"]
    x = randn(*shape)
    compiled = plan_jacobian(f, x).compile()
    for by in (0.0, 0.5):
        assert_same(compiled(moved(x, by)), judged(f, moved(x, by)))


@pytest.mark.parametrize("create_graph", [False, True])
def test_first_calls_take_cotangents_that_do_not_lie_as_complex_numbers_do(create_graph):
    def function(v):  # parts of one cotangent with an odd number of entries in front, and in each row
        return v.mean(0, keepdim=True), torch.view_as_real(torch.complex(v[:4], v[4:].sin()))

    x = randn(8).requires_grad_(create_graph)
    expected = judged(function, x)
    for _ in range(2):
        assert_same(jacobian(function, x, create_graph=create_graph), expected)
