"""What ``bench_ops.py`` calls every op on: one typical use of each, beside the native function it replaces."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.testing.cases import CASES

TensorFunction = Callable[..., tuple[Tensor, ...]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """One call of an op.

    Attributes:
        op: Its public name.
        shapes: Of the tensors that are differentiated.
        call: Calls a function with the arguments of the op: from the function, the tensors and the constants.
        native: PyTorch's function with the same arguments; None where there is none: then it is the plain formula.
        constants: Tensors that are not differentiated, of a device.
        change: Makes arguments of normally distributed tensors, such as probabilities.
    """

    op: str
    shapes: tuple[Shape, ...]
    call: Callable[..., Any]
    native: Callable[..., Any] | None = None
    constants: Callable[[torch.device], tuple[Tensor, ...]] = lambda device: ()
    change: Callable[..., Sequence[Tensor]] = lambda *tensors: tensors

    @property
    def native_name(self) -> str:
        """How tables call the native function."""
        return "formula" if self.native is None else f"torch {getattr(self.native, '__name__', self.op)}"

    def draw(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """The tensors that are differentiated.

        Args:
            dtype: Theirs.
            device: Where they go.

        Returns:
            One for each shape.
        """
        return tuple(t.to(dtype) for t in self.change(*normal(self.shapes, torch.float32, device)))

    def functions(self, device: torch.device) -> dict[str, TensorFunction]:
        """Ours, the native function and the reference, each of the tensors alone.

        Args:
            device: Where the constants go.

        Returns:
            Functions by the names "ours", "native" and "reference", with a tuple of tensors out.
        """
        constants, reference = self.constants(device), CASES[self.op].reference

        def bind(function: Callable[..., Any]) -> TensorFunction:
            def of_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
                wide = (c.to(tensors[0].dtype) if c.is_floating_point() else c for c in constants)
                results = self.call(function, *tensors, *wide)
                return tuple(results) if isinstance(results, tuple | list) else (results,)

            return of_tensors

        return {
            "ours": bind(getattr(ops, self.op)),
            "native": bind(self.native or reference),
            "reference": bind(reference),
        }


def normal(shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, seed: int = 0) -> tuple[Tensor, ...]:
    """Normally distributed tensors.

    Args:
        shapes: Theirs.
        dtype: Theirs.
        device: Where they are drawn.
        seed: Of the generator.

    Returns:
        One for each shape.
    """
    generator = torch.Generator(device).manual_seed(seed)
    return tuple(torch.randn(s, generator=generator, dtype=torch.float32, device=device).to(dtype) for s in shapes)


def workloads(elements: int, names: Sequence[str] = ()) -> Iterator[Workload]:
    """The workloads of the ops that exist.

    Args:
        elements: About how many elements the largest tensor of each has.
        names: Of the ops; all by default.

    Yields:
        One or more for each op.

    Raises:
        ValueError: If an op is named that has none.
    """
    import _op_workloads_attention
    import _op_workloads_elementwise
    import _op_workloads_linear
    import _op_workloads_losses
    import _op_workloads_norms

    families = (
        *(_op_workloads_norms, _op_workloads_elementwise, _op_workloads_losses, _op_workloads_linear),
        _op_workloads_attention,
    )
    found = [w for family in families for w in family.of_size(elements) if w.op in ops.__all__]
    unknown = set(names) - {w.op for w in found}
    if unknown:
        raise ValueError(f"no workload of {', '.join(sorted(unknown))}; there are {', '.join(w.op for w in found)}")
    yield from (w for w in found if not names or w.op in names)
