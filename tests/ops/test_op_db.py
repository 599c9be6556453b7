"""PyTorch's own sample inputs and error inputs (its OpInfo database) for every op of ours that has a counterpart there.

Value, JVP and VJP are compared with the float64 evaluation of PyTorch's function, within the budget of `budget.py`;
every input that PyTorch's function must refuse, ours refuses too, and names itself in the message.
"""

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_jvpvjp import ops
from torch_jvpvjp.ops._native import without_native
from torch_jvpvjp.testing import Sample
from torch_jvpvjp.testing.case import Case
from torch_jvpvjp.testing.properties import dtype_budget

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the import of PyTorch's internals says is not ours to judge
    from torch.testing._internal.common_methods_invocations import op_db

DTYPES = (torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class Skip:
    """Samples that an op of ours refuses on purpose.

    Attributes:
        when: Of the positional and keyword arguments of PyTorch's function.
        reason: Why.
    """

    when: Callable[[tuple[Any, ...], dict[str, Any]], bool]
    reason: str


@dataclass(frozen=True)
class Counterpart:
    """How a function of PyTorch's is called as ours.

    Attributes:
        public: Name of our op.
        drop: Keyword arguments that ours does not have, since it has one value of them only.
        defaults: Keyword arguments whose default is another one in ours.
        constant: Keyword arguments that neither differentiates.
        renamed: Names of keyword arguments that are others in ours.
        formula: In the place of PyTorch's function, where that has no JVP in bfloat16.
        skips: What ours does not do.
    """

    public: str
    drop: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    formula: Callable[..., Any] | None = None
    skips: tuple[Skip, ...] = ()


def _glu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    up, gate = x.chunk(2, dim)
    return up * gate.sigmoid()


_OTHER_NORM = Skip(lambda args, kwargs: kwargs.get("p", 2) != 2, "l2_norm is the norm with p = 2")
_CLASS_WEIGHTS = Skip(lambda args, kwargs: kwargs.get("weight") is not None, "linear_cross_entropy weighs no classes")
_SEVERAL_AXES = Skip(lambda args, kwargs: args[1].dim() != 2, "the classes of linear_cross_entropy are one axis")
_CHUNKED = Skip(lambda args, kwargs: kwargs.get("options") is not None, "the JVP of PyTorch's own is zero, silently")
_SOFT_TARGET = Skip(lambda args, kwargs: args[2].is_floating_point(), "linear_cross_entropy takes class numbers")
_DROPS = Skip(
    lambda args, kwargs: kwargs.get("dropout_p", 0.0) > 0,
    "PyTorch draws another mask; tests/ops/test_attention_dropout.py judges ours",
)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return torch.softmax(scores if attn_mask is None else scores + attn_mask, -1) @ value


# By the last part of the name in op_db.
COUNTERPARTS = {
    "normalize": Counterpart("l2_norm", drop=("p",), defaults={"dim": 1}, skips=(_OTHER_NORM,)),
    "linear_cross_entropy": Counterpart(
        "linear_cross_entropy",
        renamed={"linear_bias": "bias"},
        skips=(_CLASS_WEIGHTS, _SEVERAL_AXES, _SOFT_TARGET, _CHUNKED),
    ),
    "glu": Counterpart("glu", formula=_glu),
    "scaled_dot_product_attention": Counterpart("scaled_dot_product_attention", formula=_attention, skips=(_DROPS,)),
    "cross_entropy": Counterpart("cross_entropy", constant=("weight",)),
    **{
        name: Counterpart(name)
        for name in (
            *("layer_norm", "rms_norm", "group_norm"),
            *("gelu", "silu", "tanh", "sin", "softplus", "mish", "sigmoid", "relu", "logsigmoid", "elu"),
            *("softmax", "log_softmax", "logsumexp"),
            *("kl_div", "mse_loss", "huber_loss", "l1_loss", "smooth_l1_loss", "nll_loss"),
            *("linear", "bilinear", "binary_cross_entropy_with_logits"),
        )
    },
}


def _infos() -> Iterator[tuple[str, Any]]:
    """OpInfos of PyTorch's plain functions, by the last part of their name; masked ones are others."""
    for info in op_db:
        if not info.name.startswith("masked."):
            yield info.name.rsplit(".", 1)[-1], info


# The kernels of attention take a minute for these in the interpreter; tests/kernels judges them on fewer.
_SLOW_INTERPRETED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="judged in tests/kernels")
TESTED = [
    pytest.param(
        *(COUNTERPARTS[name], info),
        id=f"{name}{info.variant_test_name and '-' + info.variant_test_name}",
        marks=[_SLOW_INTERPRETED] if name == "scaled_dot_product_attention" else [],
    )
    for name, info in _infos()
    if name in COUNTERPARTS and COUNTERPARTS[name].public in ops.__all__ and torch.float64 in info.dtypes
]


