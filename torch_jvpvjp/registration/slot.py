"""The place of a derivative in the tower: a decorator until it has a rule, then the way to what stands on it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .conventions import Function, JvpConvention, VjpConvention, check_arity, check_function, takes_outputs
from .vmap import VmapRule

if TYPE_CHECKING:
    from .op import DifferentiableOp


class DerivativeSlot:
    """The place of a derivative in the tower: a decorator until it has a rule, then the way to what stands on it.

    Args:
        owner: The op whose derivative it is.
        kind: "jvp" or "vjp".
    """

    def __init__(self, owner: "DifferentiableOp", kind: str) -> None:
        self._owner, self._kind = owner, kind

    def __call__(
        self,
        rule: Function | None = None,
        /,
        *,
        unsaved: Sequence[str] = (),
        shape_only: Callable[[Any, Any], Sequence[str]] | None = None,
    ) -> Any:
        """Register the rule, a formula in plain PyTorch.

        Args:
            rule: The rule; absent when options are given, as in ``@op.vjp(unsaved=("x",))``.
            unsaved: Only for a VJP: names of inputs that the rule and its kernels do not read. They are not kept for
                backward and arrive as None.
            shape_only: Only for a VJP: from the inputs and, for each differentiable one by name, whether its cotangent
                is wanted, to the names of inputs of which the rule, its kernels and all that stands on them read
                nothing but shape, dtype and device then. Backward keeps no memory of these.

        Returns:
            The rule, unchanged, or the decorator.

        Raises:
            TypeError: If the rule takes the wrong number of parameters, or ``unsaved`` does not fit.
            ValueError: If there is a rule already.
        """
        if rule is None:
            return lambda function: self(function, unsaved=unsaved, shape_only=shape_only)
        owner, qualname = self._owner, f"{self._owner.qualname}_{self._kind}"
        if (owner.jvp_op if self._kind == "jvp" else owner.vjp_op) is not None:
            raise ValueError(f"{owner.qualname}: there is a {self._kind.upper()} rule already; an op has one.")
        check_function(owner.qualname, self._kind, rule)
        if self._kind == "jvp":
            for option, given in (("unsaved", unsaved), ("shape_only", shape_only)):
                if given:
                    raise TypeError(f"{owner.qualname}.jvp: `{option}` is an option of a VJP rule only.")
            check_arity(owner.qualname, rule, "(primals, tangents)", (2,))
            owner.jvp_op = type(owner)(JvpConvention(qualname, owner.convention), rule)
        else:
            names = [owner.signature.arguments[i].name for i in owner.signature.tensors]
            if not set(unsaved) <= set(names):
                raise TypeError(f"{owner.qualname}.vjp: unsaved names {list(unsaved)}; the tensor inputs are {names}.")
            check_arity(owner.qualname, rule, "(cotangents, inputs) or (cotangents, inputs, outputs)", (2, 3))
            convention = VjpConvention(qualname, owner.convention, takes_outputs=takes_outputs(rule), unsaved=unsaved)
            owner.vjp_op = type(owner)(convention, rule)
            owner.saved_results, owner.unsaved_inputs = convention.saved_results, convention.unsaved
            owner.shape_only = shape_only
        return rule

    @property
    def op(self) -> "DifferentiableOp":
        """The op made from the rule.

        Raises:
            ValueError: If there is no rule yet.
        """
        op = self._owner.jvp_op if self._kind == "jvp" else self._owner.vjp_op
        if op is None:
            raise ValueError(
                f"{self._owner.qualname}: there is no {self._kind.upper()} rule to stand on; write the formula first, "
                f"with @{self._owner.__name__}.{self._kind}."
            )
        return op

    @property
    def jvp(self) -> "DerivativeSlot":
        """The JVP of this derivative."""
        return self.op.jvp

    @property
    def vjp(self) -> "DerivativeSlot":
        """The VJP of this derivative."""
        return self.op.vjp

    def kernel(self, *devices: str) -> Callable[[Function], Function]:
        """Decorator: a kernel for this derivative, called as its formula is. See ``DifferentiableOp.kernel``."""
        return self.op.kernel(*devices)

    def vmap(self, rule: VmapRule) -> VmapRule:
        """Decorator: the vmap rule of this derivative. See ``DifferentiableOp.vmap``."""
        return self.op.vmap(rule)

    def fake(self, function: Function) -> Function:
        """Decorator: the fake of this derivative. See ``DifferentiableOp.fake``."""
        return self.op.fake(function)

    def autocast(self, policy: str | torch.dtype) -> None:
        """The autocast policy of this derivative. See ``DifferentiableOp.autocast``."""
        self.op.autocast(policy)
