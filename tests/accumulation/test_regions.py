"""Stages of a chain carried by structure: the cheaper end is found without walking all of the other."""

import pytest
import torch

from torch_jvpvjp.accumulation.structure import Identity
from torch_jvpvjp.accumulation.tracing.symbols import Symbols
from torch_jvpvjp.accumulation.tracing.traced import trace


def _recurrence(x):
    weight = torch.linspace(-1, 1, 9).reshape(3, 3)
    state, states = torch.ones(3), []
    for step in x.reshape(-1, 3):
        state = state + torch.tanh(state @ weight + step)
        states.append(state)
    return torch.cat(states)


def _funnel(x):
    return torch.tanh(x * torch.linspace(1, 2, 12)).reshape(3, 4).sum(1)


def _fan(x):
    return torch.tanh(torch.outer(x, torch.linspace(1, 2, 5))).reshape(-1)


@pytest.mark.parametrize(("f", "n"), [(_recurrence, 12), (_recurrence, 45), (_funnel, 12), (_fan, 3)])
def test_the_closed_form_is_the_cheaper_of_both_ends(f, n):
    for region in trace([f], torch.randn(n)).regions:
        found = region.closed
        assert found is not None
        ends = []
        for forwards in (True, False):
            symbols = Symbols()
            first, last = region.parts[0].meta(region.source), region.parts[-1].meta(region.target)
            start = Identity(first.numel if forwards else last.numel)
            structure = (region.forward if forwards else region.backward)(symbols, start)
            ends.append((symbols.fma, structure.entries, structure))
        fma, _, structure = min(ends, key=lambda end: end[:2])
        assert (found.fma, found.structure) == (fma, structure)
