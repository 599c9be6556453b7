"""L2 normalisation: the public face."""

from torch import Tensor

from ._axis_norm import along_axis, op

__all__ = ["l2_norm", "op"]


def l2_norm(input: Tensor, dim: int = -1, eps: float = 1e-12) -> Tensor:  # noqa: A002 -- the name torch gives it
    """Vectors of unit length along an axis; semantics of ``torch.nn.functional.normalize`` with p = 2.

    With ‖·‖ and ⟨·, ·⟩ over the axis and s = 1 / max(‖x‖, ε):

        y = s x
        ẏ = J ẋ,  x̄ = J ȳ,    J v = s (v − ⟨y, v⟩ y),    or s v where ‖x‖ < ε

    On a GPU the primal, the JVP (primal and tangents in one launch), the VJP and the second order are one kernel each;
    elsewhere, and at every other order, the formulas run. It computes in float32, in float64 for float64 input, so that
    squares of half precision do not overflow.

    Args:
        input: x, any shape of at least one axis; float16, bfloat16, float32 or float64.
        dim: The axis of the vectors.
        eps: ε, the floor of the length; not negative.

    Returns:
        y, of the shape and dtype of input.

    Raises:
        TypeError: If an argument is not of its type, or input not of a dtype named above.
        ValueError: If there is no such axis, or eps < 0.

    Source: Wang, Xiang, Cheng and Yuille (2017), NormFace: L2 Hypersphere Embedding for Face Verification.
    """  # noqa: DOC502 -- raised by along_axis
    return along_axis("l2_norm", "input", input, dim, eps, True)
