"""A program as a graph, which is what PyTorch's compiler takes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from .._torch import compile_graph
from ..calls import ProgramCall
from ..tracing.tape import fill
from .quick_products import compilable


def graph_of(calls: Sequence[ProgramCall], inputs: Sequence[int], results: Sequence[int]) -> fx.GraphModule:
    """Return the graph of a program, whose inputs are those values and whose outputs are the results.

    Args:
        calls: What is run, in order.
        inputs: The values that are given.
        results: The values that are returned, as a tuple.
    """
    graph = fx.Graph()
    nodes = {index: graph.placeholder(f"v{index}") for index in inputs}
    for call in calls:
        target, arguments = compilable(call)
        args, kwargs = (fill(tree, nodes.__getitem__) for tree in (arguments, dict(call.kwargs)))
        made = graph.call_function(target, tuple(args), kwargs)
        if len(call.outputs) == 1 and not call.lists:
            nodes |= {index: made for index in call.outputs if index is not None}
            continue
        for place, index in enumerate(call.outputs):
            if index is not None:
                nodes[index] = graph.call_function(operator.getitem, (made, place))
    graph.output(tuple(nodes[index] for index in results))
    return fx.GraphModule({}, graph)


class CompiledProgram:
    """A program that is compiled when it first runs.

    The graph goes to the compiler as it is: there is no Python to trace, and nothing about it to look at again in each
    call, which takes longer than a small program does.

    Args:
        calls: What is run, in order.
        inputs: The values that are given at each run.
        fixed: Values that are the same in every run.
        results: The values that are returned.
        mode: As in `torch.compile`.
    """

    def __init__(
        self,
        calls: Sequence[ProgramCall],
        inputs: Sequence[int],
        fixed: Mapping[int, Tensor],
        results: Sequence[int],
        mode: str | None,
    ) -> None:
        needed = {index for call in calls for index in call.operands} | set(results)
        numbers = [index for index in fixed if index in needed]
        self._fixed = tuple(fixed[index] for index in numbers)
        self._graph = graph_of(calls, [*inputs, *numbers], results)
        self._mode = mode
        self._run: Callable[..., tuple[Tensor, ...]] | None = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the results for x and the constants, as tensors without grad."""
        if self._run is None:
            with torch.no_grad():
                examples = [tensor.detach() for tensor in (*tensors, *self._fixed)]
                self._run = compile_graph(self._graph, examples, self._mode)
        return self._run(*tensors, *self._fixed)
