"""What PyTorch keeps of compiled code from one process to the next, and the ops that it holds traces of.

Its caches know an op by its name, while compiled code holds what was traced of it: shapes, dtypes and strides of the
results, and in a backward the derivative of the formula itself. After a change of the formula, of a rule or of this
package they would hand out the old code, whose gradients are those of the old op. So the digest of all that can be
traced is made part of every key, by the tag that PyTorch has for such an end (`torch.compiler.config.cache_key_tag`),
behind what anyone else has written there.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .._version import __version__
from .digest import PROCESS, CodeDigest
from .registry import registered_ops

if TYPE_CHECKING:
    from .op import DifferentiableOp

_MARK = "|torch_jvpvjp:"
_PACKAGE = Path(__file__).resolve().parents[1]

_known: dict[int, str] = {}  # the digest of all that is declared; none after a declaration


def forget_digest() -> None:
    """Have the digest made anew, since something was declared."""
    _known.clear()


def mark_compiled_code() -> None:
    """Make the declarations of all ops part of the keys of PyTorch's caches, in the thread that is about to compile.

    It is called where a compiler asks what an op returns, which comes before it looks into its caches.
    """
    digest = _known.get(0)
    if digest is None:
        digest = _known[0] = _digest_of_all()
    config = torch.compiler.config
    present = config.cache_key_tag
    wanted = f"{present.partition(_MARK)[0]}{_MARK}{digest}"
    if present != wanted:
        config.cache_key_tag = wanted


def _digest_of_all() -> str:
    """The digest of this package's code and of every op that was declared outside of it."""
    digest = hashlib.sha256(_package_digest())
    package = __name__.partition(".")[0]
    for qualname, op in sorted(registered_ops().items()):
        if _root_of(op) != package:
            digest.update(qualname.encode())
            digest.update(_op_digest(op))
    return digest.hexdigest()[:32]


@cache
def _package_digest() -> bytes:
    """Of every file of this package: its ops share one machinery, and what they call."""
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(_PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.digest()


def _op_digest(op: "DifferentiableOp") -> bytes:
    """Of all that a compiler can see of a point; of this process if that cannot be read, such as a very deep list."""
    try:
        return _read(op)
    except Exception:  # of whatever class an object's own methods raise
        return PROCESS.encode()


def _root_of(op: "DifferentiableOp") -> str:
    """The package that an op is of; none of what is declared in code that was run as a text."""
    return (op.__module__ or "").partition(".")[0]


def _read(op: "DifferentiableOp") -> bytes:
    """Of what a compiler can see. Kernels are none of that: compiled code calls the op."""
    reader = CodeDigest(root=_root_of(op))
    reader.add(str(op.overload._schema))
    reader.add((op.signature.differentiable, op.signature.differentiable_results, op.signature.frozen))
    reader.add((op.saved_results, op.unsaved_inputs, op.autocast_policy))
    for function in (op.formula, op.fake_function, op.vmap_rule, op.shape_only):
        reader.add(function)
    return reader.digest()
