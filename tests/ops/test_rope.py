"""Rope: the facts particular to it (every property is checked in test_every_op)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.ops.rope import op
from torch_jvpvjp.testing.budget import assert_equal
from torch_jvpvjp.testing.case import Case, Sample
from torch_jvpvjp.testing.cases import CASES
from torch_jvpvjp.testing.compositions import EAGER

reference = CASES["rope"].reference


def heads(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(device=device, dtype=dtype)


def angles(tokens: int, c: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    at = torch.arange(tokens, dtype=torch.float64, device=device)[:, None]
    turned = at * 10.0 ** (-torch.arange(c, dtype=torch.float64, device=device))
    return turned.cos(), turned.sin()


# ---- facts particular to the op --------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_rotation_keeps_lengths_and_depends_on_the_distance_only(interleaved: bool, device: str) -> None:
    cos, sin = angles(5, 2, device)
    x = heads(1, 1, 1, 4, device=device).expand(1, 1, 5, 4)
    y, _ = ops.rope(x, None, cos, sin, interleaved=interleaved)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    products = y[0, 0] @ y[0, 0].mT
    torch.testing.assert_close(products[:-1, :-1], products[1:, 1:])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_axis", [-3, 2])
@pytest.mark.parametrize("positions", [None, (1, 4), ((1, 0), (3, 3))])
def test_options_agree_with_the_definition(interleaved: bool, head_axis: int, positions: Any, device: str) -> None:
    shape = lambda h: (2, h, 2, 5) if head_axis == -3 else (2, 2, h, 5)  # noqa: E731
    q, k = heads(*shape(4), device=device), heads(*shape(2), device=device)
    cos, sin = angles(2 if positions is None else 5, 2, device)
    ids = None if positions is None else torch.tensor(positions, dtype=torch.int32, device=device)
    options = {"interleaved": interleaved, "head_axis": head_axis}
    expected = reference(
        q, k, *((t if ids is None else t[ids.long()]) for t in (cos, sin)),
        interleaved=interleaved, head_axis=head_axis if head_axis < 0 else head_axis - 4,
    )  # fmt: skip
    torch.testing.assert_close(ops.rope(q, k, cos, sin, position_ids=ids, **options), expected)


def test_keys_may_be_absent_and_batches_too(device: str) -> None:
    cos, sin = angles(3, 2, device)
    q = heads(2, 3, 4, device=device).requires_grad_()
    y, nothing = ops.rope(q, None, cos, sin)
    assert nothing is None
    torch.testing.assert_close(y, ops.rope(q[None], q[None], cos, sin)[1][0])  # pyright: ignore[reportOptionalSubscript]
    (q_bar,) = torch.autograd.grad(y.square().sum(), q)
    torch.testing.assert_close(q_bar, 2 * q)  # lengths do not change
    y_dot = torch.func.jvp(lambda t: ops.rope(t, None, cos, sin)[0], (q.detach(),), (q.detach(),))[1]
    torch.testing.assert_close(y_dot, y.detach())
    mapped = torch.func.vmap(lambda t: ops.rope(t, None, cos, sin)[0])(torch.stack((q, 2 * q)))
    torch.testing.assert_close(mapped, torch.stack((y, 2 * y)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_tables_of_another_dtype_are_used_as_they_are(dtype: torch.dtype, device: str) -> None:
    q, k = heads(1, 2, 3, 4, dtype=dtype, device=device), heads(1, 1, 3, 4, dtype=dtype, device=device)
    cos, sin = (t.requires_grad_() for t in angles(3, 2, device))
    y = ops.rope(q, k, cos, sin)
    sum(t.sum() for t in y if t is not None).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert y[0].dtype == dtype and cos.grad is not None and cos.grad.dtype == torch.float64
    exact = reference(q.double(), k.double(), *angles(3, 2, device))
    for ours, theirs in zip(y, exact, strict=True):
        assert ours is not None
        error = (ours.detach().double() - theirs).abs().max()
        assert error <= torch.finfo(dtype).eps * theirs.abs().max()  # computed in float32, rounded once


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty(shape: tuple[int, ...], device: str) -> None:
    q = torch.zeros(shape, device=device).requires_grad_()
    cos = torch.ones(shape[2], shape[3] // 2, device=device).requires_grad_()
    y_q, y_k = ops.rope(q, q.detach(), cos, cos.detach())
    assert y_q.shape == q.shape and y_k is not None and y_k.shape == q.shape
    y_q.sum().backward()
    assert q.grad is not None and q.grad.shape == q.shape
    assert cos.grad is not None and torch.equal(cos.grad, torch.zeros_like(cos))


def test_nothing_turns_without_columns(device: str) -> None:
    q = heads(1, 2, 3, 4, device=device)
    empty = torch.ones(3, 0, device=device)
    y = ops.rope(q, None, empty, empty)[0]
    assert torch.equal(y, q) and y.data_ptr() != q.data_ptr()


def test_gradients_of_tables_sum_over_every_token_that_looks_there(device: str) -> None:
    cos, sin = (t.requires_grad_() for t in angles(4, 1, device))
    q, k = heads(2, 2, 3, 2, device=device), heads(2, 1, 3, 2, device=device)
    ids = torch.tensor([[0, 2, 0], [2, 2, 1]], device=device)
    weights = heads(2, 2, 3, 2, device=device), heads(2, 1, 3, 2, device=device)

    def gradients(rope: Callable[..., Any]) -> tuple[Tensor, ...]:
        y = rope(q, k, cos, sin, position_ids=ids)
        return torch.autograd.grad(sum((t * w).sum() for t, w in zip(y, weights, strict=True)), (cos, sin))

    ours = gradients(ops.rope)
    torch.testing.assert_close(ours, gradients(reference))
    assert torch.equal(ours[0][3], torch.zeros_like(ours[0][3]))
    assert all(torch.equal(a, b) for a, b in zip(ours, gradients(ops.rope), strict=True))


@pytest.mark.parametrize("batched", ["q", "k"])
def test_gradients_of_tables_count_heads_without_a_batch_once(batched: str, device: str) -> None:
    q, k = heads(2, 2, 1, 4, device=device)[:, None], heads(2, 1, 1, 4, device=device)[:, None]
    in_dims = (0, None) if batched == "q" else (None, 0)
    one = (q, k[0]) if batched == "q" else (q[0], k)

    def loss(rope: Callable[..., Any], *tables: Tensor) -> Tensor:
        results = torch.func.vmap(lambda q, k: rope(q, k, *tables), in_dims)(*one)
        return sum((y.square() * y).sum() for y in results)  # pyright: ignore[reportReturnType]

    def formula(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.cat((a * cos - b * sin, b * cos + a * sin), -1) for a, b in (t.chunk(2, -1) for t in (q, k)))

    tables = angles(1, 2, device)
    ours, theirs = (torch.func.grad(loss, (1, 2))(rope, *tables) for rope in (ops.rope, formula))
    torch.testing.assert_close(ours, theirs)


def test_positions_outside_of_the_table() -> None:
    cos, sin = angles(3, 1)
    q = heads(1, 1, 2, 2)
    for row in (3, -1):
        ids = torch.tensor([0, row])
        if _interpreted():
            assert ops.rope(q, None, cos, sin, position_ids=ids)[0][0, 0, 1].isnan().all()
        else:
            with pytest.raises(
                IndexError, match="rope: position_ids must be rows of cos and sin, from 0 to 2, got others"
            ):
                ops.rope(q, None, cos, sin, position_ids=ids)


def test_positions_outside_of_one_table_are_in_no_other() -> None:
    cos, sin = (torch.stack([t, t]) for t in angles(3, 1))
    q = heads(1, 1, 2, 2)
    for row in (3, -1):
        ids = torch.tensor([0, row])
        rotated = torch.func.vmap(lambda c, s, ids=ids: ops.rope(q, None, c, s, position_ids=ids)[0])
        if _interpreted():
            assert rotated(cos, sin)[:, 0, 0, 1].isnan().all()
        else:
            with pytest.raises(IndexError, match="rope: position_ids must be rows of cos and sin, from 0 to 2"):
                rotated(cos, sin)


def test_nan_and_infinity_stay_in_their_pair(device: str) -> None:
    cos, sin = angles(2, 2, device)
    q = heads(1, 1, 2, 6, device=device)
    q[0, 0, 1, 0], q[0, 0, 0, 5] = float("nan"), float("inf")
    torch.testing.assert_close(
        ops.rope(q, None, cos, sin)[0], reference(q, q, cos, sin)[0], equal_nan=True, rtol=0, atol=1e-15
    )


def test_autocast_leaves_it_alone() -> None:
    q, (cos, sin) = heads(1, 1, 2, 4, dtype=torch.float32), angles(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.rope(q, None, cos, sin)[0].dtype == torch.float32


# ---- one launch ------------------------------------------------------------------------------------------------------


def _interpreted() -> bool:
    from torch_jvpvjp.ops._devices import triton_devices

    return "cpu" in triton_devices()


def launches(run: Callable[[], object]) -> int:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    with count_launches() as count:
        run()
    return count.total


@pytest.mark.usefixtures("interpreted")
class TestLaunches:
    """How many kernels each derivative takes, of q and k together."""

    @pytest.fixture
    def x(self, device: str) -> tuple[Tensor, ...]:
        return heads(2, 2, 1, 4, device=device), heads(2, 1, 1, 4, device=device), *angles(1, 2, device)

    def test_primal_and_tangents(self, x: tuple[Tensor, ...]) -> None:
        assert launches(lambda: ops.rope(*x)) == 1
        assert launches(lambda: torch.func.jvp(ops.rope, x, x)) == 1
        assert launches(lambda: torch.func.jvp(lambda q: ops.rope(q, *x[1:]), x[:1], x[:1])) == 1
        assert launches(lambda: torch.func.jvp(lambda cos: ops.rope(*x[:2], cos, x[3]), x[2:3], x[2:3])) == 1

    def test_many_tangents_of_one_primal(self, x: tuple[Tensor, ...]) -> None:
        tangents = tuple(torch.randn(3, *t.shape, dtype=t.dtype, device=t.device) for t in x)
        push = torch.func.vmap(lambda *t: torch.func.jvp(ops.rope, x, t))
        assert launches(lambda: push(*tangents)) == 1
        each = [torch.func.jvp(reference, x, tuple(t[i] for t in tangents))[1] for i in range(3)]
        for j in range(2):
            torch.testing.assert_close(push(*tangents)[1][j], torch.stack([e[j] for e in each]))

    def test_pullbacks(self, x: tuple[Tensor, ...]) -> None:
        y, pull = torch.func.vjp(ops.rope, *x)
        assert launches(lambda: pull(y)) == 1
        rows = tuple(torch.stack((t, 2 * t)) for t in y)
        assert launches(lambda: torch.func.vmap(pull)(rows)) == 1

    def test_second_order(self, x: tuple[Tensor, ...]) -> None:
        def loss(rope: Callable[..., Any]) -> Callable[..., Any]:
            return torch.func.grad(lambda *t: sum(y.square().sum() for y in rope(*t)), argnums=(0, 2))

        # The dual primal, and the pullback with its tangent.
        assert launches(lambda: torch.func.jvp(loss(ops.rope), x, x)) == 2
        ours, theirs = (torch.func.jvp(loss(rope), x, x) for rope in (ops.rope, reference))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "name", ["func.jvp, one tangent", "jacfwd", "grad∘jvp", "grad∘grad", "vmap∘hvp", "vmap∘grad∘jvp"]
)
def test_compositions_by_the_kernel(name: str, device: str) -> None:
    one = Sample((heads(1, 2, 1, 2), heads(1, 1, 1, 2), *angles(1, 1)))
    case = Case(ops.rope, reference, one, device)
    assert_equal(*(EAGER[name](case.function(f), case.point) for f in (ops.rope, reference)))


# ---- bad input -------------------------------------------------------------------------------------------------------

Q, C = torch.zeros(2, 3, 4, 6), torch.zeros(4, 3)
IDS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((None, Q, C, C), {}, TypeError, r"q must be a Tensor, got NoneType"),
        ((Q, 1, C, C), {}, TypeError, r"k must be a Tensor or None, got int"),
        ((Q.long(), None, C, C), {}, TypeError, r"q must be float16, .* got torch.int64"),
        ((Q, None, C.cfloat(), C), {}, TypeError, r"cos must be float16, .* got torch.complex64"),
        ((Q, Q.half(), C, C), {}, TypeError, r"k must have q's dtype torch.float32, got torch.float16"),
        ((Q, None, C, C.half()), {}, TypeError, r"sin must have the dtype of cos, torch.float32, got torch.float16"),
        ((Q, None, C.to("meta"), C), {}, ValueError, r"cos must be on q's device cpu, got meta"),
        ((Q[0, 0], None, C, C), {}, ValueError, r"q must have shape .* got \(4, 6\)"),
        ((Q, Q[:1], C, C), {}, ValueError, r"k must have the shape of q, \(2, 3, 4, 6\), .* got \(1, 3, 4, 6\)"),
        ((Q, Q[:, :, :1], C, C), {}, ValueError, r"k must have the shape of q, .* got \(2, 3, 1, 6\)"),
        ((Q, None, C, C[:1]), {}, ValueError, r"sin must have the shape of cos, \(4, 3\), got \(1, 3\)"),
        (
            (Q, None, Q[0, 0], Q[0, 0]),
            {},
            ValueError,
            r"one column for each pair, at most 3 for heads of 6 .* got 6; .* pass cos\[..., :3\]",
        ),
        ((Q, None, C[:1], C[:1]), {}, ValueError, r"cos must have shape \(4, R/2\) or \(2, 4, R/2\) .* got \(1, 3\)"),
        ((Q, None, C, C), {"head_axis": -2}, ValueError, r"cos must have shape \(3, R/2\) .* got \(4, 3\)"),
        ((Q, None, C, C), {"head_axis": 0}, ValueError, r"head_axis must be -3 .* got 0 for q of 4 axes"),
        ((Q, None, C, C), {"head_axis": "heads"}, TypeError, r"head_axis must be an int, got str"),
        ((Q, None, C, C), {"interleaved": 1}, TypeError, r"interleaved must be a bool, got int"),
        ((Q, None, C, C), {"position_ids": C}, TypeError, r"position_ids must be an int64 or int32 .* torch.float32"),
        ((Q, None, C, C), {"position_ids": [0, 1]}, TypeError, r"position_ids must be .* got list"),
        ((Q, None, C, C), {"position_ids": IDS.to("meta")}, ValueError, r"position_ids must be on q's device cpu"),
        (
            (Q, None, C, C),
            {"position_ids": IDS[:3]},
            ValueError,
            r"position_ids must have shape \(4,\) or \(2, 4\) to match q, got \(3,\)",
        ),
        (
            (Q, None, C.expand(2, 4, 3), C.expand(2, 4, 3)),
            {"position_ids": IDS},
            ValueError,
            r"tables of shape \(positions, R/2\), got \(2, 4, 3\)",
        ),
    ],
)
def test_bad_input(args: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"rope: .*{message}"):
        ops.rope(*args, **options)


def test_tangents_of_another_shape() -> None:
    cos = C[None]
    with pytest.raises(
        ValueError, match=r"rope: the tangent of q must have shape \(2, 3, 4, 6\), .* got \(2, 3, 4, 5\)"
    ):
        op.jvp.op(Q, None, cos, cos, None, False, False, Q[..., :5], None, None, None)
    with pytest.raises(ValueError, match=r"rope: the tangent of k must be absent, as k is"):
        op.jvp.op(Q, None, cos, cos, None, False, False, None, Q, None, None)
