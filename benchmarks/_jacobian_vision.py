"""Workloads from deep learning with convolutions and attention: a small CNN, a ResNet, a transformer encoder."""

from __future__ import annotations

from typing import Any

import torch
from _jacobian_case import Problem, Source
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


def small_cnn(source: Source, side: int, channels: int) -> Problem:
    """Logits of a CNN with respect to the image."""
    flat = 2 * channels * (side // 4) ** 2
    net = source.module(
        lambda: nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(flat, CLASSES),
        )
    )

    def twin(jax: Any, p: Any, x: Any) -> Any:
        for layer in ("0", "3"):
            x = jax.numpy.tanh(_convolve(jax, p, layer, x) + p[f"{layer}.bias"][:, None, None])
            b, c, h, w = x.shape
            x = x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
        return x.reshape(len(x), -1) @ p["7.weight"].T + p["7.bias"]

    return Problem(net, source.normal(1, 1, side, side), twin=twin, weights=net.state_dict())


class ResidualBlock(nn.Module):
    """y = relu(norm(conv(relu(norm(conv x)))) + skip(x)); skip is a strided 1 x 1 convolution where sizes change."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        stride = 1 if n == m else 2
        self.conv1, self.norm1 = nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.BatchNorm2d(m)
        self.conv2, self.norm2 = nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.BatchNorm2d(m)
        self.skip = nn.Identity() if n == m else nn.Conv2d(n, m, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The value."""
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """A stem, one residual block for each width, the mean over the image, and a Linear."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*map(ResidualBlock, (widths[0], *widths), widths))
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def resnet(source: Source, side: int, widths: tuple[int, ...]) -> Problem:
    """Logits of a ResNet in evaluation mode with respect to the image."""
    net = source.module(lambda: ResNet(widths))
    for module in net.modules():  # statistics that are not those of a fresh network
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = source.normal(module.num_features, scale=0.1)
            module.running_var = source.uniform(module.num_features, low=0.5, high=1.5)

    def twin(jax: Any, p: Any, x: Any) -> Any:
        x = jax.nn.relu(_normalise(jax, p, "norm", _convolve(jax, p, "stem", x)))
        for k in range(len(widths)):
            block = f"blocks.{k}"
            stride = 2 if f"{block}.skip.weight" in p else 1
            h = _convolve(jax, p, f"{block}.conv1", x, stride)
            h = jax.nn.relu(_normalise(jax, p, f"{block}.norm1", h))
            h = _normalise(jax, p, f"{block}.norm2", _convolve(jax, p, f"{block}.conv2", h))
            x = jax.nn.relu(h + (x if stride == 1 else _convolve(jax, p, f"{block}.skip", x, 2)))
        return x.mean((2, 3)) @ p["head.weight"].T + p["head.bias"]

    return Problem(net, source.normal(1, 3, side, side), twin=twin, weights=net.state_dict())


class EncoderLayer(nn.Module):
    """A layer of a transformer encoder that normalises first: x + attention(norm x), then x + feedforward(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The value at tokens (tokens, width); attention is spelt out, since the fused one has no forward mode."""
        tokens, width = x.shape
        # (3, heads, tokens, width / heads)
        q, k, v = self.qkv(self.norm1(x)).view(tokens, 3, self.heads, -1).permute(1, 2, 0, 3).unbind()
        weights = torch.softmax(q @ k.mT * (width // self.heads) ** -0.5, -1)
        x = x + self.out((weights @ v).transpose(0, 1).reshape(tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Encoder(nn.Module):
    """Encoder layers over tokens with learnt positions.

    Args:
        layers: How many.
        tokens: How many.
        width: Of a token.
        heads: Of the attention.
        pooled: Which side is pooled: "input" for one vector that every token takes in, "output" for the mean of tokens.
    """

    def __init__(self, layers: int, tokens: int, width: int, heads: int, pooled: str) -> None:
        super().__init__()
        self.pooled = pooled
        self.positions = nn.Parameter(torch.randn(tokens, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """The tokens (tokens, width), or their mean (width,)."""
        y = self.layers(x + self.positions)
        return y.mean(0) if self.pooled == "output" else y


def encoder(source: Source, layers: int, tokens: int, width: int, heads: int, pooled: str) -> Problem:
    """All tokens of an encoder's output with respect to a pooled input, or the pooled output to all tokens."""
    net = source.module(lambda: Encoder(layers, tokens, width, heads, pooled))
    x = source.normal(width) if pooled == "input" else source.normal(tokens, width)

    def twin(jax: Any, p: Any, x: Any) -> Any:
        y = x + p["positions"]
        for k in range(layers):
            y = _encoder_layer(jax, {n.removeprefix(f"layers.{k}."): w for n, w in p.items()}, y, heads)
        return y.mean(0) if pooled == "output" else y

    return Problem(net, x, twin=twin, weights=net.state_dict())


def _encoder_layer(jax: Any, p: Any, x: Any, heads: int) -> Any:
    jnp = jax.numpy
    tokens, width = x.shape
    linear = lambda name, y: y @ p[f"{name}.weight"].T + p[f"{name}.bias"]  # noqa: E731
    qkv = linear("qkv", _normalise_tokens(jax, p, "norm1", x)).reshape(tokens, 3, heads, -1).transpose(1, 2, 0, 3)
    weights = jax.nn.softmax(qkv[0] @ qkv[1].swapaxes(1, 2) * (width // heads) ** -0.5, -1)
    x = x + linear("out", (weights @ qkv[2]).swapaxes(0, 1).reshape(tokens, width))
    inner = linear("up", _normalise_tokens(jax, p, "norm2", x))
    return x + linear("down", jnp.asarray(jax.nn.gelu(inner, approximate=True)))


def _normalise_tokens(jax: Any, p: Any, name: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    spread = jax.numpy.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / spread * p[f"{name}.weight"] + p[f"{name}.bias"]


def _convolve(jax: Any, p: Any, name: str, x: Any, stride: int = 1) -> Any:
    kernel = p[f"{name}.weight"]
    around = kernel.shape[-1] // 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(around, around)] * 2)


def _normalise(jax: Any, p: Any, name: str, x: Any) -> Any:
    """Batch normalisation by stored statistics."""
    scale = p[f"{name}.weight"] / jax.numpy.sqrt(p[f"{name}.running_var"] + 1e-5)
    shift = p[f"{name}.bias"] - scale * p[f"{name}.running_mean"]
    return x * scale[:, None, None] + shift[:, None, None]
