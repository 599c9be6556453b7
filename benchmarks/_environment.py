"""What a number was measured on: device, driver, versions, commit, date."""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent

Environment = dict[str, str | bool | int | None]


def pick_device(requested: str | None) -> torch.device | None:
    """The device to measure on.

    Args:
        requested: "cuda", "cpu", or None for CUDA only.

    Returns:
        The device, or None where CUDA is wanted and there is no GPU; then it has said so.
    """
    if requested == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    print("There is no GPU here, so nothing is measured; --device cpu measures on the CPU.")
    return None


def describe(device: torch.device) -> Environment:
    """Everything a reader needs to judge a number.

    Args:
        device: Where the tensors are.

    Returns:
        A dictionary that goes into the JSON as it is.
    """
    commit, dirty = _commit()
    return {
        "device": device_name(device),
        "device_type": device.type,
        "driver": _driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": commit,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def headline(environment: Environment) -> str:
    """One line that names device, versions and commit.

    Args:
        environment: What ``describe`` returned.

    Returns:
        The line.
    """
    driver = f", driver {environment['driver']}" if environment["driver"] else ""
    commit = f"{str(environment['commit'])[:12]}{' with changes' if environment['dirty'] else ''}"
    return (
        f"{environment['device']}{driver}; torch {environment['torch']}, triton {environment['triton']}, "
        f"python {environment['python']}; commit {commit}; {environment['date']}"
    )


def device_name(device: torch.device) -> str:
    """The model of a device.

    Args:
        device: The device.

    Returns:
        E.g. "NVIDIA H200", or the model name of the CPU.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "cpu"


def device_slug(device: torch.device) -> str:
    """The model of a device as part of a file name.

    Args:
        device: The device.

    Returns:
        E.g. "nvidia-h200"; on a CPU it starts with "cpu-".
    """
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return slug if device.type == "cuda" else f"cpu-{slug}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _driver() -> str | None:
    answer = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0] if answer else None


def _commit() -> tuple[str, bool | None]:
    """Commit, and whether files differ from it; ``BENCHMARK_COMMIT`` tells it to a copy without history."""
    told = os.environ.get("BENCHMARK_COMMIT")
    commit = _output("git", "rev-parse", "HEAD")
    if told is not None or commit is None:
        return told or "unknown", None
    changes = _output("git", "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return commit, None if changes is None else bool(changes)
