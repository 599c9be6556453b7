"""The error for a limit that no plan can keep."""


class InfeasiblePlanError(ValueError):
    """No plan keeps the limit on held entries.

    Attributes:
        smallest: The smallest `peak_entries` for which there is a plan; of a `memory_limit` the least found, in bytes.
    """

    def __init__(self, message: str, *, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest
