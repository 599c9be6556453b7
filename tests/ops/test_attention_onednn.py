"""What attention asks of oneDNN before it makes a product: which of the two is quicker, and few shapes."""

import platform
import subprocess
import sys

import pytest
import torch
from attention_judge import not_interpreted

from torch_jvpvjp import _onednn
from torch_jvpvjp.ops.attention import stripes
from torch_jvpvjp.ops.attention.maps import Operands, Scores

pytestmark = [
    not_interpreted,  # CPU tensors take the kernels there
    pytest.mark.skipif(_onednn.onednn_products() is None, reason="PyTorch was built without oneDNN"),
]


def test_the_measurement_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = _onednn.onednn_is_quicker_by_head
    ask.cache_clear()
    state = torch.get_rng_state()
    first = ask(1)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(_onednn, "onednn_products", lambda: None)
    assert ask(1) is first
    ask.cache_clear()
    assert not ask(1)
    ask.cache_clear()


FAULTS = """
import resource, torch
from torch_jvpvjp import _onednn
_onednn.onednn_is_quicker_by_head(1)
for many in range(12):
    if many == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tile, other = torch.ones(1 << 20), torch.ones(1 << 20)
    del tile, other
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_tiles_lie_in_memory_that_the_process_has() -> None:
    """Two matrices of 4 MiB have 2048 pages, each of which the system would have to find and clear again."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 200


@pytest.mark.parametrize("length", [1024, 2048, 4096, 5000, 16384])
def test_few_shapes_of_products_are_asked_for(length: int) -> None:
    """OneDNN makes code for each of them, and keeps it."""
    at = Operands(*(torch.empty(1, 2, length, 64, device="meta") for _ in range(3)))
    plain = Scores(None, None, None, None, 1.0, -1, -1, 0, 0.0, 0.0)
    for scores, widths in ((plain, 1), (plain._replace(right=0), 8)):
        found = stripes.tiled(at, scores, by_head=True)[1]
        assert [w.a for w in found[1:]] == [w.b for w in found[:-1]]
        assert (found[0].a, found[-1].b) == (0, length)
        assert all(w.c == 0 and w.d >= w.b for w in found)
        assert len({w.d for w in found}) <= widths
        assert len({w.b - w.a for w in found}) <= 2
        assert sum(w.d * (w.b - w.a) for w in found) <= (1 if widths == 1 else 0.65) * length**2
