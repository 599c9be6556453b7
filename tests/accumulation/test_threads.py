"""Calls in several threads are those of each: forward mode, of which PyTorch has one level for all, and arguments."""

import threading

import pytest
import torch
from jacobian_checks import assert_same, judged, randn

from torch_jvpvjp.accumulation import jacobian, plan_jacobian
from torch_jvpvjp.accumulation._torch_contexts import plain_kernels


def _looking(v, w):
    return v.sin() * w.sum() if float(v.detach().sum()) > -1e9 else v  # looks at data: a black box


def _in_threads(call, points, calls=15):
    """Return what calls in threads of their own gave, or raised, for each of some points."""
    found = [[] for _ in points]

    def work(place):
        try:
            found[place] += [call(points[place]) for _ in range(calls)]
        except Exception as error:  # noqa: BLE001 (shown by the test)
            found[place].append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(points))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("how", ["first", "forward", "reverse", "create_graph"])
def test_threads_do_not_disturb_one_another(how):
    points = [(randn(4), randn(4)) for _ in range(4)]
    if how == "first":

        def call(point):
            return jacobian(_looking, point, wrt=0)

    elif how == "create_graph":
        call = plan_jacobian(_looking, points[0], wrt=0, create_graph=True)
    else:
        call = plan_jacobian(_looking, points[0], wrt=0, strategy=how)
    expected = [judged(_looking, point, 0) for point in points]
    for results, right in zip(_in_threads(call, points), expected, strict=True):
        for result in results:
            if isinstance(result, Exception):
                raise result
            assert_same(result.detach(), right)


def test_a_recorded_plan_in_threads():
    points = [randn(4) for _ in range(4)]

    def function(v):
        return torch.outer(v, v).sin().sum(0) * v.sort()[0]

    plan = plan_jacobian(function, points[0])
    for results, point in zip(_in_threads(plan, points), points, strict=True):
        for result in results:
            if isinstance(result, Exception):
                raise result
            assert_same(result, judged(function, point))


def test_recording_in_threads_leaves_onednn_as_it_was():
    enabled = torch._C._get_mkldnn_enabled()
    first, second = plain_kernels(), plain_kernels()
    first.__enter__()
    second.__enter__()
    assert not torch._C._get_mkldnn_enabled()
    first.__exit__(None, None, None)  # one thread leaves while another is inside
    assert not torch._C._get_mkldnn_enabled()
    second.__exit__(None, None, None)
    assert torch._C._get_mkldnn_enabled() == enabled
