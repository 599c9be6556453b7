"""Large products of float32 matrices on a CPU by oneDNN, where it is quicker than the BLAS of PyTorch's products.

    mm(A, B)  becomes  onednn(A, Bᵀ, no bias),        addmm(C, A, B)  becomes  onednn(A, Bᵀ) + C in one call.

`_onednn` tells why, and measures which one a machine is quicker with; small products stay, and long sums go piece by
piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch

from ..._onednn import LEAST_FMA, onednn_is_on, onednn_is_quicker, onednn_products
from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layout, Layouts

_aten = torch.ops.aten
_LEAST_INNER, _LEAST_SIDE = 4, 2  # an outer product, or one of a vector, is bound by memory
_MOST_TERMS = 384  # of a piece of a sum
_LEAST_PIECE = 4 * LEAST_FMA  # what a piece takes besides is then a twentieth
_MOST_SUMMED = 1 << 20  # entries of a result, which is held twice while pieces are added
_ONEDNN = "mkldnn"  # the namespace of its ops
_KERNEL_BYTES = 600 << 10  # of the code that oneDNN makes for one shape and keeps, as measured at shapes of all kinds


def with_quick_products(
    calls: Sequence[ProgramCall], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls whose large products are made by what is quicker on this machine.

    Args:
        calls: A straight line of calls.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Returns:
        The calls.
    """
    if not onednn_is_on():  # as the user, or another thread that records, wants it now
        return list(calls)
    found: list[ProgramCall] = []
    transposed: dict[int, int] = {}
    for call in calls:
        fit = _factors(call, layouts) is not None and onednn_is_quicker(torch.get_num_threads())
        found += by_onednn(call, layouts, new_value, transposed) if fit else [call]
    return found


def by_onednn(
    call: ProgramCall, layouts: Layouts, new_value: Callable[[], int], transposed: dict[int, int]
) -> list[ProgramCall]:
    """Return the calls of oneDNN in the place of a product; the call itself if it is none, or too small for that.

    Args:
        call: A call.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
        transposed: The transposes that other products have used, by what they are of; more are added.
    """  # noqa: DOC201
    factors = _factors(call, layouts)
    return [call] if factors is None else _in_pieces(call, *factors, layouts, new_value, transposed)


def kernel_bytes(calls: Iterable[ProgramCall], layouts: Layouts) -> int:
    """The bytes of code that oneDNN keeps for the products among some calls: one kernel for each shape.

    Args:
        calls: What `with_quick_products` has returned.
        layouts: How each value lies in memory.

    Returns:
        Bytes.
    """
    products = [call for call in calls if call.target.namespace == _ONEDNN]
    return _KERNEL_BYTES * len({
        (call.target, *((layouts[index].shape, layouts[index].stride) for index in call.operands)) for call in products
    })


