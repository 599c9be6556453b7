"""A model as libraries of models write them: with configurations, decorators, registries and much that no call runs."""

import os
import random
import threading
import time
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, wraps

import torch
from jacobian_checks import F64
from torch import nn

FLAGS = {"bias": True}
SCALE = 1.0
LOCK = threading.Lock()
CAPTURING = ContextVar("capturing", default=None)


@lru_cache
def is_available(name):
    return os.path.exists(name) or time.time() > 0


def with_defaults(forward):
    @wraps(forward)
    def wrapper(self, *args, **kwargs):
        if CAPTURING.get() is not None:
            kwargs["capture"] = CAPTURING.get()
        return forward(self, *args, **kwargs)

    return wrapper


def scaled_attention(module, query, key, value):
    return torch.softmax(query @ key.mT * module.scale, -1) @ value


def linear_attention(module, query, key, value):
    return query @ (key.mT @ value) * module.scale


ATTENTIONS = {"scaled": scaled_attention, "linear": linear_attention}


class Config:
    def __init__(self, **settings):
        self.attention, self.gated, self.path, self.extra = "scaled", False, os.getcwd(), LOCK
        vars(self).update(settings)

    def __getattribute__(self, name):
        return super().__getattribute__(name)

    def save(self):
        with open(self.path, "w") as file, LOCK:
            file.write(repr(vars(self)))

    @property
    def size(self):
        return 4


@dataclass
class Output(OrderedDict):
    last: torch.Tensor | None = None

    def __post_init__(self):
        self["last"] = self.last.tanh() * SCALE if FLAGS["bias"] else self.last


class Base(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.born = config, time.time()

    @classmethod
    def from_file(cls, path):
        if not os.path.exists(path) or random.random() > 2:
            raise FileNotFoundError(path)
        return cls(Config())

    def activated(self, x):
        return x.sin()


class Attention(Base):
    scale = 0.5

    def __init__(self, config):
        super().__init__(config)
        self.q, self.k, self.v = (nn.Linear(4, 4, dtype=F64) for _ in range(3))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        attend = ATTENTIONS[self.config.attention]
        y = attend(self, self.q(x), self.k(x), self.v(x))
        return self.dropout(y.tanh() if getattr(self.config, "gated", False) else y)


class Model(Base):
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList([Attention(config) for _ in range(2)])

    @with_defaults
    def forward(self, x, *, capture=None):
        if not is_available("anything"):
            raise ImportError
        for layer in self.layers:
            x = x + self.activated(layer(x))
        if os.environ.get("MODEL_LIBRARY_DOUBLE"):
            x = 2 * x
        if self.training:
            x = x * 0.5
        y = Output(last=x)["last"]
        return y if capture is None else y * capture
