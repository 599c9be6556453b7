"""No recorded program copies what it has copied: the second copy reads what the first was of."""

import pytest
import torch
from jacobian_checks import F64, assert_same, randn
from replay_checks import program_of, run_calls
from torch import Tensor

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.calls import without_unused
from torch_jvpvjp.accumulation.program import ProgramRecorder
from torch_jvpvjp.accumulation.replay import without_double_copies

ATEN = torch.ops.aten


def attention(x: Tensor) -> Tensor:
    q, k, v = (x @ WEIGHT).view(5, 3, 2, 4).permute(1, 2, 0, 3).unbind()
    weights = torch.softmax(q @ k.mT, -1)
    return (weights @ v).transpose(0, 1).reshape(5, 8)


WEIGHT = torch.randn(8, 24, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("strategy", ["forward", "reverse"])
def test_a_jacobian_of_attention_copies_once(strategy):
    x = randn(5, 8)
    plan = plan_jacobian(attention, x, strategy=strategy)
    expected = torch.func.jacrev(attention)(x)
    for _ in range(2):  # the executor, then the recorded program
        assert_same(plan(x), expected)
    calls = program_of(plan, x).calls
    made = {index: call for call in calls for index in call.outputs}
    for call in calls:
        if call.target is ATEN.clone.default and call is not calls[-2]:  # the result, whose axes are merged before
            before = made.get(_root(made, call.operands[0]))
            assert before is None or before.target is not ATEN.clone.default


def _root(made, index):
    while index in made and made[index].target.is_view and made[index].target is not ATEN.expand.default:
        index = made[index].operands[0]
    return index


def contiguous(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


CASES = {  # of x, (2, 6, 4): what is done, and how many copies and stacks are left
    "transposed": (lambda x: contiguous(contiguous(x.transpose(0, 2)).permute(1, 2, 0)), 1),
    "one-of-it": (lambda x: contiguous(contiguous(x.permute(1, 0, 2))[3].t()), 1),
    "taken-apart": (lambda x: contiguous(contiguous(x.permute(1, 0, 2)).view(2, 3, 2, 4).permute(1, 0, 3, 2)), 1),
    "merged-and-taken-apart": (lambda x: contiguous(contiguous(x.mT).view(2, 24).view(2, 4, 6).mT), 1),
    "three-deep": (lambda x: contiguous(contiguous(contiguous(x.permute(1, 0, 2))[3].t()).t()), 1),
    "merged": (lambda x: contiguous(contiguous(x.permute(1, 0, 2)).view(12, 4).t()), 2),
    "some-of-it": (lambda x: contiguous(contiguous(x.mT)[:, 1:3].mT), 2),
    "every-other": (lambda x: contiguous(contiguous(x.mT)[:, ::2].mT), 2),
    "stack": (lambda x: torch.stack([contiguous(x.mT).mT, x.sin()], 1), 1),
    "permuted-stack": (lambda x: contiguous(torch.stack([contiguous(x.mT).mT, x], 1).permute(2, 1, 3, 0)), 1),
    "permuted-stack-that-is-used-twice": (
        lambda x: contiguous((y := torch.stack([x, x], 1)).permute(2, 1, 3, 0)) + y.sum(),
        2,
    ),
    "transposed-and-expanded": (lambda x: contiguous(x.mT.expand(5, 3, 2, 4, 6)), 2),
    "expanded": (lambda x: contiguous(x.expand(5, 3, 2, 6, 4)), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_copies_of_copies_are_copies_of_the_first(name):
    function, left = CASES[name]
    x = randn(2, 6, 4)
    with (recorder := ProgramRecorder([x])):
        expected = function(x)
    (number,) = [recorder._number(expected)]
    given = recorder._calls
    calls = without_unused(without_double_copies(given, [number], recorder._layouts, recorder._next), [number])
    values = run_calls(calls, {recorder._inputs[0]: x})
    assert torch.equal(values[number], expected)
    assert values[number].stride() == expected.stride()
    assert sum(call.target in {ATEN.clone.default, ATEN.stack.default} for call in calls) == left
    for index, layout in recorder._layouts.items():
        if index in values:
            assert (tuple(values[index].shape), values[index].stride()) == (tuple(layout.shape), layout.stride)
