"""Pixel normalisation: the public face."""

from torch import Tensor

from ._axis_norm import along_axis, op

__all__ = ["op", "pixel_norm"]


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Vectors of unit mean square along an axis, by default the channels of each pixel.

    With ⟨·⟩ the mean over the axis and s = (⟨x²⟩ + ε)^(-1/2):

        y = s x
        ẏ = J ẋ,  x̄ = J ȳ,    J v = s (v − ⟨y v⟩ y)

    On a GPU the primal, the JVP (primal and tangents in one launch), the VJP and the second order are one kernel each,
    along any axis and without a copy; elsewhere, and at every other order, the formulas run. It computes in float32, in
    float64 for float64 x.

    Args:
        x: Input, shape (N, C, ...) or any other of enough axes; float16, bfloat16, float32 or float64.
        dim: The axis of the vectors.
        eps: ε, added under the root; not negative.

    Returns:
        y, of the shape and dtype of x; channels that come last in memory do so in y.

    Raises:
        TypeError: If an argument is not of its type, or x not of a dtype named above.
        ValueError: If there is no such axis, or eps < 0.

    Source: Karras, Aila, Laine and Lehtinen (2018), Progressive Growing of GANs for Improved Quality, Stability, and
    Variation.
    """  # noqa: DOC502 -- raised by along_axis
    return along_axis("pixel_norm", "x", x, dim, eps, False)
