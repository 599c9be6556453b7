"""What PyTorch does today: the evidence for this package, one test per line of the README's table.

Each test shows PyTorch's behaviour and that ours is right in the same place. When a release of PyTorch mends one, its
test fails here, and the line leaves the README.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from torch_jvpvjp import checkpoint, differentiable_op, jacobian, ops, plan_jacobian

_names = itertools.count()


def square_op() -> Callable[[Tensor], Tensor]:
    """The same function as PyTorch's custom_op, with a backward."""

    @torch.library.custom_op(f"evidence::square_{next(_names)}", mutates_args=())
    def square(x: Tensor) -> Tensor:
        return x * x

    square.register_fake(lambda x: torch.empty_like(x))
    square.register_autograd(
        lambda ctx, g: 2 * ctx.saved_tensors[0] * g,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    return square


def our_square() -> Callable[[Tensor], Tensor]:
    @differentiable_op(f"evidence::our_square_{next(_names)}")
    def square(x: Tensor) -> Tensor:
        return x * x

    return square


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, dtype=torch.float64)


@pytest.fixture
def v() -> Tensor:
    return torch.randn(3, dtype=torch.float64)


def test_custom_op_has_a_silently_zero_tangent(x: Tensor, v: Tensor) -> None:
    theirs = torch.func.jvp(square_op(), (x,), (v,))[1]
    assert not theirs.any()
    torch.testing.assert_close(torch.func.jvp(our_square(), (x,), (v,))[1], 2 * x * v)


def test_custom_op_raises_under_grad(x: Tensor) -> None:
    square = square_op()
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda t: square(t).sum())(x)
    ours = our_square()
    torch.testing.assert_close(torch.func.grad(lambda t: ours(t).sum())(x), 2 * x)


