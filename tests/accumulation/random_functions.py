"""Random functions: straight lines of PyTorch calls on a pool of small values, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

F64 = torch.float64
MOST = 48  # entries of a value
Step = Callable[[list[Tensor]], Tensor | Sequence[Tensor]]


class Function(nn.Module):
    """A random function of one or more tensors, whose weights are its parameters and buffers.

    Args:
        seed: What it is drawn from.
        steps: How many calls.
    """

    def __init__(self, seed: int, steps: int = 8) -> None:
        super().__init__()
        self.rng = Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList()
        self.modules_used = nn.ModuleList()
        self.inputs = [self.randn(*self.shape()) for _ in range(self.rng.choice([1, 1, 1, 2, 3]))]
        self.steps: list[tuple[str, Step]] = []
        pool = list(self.inputs)
        for _ in range(200):
            if len(self.steps) >= steps:
                break
            name, make = self.rng.choice(OPS)
            try:
                step = make(self, pool)
                made = step(list(pool))
            except (RuntimeError, IndexError, ValueError, AssertionError):
                continue  # no value of the pool has the shape for it
            tensors = [made] if isinstance(made, Tensor) else list(made)
            if all(0 < t.numel() <= MOST and t.isfinite().all() and t.abs().max() < 1e3 for t in tensors):
                self.steps.append((name, step))
                pool += [t.detach() for t in tensors]
        self.form = self.rng.choice(["last", "last", "last", "tuple", "dict", "number"])
        floating = [place for place, value in enumerate(pool) if value.dtype == F64]
        self.chosen = [floating[-1], *self.rng.sample(floating, min(2, len(floating)))]
        del self.rng, self.generator

    def shape(self) -> tuple[int, ...]:
        """Return a small shape."""
        return self.rng.choice([(4,), (3, 4), (2, 6), (5,), (1, 4), (2, 3, 4), (1, 2, 4, 4), (6, 1), (1,), ()])

    def randn(self, *shape: int) -> Tensor:
        """Return random numbers."""
        return torch.randn(shape, generator=self.generator, dtype=F64)

    def weight(self, *shape: int) -> Callable[[], Tensor]:
        """Return what gives a parameter."""
        place = len(self.weights)
        self.weights.append(nn.Parameter(self.randn(*shape) / max(shape[-1:] or (1,)) ** 0.5))
        return lambda: self.weights[place]

    def module(self, module: nn.Module) -> Callable[..., Any]:
        """Return what calls a submodule, of random weights."""
        place = len(self.modules_used)
        module = module.to(F64)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(self.randn(*parameter.shape) / 2)
        self.modules_used.append(module.eval())
        return lambda *args: self.modules_used[place](*args)

    def pick(self, pool: Sequence[Tensor], dims: Sequence[int] = (0, 1, 2, 3, 4)) -> int:
        """Return the place of a floating value of so many axes, a late one rather than an early one."""
        places = [p for p, value in enumerate(pool) if value.dim() in dims and value.dtype == F64]
        return max(self.rng.choice(places), self.rng.choice(places))

    def forward(self, *args: Tensor) -> Any:
        """Return the last value, a number, or a tree of some values."""
        pool = list(args)
        for _, step in self.steps:
            made = step(pool)
            pool += [made] if isinstance(made, Tensor) else list(made)
        first, *others = (pool[place] for place in self.chosen)
        if self.form == "number":
            return first.sum() + first.square().sum()
        if self.form == "tuple":
            return (first, *others)
        return {"first": first, "others": others} if self.form == "dict" else first


# ---- calls: from a function that is being drawn, and the values that there are, to a step ----------------------------


def _entrywise(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool)
    op = f.rng.choice([
        torch.sin, torch.tanh, torch.sigmoid, F.softplus, F.gelu, F.silu, torch.relu, torch.abs, torch.square,
        torch.exp,
        F.elu, torch.neg, torch.atan, F.leaky_relu, F.hardtanh, torch.erf, lambda t: t.clamp(-0.5, 0.7), torch.sign,
        lambda t: t.square().add(1).sqrt(), lambda t: (t.square() + 0.5).log(), lambda t: (t * t + 1).reciprocal(),
        lambda t: t.detach() * t, lambda t: t**3, lambda t: 2 - t, lambda t: 1.5 / (t * t + 1), F.logsigmoid,
        torch.expm1,
    ])  # fmt: skip
    return lambda p: op(p[a])


def _binary(f: Function, pool: Sequence[Tensor]) -> Step:
    a, b = f.pick(pool), f.pick(pool)
    number = f.rng.choice([2, -1, 0.5, 3.0])
    op = f.rng.choice([
        torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum, lambda s, t: s / (t * t + 1), torch.atan2,
        lambda s, t: torch.where(s > t, s, t * t), lambda s, t: torch.add(s, t, alpha=number), torch.hypot,
        lambda s, t: torch.addcmul(s, t, t, value=number), lambda s, t: torch.lerp(s, t, 0.3),
        lambda s, t: s + t * number,
        lambda s, t: (s.square() + 1) ** t.tanh(), lambda s, t: s.expand_as(t) * t, lambda s, t: torch.rsub(s, t),
    ])  # fmt: skip
    return lambda p: op(p[a], p[b])


def _weighted(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool)
    shape = pool[a].shape[f.rng.choice([0, 1]) :]
    w = f.weight(*shape)
    op = f.rng.choice([torch.mul, torch.add, torch.sub, lambda s, t: (s - t).square(), lambda s, t: s * t.exp()])
    return lambda p: op(p[a], w())


def _linear(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool, (1, 2, 3))
    n, m = pool[a].shape[-1], f.rng.choice([1, 2, 4, 5])
    kind = f.rng.choice(["module", "no bias", "matmul", "left", "addmm", "einsum"])
    if kind == "module":
        net = f.module(nn.Linear(n, m))
        return lambda p: net(p[a])
    if kind == "left":
        w = f.weight(m, pool[a].shape[-2] if pool[a].dim() > 1 else n)
        return lambda p: w() @ p[a]
    w, b = f.weight(m, n), f.weight(m)
    if kind == "addmm":
        return lambda p: torch.addmm(b(), p[a], w().t(), beta=0.5, alpha=2.0)
    if kind == "einsum":
        return lambda p: torch.einsum("...i,oi->...o", p[a], w())
    if kind == "no bias":
        return lambda p: F.linear(p[a], w())
    return lambda p: p[a] @ w().t() + b()


def _product(f: Function, pool: Sequence[Tensor]) -> Step:
    a, b = f.pick(pool, (1, 2, 3)), f.pick(pool, (1, 2, 3))
    op = f.rng.choice([
        torch.matmul, lambda s, t: s @ t.transpose(-1, -2), lambda s, t: s.transpose(-1, -2) @ t, torch.outer,
        torch.dot,
        lambda s, t: s.reshape(-1, 1) @ t.reshape(1, -1), torch.bmm, lambda s, t: torch.einsum("...i,...i->...", s, t),
        lambda s, t: torch.cdist(s, t), lambda s, t: F.cosine_similarity(s, t, -1), torch.kron,
    ])  # fmt: skip
    return lambda p: op(p[a], p[b])


def _moved(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool, (1, 2, 3, 4))
    x = pool[a]
    axis, other = f.rng.randrange(-x.dim(), x.dim()), f.rng.randrange(x.dim())
    size = x.shape[axis]
    at, by = f.rng.randrange(size), f.rng.choice([1, 2, -1])
    index = torch.tensor([f.rng.randrange(size) for _ in range(f.rng.choice([1, 2, 5]))])
    mask = torch.rand(x.shape, generator=f.generator) > 0.4
    gathered = torch.randint(0, size, x.shape, generator=f.generator)
    op = f.rng.choice([
        lambda t: t.reshape(-1), lambda t: t.transpose(axis, other), lambda t: t.flip(axis),
        lambda t: t.select(axis, at),
        lambda t: t.narrow(axis, at, 1), lambda t: t.index_select(axis, index), lambda t: t.roll(by, axis),
        lambda t: t.unsqueeze(axis), lambda t: t.squeeze(), lambda t: torch.cat([t, t * 2], axis),
        lambda t: t[..., ::2],
        lambda t: torch.stack([t, t.sin()], axis), lambda t: t.repeat_interleave(2, axis), lambda t: t[..., 1:],
        lambda t: torch.where(mask, t, 0.0), lambda t: t.masked_fill(mask, 1.5), lambda t: t.gather(axis, gathered),
        lambda t: t.expand(2, *t.shape), lambda t: F.pad(t, (1, 1)), lambda t: t.tril(), lambda t: t.diagonal(),
        lambda t: torch.diag_embed(t), lambda t: t.unfold(-1, 2, 1), lambda t: t.movedim(0, -1), lambda t: t[index],
        lambda t: t.contiguous().view(-1, size), lambda t: t.T if t.dim() == 2 else t.clone(), lambda t: t.flatten(),
        lambda t: torch.zeros_like(t).scatter_add(axis, gathered, t), lambda t: t.repeat(2, *[1] * (t.dim() - 1)),
        lambda t: torch.take_along_dim(t, gathered, axis), lambda t: t.t().contiguous(), lambda t: t[[0, -1]],
    ])  # fmt: skip
    return lambda p: op(p[a])


def _pieces(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool, (1, 2, 3))
    axis = f.rng.randrange(pool[a].dim())
    op = f.rng.choice([
        lambda t: t.split(2, axis), lambda t: t.chunk(2, axis), lambda t: t.unbind(axis),
        lambda t: torch.topk(t, 2, axis)[0:1],
        lambda t: torch.sort(t, axis)[0:1], lambda t: torch.max(t, axis)[0:1], lambda t: torch.var_mean(t, axis),
        lambda t: torch.tensor_split(t, 3, axis), lambda t: torch.aminmax(t, dim=axis), lambda t: torch.frexp(t)[0:1],
    ])  # fmt: skip
    return lambda p: op(p[a])


def _reduced(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool, (1, 2, 3, 4))
    axis, keep = f.rng.randrange(-pool[a].dim(), pool[a].dim()), f.rng.choice([True, False])
    op = f.rng.choice([
        lambda t: t.sum(axis, keepdim=keep), lambda t: t.mean(axis, keepdim=keep), lambda t: t.softmax(axis), torch.sum,
        lambda t: t.log_softmax(axis), lambda t: t.cumsum(axis), lambda t: t.logsumexp(axis, keepdim=keep), torch.mean,
        lambda t: t.amax(axis, keepdim=keep), lambda t: t.var(axis, keepdim=keep),
        lambda t: (t + 2).prod(axis), torch.max,
        lambda t: t.norm(dim=axis, keepdim=keep), lambda t: t.std(axis), lambda t: t.cumprod(axis),
        lambda t: t.logcumsumexp(axis), lambda t: t - t.mean(axis, keepdim=True), lambda t: F.normalize(t, dim=axis),
        lambda t: t.median(axis)[0], lambda t: t.cummax(axis)[0], lambda t: F.glu(t, axis), lambda t: t.square().sum(),
    ])  # fmt: skip
    return lambda p: op(p[a])


def _layer(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool, (2, 3, 4))
    x = pool[a]
    if x.dim() == 4:
        net = f.module(
            f.rng.choice([
                lambda: nn.Conv2d(x.shape[1], 2, 3, padding=1), lambda: nn.AvgPool2d(2), lambda: nn.MaxPool2d(2),
                lambda: nn.BatchNorm2d(x.shape[1]), lambda: nn.GroupNorm(1, x.shape[1]),
                lambda: nn.Upsample(scale_factor=2),
                lambda: nn.ConvTranspose2d(x.shape[1], 1, 2), lambda: nn.InstanceNorm2d(x.shape[1], affine=True),
            ])()
        )  # fmt: skip
        return lambda p: net(p[a])
    net = f.module(
        f.rng.choice([
            lambda: nn.LayerNorm(x.shape[-1]), lambda: nn.BatchNorm1d(x.shape[1]), lambda: nn.RMSNorm(x.shape[-1]),
            lambda: nn.MultiheadAttention(x.shape[-1], 1, batch_first=True), lambda: nn.Conv1d(x.shape[1], 2, 2),
            lambda: nn.Bilinear(x.shape[-1], x.shape[-1], 2), lambda: nn.TransformerEncoderLayer(x.shape[-1], 1, 4),
            lambda: nn.AvgPool1d(2), lambda: nn.PReLU(x.shape[1]), lambda: nn.Softmin(-1),
        ])()
    )  # fmt: skip
    if isinstance(f.modules_used[-1], nn.Bilinear):
        return lambda p: net(p[a], p[a])
    if isinstance(f.modules_used[-1], nn.MultiheadAttention):
        return lambda p: net(p[a], p[a], p[a])[0]
    return lambda p: net(p[a])


def _loop(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool, (1, 2))
    n, count = pool[a].shape[-1], f.rng.choice([5, 9, 12])
    shared = f.rng.choice([True, True, False])
    ws = [f.weight(n, n) for _ in range(1 if shared else count)] * (count if shared else 1)
    b = f.weight(n)
    kind = f.rng.choice(["rnn", "euler", "residual", "recorded", "gated", "driven"])

    def step(p: list[Tensor]) -> Tensor:
        h, seen = p[a], []
        for number, w in enumerate(ws):
            z = h @ w().t() / n
            if kind == "rnn":
                h = torch.tanh(z + b())
            elif kind == "euler":
                h = h + 0.1 * torch.sin(z)
            elif kind == "residual":
                h = h + F.gelu(z) * 0.2
            elif kind == "gated":
                gate = torch.sigmoid(z)
                h = gate * h + (1 - gate) * torch.tanh(b() * z)
            elif kind == "driven":
                h = torch.tanh(z + p[a][..., number % n : number % n + 1])
            else:
                h = torch.tanh(z) + b()
                seen.append(h[..., 0] if number % 2 else h[..., -1])
        return torch.stack(seen, -1) if seen else h

    return step


def _recurrent(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool, (2, 3))
    n = pool[a].shape[-1]
    kind = f.rng.choice([nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell])
    net = f.module(kind(n, 2))

    def step(p: list[Tensor]) -> Tensor:
        out = net(p[a])
        return out[0] if isinstance(out, tuple) else out

    return step


def _written(f: Function, pool: Sequence[Tensor]) -> Step:
    a, b = f.pick(pool), f.pick(pool)
    kind = f.rng.choice([
        "add_",
        "mul_ on view",
        "copy_ to slice",
        "fresh",
        "index_put",
        "relu_",
        "accumulate",
        "sub row",
    ])

    def step(p: list[Tensor]) -> Tensor:
        x = p[a]
        if kind == "fresh":
            out = x.new_zeros(x.shape)
            out += x * x
            return out
        y = x.clone() if kind != "relu_" else x * 2
        if kind == "add_":
            return y.add_(p[b])
        if kind == "relu_":
            return y.relu_().mul_(3)
        if kind == "accumulate":
            for number in range(3):
                y += x.sin() * number
            return y
        if kind == "mul_ on view":
            y[..., 0].mul_(x[..., -1])
        elif kind == "copy_ to slice":
            y[..., :1] = x[..., -1:] * 2
        elif kind == "index_put":
            y[0] = x[-1].sin()
        else:
            y.view(-1)[1:].sub_(x.reshape(-1)[:-1])
        return y

    return step


def _complex(f: Function, pool: Sequence[Tensor]) -> Step:
    a = f.pick(pool, (1, 2))
    op = f.rng.choice([
        lambda t: torch.fft.rfft(t).abs(), lambda t: torch.fft.fft(t).real, lambda t: torch.polar(t.abs() + 1, t).imag,
        lambda t: torch.view_as_real(torch.complex(t, t.sin())), lambda t: (torch.complex(t, t) ** 2).imag,
    ])  # fmt: skip
    return lambda p: op(p[a])


def _mixed(f: Function, pool: Sequence[Tensor]) -> Step:
    a, b = f.pick(pool), f.pick(pool)
    op = f.rng.choice([
        lambda s, t: s * t.detach(), lambda s, t: s * (t > 0), lambda s, t: s * t.argmax(), lambda s, t: s + t.shape[0],
        lambda s, t: s.nan_to_num(), lambda s, t: s * torch.arange(s.shape[-1]), lambda s, t: s * t.round(),
        lambda s, t: s.sum() * t.numel(), lambda s, t: s.round() + s, lambda s, t: s % 0.7,
        lambda s, t: s.new_ones(3) * s.sum(),
    ])  # fmt: skip
    return lambda p: op(p[a], p[b])


OPS: list[tuple[str, Callable[[Function, Sequence[Tensor]], Step]]] = [
    ("entrywise", _entrywise), ("entrywise", _entrywise), ("binary", _binary), ("binary", _binary),
    ("weighted", _weighted), ("linear", _linear), ("linear", _linear), ("product", _product), ("moved", _moved),
    ("moved", _moved), ("moved", _moved), ("pieces", _pieces), ("reduced", _reduced), ("reduced", _reduced),
    ("layer", _layer), ("loop", _loop), ("recurrent", _recurrent), ("written", _written), ("complex", _complex),
    ("mixed", _mixed),
]  # fmt: skip
