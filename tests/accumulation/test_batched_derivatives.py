"""PyTorch's derivatives of many vectors at once are wrong for a few ops; ours never are.

Jacobians by PyTorch are formed here row by row, by `autograd.functional.jacobian` without `vectorize`.
"""

import itertools
import math
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

import torch_jvpvjp as tj
from torch_jvpvjp.accumulation._torch import vjp
from torch_jvpvjp.accumulation._torch_autograd import MISBATCHED_NODES, autograd_nodes
from torch_jvpvjp.accumulation.carrying import carry_each
from torch_jvpvjp.accumulation.plain import Recorded

X = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BATCH = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def distances(v: Tensor) -> Tensor:
    return torch.cdist(v, v + 1, p=math.inf)  # of other powers there is a closed form


def looking(v: Tensor) -> Tensor:
    return distances(v) if float(v.detach().sum()) > -1e9 else v  # looks at data: a black box


def distances_of_batch(v: Tensor) -> Tensor:
    return torch.cdist(v, v + 1, p=math.inf).flatten(1)


def by_rows(f: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    return torch.autograd.functional.jacobian(f, x)


@pytest.mark.parametrize("f", [distances, looking])
def test_one_shot(f: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(tj.jacobian(lambda v: f(v), X), by_rows(f, X))
    torch.testing.assert_close(tj.jacobian(lambda v: f(v), X, create_graph=True).detach(), by_rows(f, X))


@pytest.mark.parametrize(
    "f", [distances, looking, [looking, distances], [lambda v: v * 1 if float(v.detach().sum()) else v, distances]]
)
@pytest.mark.parametrize("strategy", ["reverse", "dynamic_programming"])
def test_plans(f: Any, strategy: str) -> None:
    stages = f if isinstance(f, list) else [f]
    plan = tj.plan_jacobian(stages, X, strategy=strategy)

    def composition(v: Tensor) -> Tensor:
        for stage in stages:
            v = stage(v)
        return v

    expected = by_rows(composition, X)
    for _ in range(2):
        torch.testing.assert_close(plan(X), expected)


def test_batches_of_samples() -> None:
    expected = torch.stack([by_rows(lambda v: distances_of_batch(v[None])[0], sample) for sample in BATCH])
    torch.testing.assert_close(tj.jacobian(lambda v: distances_of_batch(v), BATCH, batch_dims=1), expected)
    tree = tj.jacobian(lambda t: {"d": distances_of_batch(t["v"])}, {"v": BATCH}, batch_dims=1)
    torch.testing.assert_close(tree["d"]["v"], expected)
    torch.testing.assert_close(tj.plan_jacobian(distances_of_batch, BATCH, batch_dims=1)(BATCH), expected)


def test_samples_that_pytorch_gets_wrong_with_columns_are_taken_one_after_another() -> None:
    # `vmap` of `jacfwd` of a solution of linear equations is wrong in PyTorch 2.11 to 2.13, though each alone is right.
    matrices = torch.randn(3, 2, 2, dtype=torch.float64) + 4 * torch.eye(2, dtype=torch.float64)

    def solution(v: Tensor) -> Tensor:
        return torch.linalg.solve(v.mT @ v, v)

    expected = torch.stack([by_rows(solution, matrix) for matrix in matrices])
    for strategy in ("forward", "reverse"):
        plan = tj.plan_jacobian(solution, matrices, batch_dims=1, strategy=strategy)
        for _ in range(2):
            torch.testing.assert_close(plan(matrices), expected)


def test_a_map_that_takes_no_vectors_at_once_is_applied_to_each_vector() -> None:
    def written(v: Tensor) -> tuple[Tensor]:
        y = torch.zeros(3, dtype=v.dtype)
        y[:2] = v[:2]
        return (y.add_(v),)

    vectors = torch.eye(3, dtype=torch.float64)
    (carried,) = carry_each(written, [vectors])
    torch.testing.assert_close(carried, vectors + torch.diag(torch.tensor([1.0, 1.0, 0.0]).double()))
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(written)(vectors)


def test_a_map_that_vmap_gets_wrong_is_applied_to_each_vector() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Tensor) -> Any:  # noqa: ARG004
            return 3 * args[0], in_dims[0]

    vectors = torch.eye(3)
    (carried,) = carry_each(lambda v: (Wrong.apply(v),), [vectors])
    torch.testing.assert_close(carried, 2 * vectors)
    (trusted,) = carry_each(lambda v: (Wrong.apply(v),), [vectors], asked=False)
    torch.testing.assert_close(trusted, 3 * vectors)  # so the question is what finds it


@pytest.mark.parametrize("copies", [1, 3])
def test_a_fourier_transform_along_no_axes_changes_nothing(copies: int) -> None:
    # Under vmap it goes along all axes, the batch among them, in forward and reverse mode.
    def f(x: Tensor) -> Tensor:
        return torch.fft.fftn(x.repeat(copies), dim=()).real

    x = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(tj.jacobian(f, x), torch.eye(4, dtype=torch.float64).repeat(copies, 1))


@pytest.mark.exhaustive
def test_what_pytorch_gets_wrong_in_batches_is_what_is_listed() -> None:
    wrong: dict[str, set[str]] = {}
    count = 0
    for name, f, x in _samples(per_op=3):
        try:
            nodes = {type(node).__name__ for node in autograd_nodes(f(x.clone().requires_grad_()))}
            y, pullback = vjp(f, x)
            rows = torch.randn(3, *y.shape, dtype=y.dtype)
            apart = torch.stack([pullback(row)[0] for row in rows])
            together = torch.func.vmap(lambda row: pullback(row)[0])(rows)  # noqa: B023
        except Exception:  # noqa: BLE001 (what PyTorch refuses is not wrong)
            continue
        count += 1
        if not torch.allclose(apart, together, 1e-6, 1e-8 * float(apart.abs().max().nan_to_num()) + 1e-12, True):
            wrong[name] = nodes
    assert count > 500
    unknown = {name: nodes for name, nodes in wrong.items() if not nodes & MISBATCHED_NODES}
    assert not unknown


@pytest.mark.slow
def test_first_calls_are_right_in_rows_and_columns_for_all_that_pytorch_samples() -> None:
    count, by_transposition, wrong = 0, 0, set[str]()
    for name, f, x in _samples(per_op=1):
        try:
            run = Recorded(f, [x], live=False)
            jacobian = by_rows(f, x).reshape(run.y.numel(), x.numel())
        except Exception:  # noqa: BLE001 (what PyTorch refuses is not asked)
            continue
        if not jacobian.numel() or not jacobian.isfinite().all() or not run.recording.batches_rightly:
            continue
        if run.y.dtype != torch.float64:  # a conversion, which rounds vectors and not the units of the reference
            continue
        count += 1
        tangents, slack = torch.randn(3, *x.shape, dtype=x.dtype), 1e-9 * (1 + float(jacobian.abs().max()))
        transposed = run._transposed([tangents])
        if transposed is not None:
            by_transposition += 1
            if not torch.allclose(transposed.reshape(3, -1), tangents.reshape(3, -1) @ jacobian.T, 1e-6, slack):
                wrong.add(f"{name}, columns")
        for rows in (3, 5):  # by autograd's own `vmap`, and by that of torch.func
            cotangents = torch.randn(rows, *run.y.shape, dtype=run.y.dtype)
            (pulled,) = Recorded(f, [x], live=False).rows(cotangents)
            if not torch.allclose(pulled.reshape(rows, -1), cotangents.reshape(rows, -1) @ jacobian, 1e-6, slack):
                wrong.add(f"{name}, {rows} rows")
    assert not wrong
    assert count > 200 and by_transposition > 150


def _samples(per_op: int) -> Iterator[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    """Yield PyTorch's own small samples of its ops, as functions of one vector of all floating tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

        for op in op_db:
            if torch.float64 not in op.supported_dtypes("cpu") or not op.supports_autograd or "sparse" in op.name:
                continue
            _seed()
            # As `op.sample_inputs`, which looks for a test of PyTorch's by reading the source of the whole stack.
            for sample in itertools.islice(op.sample_inputs_func(op, "cpu", torch.float64, False), per_op):
                leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
                places = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.is_floating_point()]
                sizes = [leaves[i].numel() for i in places]
                if not places or 0 in sizes or max(sizes) > 200:
                    continue

                def f(x: Tensor, op: Any = op, leaves: Any = leaves, spec: Any = spec, places: Any = places) -> Tensor:
                    filled = list(leaves)
                    for i, piece in zip(places, x.split([leaves[i].numel() for i in places]), strict=True):
                        filled[i] = piece.reshape(leaves[i].shape)
                    argument, args, kwargs = tree_unflatten(filled, spec)
                    _seed()
                    y = op.op(argument, *args, **kwargs)
                    return next(t for t in tree_flatten(y)[0] if isinstance(t, Tensor) and t.is_floating_point())

                yield op.name, f, torch.cat([leaves[i].detach().reshape(-1) for i in places])


def _seed() -> None:
    """Seed what samples are drawn from; `torch.manual_seed` would take milliseconds, for devices that are not there."""
    torch.default_generator.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