class SquareWithRules(torch.autograd.Function):
    """x², with derivatives that are twice too large, so that it shows whether they are used."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return 4 * ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx, t: Tensor) -> Tensor:
        return 4 * ctx.saved_tensors[0] * t


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own slip
def test_dynamo_drops_a_custom_jvp(x: Tensor, v: Tensor) -> None:
    push = lambda p, t: torch.func.jvp(SquareWithRules.apply, (p,), (t,))[1]  # noqa: E731
    torch.testing.assert_close(push(x, v), 4 * x * v)  # eager uses the rule
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(push, backend="aot_eager")(x, v), 2 * x * v)  # compiled does not
    op = our_square()
    op.jvp(lambda primals, tangents: (primals.x**2, 4 * primals.x * tangents.x))  # type: ignore[attr-defined]
    ours = torch.compile(lambda p, t: torch.func.jvp(op, (p,), (t,))[1], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(ours(x, v), 4 * x * v)
    torch.compiler.reset()


def test_fused_attention_has_no_forward_mode() -> None:
    q, q_dot = torch.randn(2, 1, 2, 8, 16, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda t: F.scaled_dot_product_attention(t, q, q), (q,), (q_dot,))
    with sdpa_kernel(SDPBackend.MATH):  # which holds the whole matrix of scores
        exact = torch.func.jvp(lambda t: F.scaled_dot_product_attention(t, q, q), (q,), (q_dot,))
    ours = torch.func.jvp(lambda t: ops.scaled_dot_product_attention(t, q, q), (q,), (q_dot,))
    torch.testing.assert_close(ours, exact)


def test_fused_attention_has_no_double_backward() -> None:
    q = torch.randn(1, 2, 8, 16, dtype=torch.float64, requires_grad=True)

    def twice(f: Callable[..., Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(f(q, q, q).square().sum(), q, create_graph=True)
        return torch.autograd.grad(first.square().sum(), q)[0]

    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        pytest.raises(RuntimeError, match="derivative for .* not implemented"),
    ):
        twice(F.scaled_dot_product_attention)
    with sdpa_kernel(SDPBackend.MATH):
        exact = twice(F.scaled_dot_product_attention)
    torch.testing.assert_close(twice(ops.scaled_dot_product_attention), exact)


def test_attention_is_nan_under_grad_of_jvp_where_a_row_sees_nothing() -> None:
    """Its other derivatives are zero there, as its value is."""
    q, q_dot = torch.randn(2, 1, 2, 4, 8, dtype=torch.float64)
    seen = torch.ones(4, 4, dtype=torch.bool)
    seen[2] = False

    def bent(f: Callable[..., Tensor]) -> Tensor:
        tangent = lambda t: torch.func.jvp(lambda t: f(t, q, q, seen), (t,), (q_dot,))[1]  # noqa: E731
        return torch.func.grad(lambda t: tangent(t).square().sum())(q)

    with sdpa_kernel(SDPBackend.MATH):
        theirs = bent(F.scaled_dot_product_attention)
    assert theirs[:, :, 2].isnan().any()
    ours, others = bent(ops.scaled_dot_product_attention), [0, 1, 3]
    assert ours[:, :, 2].eq(0).all()
    torch.testing.assert_close(ours[:, :, others], theirs[:, :, others])


def layer_norm_formula(t: Tensor) -> Tensor:
    centred = t - t.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def test_layer_norm_and_batch_norm_have_a_wrong_third_derivative_in_reverse_mode(x: Tensor, v: Tensor) -> None:
    """Their double backward takes the saved mean and factor for constants; `instance_norm` is batch normalisation."""

    rows = torch.stack([x, v - x.square()])

    def derivatives(f: Callable[[Tensor], Tensor]) -> list[Tensor]:
        found, y = [], (f(at := rows.clone().requires_grad_()).sin() * v).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(y, at, create_graph=True)
            found.append(gradient.detach())
            y = (gradient.sin() * v).sum()
        return found

    exact = derivatives(layer_norm_formula)
    theirs = [lambda t: F.layer_norm(t, (3,))]
    if torch.__version__ < (2, 15):  # which refuses it
        theirs += [lambda t: F.batch_norm(t.mT, None, None, training=True).mT, lambda t: F.instance_norm(t[None])[0]]
    for one in theirs:
        first, second, third = derivatives(one)
        torch.testing.assert_close([first, second], exact[:2])
        assert (third - exact[2]).norm() > 0.1 * exact[2].norm()
    torch.testing.assert_close(derivatives(lambda t: ops.layer_norm(t, (3,))), exact)


def test_layer_norm_is_silently_wrong_under_grad_of_jvp(x: Tensor, v: Tensor) -> None:
    def bent(f: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.func.grad(lambda t: (torch.func.jvp(f, (t,), (v,))[1] * v).sum())(x)

    def twice(f: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.func.jvp(lambda t: torch.func.jvp(f, (t,), (v,))[1], (x,), (v,))[1]

    for second in (bent, twice):
        theirs, exact = second(lambda t: F.layer_norm(t, (3,))), second(layer_norm_formula)
        assert not torch.allclose(theirs, exact, rtol=1e-3)
        torch.testing.assert_close(second(lambda t: ops.layer_norm(t, (3,))), exact)


def test_batch_norm_is_silently_wrong_under_grad_of_jacfwd(x: Tensor) -> None:
    def bent(jacobian_of: Callable[..., Callable[[Tensor], Tensor]]) -> Tensor:
        norm = lambda t: F.batch_norm(t.reshape(-1, 1), None, None, training=True)  # noqa: E731
        return torch.func.grad(lambda t: jacobian_of(norm)(t).sin().sum())(x)

    exact = bent(torch.func.jacrev)
    assert not torch.allclose(bent(torch.func.jacfwd), exact, rtol=1e-3)
    torch.testing.assert_close(bent(lambda f: lambda t: jacobian(f, t, create_graph=True)), exact)


@pytest.mark.parametrize("function", [torch.linalg.solve, lambda a, b: torch.linalg.det(a) * b], ids=["solve", "det"])
def test_linear_algebra_is_silently_wrong_under_grad_of_jvp(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = torch.randn(3, 3, dtype=torch.float64) + 3 * torch.eye(3), torch.randn(3, 8, dtype=torch.float64)

    def bent(jacobian_of: Callable[..., Callable[[Tensor], Tensor]]) -> Tensor:
        return torch.func.grad(lambda t: jacobian_of(lambda s: function(s, b))(t).sin().sum())(a)

    exact = bent(torch.func.jacrev)
    torch.testing.assert_close(bent(lambda f: lambda t: jacobian(f, t, create_graph=True)), exact)
    if torch.allclose(bent(torch.func.jacfwd), exact):
        pytest.skip(f"ours is right, and PyTorch {torch.__version__} mended its own, as 2.15 did")


@pytest.mark.slow
@pytest.mark.compiled
def test_the_gradient_of_a_compiled_jvp_of_linear_layers_raises() -> None:
    """Inductor writes into the zero tensor that stands for the tangent of a weight."""
    layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))
    x, v = torch.randn(20, 16), torch.randn(20, 16)

    def gradients(linear: Callable[[torch.nn.Module, Tensor], Tensor], *, compiled: bool) -> tuple[Tensor, ...]:
        def network(x: Tensor) -> Tensor:
            return x + linear(layers[2], torch.tanh(linear(layers[1], torch.tanh(linear(layers[0], x)))))

        def loss(x: Tensor, v: Tensor) -> Tensor:
            y, y_dot = torch.func.jvp(network, (x,), (v,))
            return (y - y_dot.detach()).square().mean() + y_dot.square().mean()

        torch.compiler.reset()
        total = torch.compile(loss, fullgraph=True)(x, v) if compiled else loss(x, v)
        return torch.autograd.grad(total, [layer.weight for layer in layers])

    exact = gradients(lambda layer, x: layer(x), compiled=False)
    ours = gradients(lambda layer, x: ops.linear(x, layer.weight, layer.bias), compiled=True)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)
    try:
        theirs = gradients(lambda layer, x: layer(x), compiled=True)
    except RuntimeError as error:
        assert "ZeroTensors are immutable" in str(error)
    else:
        torch.testing.assert_close(theirs, exact, rtol=1e-4, atol=1e-6)
        pytest.skip(f"PyTorch {torch.__version__} mended it")


def test_checkpoint_inside_jvp_and_in_a_dual_level_raises_in_backward(x: Tensor, v: Tensor) -> None:
    def in_jvp(checkpoint: Callable[..., Tensor], leaf: Tensor) -> Tensor:
        return torch.func.jvp(lambda t: checkpoint(torch.sin, t, use_reentrant=False), (leaf,), (v,))[1]

    def in_dual_level(checkpoint: Callable[..., Tensor], leaf: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(checkpoint(torch.sin, forward_ad.make_dual(leaf, v), use_reentrant=False))[1]

    leaf = x.clone().requires_grad_()
    for tangent in (in_jvp, in_dual_level):
        # PyTorch 2.11 raises in the call already.
        with pytest.raises(
            (CheckpointError, NotImplementedError),
            match="A different number of tensors was saved|must implement the jvp function",
        ):
            tangent(torch_checkpoint, leaf).sum().backward()
        (found,) = torch.autograd.grad(tangent(checkpoint, leaf).sum(), leaf)
        torch.testing.assert_close(found, -x.sin() * v)


def test_checkpoint_forgets_what_functional_call_lent(x: Tensor) -> None:
    class Model(torch.nn.Module):
        def __init__(self, checkpoint: Callable[..., Tensor]) -> None:
            super().__init__()
            self.weight, self.checkpoint = torch.nn.Parameter(torch.ones_like(x)), checkpoint

        def forward(self, t: Tensor) -> Tensor:
            return self.checkpoint(lambda t: (t * self.weight).sin(), t, use_reentrant=False)

    def gradient(checkpoint: Callable[..., Tensor]) -> Tensor:
        lent = (2 * x).requires_grad_()
        y = torch.func.functional_call(Model(checkpoint), {"weight": lent}, (x,))
        return torch.autograd.grad(y.sum(), lent)[0]

    exact = (2 * x * x).cos() * x
    assert not torch.allclose(gradient(torch_checkpoint), exact)
    torch.testing.assert_close(gradient(checkpoint), exact)


def test_jacrev_of_cdist_is_silently_wrong() -> None:
    points = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2) ** 3

    def distances(t: Tensor) -> Tensor:
        return torch.cdist(t, t + 1)

    exact = torch.autograd.functional.jacobian(distances, points)  # row by row
    assert not torch.allclose(torch.func.jacrev(distances)(points), exact, rtol=1e-3)
    torch.testing.assert_close(jacobian(distances, points), exact)
    torch.testing.assert_close(plan_jacobian(distances, points)(points), exact)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # by PyTorch's constant folding
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # so does 2.15
def test_rms_norm_is_silently_wrong_in_the_second_push_of_linearize(x: Tensor, v: Tensor) -> None:
    # The linear map adds eps to a factor that it keeps, in place, in every push.
    def second_push(norm: Callable[..., Tensor]) -> Tensor:
        push = torch.func.linearize(lambda t: norm(t, (3,), eps=0.1), x)[1]
        push(v)
        return push(v)

    exact = torch.func.jvp(lambda t: t * (t.square().mean() + 0.1).rsqrt(), (x,), (v,))[1]
    assert not torch.allclose(second_push(F.rms_norm), exact, rtol=1e-3)
    torch.testing.assert_close(second_push(ops.rms_norm), exact)
