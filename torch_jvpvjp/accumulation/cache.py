"""Plans that are kept between calls of `jacobian`, and whether making one pays."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._torch_autograd import Recording
    from .plan import Plan


_MOST_KINDS = 64  # of arguments and options, for one function
_MOST_WAYS = 256  # that it goes
_MOST_UNTOLD = 16  # calls

# What taking a Jacobian without a plan, and making a plan, cost, by one run of the function with its tape and the count
# of its ops. Measured on functions of 1 to 1,000 ops; planning takes up to 3 times more or less, and more than that for
# networks of convolutions. They decide only when a plan is made, never what it computes.
_SWEEP_START, _COLUMNS_A_RUN = 2.0, 8.0  # a sweep of c columns takes (2 + c / 8) runs
_PLANNING_RUNS, _PLANNING_SECONDS, _PLANNING_SECONDS_OF_OP = 10.0, 20e-3, 1.5e-3
_FIRST = 4.0  # a first call plans only where a sweep takes so many times what planning does


class Spent:
    """Seconds of calls by the way that a function went, those of the ways that were gone last."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def add(self, way: int, seconds: float) -> float:
        """Add those of one call, and return those of all that went this way."""
        spent = self._seconds.pop(way, 0.0) + seconds
        while len(self._seconds) >= _MOST_WAYS:
            self._seconds.pop(next(iter(self._seconds)))
        self._seconds[way] = spent
        return spent

    def of(self, way: int) -> float:
        """Return those of one way."""
        return self._seconds.get(way, 0.0)

    def forget(self, way: int) -> None:
        """Begin anew with one way."""
        self._seconds.pop(way, None)


@dataclass(eq=False)
class Remembered:
    """What is known of one function with arguments of one kind.

    Attributes:
        plan: Its plan, once made.
        seconds: What calls without a plan have taken so far.
        by_way: The same of those that went one way, where the function looks at data.
        untold: Those of the last calls, by what autograd has recorded, that are to be counted by their ways.
        last: What autograd has recorded of the last of them; None before that, and of batches.
        plannable: Whether there can be a plan, as far as is known.
        left_out: Whether torch.func leaves out the derivatives of some of its ops; None if nobody has looked.
        of_layers: Whether it is made of PyTorch's own layers alone; None likewise.
        layers: The names of its layers; None likewise.
        normalises: Whether it was seen to have results that autograd takes for constants.
        uses_constants: Whether it uses them.
    """

    plan: Plan | None = None
    seconds: float = 0.0
    by_way: Spent = field(default_factory=Spent)
    untold: list[tuple[Recording, float]] = field(default_factory=list)
    last: Recording | None = None
    plannable: bool = True
    left_out: bool | None = None
    of_layers: bool | None = None
    layers: str | None = None
    normalises: bool = False
    uses_constants: bool = False

    def took(self, seconds: float) -> None:
        """Take note of what a call without a plan has taken."""
        self.seconds += seconds
        if self.last is not None:
            self.untold.append((self.last, seconds))
            if len(self.untold) > _MOST_UNTOLD:
                self._tell()

    def _tell(self) -> None:
        for recording, seconds in self.untold:
            self.by_way.add(recording.way, seconds)
        self.untold.clear()

    def planning_pays(self, run: float, width: int, recording: Callable[[], Recording] | None = None) -> bool:
        """Whether a plan should be made now.

        As with renting or buying: once what was spent without a plan, with what the next call would take, exceeds what
        making one takes, it is made; so never more than about twice the best is spent. The first call may be the only
        one, and plans only where a plan would pay for itself within that call.

        Args:
            run: Seconds of one run of the function.
            width: How many columns or rows a sweep would carry.
            recording: What autograd has recorded of the function at a point; asked only if it may pay. A plan is for
                one way of a function, and pays with what calls that went this way have taken.

        Returns:
            Whether it pays.
        """
        if not self.plannable:
            return False
        sweep = run * (_SWEEP_START + width / _COLUMNS_A_RUN)
        planning = _PLANNING_SECONDS + _PLANNING_RUNS * run
        spent, times = self.seconds + sweep, 1.0 if self.seconds else _FIRST
        if spent <= planning * times:
            return False
        if recording is None:
            return True
        recorded = recording()
        self._tell()
        before = self.by_way.of(recorded.way)
        times = 1.0 if before else _FIRST
        return before + sweep > (planning + _PLANNING_SECONDS_OF_OP * recorded.nodes) * times


class _Plans(dict[Hashable, Remembered]):
    """What is remembered of a function, kept on the function itself, with which it lives and dies.

    `functools.wraps`, as `torch.func.grad` uses it, and `copy.copy` hand the attributes of a function on to another
    one, which is not the owner of these plans and gets its own.

    Args:
        owner: The function; none for a copy of what is remembered, which begins with nothing.
    """

    def __init__(self, owner: Any = None) -> None:
        super().__init__()
        self._owner = None if owner is None else weakref.ref(owner)

    def are_of(self, function: Any) -> bool:
        """Return whether they are those of a function."""
        return self._owner is not None and self._owner() is function

    def __copy__(self) -> _Plans:
        return _Plans()

    def __deepcopy__(self, memo: Any) -> _Plans:
        return _Plans()

    def __reduce__(self) -> tuple[type[_Plans], tuple[()]]:
        return _Plans, ()


ATTRIBUTE = "_torch_jvpvjp_plans"
REFERRED = "_torch_jvpvjp_referred"  # a method of objects that tell the one object that a recording may depend on


def remembered(stages: Sequence[Callable[..., Any]], kind: Hashable) -> Remembered:
    """Return what is remembered of a function with arguments of one kind; nothing yet where nothing can be kept."""
    first: Any = stages[0]
    owner = getattr(first, "__self__", first)  # a bound method is a new object each time
    # Of a builtin such as `torch.nn.functional.gelu` or `weight.mul` that is a module or a tensor, which has many.
    method = None if owner is first else getattr(first, "__func__", first.__name__)
    try:
        plans = plans_of(owner)
        key = method, tuple(stages[1:]), kind
        known = plans.get(key)
        if known is None:
            while len(plans) >= _MOST_KINDS:
                plans.pop(next(iter(plans)))
            plans[key] = known = Remembered()
        return known
    except (TypeError, AttributeError):
        return Remembered()


def plans_of(owner: Any) -> _Plans:
    """What is remembered of a function, put where it is kept if nothing is yet.

    Args:
        owner: The function, or the object whose method it is.

    Returns:
        The plans, by their kind.

    Raises:
        TypeError: If nothing can be kept on it.
        AttributeError: If nothing can be kept on it.
    """  # noqa: DOC502 (raised by vars and by what is called)
    plans = vars(owner).get(ATTRIBUTE)
    if plans is None or not plans.are_of(owner):
        object.__setattr__(owner, ATTRIBUTE, plans := _Plans(owner))
    return plans
