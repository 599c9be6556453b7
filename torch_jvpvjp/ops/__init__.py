"""The ops, each with derivatives of every order; names and signatures are those of ``torch.nn.functional``."""

from .rms_norm import rms_norm

__all__ = ["rms_norm"]
