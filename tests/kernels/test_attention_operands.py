"""The launchers of attention: absent operands, several of a kind, layouts, and how many launches they are."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1, or a GPU", allow_module_level=True)

import attention_oracle as oracle
from attention_checks import check, problem_of, run_forward, run_second, run_vjp
from attention_oracle import NAMES

from torch_jvpvjp.testing.budget import assert_equal
from torch_jvpvjp.triton_kernels._launch import count_launches
from torch_jvpvjp.triton_kernels.attention import (
    Operands,
    attention_forward,
    attention_second_order,
    pullback,
)
from torch_jvpvjp.triton_kernels.attention.config import tiles

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
NOTHING = Operands(False, False, False, False)


# ---- what may be absent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [m for k in range(1, 5) for m in itertools.combinations(NAMES, k)], ids="-".join)
def test_absent_tangents(missing: tuple[str, ...]) -> None:
    problem = problem_of(3, 5, 2, 3, bias=(1, 1, 3, 5), softcap=3.0)
    check(replace(problem, dots=problem.dots._replace(**dict.fromkeys(missing))))


@pytest.mark.parametrize(
    "missing",
    [("w",), ("lse_bar",), ("u",), ("u", "lse_bar_dot"), ("w", "lse_bar_dot"), ("lse_bar", "u", "lse_bar_dot")],
    ids="-".join,
)
def test_absent_cotangents(missing: tuple[str, ...]) -> None:
    check(replace(problem_of(3, 5, 2, 3, bias=(1, 1, 1, 5)), **dict.fromkeys(missing)))


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_wanted(name: str) -> None:
    """Any one cotangent and any one tangent of a cotangent; the launches that others need are not made."""
    problem = problem_of(3, 5, bias=(1, 1, 3, 5))
    o, lse, o_dot, lse_dot, _ = attention_forward(problem.at, problem.dots, problem.options)
    rest = (problem.w, problem.lse_bar, problem.u, problem.lse_bar_dot, problem.options)
    first, second = oracle.second_order(problem)
    other = NAMES[(NAMES.index(name) + 1) % 4]
    for one, two in ((name, None), (None, name), (name, other)):
        wants = [NOTHING._replace(**{w: True}) if w else NOTHING for w in (one, two)]
        with count_launches() as count:
            got = attention_second_order(problem.at, problem.dots, o, lse, o_dot, lse_dot, *rest, *wants)
        kinds = {{"q": "_rows_kernel", "bias": "_bias_kernel"}.get(w, "_columns_kernel") for w in (one, two) if w}
        assert dict(count.by_name) == dict.fromkeys([*kinds, "_delta_kernel"], 1)
        for results, expected, wanted in zip(got, (first, second), (one, two), strict=True):
            for n, result, value in zip(NAMES, results, expected, strict=True):
                assert (result is None) == (n != wanted)
                assert_equal([result] if n == wanted else [], [value] if n == wanted else [])


# ---- several of a kind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tangents", "dk"), [(2, 3), (3, 3), (4, 72)])
def test_many_tangents_are_one_launch(tangents: int, dk: int) -> None:
    problem = problem_of(3, 20, dk, tangents=tangents)
    with count_launches() as count:
        run_forward(problem)
    assert dict(count.by_name) == {"_forward_kernel": 1}
    with tiles(16, 16):
        check(problem)


def test_batches_of_primals() -> None:
    """Of what may have an axis in front each has it or not."""
    problem = problem_of(3, 5, n=3, bias=(1, 1, 3, 5))
    at, dots = problem.at, problem.dots
    check(problem)
    check(replace(problem, at=Operands(at.q, at.k[:1], at.v, at.bias[:1]), dots=dots._replace(k=dots.k[:1])))
    check(replace(problem, at=Operands(*(t[:1] for t in at)), dots=Operands(dots.q, dots.k[:1], None, None)))
    assert problem.w is not None and problem.u is not None
    shared = problem.w[:1].expand(problem.w.shape), problem.u[:1].mT.contiguous().mT.expand(problem.u.shape)
    check(replace(problem, w=shared[0], u=shared[1]))


def test_a_call_is_worked_out_once_for_all_numbers() -> None:
    one, other = (problem_of(5, 6, 7, bias=(1, 1, 1, 6)) for _ in range(2))
    assert not torch.equal(one.at.q, other.at.q)
    check(one)
    known = len(pullback._calls)
    check(other)
    assert len(pullback._calls) == known


@pytest.mark.parametrize("kind", ["heads last", "expanded", "every second", "transposed"])
def test_layouts(kind: str) -> None:
    def relaid(t: Tensor) -> Tensor:
        if kind == "heads last":
            return t.transpose(2, 3).contiguous().transpose(2, 3)
        if kind == "expanded":
            return t[:, :1, :1].expand(t.shape)
        if kind == "every second":
            return torch.stack((t, t * float("nan")), -1)[..., 0]
        return t.mT.contiguous().mT

    problem = problem_of(5, 3, 2, heads=(2, 2), batch=2, bias=(2, 1, 5, 3))
    moved = Operands(*map(relaid, problem.at)), Operands(*map(relaid, problem.dots))
    assert problem.w is not None and problem.u is not None
    check(replace(problem, at=moved[0], dots=moved[1], w=relaid(problem.w), u=relaid(problem.u)))


# ---- launches --------------------------------------------------------------------------------------------------------


def test_launches() -> None:
    problem = problem_of(3, 5, bias=(1, 1, 3, 5))
    with count_launches() as count:
        run_forward(problem)
    assert dict(count.by_name) == {"_forward_kernel": 1}
    with count_launches() as count:
        run_vjp(replace(problem, at=problem.at._replace(bias=None)))
    assert dict(count.by_name) == {
        name: 1 for name in ("_forward_kernel", "_delta_kernel", "_rows_kernel", "_columns_kernel")
    }
    with count_launches() as count:
        run_second(problem)
    kinds = ("_forward_kernel", "_delta_kernel", "_rows_kernel", "_columns_kernel", "_bias_kernel")
    assert dict(count.by_name) == dict.fromkeys(kinds, 1)


def test_ends_of_sequences_behind_the_keys_are_their_end() -> None:
    """Lengths that are on a device nobody looks at: what they say beyond the keys must not be read."""
    begin, position = torch.zeros(7, dtype=torch.int32), torch.arange(7, dtype=torch.int32)
    problem = problem_of(7, 21)
    results = []
    for end in (21, 300):
        ranges = torch.stack([begin, torch.full_like(begin, end), position])[None].to(problem.at.q.device)
        given = replace(problem, options=problem.options._replace(ranges=ranges))
        results.append([*run_forward(given), *run_vjp(given)])
    for expected, got in zip(*results, strict=True):
        assert_equal(got, expected)
