"""Every private name of PyTorch that torch_jvpvjp uses, looked up once and checked at import.

Nothing else in the package may import a private PyTorch name: when a release renames one, this file is where it shows.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch

MINIMUM_TORCH = (2, 11)
NEWEST_TRIED = "2.15"


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def _lookup(path: str) -> Any:
    """Resolve a dotted name below ``torch``, importing submodules on the way.

    Args:
        path: Dotted name such as ``torch._C._after_autograd_keyset``.

    Returns:
        The object behind the name.

    Raises:
        ImportError: If this PyTorch has no such name.
    """
    head, *rest = path.split(".")
    found: Any = importlib.import_module(head)
    for depth, name in enumerate(rest, start=1):
        if not hasattr(found, name):
            try:
                importlib.import_module(".".join([head, *rest[:depth]]))
            except ImportError as error:
                raise ImportError(
                    f"torch_jvpvjp: this PyTorch ({torch.__version__}) has no {path}, which torch_jvpvjp needs; "
                    f"it was written for PyTorch {'.'.join(map(str, MINIMUM_TORCH))} to {NEWEST_TRIED}. "
                    "Install one of those releases, or a newer torch_jvpvjp."
                ) from error
        found = getattr(found, name)
    return found


# The dispatcher: keys, guards, redispatch.
DispatchKey = _lookup("torch._C.DispatchKey")
DispatchKeySet = _lookup("torch._C.DispatchKeySet")
AFTER_AUTOGRAD = _lookup("torch._C._after_autograd_keyset")
BelowAutograd = _lookup("torch._C._AutoDispatchBelowAutograd")
ExcludeKeys = _lookup("torch._C._ExcludeDispatchKeyGuard")
dispatch_key_for_device = _lookup("torch._C._dispatch_key_for_device")
parse_schema = _lookup("torch._C.parse_schema")
is_alias_of = _lookup("torch._C._is_alias_of")

_lookup("torch.library.Library._destroy")


def destroy_library(library: torch.library.Library) -> None:
    """Take everything out of the dispatcher that a library brought in.

    Args:
        library: The library, of no use from here on.
    """
    library._destroy()


# Forward mode. A dual is always read and written at level 0: functorch nests by wrapping tensors, not by dual levels.
# forward_ad._current_level is valid in plain eager code only (it is unset while AOTAutograd traces).
unpack_dual = _lookup("torch._VF._unpack_dual")
make_dual = _lookup("torch._VF._make_dual")
set_fwd_grad_enabled = _lookup("torch.autograd.forward_ad._set_fwd_grad_enabled")
is_fwd_grad_enabled = _lookup("torch._C._is_fwd_grad_enabled")
forward_ad = _lookup("torch.autograd.forward_ad")
_lookup("torch.autograd.forward_ad._current_level")
_force_keys = _lookup("torch._C._ForceDispatchKeyGuard")
_included_keys = _lookup("torch._C._dispatch_tls_local_include_set")


def modes_work_here() -> bool:
    """Whether ops of ours may be called under a dispatch mode: in PyTorch before 2.13 not where forward mode is on.

    Returns:
        True if so.
    """
    return forward_ad._current_level < 0 or _release() >= (2, 13)


def has_tangent(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a dual, asked from below autograd too, where `unpack_dual` is not to be called.

    Args:
        tensor: A floating-point or complex tensor, no wrapper.

    Returns:
        True if so.
    """
    with _force_keys(_included_keys(), DispatchKeySet.from_raw_repr(0)):
        return unpack_dual(tensor, level=0)[1] is not None


# Reverse mode inside a dispatcher kernel: a node of one functorch level.
class SingleLevelFunction(_lookup("torch.autograd.function._SingleLevelFunction")):
    """The base of our nodes; compiled autograd tells one from another as it does with those of users."""

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[int, ...]:
        return (ctx._autograd_function_id,)


enable_single_level_autograd_function = _lookup("torch._functorch.utils.enable_single_level_autograd_function")
unwrap_if_dead = _lookup("torch._C._functorch.unwrap_if_dead")
any_requires_grad = _lookup("torch._C._any_requires_grad")
top_saved_tensors_hooks = _lookup("torch._C._autograd._top_saved_tensors_default_hooks")
_push_saved_tensors_hooks = _lookup("torch._C._autograd._push_saved_tensors_default_hooks")
_pop_saved_tensors_hooks = _lookup("torch._C._autograd._pop_saved_tensors_default_hooks")


@contextlib.contextmanager
def without_saved_tensors_hooks() -> Iterator[None]:
    """A context in which no hooks look at what autograd saves; `torch.func` refuses to work where some do.

    Yields:
        Nothing.
    """
    kept = []
    while (hooks := top_saved_tensors_hooks(False)) is not None:  # noqa: FBT003 -- whether to leave tracing's alone
        kept.append(hooks)
        _pop_saved_tensors_hooks()
    try:
        yield
    finally:
        for hooks in reversed(kept):
            _push_saved_tensors_hooks(*hooks)


current_autograd_node = _lookup("torch._C._current_autograd_node")