def _in_pieces(
    call: ProgramCall,
    term: int | None,
    left: int,
    right: int,
    layouts: Layouts,
    new_value: Callable[[], int],
    transposed: dict[int, int],
) -> list[ProgramCall]:
    """Return the calls of oneDNN that make the result of a product.

    It adds the terms of a sum one after another, which errs by more than PyTorch's products do: by 1.7 times for 512
    terms. Of several pieces, each takes in what those before it have made. A large result stays one sum: it is most of
    what a plan holds, and would be held twice.
    """
    (m, k), n = layouts[left].shape, layouts[right].shape[1]
    count = max(min(-(-k // _MOST_TERMS), m * k * n // _LEAST_PIECE), 1) if m * n <= _MOST_SUMMED else 1
    ends = [k * place // count for place in range(count + 1)]
    found: list[ProgramCall] = []

    def made(target: Any, *args: Any, **kwargs: Any) -> int:
        found.append(ProgramCall(target, args, kwargs, [new_value()], call.segment))
        layouts.add(found[-1])
        return found[-1].outputs[0] or 0

    if right not in transposed:
        transposed[right] = made(_aten.t.default, Ref(right))
    for begin, end in zip(ends, ends[1:], strict=False):
        x, w = left, transposed[right]
        if count > 1:
            x, w = made(_aten.slice.Tensor, Ref(x), 1, begin, end), made(_aten.slice.Tensor, Ref(w), 1, begin, end)
            if not layouts[right].contiguous:  # W is, so that a piece of it has gaps
                w = made(_aten.clone.default, Ref(w), memory_format=torch.contiguous_format)
        outputs = call.outputs if end == k else [new_value()]
        found.append(_product(term, x, w, outputs, call.segment, layouts))
        term = outputs[0]
        layouts[term or 0] = layouts[call.outputs[0] or 0]
    return found


def _product(
    term: int | None, left: int, transposed: int, outputs: Sequence[int | None], segment: int, layouts: Layouts
) -> ProgramCall:
    """Return the call of oneDNN that makes a product, plus a term."""
    products = onednn_products()
    assert products is not None, "with_quick_products asks onednn_is_quicker first"
    alone, added = products
    if term is None or len(layouts[term].shape) == 1:
        bias = None if term is None else Ref(term)
        return ProgramCall(alone, (Ref(left), Ref(transposed), bias, "none", [], ""), {}, outputs, segment)
    return ProgramCall(added, (Ref(left), Ref(term), Ref(transposed), None, "add"), {}, outputs, segment)


def _factors(call: ProgramCall, layouts: Layouts) -> tuple[int | None, int, int] | None:
    """Return what a large product adds, and its two factors; None for any other call, and where oneDNN cannot do it."""
    if call.target not in {_aten.mm.default, _aten.addmm.default} or call.kwargs or not _all_values(call):
        return None
    *terms, left, right = call.operands
    (m, k), (_, n) = layouts[left].shape, layouts[right].shape
    if m * k * n < LEAST_FMA or k < _LEAST_INNER or min(m, n) < _LEAST_SIDE:
        return None
    if not all(_is_fit(layouts[index]) for index in call.operands) or not _has_no_gaps(layouts[right]):
        return None
    if terms and layouts[terms[0]].shape not in {(n,), (m, n)}:
        return None
    if terms and not layouts[terms[0]].contiguous:
        return None
    return (terms[0] if terms else None), left, right


def _all_values(call: ProgramCall) -> bool:
    return all(isinstance(argument, Ref) for argument in call.args)


def _is_fit(layout: Layout) -> bool:
    return layout.device.type == "cpu" and layout.dtype is torch.float32 and not any(layout.twisted)


def _has_no_gaps(layout: Layout) -> bool:
    """Return whether a matrix or its transpose is contiguous: with gaps in W, oneDNN takes a thousand times as long."""
    transposed = layout._replace(shape=layout.shape[::-1], stride=layout.stride[::-1])
    return layout.contiguous or transposed.contiguous


def compilable(call: ProgramCall) -> tuple[Any, Any]:
    """Return what a compiler is given in the place of a call: its op and arguments.

    PyTorch's compiler knows the products of oneDNN for weights that it has frozen only; it calls these ops as they are.
    """
    if call.target.namespace != _ONEDNN:
        return call.target, call.args
    ops = _compilable_ops()
    return (ops.onednn_sum if call.target._overloadname == "binary" else ops.onednn_product).default, call.args[:3]


@cache
def _compilable_ops() -> Any:
    products = onednn_products()
    assert products is not None, "there are calls of them"
    alone, added = products
    library = torch.library.Library("torch_jvpvjp", "FRAGMENT")
    _LIBRARIES.append(library)
    library.define("onednn_product(Tensor x, Tensor w, Tensor? b) -> Tensor")
    library.define("onednn_sum(Tensor x, Tensor y, Tensor w) -> Tensor")
    library.impl("onednn_product", lambda x, w, b: alone(x, w, b, "none", [], ""), "CPU")
    library.impl("onednn_sum", lambda x, y, w: added(x, y, w, None, "add"), "CPU")
    fake = torch.library.register_fake
    fake("torch_jvpvjp::onednn_product", lambda x, w, b: x.new_empty(len(x), len(w)), lib=library)
    fake("torch_jvpvjp::onednn_sum", lambda x, y, w: x.new_empty(len(x), len(w)), lib=library)
    return torch.ops.torch_jvpvjp


_LIBRARIES: list[torch.library.Library] = []  # what is registered lasts as long as its library
