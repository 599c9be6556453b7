"""What is exchanged in the process for a while is as it was, in whatever order threads come and go."""

import importlib
import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch.distributions import constraints
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_jvpvjp._process_state import Exchanged
from torch_jvpvjp.accumulation import _torch_contexts as contexts
from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.ops import _native
from torch_jvpvjp.testing import check, poisoned, properties


def attention() -> Any:
    kinds = ("flash", "mem_efficient", "math", "cudnn")
    return [getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in kinds]


def onednn() -> Any:
    return torch._C._get_mkldnn_enabled()


def log() -> Any:
    return logging.getLogger("torch._subclasses.fake_tensor").disabled


def bases() -> Any:
    return vars(importlib.import_module("torch._functorch.eager_transforms"))["_chunked_standard_basis_for_"]


def checks() -> Any:
    return [vars(type(one))["check"] for one in (constraints.positive_definite, constraints.positive_semidefinite)]


def memory() -> Any:
    settings: Any = torch.utils.deterministic
    return torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory


CONTEXTS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Callable[[], Any]]] = {
    "plain kernels: attention": (contexts.plain_kernels, attention),
    "plain kernels: oneDNN": (contexts.plain_kernels, onednn),
    "plain attention": (contexts.plain_attention, attention),
    "quietly": (contexts.quietly, log),
    "bases without writing": (contexts.bases_without_writing, bases),
    "checks without branches": (contexts.checks_without_branches, checks),
    "without native": (_native.without_native, _native.is_active),
    "poisoned: memory": (poisoned, memory),
    "poisoned: warnings": (poisoned, lambda: list(warnings.filters)),
    "check_op": (lambda: check._QUIET_PYTORCH, lambda: list(warnings.filters)),
    "numerical checks": (lambda: properties._QUIET, lambda: list(warnings.filters)),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_first_inside_changes_it_and_the_last_puts_it_back(name: str) -> None:
    make, state = CONTEXTS[name]
    before = state()
    first, second = make(), make()
    first.__enter__()
    changed = state()
    second.__enter__()
    assert state() == changed
    first.__exit__(None, None, None)  # a thread leaves while another, which came later, is inside
    assert state() == changed
    second.__exit__(None, None, None)
    assert state() == before
    assert changed != before or name == "without native"  # which is so already in the interpreter


def test_threads_that_come_and_go_see_it_changed_and_leave_it_as_it_was() -> None:
    state, seen = [0], []

    def change() -> Callable[[], object]:
        state[0] += 1
        return lambda: state.__setitem__(0, state[0] - 1)

    exchanged, start = Exchanged(change), threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(500):
            with exchanged:
                seen.append(state[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state == [0] and set(seen) == {1} and len(seen) == 2000


def test_what_cannot_be_changed_is_not_put_back() -> None:
    def change() -> Callable[[], object]:
        raise RuntimeError("no such thing")

    exchanged = Exchanged(change)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such thing"), exchanged:
            pass


def test_jacobians_in_threads_leave_the_choice_of_attention_as_it_was() -> None:
    x = torch.randn(1, 1, 6, 4, dtype=torch.float64)

    def attend(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    def looking(x: torch.Tensor) -> torch.Tensor:  # at data: a stage that is called as it stands
        return attend(x) if x.sum() > -1e9 else x

    expected = torch.func.jacrev(lambda x: torch.softmax(x @ x.mT / 2, -1) @ x)(x)
    found: list[Any] = []

    def work() -> None:
        try:
            for function in (attend, looking) * 4:
                found.append(plan_jacobian(function, x)(x))
        except Exception as error:  # noqa: BLE001 (shown below)
            found.append(error)

    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        before, enabled = attention(), onednn()
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert attention() == before and onednn() == enabled
    assert not log()
    for result in found:
        if isinstance(result, Exception):
            raise result
        torch.testing.assert_close(result, expected)
