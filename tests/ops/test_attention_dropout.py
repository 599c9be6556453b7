"""Dropout of attention: one mask for value, tangent and every pullback; a function of the seed alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from attention_judge import assert_alike, dense, heads, not_interpreted, qkv
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.ops.attention.dropout import kept
from torch_jvpvjp.testing.budget import assert_equal

pytestmark = not_interpreted
attend = ops.scaled_dot_product_attention
P = 0.4


def seeded(f: Callable[..., Any], seed: int = 5) -> Callable[..., Any]:
    """The function with PyTorch's generator at one seed in every call."""

    def called(*args: Any) -> Any:
        torch.manual_seed(seed)
        return f(*args)

    return called


def survivors(f: Callable[..., Tensor], q: Tensor, lk: int) -> Tensor:
    """M/(1 − p) of a call: with q = 0 the probabilities are 1/Lk, and with v = 1 by 1 the output is P∘M itself."""
    k = torch.zeros(*q.shape[:-2], lk, q.shape[-1], dtype=q.dtype, device=q.device)
    eye = torch.eye(lk, dtype=q.dtype, device=q.device).expand(*q.shape[:-2], lk, lk)
    return f(torch.zeros_like(q), k, eye) * lk


def test_the_mask_is_the_same_in_value_tangent_and_every_pullback(device: str) -> None:
    tensors = qkv(device=device)
    ours = seeded(partial(attend, dropout_p=P))
    mask = survivors(ours, tensors[0], 4)
    assert set(mask.unique().round(decimals=6).tolist()) == {0.0, round(1 / (1 - P), 6)}
    assert_alike(ours, lambda *t: dense(*t, survives=mask)[0], tensors)


def test_with_every_other_option(device: str) -> None:
    q, k, v = heads(2, 4, 3, 2, device=device), heads(2, 2, 5, 2, device=device), heads(2, 2, 5, 2, device=device)
    bias = heads(4, 1, 5, device=device)
    ours = seeded(partial(attend, dropout_p=P, enable_gqa=True, softcap=2.0, window=(1, 2)))
    ahead = torch.arange(5, device=device) - torch.arange(3, device=device)[:, None]
    k_all = k.repeat_interleave(2, 1)
    mask = survivors(seeded(partial(attend, dropout_p=P)), q, 5)
    assert mask.shape == (2, 4, 3, k_all.shape[-2])
    visible = (ahead >= -1) & (ahead <= 2)
    assert_alike(ours, lambda *t: dense(*t, survives=mask, visible=visible, softcap=2.0)[0], (q, k, v, bias))


def test_gradcheck_with_a_fixed_seed(device: str) -> None:
    tensors = [t.requires_grad_() for t in qkv(b=1, h=1, lq=2, lk=3, device=device)]
    assert torch.autograd.gradcheck(seeded(partial(attend, dropout_p=P)), tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(seeded(partial(attend, dropout_p=P)), tensors)


def test_the_seed_decides(device: str) -> None:
    tensors = qkv(lq=16, lk=16, device=device)
    ours = partial(attend, dropout_p=P)
    assert torch.equal(seeded(ours, 1)(*tensors), seeded(ours, 1)(*tensors))
    assert not torch.equal(seeded(ours, 1)(*tensors), seeded(ours, 2)(*tensors))
    torch.manual_seed(1)
    assert not torch.equal(ours(*tensors), ours(*tensors))  # the generator moves on


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_statistics(dropout_p: float, device: str) -> None:
    """Each element survives with probability 1 − p, independently of its neighbours along every axis: 5 sigmas."""
    b, h, lq, lk = 4, 4, 64, 64
    mask = survivors(seeded(partial(attend, dropout_p=dropout_p)), heads(b, h, lq, 2, device=device), lk) > 0
    alive, n = mask.double(), mask.numel()
    sigma = (dropout_p * (1 - dropout_p)) ** 0.5
    assert abs(float(alive.mean()) - (1 - dropout_p)) < 5 * sigma / n**0.5
    centred = alive - (1 - dropout_p)
    for axis in range(4):
        pairs = centred.narrow(axis, 1, mask.shape[axis] - 1) * centred.narrow(axis, 0, mask.shape[axis] - 1)
        assert abs(float(pairs.mean())) < 5 * sigma**2 / pairs.numel() ** 0.5, f"axis {axis}"


def test_the_mean_over_masks_is_attention_without_dropout(device: str) -> None:
    tensors = qkv(b=1, h=1, device=device)
    rows = [t.expand(2000, *t.shape) for t in tensors]
    runs = torch.func.vmap(partial(attend, dropout_p=P), randomness="different")(*rows)
    error = (runs.mean(0) - attend(*tensors)).abs()
    assert bool((error < 5 * runs.std(0) / 2000**0.5).all())


def test_the_extremes(device: str) -> None:
    tensors = qkv(device=device)
    assert torch.equal(attend(*tensors, dropout_p=0.0), attend(*tensors))
    o, pull = torch.func.vjp(partial(attend, dropout_p=1.0), *tensors)
    assert o.eq(0).all()
    assert all(t.eq(0).all() for t in pull(torch.ones_like(o)))
    assert torch.func.jvp(partial(attend, dropout_p=1.0), tensors, tensors)[1].eq(0).all()


def test_lse_knows_nothing_of_dropout(device: str) -> None:
    tensors = qkv(device=device)
    assert_equal(attend(*tensors, dropout_p=P, return_lse=True)[1], attend(*tensors, return_lse=True)[1])


def test_philox_is_that_of_the_paper() -> None:
    """Known answers of Random123 (Salmon et al. 2011) for philox4x32-10, first word: a counter and key of zeros."""
    zero = torch.zeros((), dtype=torch.int64)
    word = 0x6627E8D5
    uniform = word * 2.0**-31  # below 2³¹, so it is taken as it is
    for threshold, survives in ((uniform - 1e-6, True), (uniform + 1e-6, False)):
        assert bool(kept(zero, threshold, zero, zero, zero)) is survives


def test_attention_jvp_and_varlen(device: str) -> None:
    tensors, tangents = qkv(device=device), qkv(device=device)
    drops = partial(attend, dropout_p=P)
    ours = seeded(partial(ops.attention_jvp, dropout_p=P))(*tensors, *tangents)
    assert_equal(ours, seeded(lambda: torch.func.jvp(drops, tensors, tangents))())
    cu = torch.tensor([0, 2, 5], device=device)
    rows = tuple(heads(5, 2, 4, device=device) for _ in range(2))
    eye = torch.eye(5, dtype=rows[0].dtype, device=device)[:, None].expand(5, 2, 5)
    varlen = seeded(lambda q, k, v: ops.varlen_attention(q, k, v, cu, dropout_p=P))
    mask = (varlen(*rows, eye) > 0).double() / (1 - P)  # P∘M by columns; P > 0 within a sequence
    block = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).bool().to(device)
    theirs = lambda *t: dense(*(x.transpose(0, 1) for x in t), survives=mask.transpose(0, 1), visible=block)[0]  # noqa: E731
    assert_alike(varlen, lambda *t: theirs(*t).transpose(0, 1), (*rows, heads(5, 2, 3, device=device)))


