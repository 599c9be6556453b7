"""The Jacobian without a plan: by tangents or by adjoints, whichever are quicker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from .._left_out import without_derivative
from ._torch import grad_switched, inside_vmap, jvp_of, vjp_of
from ._torch_autograd import next_number, pulled_back, recording_of, updates_statistics
from ._torch_contexts import plain_attention
from .carrying import carry_each, dual, random_state, set_random_state, weights
from .foreign import left_out

Function = Callable[..., Tensor]  # of some tensors to one


class Recorded:
    """One run of a function at a point, with its pullback.

    Autograd records the run as it records any; `torch.func.vjp`, which takes longer for each op, is for results that
    are differentiated, and for where a transform is running.

    Args:
        function: A function of the leaves.
        leaves: The point, the tensors that the Jacobian is taken in.
        live: Whether the results are to be differentiated, or a transform is running.
        before: The state of what draws random numbers, to go back to if the function attends by a fused kernel: it runs
            once more, by plain attention. Without one, and if the results are to be differentiated, it does so at once.

    Attributes:
        n: The number of tangents that there are.
        y: The value.
        recording: What autograd has recorded.
        seconds: What the run took.

    Raises:
        ValueError: If the function writes into what it is given.
        NotImplementedError: If it calls an op of which PyTorch has no derivative.
    """

    def __init__(
        self, function: Function, leaves: Sequence[Tensor], *, live: bool, before: Tensor | None = None
    ) -> None:
        self.function, self.leaves, self.live, self._before = function, tuple(leaves), live, before
        self.n = sum([leaf.numel() for leaf in leaves])
        begin = perf_counter()
        self.y = self._recorded_live() if live else self._recorded_plainly()
        self.seconds = perf_counter() - begin

    @property
    def recorded(self) -> Tensor:
        """The value as autograd recorded it, where the results are not to be differentiated."""
        return self._of_autograd

    @property
    def width(self) -> int:
        """The tangents or adjoints that the Jacobian takes, whichever are fewer."""
        return min(self.n, self.y.numel())

    def rows(self, y_bars: Tensor) -> list[Tensor]:
        """Return the cotangents of each leaf for cotangents of the value, behind one axis; once only."""
        trusted = y_bars.shape[0] == 1 or self.recording.batches_rightly
        if self.live:
            return carry_each(self._pullback, [y_bars], asked=not trusted)
        try:
            if trusted and 1 < y_bars.shape[0] <= _FEW_ROWS:
                pulled = self._pulled(y_bars, again=False, batched=True)
                pairs = zip(pulled, self.leaves, strict=True)
                return [x_bar.expand(y_bars.shape[0], *leaf.shape) for x_bar, leaf in pairs]
            # What autograd keeps is needed again only where what comes out is compared with something.
            return carry_each(lambda y_bar: self._pulled(y_bar, again=not trusted), [y_bars], asked=not trusted)
        except RuntimeError:  # something on the way takes no rows at once, as sparse matrices do not
            if y_bars.shape[0] == 1:
                raise
            self._before, self.y = None, self._recorded_plainly()  # of the run before a part may be gone
            return carry_each(lambda y_bar: self._pulled(y_bar, again=True), [y_bars], apart=True)

    def row(self, y_bar: Tensor) -> list[Tensor]:
        """Return the cotangent of each leaf for one cotangent of the value; once only."""
        return list(self._pullback(y_bar) if self.live else self._pulled(y_bar, again=False))

    def columns(self, x_dots: Sequence[Tensor]) -> Tensor:
        """Return the tangents of the value for tangents of each leaf, all behind one axis; once only."""
        trusted = self.recording.batches_rightly
        found = self._transposed(x_dots) if trusted and not self.live else None
        if found is not None:
            return found

        def push(*tangents: Tensor) -> tuple[Tensor]:
            with plain_attention():
                return (jvp_of(self.function, self.leaves, tangents)[1],)

        before = random_state(self.y.device)
        y_dots = carry_each(push, x_dots, asked=not trusted)[0]
        if torch.equal(before, random_state(self.y.device)) and not self._has(x_dots, y_dots):
            raise RuntimeError("the JVP is not the transpose of the VJP")
        return y_dots

    def _has(self, x_dots: Sequence[Tensor], y_dots: Tensor) -> bool:
        """Return whether tangents of the value are those that the pullback says; unknown ones are believed."""
        if inside_vmap():
            return True
        y_bar = weights(self.y.numel(), self.y).reshape(self.y.shape)
        try:
            x_bars = self._pullback(y_bar) if self.live else self._pulled(y_bar, again=True)
        except RuntimeError:
            return not left_out(self.function, self.leaves)
        mixed = weights(y_dots.shape[0], y_dots)  # of all columns, Σ wᵢ ẋᵢ is one tangent
        x_dot = [torch.tensordot(mixed.to(x.dtype), x, 1) for x in x_dots]
        return dual([y_bar], [torch.tensordot(mixed, y_dots, 1)], [x.detach() for x in x_bars], x_dot)

    def _transposed(self, x_dots: Sequence[Tensor]) -> Tensor | None:
        """Return the tangents as adjoints of the pullback; None if an op on the way cannot be differentiated twice.

        The pullback ȳ ↦ Jᵀ ȳ is linear, and its own pullback is ẋ ↦ J ẋ. Once it is recorded, at some ȳ, the tangents
        take one sweep through the record of it: a third to half the time of forward mode, which goes through f again.
        """
        if not self._of_autograd.requires_grad:
            return None
        with torch.enable_grad():
            y_bar = torch.ones_like(self.y).requires_grad_()  # at 0 a few formulas (logcumsumexp) have a kink
            try:
                x_bars = torch.autograd.grad(self._of_autograd, self._own, y_bar, create_graph=True, allow_unused=True)
                pairs = [(x_bar, x_dot) for x_bar, x_dot in zip(x_bars, x_dots, strict=True) if x_bar is not None]
                if not all(x_bar.requires_grad and recording_of(x_bar).batches_rightly for x_bar, _ in pairs):
                    return None
                linear, chosen = [x_bar for x_bar, _ in pairs], [x_dot for _, x_dot in pairs]

                def push(*tangents: Tensor) -> tuple[Tensor, ...]:
                    return torch.autograd.grad(linear, y_bar, tangents)

                return carry_each(push, chosen, asked=False)[0] if chosen else None
            except RuntimeError:
                return None

    def _recorded_live(self) -> Tensor:
        versions = [None if leaf.is_inference() else leaf._version for leaf in self.leaves]

        def watched(*tensors: Tensor) -> Tensor:
            y = self.function(*tensors)
            self.recording = recording_of(y)  # of the level that `vjp` has opened, which it closes
            return y

        with plain_attention():
            y, self._pullback = vjp_of(watched, *self.leaves)
        if any(v is not None and leaf._version != v for leaf, v in zip(self.leaves, versions, strict=True)):
            raise ValueError(_WRITES)
        return y

    def _recorded_plainly(self) -> Tensor:
        if torch.is_inference_mode_enabled():  # autograd records in none, and to leave it takes a while
            with torch.inference_mode(mode=False):
                return self._recorded_plainly()
        with grad_switched(True):
            own = [(leaf.clone() if leaf.is_inference() else leaf.detach()).requires_grad_() for leaf in self.leaves]
            try:
                self._record(own)
            except RuntimeError as error:
                if "leaf Variable" in str(error):  # so autograd refuses that something is written into its leaves
                    raise ValueError(_WRITES) from error
                raise
        if not self.recording.whole:
            raise NotImplementedError(f"it calls {without_derivative(left_out(self.function, self.leaves))}")
        return self._of_autograd.detach()

    def _record(self, own: list[Tensor]) -> None:
        self._own = own
        if self._before is not None:
            begin = next_number()
            self._of_autograd = y = self.function(*own)
            self.recording = recording_of(y, begin)
            if self.recording.attends_plainly or updates_statistics(y):  # what has counted a batch is not run again
                return
            set_random_state(self.leaves[0].device, self._before)
        with plain_attention():
            begin = next_number()
            self._of_autograd = y = self.function(*own)
        self.recording = recording_of(y, begin)

    def _pulled(self, y_bar: Tensor, *, again: bool, batched: bool = False) -> tuple[Tensor, ...]:
        y = self._of_autograd
        if not y.requires_grad:
            return tuple(torch.zeros_like(leaf) for leaf in self.leaves)
        bare = self.recording.pulls_bare
        x_bars = pulled_back(y, self._own, y_bar, again=again or not bare, batched=batched, bare=bare)
        pairs = zip(x_bars, self.leaves, strict=True)
        return tuple(torch.zeros_like(leaf) if x_bar is None else x_bar for x_bar, leaf in pairs)


_FEW_ROWS = 4  # autograd's own `vmap` takes less time for each op, and goes row by row through those it has no rule for
_WRITES = "jacobian: f must not write into its input, which it did in place; copy the input first."


def plain_jacobian(run: Recorded) -> list[Tensor]:
    """Return the Jacobian in each leaf, (*y.shape, *leaf.shape), in one sweep of all tangents or all adjoints."""
    if 0 in {run.n, run.y.numel()}:
        return [run.y.new_zeros((*run.y.shape, *leaf.shape)) for leaf in run.leaves]
    if prefers_adjoints(run, run.y.numel(), run.n):
        return _by_adjoints(run)
    try:
        return _by_tangents(run)
    except RuntimeError:  # an op without a JVP, or one that takes no vectors at once; the pullback is there
        return _by_adjoints(run)


# An adjoint sweep spends less on each op than one of tangents does: for wide vectors half as much. While vectors are so
# few and small that ops take the host's time, and not that of their arithmetic, it does not matter how many there are,
# and forward mode takes five times as long.
_ADJOINTS_A_TANGENT = 2
_FEW_ADJOINTS, _SECONDS_OF_SMALL_OP = 32, 20e-6


def prefers_adjoints(run: Recorded, m: int, n: int) -> bool:
    """Return whether a sweep of m adjoints is expected to take less time than one of n tangents, or alone is right."""
    if not run.recording.pushes_rightly or (run.live and not run.recording.bends_rightly):
        return True
    if m <= _ADJOINTS_A_TANGENT * n:
        return True
    return m <= _FEW_ADJOINTS and run.seconds < run.recording.nodes * _SECONDS_OF_SMALL_OP


def _by_adjoints(run: Recorded) -> list[Tensor]:
    y, m = run.y, run.y.numel()
    if m == 1:
        pulled = run.row(torch.ones_like(y))
    else:
        rows = torch.eye(m, dtype=y.dtype, device=y.device)
        pulled = run.rows(rows if y.dim() == 1 else rows.reshape(m, *y.shape))
    return [
        x_bar if x_bar.dtype is y.dtype and y.dim() == 1 < m else x_bar.to(y.dtype).reshape((*y.shape, *leaf.shape))
        for x_bar, leaf in zip(pulled, run.leaves, strict=True)
    ]


def _by_tangents(run: Recorded) -> list[Tensor]:
    y, n, sizes = run.y, run.n, [leaf.numel() for leaf in run.leaves]
    columns = [
        part.to(leaf.dtype).reshape(n, *leaf.shape)
        for part, leaf in zip(torch.eye(n, dtype=y.dtype, device=y.device).split(sizes, 1), run.leaves, strict=True)
    ]

    pushed = run.columns(columns).to(y.dtype)
    parts = pushed.movedim(0, -1).split(sizes, -1)
    return [part.reshape((*y.shape, *leaf.shape)) for part, leaf in zip(parts, run.leaves, strict=True)]