# The level of one `torch.func.jvp`, peeled off and put on again.
TransformType = _lookup("torch._C._functorch.TransformType")
unwrap_level = _lookup("torch._C._functorch._unwrap_for_grad")
wrap_level = _lookup("torch._C._functorch._wrap_for_grad")
pop_level = _lookup("torch._C._functorch.pop_dynamic_layer_stack")
push_level = _lookup("torch._C._functorch.push_dynamic_layer_stack")

# vmap.
peek_interpreter_stack = _lookup("torch._C._functorch.peek_interpreter_stack")
retrieve_current_interpreter = _lookup("torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter")
unwrap_batched = _lookup("torch._functorch.vmap.unwrap_batched")
add_batch_dim = _lookup("torch._functorch.vmap._add_batch_dim")
is_functorch_wrapped_tensor = _lookup("torch._C._functorch.is_functorch_wrapped_tensor")
temporarily_clear_interpreter_stack = _lookup("torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack")
VmapInfo = _lookup("torch._functorch.autograd_function.VmapInfo")

# Checkpoints peel tensors off the levels that are open and put them on again.
interpreter_stack = _lookup("torch._C._functorch.get_interpreter_stack")
level_of = _lookup("torch._C._functorch.maybe_get_level")
unwrap_for_grad = _lookup("torch._C._functorch._unwrap_for_grad")
TransformType = _lookup("torch._C._functorch.TransformType")
without_interpreters = _lookup("torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack")
with_interpreters = _lookup("torch._functorch.pyfunctorch.temporarily_restore_interpreter_stack")

# torch.autograd.grad(is_grads_batched=True) and torch.autograd.functional still use the vmap before functorch.
# Neither their type nor `is_functorch_wrapped_tensor` shows what it has batched: tensors without storage of their own.
is_legacy_batched = _lookup("torch._C._functorch.is_legacy_batchedtensor")
remove_batch_dim, add_legacy_batch_dim = _lookup("torch._remove_batch_dim"), _lookup("torch._add_batch_dim")


# What subclasses of Tensor such as FakeTensor and DTensor have for a __torch_function__.
leaves_functions_alone = _lookup("torch._C._disabled_torch_function_impl")


def saved_by(node: Any, *names: str) -> tuple[Any, ...]:
    """What one of PyTorch's own nodes keeps for its backward, as part of the graph that it is in.

    Args:
        node: The node, not yet released.
        *names: Those in PyTorch's derivative formulas, e.g. "self".

    Returns:
        One value per name; None for a tensor that was absent.
    """
    return tuple([getattr(node, f"_saved_{name}") for name in names])


# What a kernel may not read as it lies there; the dispatcher makes plain memory of it.
is_zero_tensor = _lookup("torch.Tensor._is_zerotensor")


def is_lazy(value: torch.Tensor) -> bool:
    """Whether a tensor's memory does not hold its values: their signs are to be flipped, or there is no memory.

    Args:
        value: Any tensor. ``z.conj().imag`` is one of the first kind, what PyTorch makes for a tangent of zero is one
            of the second.

    Returns:
        True if so.
    """
    return value.is_neg() or is_zero_tensor(value)


# What the checks need.
tree_leaves = _lookup("torch.utils._pytree.tree_leaves")


def without_kept_fake_results() -> Any:
    """A context in which PyTorch computes anew what an op gives for fake tensors; `torch._dynamo` is slow to import.

    Returns:
        The context.
    """
    return _lookup("torch._dynamo.config").patch(fake_tensor_cache_enabled=False)


TorchDispatchMode = _lookup("torch.utils._python_dispatch.TorchDispatchMode")


def lookup_backend(name: str) -> Any:
    """A backend of torch.compile by name. Dynamo is imported only here: it takes a second.

    Args:
        name: E.g. "aot_eager".

    Returns:
        The backend, a function of a graph and example inputs.
    """
    return _lookup("torch._dynamo.lookup_backend")(name)


def sizes_apart() -> Any:
    """A context in which dynamic shapes do not assume that sizes are equal because they are so in one example.

    Returns:
        The context manager.
    """
    return _lookup("torch.fx.experimental._config").patch(use_duck_shape=False)


OpOverload, OpOverloadPacket = _lookup("torch._ops.OpOverload"), _lookup("torch._ops.OpOverloadPacket")
without_modes = _lookup("torch.utils._python_dispatch._disable_current_modes")

# Modes that must see the dispatcher op, not a shortcut around it.
len_torch_dispatch_stack = _lookup("torch._C._len_torch_dispatch_stack")
len_torch_function_stack = _lookup("torch._C._len_torch_function_stack")
get_tracing_state = _lookup("torch._C._get_tracing_state")
is_any_autocast_enabled = _lookup("torch._C._is_any_autocast_enabled")


def _check_release() -> None:
    """Refuse a PyTorch older than the facts this package rests on.

    Raises:
        ImportError: If PyTorch is older than 2.11.
    """
    if _release() < MINIMUM_TORCH:
        raise ImportError(
            f"torch_jvpvjp needs PyTorch >= {'.'.join(map(str, MINIMUM_TORCH))}, found {torch.__version__}; "
            "upgrade with `pip install --upgrade torch`."
        )


_check_release()
