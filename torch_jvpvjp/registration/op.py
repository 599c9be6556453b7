"""A point of the tower of derivatives: one dispatcher op with its formula, kernels and rules."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import _torch_private as private
from .agreement import Expectation, check_agreement
from .autocast import Policy, cast_by_policy, region_of, register_autocast_kernels
from .autograd import make_autograd_kernel, make_node
from .compiled_code import forget_digest, mark_compiled_code
from .composite import are_formulas
from .conventions import Convention, Function, JvpConvention, PrimalConvention, check_function
from .fast_path import COMPUTE, PUSH, RECORD, choose_way
from .kernels import Kernels
from .layouts import check_operand
from .legacy_vmap import make_legacy_vmap_kernel
from .promises import check_option, finished, finished_differentiably
from .purity import Examination, explaining_transforms
from .push import push_once
from .registry import claim, find_op, register
from .sharded import take_sharded
from .signature import Signature
from .slot import DerivativeSlot
from .vmap import VmapRule, make_vmap_kernel

_is_compiling, _any_autocast = torch.compiler.is_dynamo_compiling, private.is_any_autocast_enabled


class DifferentiableOp:
    """An op defined by a formula and accelerated by kernels and rules, every one of them optional.

    Made by :func:`differentiable_op`; the derivatives ``op.jvp`` and ``op.vjp`` are, once they have a rule, ops of the
    same kind. Calling it computes the outputs (residuals are not shown).

    Attributes:
        qualname: ``namespace::name`` in the dispatcher; ``torch.ops.namespace.name`` is the op itself.
        signature: Its arguments and results.
        convention: How its formula and kernels are called.
        overload: The dispatcher op.
        library: In which that is defined.
        composite: Whether those who record a function see the formula in any case.
        jvp: Decorator for the JVP rule ``(primals, tangents) -> (outputs, output tangents)``, and what stands on it.
        vjp: Decorator for the VJP rule ``(cotangents, inputs[, outputs]) -> input cotangents``, and what stands on it.
    """

    def __init__(self, convention: Convention, formula: Function, *, composite: bool = False) -> None:
        self.convention, self.composite = convention, composite
        self.qualname = convention.qualname
        self.signature: Signature = convention.signature
        claim(self.qualname, formula)
        self.formula = formula
        self._formula = convention.flatten(formula)
        self._kernels = Kernels(convention)
        self.examination = Examination(self.qualname, self.signature, formula)
        self.fake_function: Function | None = None
        self._fake: Function | None = None
        self._is_compared = isinstance(convention, JvpConvention)  # whether something else says what it returns
        if isinstance(convention, PrimalConvention):
            convention.expectation = Expectation(self.examination, self._without_data, self.signature.tensors)
        self.vmap_rule: VmapRule | None = None
        self.autocast_policy: Policy = None
        self.jvp = DerivativeSlot(self, "jvp")
        self.vjp = DerivativeSlot(self, "vjp")
        self.jvp_op: DifferentiableOp | None = None
        self.vjp_op: DifferentiableOp | None = None
        self.saved_results: tuple[int, ...] = ()  # what the VJP rule reads of the results ...
        self.unsaved_inputs: tuple[int, ...] = ()  # ... and does not read of the inputs
        self.shape_only: Function | None = None  # ... or reads the shape of, depending on what is wanted
        self.__name__ = self.qualname.partition("::")[2]
        self.__doc__, self.__module__, self.__qualname__ = formula.__doc__, formula.__module__, formula.__qualname__
        self.__signature__ = inspect.signature(formula)
        self.takes_sharded = False
        self._define()
        register(self)
        forget_digest()
        take_sharded(self)

    def _define(self) -> None:
        """Define the dispatcher op and give it its kernels for every key that does not depend on a device."""
        namespace, _, name = self.qualname.partition("::")
        self.library = torch.library.Library(namespace, "FRAGMENT")
        try:
            self.library.define(self.signature.schema(name), tags=(torch.Tag.pt2_compliant_tag,))
        except RuntimeError as error:
            raise ValueError(
                f"differentiable_op: PyTorch has an op {self.qualname!r} already, which was not declared here; choose "
                "another name."
            ) from error
        packet = getattr(getattr(torch.ops, namespace), name)
        self.overload: Any = packet.default
        self.library.impl(name, self._dispatched(self._run_reference), "CompositeExplicitAutograd")
        self.library.impl(name, make_autograd_kernel(self), "Autograd", with_keyset=True)
        self.library.impl(name, make_vmap_kernel(self), "FuncTorchBatched")
        self.library.impl(name, make_legacy_vmap_kernel(self), "Batched")
        register_autocast_kernels(self, self.library)
        torch.library.register_fake(self.qualname, self._dispatched(self._run_fake), lib=self.library)

    # ---- calling -----------------------------------------------------------------------------------------------

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs.

        Args:
            *args: The arguments of the reference.
            **kwargs: The same, by name.

        Returns:
            The output, or the tuple of outputs, as the reference returns them, without residuals.

        Raises:
            TypeError: If the arguments do not fit, or a tensor or an option is something else.
        """
        if kwargs or len(args) != len(self.signature.arguments):
            args = self.signature.bind(self.qualname, args, kwargs)
        for i in self.signature.required:
            if args[i] is None:
                raise TypeError(
                    f"{self.qualname}: argument {self.signature.arguments[i].name!r} must be a tensor, got None."
                )
        for i in self.signature.options:
            check_option(self.qualname, self.signature.arguments[i], args[i])
        for i in self.signature.tensors:
            check_operand(self.qualname, self.signature.arguments[i].name, args[i])
        region = region_of(args, self.signature) if _is_compiling() or _any_autocast() else None
        if region is not None:
            args = cast_by_policy(args, self.signature, self.autocast_policy, region)
            with torch.autocast(region, enabled=False):
                return self._call(args)
        return self._call(args)

    def _call(self, args: tuple[Any, ...]) -> Any:
        if _is_compiling():  # Dynamo keeps the dispatcher op whole and must not see the fast path
            return self.visible(self.unpacked(self.overload(*args)))
        results = self.call_flat(args)
        return results[0] if len(results) == 1 else self.visible(results)

    def call_flat(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """All results for one value per argument: by the shortest way that is right here.

        Args:
            args: One value per argument.

        Returns:
            One tensor per result, residuals included.
        """
        way = choose_way(args, self.signature.tensors, self.signature.frozen)
        if way == COMPUTE:
            return self.compute(args)
        if way == RECORD:
            return self.node.apply(None, None, *args)
        if way == PUSH:
            results = push_once(self, args)
            if results is not None:
                return results
        if are_formulas() and self.is_composite and not _any_autocast():
            return self.run_formula(args)
        take_sharded(self)
        return self.unpacked(self.overload(*args))

    @property
    def is_composite(self) -> bool:
        """Whether nothing but its formula says what the op is and what its derivatives are, or it shall be seen so."""
        return self.composite or not (self.jvp_op or self.vjp_op or self._kernels.devices or self._fake)

    def _torch_jvpvjp_referred(self) -> Function | None:
        """Return what a recording of a call may depend on; an op that is recorded whole is called anew."""
        return self.formula if self.is_composite else None

    def unpacked(self, returned: Any) -> tuple[Tensor, ...]:
        """Return what a dispatcher op returned, one tensor per result."""
        count = len(self.signature.results)
        return (returned,) if count == 1 else tuple([returned[j] for j in range(count)])  # so that a proxy will do

    def packed(self, results: Sequence[Tensor]) -> Any:
        """Results in the form in which a dispatcher kernel returns them.

        Args:
            results: One tensor per result.

        Returns:
            The tensor if the op has one result, else the tuple.
        """
        return results[0] if len(self.signature.results) == 1 else tuple(results)

    def visible(self, results: Sequence[Tensor]) -> Any:
        """Results in the form in which the user sees them.

        Args:
            results: One tensor per result.

        Returns:
            The output, or the tuple of outputs, without residuals.
        """
        shown = self.signature.visible_results
        return results[0] if len(shown) == 1 else tuple(results[j] for j in shown)

    def reference(self, /, *args: Any, **kwargs: Any) -> Any:
        """The formula on these arguments, with no kernel, rule or dispatcher op involved: the judge of all of them.

        Args:
            *args: The arguments of the op.
            **kwargs: The same, by name.

        Returns:
            What the op returns.
        """
        return self.visible(self._formula(self.signature.bind(self.qualname, args, kwargs)))

    # ---- computing ---------------------------------------------------------------------------------------------

    def compute(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The results by the kernel for the arguments' device, or by the formula where there is none.

        Args:
            args: One value per argument.

        Returns:
            One fresh, contiguous tensor per result.
        """
        results = self._kernels.run(args) if self._kernels.devices else None
        return self._run_reference(args) if results is None else results

    def run_formula(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The formula on duals, on tensors of a transform, or to be differentiated.

        Args:
            args: One value per argument.

        Returns:
            One tensor per result; those without derivative are cut from the graph.
        """
        with self.examination.of_wrappers(args), explaining_transforms(self.qualname):
            results = finished_differentiably(self.convention, self._formula(args), args)
        if self._is_compared:
            check_agreement(self.convention, results, args, self.formula)
        return results

    def _run_reference(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        if self._fake is not None and any(isinstance(a, Tensor) and a.is_meta for a in args):
            return self._run_fake(args)
        with nullcontext() if self.examination.is_settled(args) else self.examination.of_values(args):
            results = finished(self.convention, self._formula(args), args)
        if self._is_compared:
            check_agreement(self.convention, results, args, self.formula)
        return results

    def _run_fake(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        mark_compiled_code()
        with self.examination.of_wrappers(args) if self._fake is None else nullcontext():
            return finished(self.convention, self._without_data(args), args)

    def _without_data(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return (self._fake or self._formula)(args)

    def _dispatched(self, run: Callable[[tuple[Any, ...]], tuple[Tensor, ...]]) -> Function:
        return lambda *args, **kwargs: self.packed(run(self.signature.fill(args, kwargs)))

    @cached_property
    def node(self) -> Any:
        """The autograd node of the op."""
        return make_node(self)

    # ---- declaring ---------------------------------------------------------------------------------------------

    def kernel(self, *devices: str) -> Callable[[Function], Function]:
        """Decorator: a faster way to compute this point on some devices.

        The kernel is called as the formula beside it is, must return fresh tensors and write into no input. A kernel of
        a VJP may also take keyword-only ``needs`` and ``residuals``.

        Args:
            *devices: Device types such as "cuda", "cpu" or "xpu".

        Returns:
            The decorator, which returns the function unchanged.

        Raises:
            TypeError: If no device type is named.
            ValueError: If one is unknown to PyTorch or has a kernel already.
        """  # noqa: DOC502 (raised by Kernels.keys_of)
        keys = self._kernels.keys_of(devices)

        def register(function: Function) -> Function:
            self._kernels.add(devices, function)
            for key in keys:
                self.library.impl(self.__name__, self._dispatched(self.compute), key)
            return function

        return register

    def vmap(self, rule: VmapRule) -> VmapRule:
        """Decorator: how a batch axis folds into the op's own axes.

        Args:
            rule: ``(info, in_dims, *args) -> (outputs, out_dims)``, as ``torch.library.register_vmap`` takes it. It
                must not call a ``torch.func`` transform.

        Returns:
            The rule, unchanged.

        Raises:
            ValueError: If there is a rule already.
        """
        self._refuse_second(self.vmap_rule, "vmap rule")
        check_function(self.qualname, "vmap", rule)
        self.vmap_rule = rule
        forget_digest()
        return rule

    def fake(self, function: Function) -> Function:
        """Decorator: shapes, dtypes and strides of the results, for tracing. By default the formula tells them.

        Args:
            function: Called as the formula is, on tensors without data; its results are made contiguous, as all results
                are. Worth writing for a long formula: tracing with symbolic shapes runs the formula otherwise.

        Returns:
            The function, unchanged.

        Raises:
            ValueError: If there is one already.
        """
        self._refuse_second(self._fake, "fake")
        check_function(self.qualname, "fake", function)
        self.fake_function, self._fake = function, self.convention.flatten(function)
        if isinstance(self.convention, PrimalConvention):
            self._is_compared = True
            self.convention.expectation.forget()
        forget_digest()
        return function

    def autocast(self, policy: str | torch.dtype) -> None:
        """What ``torch.autocast`` does to this op's arguments; by default nothing. Inside the op nothing is autocast.

        Args:
            policy: "lower" (cast to the dtype of the autocast region), "promote" (to the widest floating-point input),
                or a dtype to cast to, such as torch.float32. Only floating-point tensors below float64 are cast.

        Raises:
            ValueError: If the policy is unknown or one is set already.
        """
        self._refuse_second(self.autocast_policy, "autocast policy")
        if policy not in ("lower", "promote") and not (isinstance(policy, torch.dtype) and policy.is_floating_point):
            raise ValueError(
                f"{self.qualname}.autocast: policy must be 'lower', 'promote' or a floating-point dtype, got "
                f"{policy!r}."
            )
        self.autocast_policy = policy
        forget_digest()

    def _refuse_second(self, present: Any, what: str) -> None:
        if present is not None:
            raise ValueError(
                f"{self.qualname}: there is a {what} already; an op has one. To exchange it, run the declaration of "
                "the op again, then this."
            )

    # ---- what it can do ----------------------------------------------------------------------------------------

    def points(self) -> dict[str, "DifferentiableOp"]:
        """Every point of the tower that somebody wrote, by its path.

        Returns:
            E.g. ``{"": op, "jvp": ..., "jvp.vjp": ...}``.
        """
        found: dict[str, DifferentiableOp] = {"": self}
        for kind, op in (("jvp", self.jvp_op), ("vjp", self.vjp_op)):
            if op is not None:
                found |= {f"{kind}.{path}".rstrip("."): point for path, point in op.points().items()}
        return found

    def kernel_devices(self) -> tuple[str, ...]:
        """Return the device types for which this point has a kernel, in the order of registration."""
        return self._kernels.devices

    def __repr__(self) -> str:
        return f"<differentiable op {self.qualname}{inspect.signature(self.formula)}>"

    def retire(self) -> None:
        """Take the op out of the dispatcher, since it was declared again: from here on a call of it raises."""

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(
                f"{self.qualname}: this op was declared again, and what is called here is the old one; call the new."
            )

        private.destroy_library(self.library)
        self.overload, self._call = refuse, refuse

    def __reduce__(self) -> Any:
        return find_op, (self.qualname, self.__module__)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DifferentiableOp":
        return self
