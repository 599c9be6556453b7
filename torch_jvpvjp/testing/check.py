"""check_op: every property of an op, its derivatives and their compositions, in one call."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from .._process_state import without_warnings
from ..registration import DifferentiableOp
from .budget import assert_equal
from .case import Case, Sample, as_samples
from .compiled import PyTorchCannot, alike, check_compiled, check_dynamic, compositions_for
from .compositions import EAGER, Composition
from .dispatched import checks_of, opcheck_dynamic, record_calls
from .properties import NUMERICAL, VALUES, dtype_budget
from .report import CheckFailure, Report, Row

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NEEDS_ELEMENTS = ("central difference", *NUMERICAL)


def check_op(
    op: Callable[..., Any],
    samples: Sequence[Any],
    *,
    reference: Callable[..., Any] | None = None,
    device: str = "cpu",
    dtypes: Sequence[torch.dtype] = DTYPES,
    backends: Sequence[str] = ("aot_eager",),
    compiled_samples: int = 1,
    compositions: Collection[str] | None = None,
    eager: bool = True,
    raise_on_failure: bool = True,
) -> Report:
    """Check everything a differentiable op promises, and report all failures at once.

    With f the op and g its reference, on every sample x, with directions ẋ and cotangents ȳ from a fixed seed:

    * f(x) = g(x); J ẋ against a central difference; ⟨ȳ, J ẋ⟩ = ⟨Jᵀ ȳ, ẋ⟩; uᵀHv = vᵀHu;
    * every composition of derivatives in ``testing.compositions`` (first, second and third order, ``vmap`` in every
      nesting) equals that of g, eager and under ``torch.compile(fullgraph=True)``;
    * ``gradcheck`` and ``gradgradcheck``; ``torch.library.opcheck`` for every point of the tower that is reached, and
      every kernel equals the formula beside it in every dtype;
    * strided, expanded, zero-stride and offset tensors; inputs unmodified; outputs fresh; NaN-poisoned memory;
      bitwise determinism; one compilation for all sizes with ``dynamic=True``;
    * in each dtype, err(f) ≤ 2 (err(g in that dtype) + eps · max|g|), errors against float64.

    Give samples that are small (whole Jacobians and Hessians are formed) and include odd sizes, an empty tensor, and
    each optional argument both present and absent.

    Args:
        op: A :class:`DifferentiableOp`, or a public function around one.
        samples: Argument tuples or :class:`Sample` objects.
        reference: Plain PyTorch with the same arguments; a DifferentiableOp brings its own.
        device: Where the tensors go.
        dtypes: Dtypes whose error budget is checked.
        backends: Backends of torch.compile: "aot_eager" runs every composition, "inductor" a few (it is slow).
        compiled_samples: How many of the samples, from the first, are compiled.
        compositions: What to check under torch.compile, as the report names it; all that the backend runs by default.
        eager: Whether to check what needs no torch.compile.
        raise_on_failure: Whether to raise when something fails.

    Returns:
        The report; ``print`` it to see the failures and what could not be checked.

    Raises:
        CheckFailure: If any property fails and ``raise_on_failure`` holds; the message is the table of all failures.
        TypeError: If there is no reference, or samples are not samples.
    """
    if reference is None:
        if not isinstance(op, DifferentiableOp):
            raise TypeError(
                f"check_op: reference is required for {op!r}, which is no DifferentiableOp; pass a function of plain "
                "PyTorch ops with the same arguments."
            )
        reference = op.reference
    report = Report(getattr(op, "__name__", repr(op)))
    named = as_samples(samples)
    checks = _Checks(report)
    cases = [case for s in named if (case := checks.build(op, reference, s, device)) is not None]
    if eager:
        seen: set[Any] = set()
        for case in cases:
            _check_values(checks, case, dtypes)
            _check_eager(checks, case)
            _check_dispatched(checks, case, seen)
    if backends and cases:
        _check_compiled(checks, cases, backends, compiled_samples, compositions)
    if report.failures and raise_on_failure:
        raise CheckFailure(report)
    return report


_QUIET_PYTORCH = without_warnings(module=r"torch\..*")  # what it says of itself


class _Checks:
    """Run checks so that one failure does not hide the next."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def build(self, op: Callable[..., Any], reference: Callable[..., Any], sample: Sample, device: str) -> Case | None:
        try:
            return Case(op, reference, sample, device)
        except TypeError:
            raise
        except Exception as error:
            self.report.rows.append(Row(sample.name, "reference", "runs", _problem(error)))
            return None

    def run(self, case: Case, group: str, name: str, check: Callable[[], object]) -> None:
        problem = skipped = None
        try:
            with _QUIET_PYTORCH:
                check()
        except PyTorchCannot as gap:
            skipped = str(gap)
        except Exception as error:
            problem = _problem(error)
        self.report.rows.append(Row(case.sample.name, group, name, problem, skipped))

    def skip(self, case: Case, group: str, name: str, reason: str) -> None:
        self.report.rows.append(Row(case.sample.name, group, name, skipped=reason))


