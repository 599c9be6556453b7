"""The ops, each with derivatives of every order; names and signatures are those of ``torch.nn.functional``."""

import torch.fx

from .add_rms_norm import add_rms_norm
from .attention import attention_jvp, scaled_dot_product_attention, varlen_attention
from .cross_entropy import cross_entropy
from .dyt import dyt
from .fourier_features import fourier_features
from .gated import geglu, glu, swiglu
from .gated_residual import gated_residual
from .group_norm import group_norm
from .huber_loss import huber_loss
from .js_div import js_div
from .kl_div import kl_div
from .l2_norm import l2_norm
from .layer_norm import layer_norm
from .linear import linear
from .linear_cross_entropy import linear_cross_entropy
from .log_softmax import log_softmax
from .logsumexp import logsumexp
from .modulated_layer_norm import modulated_layer_norm
from .modulated_rms_norm import modulated_rms_norm
from .mse_loss import mse_loss
from .pixel_norm import pixel_norm
from .pointwise import gelu, mish, relu, sigmoid, silu, sin, softplus, tanh
from .qk_rms_norm import qk_rms_norm
from .rms_norm import rms_norm
from .rope import rope
from .softmax import softmax
from .timestep_embedding import timestep_embedding

__all__ = [
    "add_rms_norm",
    "attention_jvp",
    "cross_entropy",
    "dyt",
    "fourier_features",
    "gated_residual",
    "geglu",
    "gelu",
    "glu",
    "group_norm",
    "huber_loss",
    "js_div",
    "kl_div",
    "l2_norm",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "mish",
    "modulated_layer_norm",
    "modulated_rms_norm",
    "mse_loss",
    "pixel_norm",
    "qk_rms_norm",
    "relu",
    "rms_norm",
    "rope",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "softplus",
    "swiglu",
    "tanh",
    "timestep_embedding",
    "varlen_attention",
]

# Traced by torch.fx.symbolic_trace, a call through this module is a node of the graph: nothing else of it is seen.
for _name in __all__:
    torch.fx.wrap(_name)
