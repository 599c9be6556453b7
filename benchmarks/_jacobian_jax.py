"""JAX as a peer: the same function with the same numbers, jit(jacrev) and jit(jacfwd) on the CPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from _jacobian_case import Problem
from torch import Tensor

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def load_jax(threads: int | None = None) -> Any:
    """JAX, with float64 and on the CPU; to be called once, before anything else imports it.

    Args:
        threads: 1 to keep XLA to one thread; else it takes what it likes.

    Returns:
        The module, or None where it is not installed.
    """
    if threads == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
        os.environ["NPROC"] = "1"  # what XLA sizes its pool of threads by
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        jax = importlib.import_module("jax")
    except ImportError:
        return None
    jax.config.update("jax_enable_x64", True)
    return jax


def jax_peers(jax: Any, problem: Problem) -> dict[str, Callable[[], Any]]:
    """Calls that wait for the result, which is left where it is.

    Args:
        jax: The module.
        problem: A problem with a twin.

    Returns:
        The calls by name; the first call of each compiles.
    """
    twin = problem.twin
    assert twin is not None
    weights, x = _arrays(jax, problem.weights), _array(jax, problem.x)
    f = lambda weights, x: twin(jax, weights, x)  # noqa: E731
    per_sample = problem.batched or problem.of_parameters
    argument = 0 if problem.of_parameters else 1
    calls: dict[str, Callable[[], Any]] = {}
    for name, mode in (("jit jacrev", jax.jacrev), ("jit jacfwd", jax.jacfwd)):
        derivative = mode(f, argnums=argument)
        # The weights are arguments of what is compiled, so that XLA does not fold them.
        compiled = jax.jit(jax.vmap(derivative, in_axes=(None, 0)) if per_sample else derivative)
        calls[name] = lambda compiled=compiled: jax.block_until_ready(compiled(weights, x))
    return calls


def _arrays(jax: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _arrays(jax, value) for name, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return [_arrays(jax, value) for value in tree]
    return _array(jax, tree)


def _array(jax: Any, tensor: Tensor) -> Any:
    return jax.numpy.asarray(tensor.detach().cpu().numpy())