def _check_values(checks: _Checks, case: Case, dtypes: Sequence[torch.dtype]) -> None:
    for name, holds in {**VALUES, **NUMERICAL}.items():
        if case.empty and name in _NEEDS_ELEMENTS:
            checks.skip(case, "value", name, "no elements to perturb")
        else:
            checks.run(case, "value", name, lambda holds=holds: holds(case))
    for dtype in dtypes:
        checks.run(case, "dtype", str(dtype), lambda dtype=dtype: dtype_budget(dtype)(case))


def _check_eager(checks: _Checks, case: Case) -> None:
    f, g = case.function(case.op), case.function(case.reference)
    for name, composition in EAGER.items():

        def run(composition: Composition = composition) -> None:
            try:
                expected = composition(g, case.point)
            except Exception as error:
                raise PyTorchCannot(f"PyTorch cannot do it for the plain formula either: {error}") from error
            assert_equal(composition(f, case.point), expected)

        checks.run(case, "eager", name, run)


def _check_dispatched(checks: _Checks, case: Case, seen: set[Any]) -> None:
    """Every point of the tower that this sample reaches in a way no sample before it did."""
    calls: list[Any] = []
    checks.run(case, "dispatcher", "calls can be recorded", lambda: calls.extend(record_calls(case)))
    for call in calls:
        if call.pattern in seen:
            continue
        seen.add(call.pattern)
        for name, check in checks_of(call):
            checks.run(case, "dispatcher", name, check)


def _check_compiled(
    checks: _Checks, cases: list[Case], backends: Sequence[str], count: int, wanted: Collection[str] | None
) -> None:
    """Compositions of the first samples under torch.compile, and one compilation for all sizes."""
    for case in [c for c in cases if not c.empty][:count]:
        for backend in backends:
            for name, composition in compositions_for(backend).items():
                if wanted is None or name in wanted:
                    run = lambda c=case, n=name, k=composition, b=backend: check_compiled(c, n, k, b)  # noqa: E731
                    checks.run(case, f"compiled ({backend})", name, run)
    same = alike(cases)
    dynamic: dict[str, Callable[[], None]] = {
        # Differentiating the primal under AOTAutograd with symbolic shapes traces its derivatives too.
        "opcheck with symbolic sizes": lambda: opcheck_dynamic(cases[0]),
        "one compilation for all sizes": lambda: check_dynamic(same),
    }
    for name, check in dynamic.items():
        if "aot_eager" not in backends or not (wanted is None or name in wanted):
            continue
        if name == "one compilation for all sizes" and not same:
            checks.skip(cases[0], "compiled (dynamic)", name, "no two samples differ in sizes only")
        else:
            checks.run(cases[0], "compiled (dynamic)", name, check)
    torch.compiler.reset()


def _problem(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(line.strip() for line in lines[:6])[:500]
    return text if isinstance(error, AssertionError) and text else f"{type(error).__name__}: {text}"
