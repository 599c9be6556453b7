"""The data and the two networks of the demo."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from rich.console import Console
from torch import Tensor, nn
from tqdm import trange

from ..ops import rms_norm


def wide_console() -> Console:
    """A console on which the demo's tables fit, where output goes to a file too."""
    return Console() if Console().is_terminal else Console(width=120)


@dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits of 8 by 8 pixels.

    Attributes:
        images: (1797, 64) in [0, 1], float32.
        labels: (1797,), 0 to 9.
        held_out: How many at the end are not trained on.
    """

    images: Tensor
    labels: Tensor
    held_out: int = 360

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """A random batch of the training part."""
        chosen = torch.randint(len(self.images) - self.held_out, (size,))
        return self.images[chosen], self.labels[chosen]


def load_digits() -> Digits:
    """The digits, from inside scikit-learn; nothing is downloaded.

    Returns:
        The digits.
    """
    from sklearn.datasets import load_digits as load

    data: Any = load()
    images = torch.tensor(data["data"], dtype=torch.float32) / 16
    return Digits(images, torch.tensor(data["target"]))


class ResidualBlock(nn.Module):
    """x + W₂ silu(W₁ rms_norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (*batch, width).

        Returns:
            (*batch, width).
        """
        h = rms_norm(x, x.shape[-1:], self.gain)
        return x + self.second(F.silu(self.first(h)))


def _train(net: nn.Module, steps: int, name: str, rate: float, loss_of_batch: Callable[[], Tensor]) -> None:
    """Minimise with AdamW under a progress bar that shows the loss."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    with trange(steps, desc=name, mininterval=0.5) as progress:
        for step in progress:
            loss = loss_of_batch()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 0 or step == steps - 1:
                progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def train_classifier(digits: Digits, steps: int) -> nn.Module:
    """Train a small residual network on the digits with our ``rms_norm``.

    Args:
        digits: The data.
        steps: Number of steps.

    Returns:
        The network, 64 to 10.
    """
    net = nn.Sequential(nn.Linear(64, 48), ResidualBlock(48), ResidualBlock(48), nn.Linear(48, 10))

    def loss() -> Tensor:
        images, labels = digits.batch(128)
        return F.cross_entropy(net(images), labels)

    _train(net, steps, "residual network", 3e-3, loss)
    with torch.no_grad():
        guess = net(digits.images[-digits.held_out :]).argmax(-1)
    accuracy = (guess == digits.labels[-digits.held_out :]).float().mean().item()
    print(f"residual network with our rms_norm: {accuracy:.1%} of {digits.held_out} held-out digits right\n")
    return net


AUTOENCODER_SIZES = (64, 256, 64, 8, 64, 256, 64)


def train_autoencoder(digits: Digits, steps: int) -> nn.Sequential:
    """Train an autoencoder with a bottleneck of 8.

    Args:
        digits: The data.
        steps: Number of steps.

    Returns:
        A chain of Linear layers and tanh, 64 to 64, in float64.
    """
    layers: list[nn.Module] = []
    for n, m in zip(AUTOENCODER_SIZES, AUTOENCODER_SIZES[1:], strict=False):
        layers += [nn.Linear(n, m), nn.Tanh()]
    net = nn.Sequential(*layers[:-1])

    def loss() -> Tensor:
        images, _ = digits.batch(128)
        noisy = images + 0.2 * torch.randn_like(images)  # or it answers to pixels that are never lit
        return F.mse_loss(net(noisy), images)

    _train(net, steps, "autoencoder", 2e-3, loss)
    print()
    return net.double()
