"""Kernel variants for ahead-of-time compilation, recorded from the launchers themselves.

A launcher called on meta tensors inside `record_launches` takes every decision it takes for real tensors and runs
nothing. What it would have launched, specialised as Triton's own runtime does it, is the variant to compile.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._launch import Launch, record_launches

_POINTER = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel, all that `triton.compile` needs but the target.

    Attributes:
        kernel: The function decorated with `triton.jit`.
        signature: Triton's type of every parameter by name, "constexpr" for compile-time ones.
        constexprs: Value of every compile-time parameter by name.
        divisible: Parameters (pointers, strides, sizes) known to be multiples of 16.
        options: The compiler's options by name, `num_warps` among them.
        targets: The targets whose configuration it is, by name; none for all.
    """

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constexprs: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    targets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the kernel, without the underscores of its definition."""
        return self.kernel.__name__.strip("_").removesuffix("_kernel")

    @property
    def label(self) -> str:
        """Dtypes of the pointers that are present, and the tiling."""
        pointers = [f"{name.removesuffix('_ptr')}:{kind[1:]}" for name, kind in self.signature if kind.startswith("*")]
        settings = [f"{k}={v}" for k, v in self.constexprs if k.isupper() and k != "ACC" and v is not False]
        aligned = "n" not in dict(self.signature) or "n" in self.divisible or "n" in dict(self.constexprs)
        return " ".join([
            *pointers,
            *settings,
            f"warps={dict(self.options)['num_warps']}",
            *([] if aligned else ["unaligned"]),
        ])


def variants_of(calls: Iterable[Callable[[], object]]) -> list[Variant]:
    """The variants that some launcher calls choose, each once, in the order of their first use.

    Args:
        calls: Functions that call launchers on meta tensors.

    Returns:
        The variants.
    """
    with record_launches() as launches:
        for call in calls:
            call()
    return list(dict.fromkeys(_variant(launch) for launch in launches))


def _variant(launch: Launch) -> Variant:
    """Return a launch specialised as Triton's runtime does: None and 1 become constants, multiples of 16 are marked."""
    signature, constexprs, divisible = [], [], []
    options = dict(launch.options)
    compiler = tuple((name, options.pop(name)) for name in _OPTIONS)
    parameters = dict(zip(inspect.signature(launch.kernel.fn).parameters, launch.kernel.params, strict=True))
    arguments = dict(zip(parameters, launch.arguments, strict=False)) | options
    for name, parameter in parameters.items():
        value = arguments[name]
        kind = _kind(value, parameter)
        signature.append((name, kind))
        if kind == "constexpr":
            constexprs.append((name, value))
        elif not parameter.do_not_specialize and (
            isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
        ):
            divisible.append(name)
    return Variant(launch.kernel, tuple(signature), tuple(constexprs), tuple(divisible), compiler)


def _kind(value: object, parameter: Any) -> str:
    if isinstance(value, Tensor):
        return _POINTER[value.dtype]
    if parameter.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, int):
        if value == 1 and not parameter.do_not_specialize:
            return "constexpr"
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return parameter.annotation_type
