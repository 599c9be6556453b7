"""Calibrations in the user's cache folder: one small JSON file for each device, dtype, PyTorch and thread count."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from .model import DeviceModel

Key = tuple[str, str, str, int]  # as DeviceModel.key


def cache_folder() -> Path:
    """Return where calibrations are kept: TORCH_JVPVJP_CACHE_DIR, or the system's folder for caches."""
    own = os.environ.get("TORCH_JVPVJP_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "torch_jvpvjp"


def path_of(key: Key) -> Path:
    """Return the file of a calibration."""
    device, dtype, _, threads = key
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{device} {dtype} {threads}").strip("-").lower()[:80]
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:8]
    return cache_folder() / f"timing-{slug}-{digest}.json"


def load(key: Key) -> DeviceModel | None:
    """Return the stored calibration; None if there is none, or its file is unreadable or of something else."""
    try:
        model = DeviceModel.from_json(path_of(key).read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):  # RuntimeError: the user has no home
        return None
    return model if model.key == key else None


def save(model: DeviceModel) -> Path | None:
    """Store a calibration, whole or not at all.

    Args:
        model: The calibration.

    Returns:
        Its file; None where nothing can be written, as in a read-only home, which is no error: it is measured again
        when it is next asked for.
    """
    try:
        path = path_of(model.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    except (OSError, RuntimeError):
        return None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(model.to_json() + "\n")
        Path(draft).replace(path)
    except OSError:
        with suppress(OSError):
            Path(draft).unlink()
        return None
    return path
