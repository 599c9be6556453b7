"""The package as it is installed: imports, names, and what goes into a wheel."""

import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import torch_jvpvjp

ROOT = Path(__file__).parent.parent


def test_importing_needs_neither_triton_nor_a_gpu() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, torch_jvpvjp as tj\n"
        "assert not torch.cuda.is_initialized()\n"
        "print(tj.ops.rms_norm(torch.ones(2, 4), (4,)).sum().item())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(8.0)


def test_importing_does_not_import_what_only_some_calls_need() -> None:
    code = "import sys, torch; before = set(sys.modules); import torch_jvpvjp\nprint(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    names = {name.partition(".")[0] for name in run.stdout.split()}
    assert not names & {"triton", "matplotlib", "sklearn", "tqdm", "networkx", "rich", "sympy"}


def test_public_names_exist_and_are_documented() -> None:
    for name in torch_jvpvjp.__all__:
        assert getattr(torch_jvpvjp, name) is not None
        if name != "__version__":
            assert getattr(torch_jvpvjp, name).__doc__


def test_version_is_that_of_the_changelog() -> None:
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None and newest.group(1) == torch_jvpvjp.__version__


def test_kernels_are_imported_through_the_package() -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    kernels = importlib.import_module("torch_jvpvjp.triton_kernels.norms")
    assert kernels.__file__ is not None and Path(kernels.__file__).is_relative_to(ROOT)


@pytest.mark.slow
def test_the_wheel_holds_the_kernels(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--quiet",
            "-w",
            str(tmp_path),
            ".",
        ],
        cwd=ROOT,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "torch_jvpvjp/triton_kernels/norms/forward.py" in names
    assert "torch_jvpvjp/py.typed" in names
    assert not any(name.startswith(("triton_kernels/", "tests/", "benchmarks/")) for name in names)