# ---- under transforms ------------------------------------------------------------------------------------------------


def test_vmap_asks_for_randomness(device: str) -> None:
    rows = tuple(torch.stack([t, t]) for t in qkv(lq=16, lk=16, device=device))
    drops = partial(attend, dropout_p=P)
    with pytest.raises(RuntimeError, match=r"randomness"):
        torch.func.vmap(drops)(*rows)
    same = torch.func.vmap(drops, randomness="same")(*rows)
    assert torch.equal(same[0], same[1])
    different = torch.func.vmap(drops, randomness="different")(*rows)
    assert not torch.equal(different[0], different[1])


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_derivatives_under_vmap(randomness: str, device: str) -> None:
    """Each element has one mask in value, tangent and pullbacks, its own if they are to be different."""
    rows = tuple(torch.stack([t, 2 * t, -t]) for t in qkv(device=device))
    ours = seeded(torch.func.vmap(partial(attend, dropout_p=P), randomness=randomness))
    masks = survivors(ours, rows[0], 4)
    assert torch.equal(masks[0], masks[1]) is (randomness == "same")
    assert_alike(ours, lambda *t: dense(*t, survives=masks)[0], rows)
    tangents = seeded(
        torch.func.vmap(
            lambda *t: torch.func.jvp(partial(attend, dropout_p=P), rows_at(rows, 0), t), (0, 0, 0), randomness="same"
        )
    )(*rows)
    first = lambda *t: dense(*t, survives=survivors(seeded(partial(attend, dropout_p=P)), t[0], 4))[0]  # noqa: E731
    for i in range(3):
        expected = torch.func.jvp(first, rows_at(rows, 0), rows_at(rows, i))[1]
        assert_equal(tangents[1][i], expected)


def rows_at(rows: tuple[Tensor, ...], i: int) -> tuple[Tensor, ...]:
    return tuple(t[i] for t in rows)


@pytest.mark.compiled
def test_compiled(device: str) -> None:
    """Traced by aot_eager, the same seed gives the same numbers; inductor draws its own."""
    torch.compiler.reset()
    tensors = [t.requires_grad_() for t in qkv(device=device)]
    f = partial(attend, dropout_p=P)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    o, eager = (seeded(g)(*tensors) for g in (compiled, f))
    assert_equal(o, eager)
    assert_equal(*(torch.autograd.grad(y.square().sum(), tensors) for y in (o, eager)))
    assert not torch.equal(compiled(*tensors), compiled(*tensors))
    push = torch.compile(lambda *t: torch.func.jvp(f, t, t), fullgraph=True, backend="aot_eager")
    plain = tuple(t.detach() for t in tensors)
    assert_equal(seeded(push)(*plain), seeded(lambda *t: torch.func.jvp(f, t, t))(*plain))
    torch.compiler.reset()
