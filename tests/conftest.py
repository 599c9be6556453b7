"""What every test runs under: fixed seeds, one thread per worker, and a device chosen on the command line."""

import os

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the op tests: cpu, cuda")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: left out of make test-fast")
    config.addinivalue_line("markers", "compiled: runs torch.compile, which the kernel interpreter does not need again")
    torch.set_num_threads(1)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda was asked for and there is no CUDA device")
    return name


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def interpreted() -> None:
    """Kernels must be able to run here: on a GPU, or in Triton's interpreter on the CPU."""
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        pytest.skip("kernels run on a GPU or under TRITON_INTERPRET=1")
