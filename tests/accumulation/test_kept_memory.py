"""Plans of large tensors on a CPU run in memory that the process has, also where it had freed nothing large before."""

import platform
import subprocess
import sys

import pytest

CALLS = """
import resource, torch
from torch import nn
import torch_jvpvjp as tj

torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(1500, 10), nn.Tanh(), nn.Linear(10, 1500)).requires_grad_(False)
plan = tj.plan_jacobian(net, torch.zeros(1500))
for many in range(15):
    if many == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jacobian = plan(torch.ones(1500))
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_later_calls_ask_the_system_for_no_memory():
    """The Jacobian alone has 2197 pages, each of which the system would have to find and clear."""
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 500
