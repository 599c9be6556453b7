"""PyTorch's modules with our ops inside: same arguments, same parameters, every derivative."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from .. import ops
from .patched import patched


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` by `ops.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return ops.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """``torch.nn.RMSNorm`` by `ops.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """y, of the shape of x."""  # noqa: DOC201
        return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm`` by `ops.group_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return ops.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class Linear(nn.Linear):
    """``torch.nn.Linear`` by `ops.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, (*, out_features)."""  # noqa: DOC201
        return ops.linear(input, self.weight, self.bias)


class GELU(nn.GELU):
    """``torch.nn.GELU`` by `ops.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return ops.gelu(input, self.approximate)


class SiLU(nn.SiLU):
    """``torch.nn.SiLU`` by `ops.silu`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return super().forward(input) if self.inplace else ops.silu(input)


class Mish(nn.Mish):
    """``torch.nn.Mish`` by `ops.mish`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return super().forward(input) if self.inplace else ops.mish(input)


class ReLU(nn.ReLU):
    """``torch.nn.ReLU`` by `ops.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return super().forward(input) if self.inplace else ops.relu(input)


class Softplus(nn.Softplus):
    """``torch.nn.Softplus`` by `ops.softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return ops.softplus(input, self.beta, self.threshold)


class Sigmoid(nn.Sigmoid):
    """``torch.nn.Sigmoid`` by `ops.sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return ops.sigmoid(input)


class Tanh(nn.Tanh):
    """``torch.nn.Tanh`` by `ops.tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return ops.tanh(input)


class GLU(nn.GLU):
    """``torch.nn.GLU`` by `ops.glu`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, half as long along dim."""  # noqa: DOC201
        return ops.glu(input, self.dim)


class Softmax(nn.Softmax):
    """``torch.nn.Softmax`` by `ops.softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return super().forward(input) if self.dim is None else ops.softmax(input, self.dim)


class LogSoftmax(nn.LogSoftmax):
    """``torch.nn.LogSoftmax`` by `ops.log_softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape of input."""  # noqa: DOC201
        return super().forward(input) if self.dim is None else ops.log_softmax(input, self.dim)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` by `ops.cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""  # noqa: DOC201
        return ops.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class KLDivLoss(nn.KLDivLoss):
    """``torch.nn.KLDivLoss`` by `ops.kl_div`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The divergence."""  # noqa: DOC201
        return ops.kl_div(input, target, self.reduction, self.log_target)


class MSELoss(nn.MSELoss):
    """``torch.nn.MSELoss`` by `ops.mse_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""  # noqa: DOC201
        return ops.mse_loss(input, target, self.reduction)


class HuberLoss(nn.HuberLoss):
    """``torch.nn.HuberLoss`` by `ops.huber_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""  # noqa: DOC201
        return ops.huber_loss(input, target, self.reduction, self.delta)


class _Inside:
    """Runs the module that it is mixed into within `patched`, which also keeps PyTorch's undifferentiable way away."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""  # noqa: DOC201
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, Proxy):  # torch.fx takes PyTorch's modules for leaves of its graph
                tracer: Any = argument.tracer
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        with patched():
            return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


class MultiheadAttention(_Inside, nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` by our ops; attention is fused where it is called with ``need_weights=False``."""


class TransformerEncoderLayer(_Inside, nn.TransformerEncoderLayer):
    """``torch.nn.TransformerEncoderLayer`` by our ops."""


class TransformerDecoderLayer(_Inside, nn.TransformerDecoderLayer):
    """``torch.nn.TransformerDecoderLayer`` by our ops."""


class TransformerEncoder(_Inside, nn.TransformerEncoder):
    """``torch.nn.TransformerEncoder`` by our ops."""
