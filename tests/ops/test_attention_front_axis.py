"""Attention of CPU tensors under vmap: one after another in tiles where one is large, all at once where it is small."""

import pytest
import torch
from attention_judge import dense, heads, not_interpreted
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.ops.attention import in_place
from torch_jvpvjp.testing.budget import assert_equal

pytestmark = not_interpreted  # CPU tensors take the kernels there
COUNT, ROWS, KEYS = 3, 5, 7
SHAPES = {"q": (2, 4, ROWS, 3), "k": (2, 2, KEYS, 3), "v": (2, 2, KEYS, 2), "bias": (2, 1, ROWS, KEYS)}


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many were computed in tiles one after another, of whatever size."""
    found: list[int] = []
    stacked = in_place._stacked
    monkeypatch.setattr(in_place, "LEAST_FMA_BY_HEAD", 0)
    monkeypatch.setattr(in_place, "_stacked", lambda results: found.append(len(results)) or stacked(results))
    return found


@pytest.mark.parametrize("kind", ["plain", "causal", "mask of each", "bias"])
@pytest.mark.parametrize("batched", ["tangents", "cotangents", "k", "q and its tangent", "all"])
def test_numbers(batched: str, kind: str, tiles: list[int]) -> None:
    names = ("q", "k", "v", "bias") if kind == "bias" else ("q", "k", "v")
    arguments = [*names, *(f"{name}_dot" for name in names), "w"]
    moving = {
        "tangents": arguments[len(names) : -1],
        "cotangents": ["w"],
        "k": ["k"],
        "q and its tangent": ["q", "q_dot"],
        "all": arguments,
    }[batched]
    mask = torch.rand(COUNT, 1, 1, ROWS, KEYS) < 0.6 if kind == "mask of each" else None
    visible = torch.ones(ROWS, KEYS, dtype=torch.bool).tril() if kind == "causal" else None
    tensors, dims = [], []
    for name in arguments:
        shape = (2, 4, ROWS, 2) if name == "w" else SHAPES[name.removesuffix("_dot")]
        tensors.append(heads(*((COUNT, *shape) if name in moving else shape)))
        dims.append(0 if name in moving else None)

    def everything(*given: Tensor, ours: bool, seen: Tensor | None) -> tuple[Tensor, ...]:
        xs, dots, w = given[: len(names)], given[len(names) : -1], given[-1]

        def f(*xs: Tensor) -> Tensor:
            bias = xs[3] if kind == "bias" else None
            if not ours:
                return dense(*xs[:3], bias, visible=visible if seen is None else seen)[0]
            hiding = bias if seen is None else seen
            return ops.scaled_dot_product_attention(*xs[:3], hiding, enable_gqa=True, is_causal=kind == "causal")

        pull = torch.func.grad(lambda *xs: (f(*xs) * w).sum(), argnums=tuple(range(len(names))))
        pulled = torch.func.grad(
            lambda *both: (torch.func.jvp(f, both[: len(xs)], both[len(xs) :])[1] * w).sum(),
            argnums=tuple(range(2 * len(names))),
        )
        return *torch.func.jvp(f, xs, dots), *torch.func.jvp(pull, xs, dots)[1], *pulled(*xs, *dots)

    over = (*dims, None if mask is None else 0)
    results = [
        torch.func.vmap(lambda *given, ours=ours: everything(*given[:-1], ours=ours, seen=given[-1]), over)(
            *tensors, mask
        )
        for ours in (True, False)
    ]
    assert_equal(*results)
    assert set(tiles) == {COUNT}


def test_what_is_small_is_computed_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "_stacked", None)
    q, dots = heads(1, 2, ROWS, 3), heads(COUNT, 1, 2, ROWS, 3)
    attend = ops.scaled_dot_product_attention
    pull = torch.func.grad(lambda q: attend(q, q, q).square().sum())
    found = torch.func.vmap(lambda dot: torch.func.jvp(pull, (q,), (dot,))[1])(dots)
    assert_equal(found, torch.stack([torch.func.jvp(pull, (q,), (dot,))[1] for dot in dots]))
