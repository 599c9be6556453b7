"""Large products take in what they are added to, and give what they gave."""

import pytest
import torch
from jacobian_checks import F64
from replay_checks import recorded

ATEN = torch.ops.aten
GENERATOR = torch.Generator().manual_seed(0)
ROWS, INNER, COLUMNS = 96, 16, 64


def _randn(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=F64)


def _tangents(y):
    """Entries by tangents."""
    return y.view(ROWS // 8, 8 * COLUMNS).t()


def _after(term, function):
    return function(term)


A, B, C = _randn(ROWS, INNER), _randn(INNER, COLUMNS), _randn(ROWS, COLUMNS)
SUMS = {
    "plain": (lambda a, b, c: c.sin() + a @ b, 1),
    "the term last": (lambda a, b, c: _after(c.cos(), lambda d: a @ b + d), 1),
    "given": (lambda a, b, c: c + a @ b, 1),
    "as tangents": (lambda a, b, c: _tangents(c.cos()) + _tangents(a @ b), 1),
    "the term transposed": (lambda a, b, c: c.cos().t() + (a @ b).t(), 1),
    "a batch": (lambda a, b, c: c.cos().view(4, 24, -1) + torch.bmm(a.view(4, 24, -1), b.cos().expand(4, -1, -1)), 1),
    "a batch, seen whole": (
        lambda a, b, c: c.cos() + torch.bmm(a.view(4, 24, -1), b.cos().expand(4, -1, -1)).view(ROWS, COLUMNS), 1
    ),
    "of two products": (lambda a, b, c: a @ b + (a + 1) @ b.cos(), 1),
    "of three": (lambda a, b, c: (a @ b + (a + 1) @ b.cos()) + (a + 2) @ b.sin(), 2),
    "the term is used again": (lambda a, b, c: ((d := c.sin()) + a @ b) * d, 1),
    "the product is used again": (lambda a, b, c: (c.sin() + (p := a @ b)) * p, 0),
    "a view of it is": (lambda a, b, c: (_tangents(p := a @ b) + 1 * _tangents(c), p.sum()), 0),
    "the product is returned": (lambda a, b, c: (c.sin() + (p := a @ b), p), 0),
    "the term is later": (lambda a, b, c: (p := a @ b) + (c + 0 * p.sum()), 0),
    "broadcast": (lambda a, b, c: c[0].sin() + a @ b, 0),
    "of itself": (lambda a, b, c: (p := a @ b) + p, 0),
    "a difference": (lambda a, b, c: c.sin() - a @ b, 0),
    "times a number": (lambda a, b, c: torch.add(c.sin(), a @ b, alpha=2), 0),
    "small": (lambda a, b, c: c[:4].sin() + a[:4] @ b, 0),
    "another dtype": (lambda a, b, c: c.sin().bfloat16() + a @ b, 0),
    "bfloat16": (lambda a, b, c: c.bfloat16() + a.bfloat16() @ b.bfloat16(), 0),
    "made later": (lambda a, b, c: a @ b + c.cos(), 0),
    "through a copy": (lambda a, b, c: c.sin().t().reshape(ROWS, -1) + (a @ b).t().reshape(ROWS, -1), 0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("function", "count"), SUMS.values(), ids=SUMS)
def test_a_product_makes_the_sum(function, count, dtype):
    inputs = A.to(dtype), B.to(dtype), C.to(dtype)
    program = recorded(function, *inputs)
    calls = program._quickened(program.replayed)
    assert sum(call.target in {ATEN.addmm.default, ATEN.baddbmm.default} for call in calls) == count
    for moved in (0, 1):
        given = [tensor + moved for tensor in inputs]
        copies = [tensor.clone() for tensor in given]
        found, expected = program(*given), function(*given)
        for one, other in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert (one.stride(), one.dtype) == (other.stride(), other.dtype)
            assert (one - other).abs().max() <= 16 * torch.finfo(dtype).eps * other.abs().max()
        assert all(map(torch.equal, given, copies))
