"""What belongs to the whole process and is another for a while: threads that overlap leave it as it was."""

import warnings
from collections.abc import Callable
from threading import Lock


class Exchanged:
    """A context in which something of the process is another: its first thread changes it, its last puts it back.

    Did each thread put back what it had found, one that came while another was inside would put back the other's.

    Args:
        change: Changes it, and returns what puts it back.
    """

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        self._change = change
        self._lock, self._inside = Lock(), 0
        self._put_back: Callable[[], object] = lambda: None

    def __enter__(self) -> None:
        """Change it, if no thread has."""
        with self._lock:
            if self._inside == 0:
                self._put_back = self._change()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        """Put it back, if no thread is left."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._put_back()


def without_warnings(module: str = "") -> Exchanged:
    """Return a context in which warnings are ignored.

    Args:
        module: The beginning of the names of the modules that warn, a regular expression.

    Returns:
        The context, to be made once and entered by every thread.
    """

    def change() -> Callable[[], object]:
        filters = warnings.catch_warnings()
        filters.__enter__()
        warnings.filterwarnings("ignore", module=module)
        return lambda: filters.__exit__(None, None, None)

    return Exchanged(change)
