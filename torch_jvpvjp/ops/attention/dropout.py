"""The random mask of dropout: Philox 4x32-10, a function of a seed and the place of an element alone.

Primal, tangent and every pullback therefore see one mask without storing it, and kernels and formulas agree bit by bit.
"""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10
_UNIT = 4.6566127342e-10  # a little under 2⁻³¹


def kept(seed: Tensor, dropout_p: float, heads: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Whether an element survives: where a uniform number of [0, 1) is at least p.

    J. K. Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).

    Args:
        seed: int64, the key of the generator; its axes broadcast with those of the counters.
        dropout_p: p, the probability of being dropped.
        heads: int64, the number of batch and head, third counter.
        rows: int64, the number of the query, second counter.
        columns: int64, the number of the key, first counter.

    Returns:
        bool, of the shape that the arguments broadcast to.
    """
    c0, c1, c2 = torch.broadcast_tensors(columns, rows, heads)
    c3 = torch.zeros_like(c0)
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(_ROUNDS):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    signed = torch.where(c0 > 0x7FFFFFFF, _WORD - c0, c0)  # −x − 1 of a negative word
    return signed.to(torch.float32) * _UNIT >= dropout_p


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The upper and lower 32 bits of a product of 32-bit words, held in int64 without overflow."""
    low = word * (multiplier & 0xFFFF)
    high = word * (multiplier >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
