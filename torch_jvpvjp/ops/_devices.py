"""The devices on which Triton kernels can run in this process."""

import importlib.util
import os


def triton_devices() -> tuple[str, ...]:
    """Device types to register Triton kernels for.

    Under ``TRITON_INTERPRET=1`` Triton runs kernels in Python on CPU tensors, so CPU tensors take them too.

    Returns:
        Device types; none where Triton is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        return ()
    return ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
