"""Activation checkpointing that sees tangents: PyTorch's, made right inside of `torch.func.jvp` and of dual levels.

PyTorch's checkpoint calls a function again in backward, when the levels that its tensors belonged to are gone. Here the
levels are peeled off first: each tensor becomes its primal and its tangent, plain tensors that can be kept, and the
function one of these, which opens levels of its own, now as in backward.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint as plain_checkpoint

from ._recalled import Call
from .registration import _torch_private as private

__all__ = ["checkpoint"]

_Run = Callable[..., list[Tensor]]  # tensors in, tensors out
_Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool = False,
    preserve_rng_state: bool = True,
    context_fn: _Contexts | None = None,
    determinism_check: str = "default",
    debug: bool = False,
    early_stop: bool = True,
    **kwargs: Any,
) -> Any:
    """Call a function, keep none of the tensors it makes on the way, and call it again in backward.

    `torch.utils.checkpoint.checkpoint(use_reentrant=False)`, which also works inside of `torch.func.jvp`, `jacfwd` and
    `vmap`, in any nesting, with backward outside of them, and of `torch.autograd.forward_ad.dual_level`, with backward
    outside or inside. Of a dual (x, ẋ) it keeps x and ẋ alone; from them backward computes again

        y = f(x),    ẏ = J(x) ẋ

    and what lies between. What the function refers to (variables of closures, parameters and buffers of modules) is
    in backward what it was in the call: the parameters that `torch.func.functional_call` lends a module, or the value
    of a variable before a loop went on. PyTorch's takes what is there then, and its gradients are silently wrong.

    Args:
        function: What to call. The same in both calls, but for PyTorch's random numbers; it writes into no argument.
        *args: Its arguments: tensors, anything else, and lists, tuples and dicts of them.
        use_reentrant: Only False; there for code that was written for PyTorch's.
        preserve_rng_state: Whether the second call draws the same random numbers as the first.
        context_fn: As PyTorch's: two contexts, for the first call and the second, as of a selective checkpoint.
        determinism_check: As PyTorch's: "default" compares shapes, dtypes and devices of what both calls save; "none".
        debug: As PyTorch's: whether an error of that comparison lists the ops of both calls.
        early_stop: As PyTorch's: whether the second call ends once all that is needed is there.
        **kwargs: Keyword arguments of the function, likewise.

    Returns:
        What the function returns.

    Raises:
        ValueError: If use_reentrant is True.
        NotImplementedError: Inside of `torch.func.grad`, `vjp`, `jacrev` and `hessian`, in which PyTorch allows no
            hooks on saved tensors; or if a result depends on a dual or batched tensor that is no argument and is
            referred to in a way that is not seen (a global, an attribute of an attribute).

    Source: Griewank and Walther (2000), Algorithm 799: Revolve (recomputation, here of one stage).
    """
    if use_reentrant:
        raise ValueError(
            "checkpoint: use_reentrant must be False, got True; leave it out, or call "
            "torch.utils.checkpoint.checkpoint, whose reentrant variant knows neither tangents nor keyword arguments."
        )
    options: dict[str, Any] = {
        "use_reentrant": False,
        "preserve_rng_state": preserve_rng_state,
        "determinism_check": determinism_check,
        "debug": debug,
        "early_stop": early_stop,
    }
    if context_fn is not None:
        options["context_fn"] = context_fn
    if torch.compiler.is_compiling():  # becomes a region of the graph, which keeps its levels
        return plain_checkpoint(function, *args, **options, **kwargs)
    if not torch.is_grad_enabled():  # nothing is kept for backward
        return function(*args, **kwargs)
    _refuse_reverse_transforms()
    return _checkpointed(Call(function, args, kwargs, _is_lifted), options)


def _checkpointed(call: Call, options: dict[str, Any]) -> Any:
    """Peel off the levels, checkpoint what is left, put them on again."""
    levels, operands = _peel(call.take_operands())
    run: _Run = call
    if levels and isinstance(levels[-1], _DualLevel):
        run = _watched_once(call)
    for level in levels:
        if any(level.lifted):
            run = level.transformed(run)
    with private.without_interpreters() as interpreters:
        results = plain_checkpoint(_first_inside(interpreters, run), *operands, **options)
    return call.result(_restore(levels, results))


def _first_inside(interpreters: list[Any], run: _Run) -> _Run:
    """A function whose first call has all levels around it, so that a tensor of theirs that it uses shows."""
    # What PyTorch saves for the second call it must save without them, or it finds their wrappers in backward.

    def first(*operands: Tensor) -> list[Tensor]:
        present, interpreters[:] = interpreters.copy(), []
        with private.with_interpreters(present):
            return run(*operands)

    return first if interpreters else run


def _refuse_reverse_transforms() -> None:
    if any(interpreter.key() == private.TransformType.Grad for interpreter in private.interpreter_stack() or ()):
        raise NotImplementedError(
            "checkpoint: cannot run inside of torch.func.grad, vjp, jacrev or hessian, in which PyTorch allows no "
            "hooks on saved tensors. Differentiate with loss.backward() or torch.autograd.grad instead (of "
            "torch.func.jvp too), or call the function without checkpoint."
        )


# ---- levels ----------------------------------------------------------------------------------------------------------


class _Level:
    """One level that was peeled off: which operands it had lifted, and which results it lifts again."""

    def __init__(self, lifted: list[bool]) -> None:
        self.lifted = lifted
        self.results: list[bool] = []

    def transformed(self, run: _Run) -> _Run:
        """The function of what was peeled off, which opens such a level anew."""
        raise NotImplementedError

    def restored(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Results of the transformed function, back on this level."""
        raise NotImplementedError