def test_every_op_that_pytorch_has_samples_of_is_tested() -> None:
    known = {name for name, _ in _infos()}
    assert not [name for name in ops.__all__ if name in known and name not in COUNTERPARTS]
    assert set(COUNTERPARTS) - known <= {"linear_cross_entropy"}  # of newer releases


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")  # of F.kl_div
@pytest.mark.parametrize(("counterpart", "info"), TESTED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's, where NaN is right
def test_samples(counterpart: Counterpart, info: Any, dtype: torch.dtype, device: str) -> None:
    problems = defaultdict(list)
    native = info.op if counterpart.formula is None or dtype == torch.float64 else counterpart.formula
    for sample in info.sample_inputs(device, torch.float64):
        args, kwargs = (sample.input, *sample.args), sample.kwargs
        if not any(skip.when(args, kwargs) for skip in counterpart.skips):
            try:
                # Ours and not PyTorch's in its place; and of PyTorch's attention the one that has a JVP
                with without_native(), sdpa_kernel(SDPBackend.MATH):
                    dtype_budget(dtype)(_case(counterpart, native, args, kwargs, dtype, device))
            except Exception as error:
                problems[f"{type(error).__name__}: {error}"].append(sample.summary())
    assert not problems, "\n".join(f"{problem}\n    {samples}" for problem, samples in problems.items())


def test_every_skip_is_needed() -> None:
    samples = defaultdict(list)
    for counterpart, info in (case.values for case in TESTED):
        if counterpart.skips:
            samples[counterpart.public] += info.sample_inputs("cpu", torch.float64)
    for counterpart in COUNTERPARTS.values():
        for skip in counterpart.skips if counterpart.public in samples else ():
            found = [skip.when((s.input, *s.args), s.kwargs) for s in samples[counterpart.public]]
            assert any(found), f"{counterpart.public}: no sample needs the skip any more: {skip.reason}"
            assert not all(found)


@pytest.mark.parametrize(
    ("counterpart", "info"), [case for case in TESTED if case.values[1].error_inputs_func is not None]
)
def test_error_inputs(counterpart: Counterpart, info: Any, device: str) -> None:
    ours = getattr(ops, counterpart.public)
    for bad in info.error_inputs(device):
        sample = bad.sample_input
        if counterpart.public == "group_norm" and not sample.input.numel():
            continue  # refused since PyTorch 2.15; ours is empty, as PyTorch's was before
        kwargs = _as_ours(counterpart, counterpart.defaults | sample.kwargs)
        with pytest.raises((ValueError, TypeError, IndexError), match=counterpart.public):
            ours(sample.input, *sample.args, **kwargs)


def _case(
    counterpart: Counterpart,
    native: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dtype: torch.dtype,
    device: str,
) -> Case:
    """The sample with what is not differentiated bound to the functions, in the dtype of the others."""
    kwargs = counterpart.defaults | {name: value for name, value in kwargs.items() if value is not None}
    fixed = {name: value.to(dtype) for name, value in kwargs.items() if name in counterpart.constant}
    kept = {name: value for name, value in kwargs.items() if name not in fixed}

    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*values: Any, **options: Any) -> Any:
            constants = {name: value.to(values[0].dtype) for name, value in fixed.items()}
            return function(*values, **options, **constants)

        return called

    function = getattr(ops, counterpart.public)
    ours = lambda *values, **options: function(*values, **_as_ours(counterpart, options))  # noqa: E731
    return Case(bound(ours), bound(native), Sample(args, kept, "op_db"), device)


def _as_ours(counterpart: Counterpart, kwargs: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's keyword arguments as our op has them."""
    kept = {name: value for name, value in kwargs.items() if name not in counterpart.drop}
    return {counterpart.renamed.get(name, name): value for name, value in kept.items()}
