"""What PyTorch offers for a Jacobian, used as its documentation tells a user to, each for one problem."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from _jacobian_case import Accumulate, Function, Problem
from torch import Tensor
from torch.func import functional_call, jacfwd, jacrev, jvp, vmap

CHUNKS = (256, 64, 16)  # tried besides all at once, where there are more rows or columns than that

Mode = Callable[[Any, int | None], Callable[..., Any]]


@dataclass(frozen=True)
class Peer:
    """One way to a Jacobian.

    Attributes:
        name: What it is called.
        build: From a chunk size to the function of x that returns the Jacobian.
        sweeps: How many rows or columns a chunk size divides; 0 where it takes no chunk size.
    """

    name: str
    build: Callable[[int | None], Accumulate]
    sweeps: int = 0

    @property
    def chunks(self) -> list[int | None]:
        """The chunk sizes worth a try."""
        return [None, *(size for size in CHUNKS if size < self.sweeps)]


def peers(problem: Problem, m: int) -> list[Peer]:
    """Every way that fits the problem.

    Args:
        problem: The problem.
        m: Entries of f(x); of one sample of it where there is a batch.

    Returns:
        The peers.
    """
    if problem.batched:
        return _of_samples(problem, m)
    if problem.of_parameters:
        return _of_parameters(problem, m)
    f, n = problem.f, problem.x.numel()
    return [
        Peer("jacrev", lambda chunk: jacrev(f, chunk_size=chunk), m),
        Peer("jacfwd", lambda chunk: chunked_jacfwd(f, chunk), n),
        Peer("autograd reverse", lambda _: functools.partial(_autograd, f)),
        Peer("autograd forward", lambda _: functools.partial(_autograd, f, strategy="forward-mode")),
    ]


def chunked_jacfwd(f: Function, chunk: int | None) -> Accumulate:
    """`jacfwd`, which takes no chunk size itself, over chunks of tangents."""
    if chunk is None:
        return jacfwd(f)

    def accumulate(x: Tensor) -> Tensor:
        tangents = torch.eye(x.numel(), dtype=x.dtype, device=x.device).view(-1, *x.shape)
        columns = vmap(lambda tangent: jvp(f, (x,), (tangent,))[1], chunk_size=chunk)(tangents)
        return columns.movedim(0, -1).unflatten(-1, x.shape)

    return accumulate


def _of_samples(problem: Problem, m: int) -> list[Peer]:
    """One Jacobian a sample: vmap over samples, or what users who know that samples are independent do.

    The rows of all samples come at once from Σ_s f(x_s), whose derivative by x_s is J_s; their columns from f(x + t) by
    a shift t that all samples share.

    Args:
        problem: A problem with a batch.
        m: Entries of one sample of f(x).

    Returns:
        The peers.
    """
    f, n = problem.f, problem.x[0].numel()
    total: Function = lambda x: f(x).sum(0)  # noqa: E731

    def first(jacobian: Tensor) -> Tensor:  # (*m, batch, *n) -> (batch, *m, *n)
        return jacobian.movedim(jacobian.ndim - problem.x.ndim, 0)

    def shifted(mode: Callable[[Function], Accumulate]) -> Accumulate:
        return lambda x: mode(lambda t: f(x + t))(torch.zeros_like(x[0]))

    return [
        Peer("vmap jacrev", lambda chunk: vmap(jacrev(problem.one_sample, chunk_size=chunk)), m),
        Peer("vmap jacfwd", lambda chunk: vmap(chunked_jacfwd(problem.one_sample, chunk)), n),
        Peer("jacrev of the sum", lambda chunk: lambda x: first(jacrev(total, chunk_size=chunk)(x)), m),
        Peer("jacfwd of a shift", lambda chunk: shifted(lambda g: chunked_jacfwd(g, chunk)), n),
        Peer("autograd reverse", lambda _: lambda x: first(_autograd(total, x))),
        Peer("autograd forward", lambda _: shifted(lambda g: functools.partial(_autograd, g, strategy="forward-mode"))),
    ]


def _of_parameters(problem: Problem, m: int) -> list[Peer]:
    """The parameter Jacobian: of the whole output, or sample by sample as tutorials on the tangent kernel do."""
    net, batch = problem.f, len(problem.x)
    assert isinstance(net, torch.nn.Module)
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def called(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, dict(weights), (x,))

    def one(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return called(weights, x.unsqueeze(0)).squeeze(0)

    def whole(mode: Mode) -> Callable[[int | None], Accumulate]:
        return lambda chunk: lambda x: mode(called, chunk)(weights, x)

    def sampled(mode: Mode) -> Callable[[int | None], Accumulate]:
        return lambda chunk: lambda x: vmap(mode(one, chunk), in_dims=(None, 0))(weights, x)

    def flat(strategy: str) -> Accumulate:
        def accumulate(x: Tensor) -> dict[str, Tensor]:
            g = lambda *values: called(dict(zip(weights, values, strict=True)), x)  # noqa: E731
            return dict(zip(weights, _autograd(g, tuple(weights.values()), strategy), strict=True))

        return accumulate

    reverse: Any = lambda g, chunk: jacrev(g, chunk_size=chunk)  # noqa: E731
    forward: Any = lambda g, _chunk: jacfwd(g)  # noqa: E731
    return [
        Peer("jacrev", whole(reverse), m),
        Peer("jacfwd", whole(forward)),
        Peer("vmap jacrev", sampled(reverse), m // batch),
        Peer("vmap jacfwd", sampled(forward)),
        Peer("autograd reverse", lambda _: flat("reverse-mode")),
        Peer("autograd forward", lambda _: flat("forward-mode")),
    ]


def _autograd(f: Callable[..., Tensor], x: Any, strategy: str = "reverse-mode") -> Any:
    """`torch.autograd.functional.jacobian`, vectorised."""
    return torch.autograd.functional.jacobian(f, x, vectorize=True, strategy=strategy)