class _Forward(_Level):
    """Forward mode, of `torch.func.jvp`. Peeled off: all primals, then the tangents that there are."""

    def transformed(self, run: _Run) -> _Run:
        def pushed(*operands: Tensor) -> list[Tensor]:
            primals, tangents = operands[: len(self.lifted)], operands[len(self.lifted) :]

            def dual_run(*duals: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
                results = run(*_merge(self.lifted, primals, duals))
                self.results = [_tangent(y) is not None for y in results]
                # torch.func.jvp wants some result with a tangent: the first dual, dropped below.
                return (*_chosen(self.results, results), duals[0]), _chosen([not r for r in self.results], results)

            moving = tuple(_chosen(self.lifted, primals))
            pushed_forward: Any = torch.func.jvp(dual_run, moving, tangents, has_aux=True)
            results, dots, still = pushed_forward
            others = iter(still)
            return [*_merge(self.results, [r or next(others) for r in self.results], results), *dots[:-1]]

        return pushed

    def restored(self, results: Sequence[Tensor]) -> list[Tensor]:
        values, dots = results[: len(self.results)], iter(results[len(self.results) :])
        pairs = zip(values, self.results, strict=True)
        return [private.make_dual(y, next(dots), level=0) if moves else y for y, moves in pairs]


class _DualLevel(_Forward):
    """Forward mode, of `dual_level`: likewise, on the level that is open; the second call opens one if none is."""

    def transformed(self, run: _Run) -> _Run:
        def pushed(*operands: Tensor) -> list[Tensor]:
            primals, tangents = operands[: len(self.lifted)], operands[len(self.lifted) :]
            is_open = private.forward_ad._current_level >= 0
            with nullcontext() if is_open else private.forward_ad.dual_level():
                pairs = zip(_chosen(self.lifted, primals), tangents, strict=True)
                duals = [private.make_dual(x, x_dot, level=0) for x, x_dot in pairs]
                results = run(*_merge(self.lifted, primals, duals))
                level, parts = _split(results, _Forward)
            self.results = level.lifted
            return parts

        return pushed


class _Batch(_Level):
    """A batch axis, of `vmap`. Peeled off: the same tensors, with the axis in front."""

    def __init__(self, lifted: list[bool], level: int, randomness: str) -> None:
        super().__init__(lifted)
        self.level, self.randomness = level, randomness

    def transformed(self, run: _Run) -> _Run:
        def mapped(*operands: Tensor) -> list[Tensor]:
            def sample_run(*samples: Tensor) -> tuple[Tensor, ...]:
                return (*run(*_merge(self.lifted, operands, samples)), samples[0])  # vmap wants some result

            return list(torch.vmap(sample_run, randomness=self.randomness)(*_chosen(self.lifted, operands))[:-1])

        return mapped

    def restored(self, results: Sequence[Tensor]) -> list[Tensor]:
        return [private.add_batch_dim(y, 0, self.level) for y in results]


def _chosen(mask: Sequence[bool], values: Sequence[Any]) -> list[Any]:
    return [value for value, taken in zip(values, mask, strict=True) if taken]


def _merge(mask: Sequence[bool], values: Sequence[Any], taken: Sequence[Any]) -> list[Any]:
    """The values, those in the mask exchanged in order for the ones that were taken."""
    following = iter(taken)
    return [next(following) if lifted else value for value, lifted in zip(values, mask, strict=True)]


def _peel(tensors: list[Tensor], in_jvp: bool = False) -> tuple[list[_Level], list[Tensor]]:
    """Take tensors off all levels that are open: a list of these, innermost first, and plain tensors."""
    if private.peek_interpreter_stack() is None:
        if in_jvp or private.forward_ad._current_level < 0:  # torch.func.jvp keeps a dual level open for itself
            return [], tensors
        level, tensors = _split(tensors, _DualLevel)
        return [level], tensors
    interpreter = private.retrieve_current_interpreter()
    if interpreter.key() == private.TransformType.Jvp:
        level, tensors = _split(tensors, _Forward)
        tensors = [private.unwrap_for_grad(x, interpreter.level()) for x in tensors]
        in_jvp = True
    else:
        unwrapped, axes = private.unwrap_batched(tuple(tensors), interpreter.level())
        level = _Batch([axis is not None for axis in axes], interpreter.level(), interpreter.randomness())
        tensors = [x if axis is None else x.movedim(axis, 0) for x, axis in zip(unwrapped, axes, strict=True)]
    with interpreter.lower():
        levels, tensors = _peel(tensors, in_jvp)
    return [level, *levels], tensors


def _split(tensors: list[Tensor], kind: type[_Forward]) -> tuple[_Forward, list[Tensor]]:
    """A level of forward mode, and all primals followed by the tangents that there are."""
    dots = [_tangent(x) for x in tensors]
    primals = [x if dot is None else private.unpack_dual(x, level=0)[0] for x, dot in zip(tensors, dots, strict=True)]
    return kind([dot is not None for dot in dots]), [*primals, *(dot for dot in dots if dot is not None)]


def _restore(levels: Sequence[_Level], results: list[Tensor]) -> list[Tensor]:
    """Lift results onto the levels again, which they must not have reached by themselves."""
    if private.peek_interpreter_stack() is None:
        return levels[0].restored(results) if levels and any(levels[0].lifted) else results
    interpreter = private.retrieve_current_interpreter()
    if interpreter.key() == private.TransformType.Jvp:
        if any(_tangent(y) is not None for y in results):
            raise _unseen_error("a tangent")
        results = [private.unwrap_for_grad(y, interpreter.level()) for y in results]
    elif any(axis is not None for axis in private.unwrap_batched(tuple(results), interpreter.level())[1]):
        raise _unseen_error("a batch axis of vmap (or draws random numbers under randomness='different')")
    with interpreter.lower():
        results = _restore(levels[1:], results)
    return levels[0].restored(results) if any(levels[0].lifted) else results


# ---- tensors of a level that the function was not given --------------------------------------------------------------


def _is_lifted(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a level: a dual, or a wrapper of functorch."""
    if private.is_functorch_wrapped_tensor(tensor):
        return True
    return private.forward_ad._current_level >= 0 and _tangent(tensor) is not None


def _tangent(tensor: Tensor) -> Tensor | None:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    return private.unpack_dual(tensor, level=0)[1]


def _watched_once(run: _Run) -> _Run:
    """A function whose first call refuses duals that it is not given; what backward calls is the same function."""
    calls = 0

    def watched(*tensors: Tensor) -> list[Tensor]:
        nonlocal calls
        calls += 1
        with _Watch(tensors) if calls == 1 else nullcontext():
            return run(*tensors)

    return watched


class _Watch(TorchFunctionMode):
    """Refuses duals of an open dual level that are neither given nor made under it."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.known = {id(x) for x in given}  # a stranger lives longer than this, so no id of one is used again
        self.depth = len(private.interpreter_stack() or ())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for x in pytree.tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and id(x) not in self.known:
                # Deeper levels are those of a transform inside the function, which lifts what was looked at before.
                if private.level_of(x) <= self.depth and _tangent(x) is not None:
                    raise _unseen_error("a tangent")
        result = func(*args, **(kwargs or {}))
        self.known.update(id(y) for y in pytree.tree_leaves(result) if isinstance(y, Tensor))
        return result


def _unseen_error(what: str) -> NotImplementedError:
    return NotImplementedError(
        f"checkpoint: the function uses a tensor that has {what}, is no argument and is found in no closure or "
        "module of it; in backward it would be a constant. Pass the tensor as an argument of checkpoint. (In a "
        "dual_level, results of an autograd.Function are such tensors, whose own arguments cannot be seen: use "
        "torch.func.jvp.)"
    )
