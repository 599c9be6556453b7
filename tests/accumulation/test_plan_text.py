"""A plan says what it is: as text, as HTML, as JSON, and as a drawing."""

import json

import pytest
import torch
from torch import nn

from torch_jvpvjp.accumulation import Chain, Plan, jacobian, plan_jacobian
from torch_jvpvjp.accumulation.drawing import draw
from torch_jvpvjp.accumulation.show import price_text

DENSE = """\
Jacobian plan
chain        784 → 512 → 32 → 512
bracketing   (F3 (F2 F1))
objective    fma, by dynamic_programming
all tangent  25,690,112 fma, 1.00× the plan's
all adjoint  213,909,504 fma, 8.33× the plan's
cost chosen  25,690,112 fma
peak memory  426,496 entries

 step   action       mode    bracket (j, k, i)   shape       structure          fma
 ──────────────────────────────────────────────────────────────────────────────────
    1   accumulate   given   (1, 1, 1)           512 × 784   dense                0
    2   accumulate   given   (2, 2, 2)           32 × 512    dense                0
    3   multiply             (2, 1, 1)           32 × 784    dense       12,845,056
    4   accumulate   given   (3, 3, 3)           512 × 32    dense                0
    5   multiply             (3, 2, 1)           512 × 784   dense       12,845,056"""


def _mixed():
    return Chain.from_sizes([4, 9, 2, 7, 5], edges=[40, 30, 20, 50]).plan(tape_limit=35)


MIXED = """\
Jacobian plan
chain        4 → 9 → 2 → 7 → 5
bracketing   ((F4 F3) (F2 F1))
objective    fma, by dynamic_programming, tape limit 35 entries
all tangent  560 fma, 1.22× the plan's
all adjoint  700 fma, 1.52× the plan's
cost chosen  460 fma
peak memory  44 entries

 step   action       mode      bracket (j, k, i)   shape   structure   fma
 ─────────────────────────────────────────────────────────────────────────
    1   accumulate   tangent   (1, 1, 1)           9 × 4   dense       160
    2   eliminate    tangent   (2, 1, 1)           2 × 4   dense       120
    3   accumulate   tangent   (3, 3, 3)           7 × 2   dense        40
    4   eliminate    tangent   (4, 3, 3)           5 × 2   dense       100
    5   multiply               (4, 2, 1)           5 × 4   dense        40"""


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2), nn.GELU(), nn.Linear(2, 6)).double()


def test_a_plan_prints_as_stored():
    assert str(Chain.from_sizes([784, 512, 32, 512]).plan()) == DENSE
    assert str(_mixed()) == MIXED


def test_a_ratio_is_exact_for_integers_that_no_float_holds():
    text = str(Chain.from_sizes([10**120, 1, 10**120], edges=[10**200, 10**200]).plan())
    assert "all tangent  " in text and "× the plan's" in text


def test_html_holds_the_rows_of_the_text():
    plan = _mixed()
    page = plan._repr_html_()
    assert page.count("<tr>") == 7 + 1 + len(plan.steps)
    assert "((" in page and f"{plan.cost:,} fma" in page


def test_json_round_trip(tmp_path):
    plan = _mixed()
    assert Plan.from_json(plan.to_json()) == plan
    huge = Chain.from_sizes([2**70 + 1, 3, 2**70]).plan()
    assert Plan.from_json(huge.to_json()).cost == huge.cost == (2**70 + 1) * 3 * 2**70
    net, x = _network(), torch.linspace(-1, 1, 6, dtype=torch.float64)
    planned = plan_jacobian(net, x)
    planned.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == planned and loaded.runtime is None
    assert torch.equal(jacobian(net, x, plan=loaded), planned(x))


def test_json_names_what_a_reader_needs():
    data = json.loads(_mixed().to_json())
    assert {"cost", "peak_entries", "bracketing", "steps", "factors", "objective"} <= data.keys()
    assert data["steps"][0].keys() == {"action", "mode", "bracket", "shape", "fma", "structure"}


def _damaged(**changes):
    return json.dumps(json.loads(_mixed().to_json()) | changes)


def _damaged_step(**changes):
    data = json.loads(_mixed().to_json())
    data["steps"][-1] |= changes
    return json.dumps(data)


def _damaged_factor(**changes):
    data = json.loads(_mixed().to_json())
    data["factors"][0] |= changes
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "text must be JSON, got '{'"),
        ("[1]", "format must be 'torch_jvpvjp.plan/2', got 'list'"),
        ('{"format": "other"}', "got 'other'"),
        (_damaged(cost=1), r"cost must be that of the steps, \d+, got 1"),
        (_damaged(fma=1), r"fma must be those of the steps, \d+, got 1"),
        (_damaged(steps=[]), r"got no step for \(4, 1\)"),
        (
            _damaged(steps=[{"action": "guess"}]),
            "from_json: the text must hold a plan as to_json writes it, got no 'mode'",
        ),
        (_damaged(objective="luck"), "objective must be one of 'fma', 'memory', 'time', got 'luck'"),
        (_damaged(objective=3), "objective must be a name such as 'fma', or an object with .*, got 3 without name"),
        (_damaged(peak_entries=1), r"peak_entries must be those of the steps, \d+, got 1"),
        (_damaged(makespan=1), "makespan must be that of the steps, None, got 1"),
        (_damaged(batch=0), "batch must be at least 1, got 0"),
        (_damaged(threads=0), "threads must be at least 1, got 0"),
        (_damaged(tape_limit="many"), "tape_limit must be an integer, got 'many'"),
        (_damaged(matrix_free="no"), "matrix_free must be True or False, got 'no'"),
        (_damaged(input_shape=["six"]), r"a shape must be a list of sizes, got \['six'\]"),
        (_damaged_step(fma=1), "a step must be what it is priced as, .*, got .*'fma': 1,"),
        (_damaged_step(mode="closed"), "must take allowed steps only"),
        (_damaged_step(action="guess"), "from_json: .* got 'guess' is not a valid Action"),
        (_damaged_step(bracket=[1]), "from_json: .* not enough values to unpack"),
        (_damaged_factor(structure="dense"), "from_json: .* has no attribute"),
        (_damaged_factor(jvp_cost="x"), "from_json: .* got jvp_cost='x' of a factor"),
        (_damaged_factor(vjp_cost=-1), "from_json: .* got vjp_cost=-1 of a factor"),
        (_damaged_factor(shared=None), "from_json: .* got shared=None of a factor"),
        ("[" * 10**5, "text must be JSON"),
    ],
    ids=[
        "not JSON",
        "not a plan",
        "other format",
        "other cost",
        "other fma",
        "no steps",
        "broken step",
        "unknown objective",
        "objective of another type",
        "other peak",
        "other makespan",
        "no samples",
        "no workers",
        "limit of another type",
        "other word for a bool",
        "shape of words",
        "other fma of a step",
        "no mode of a step",
        "no action of a step",
        "no bracket of a step",
        "structure of another type",
        "cost of another type",
        "negative cost",
        "other word for a bool of a factor",
        "nested too deep",
    ],
)
def test_what_is_not_a_plan_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="text must be what to_json returned, got dict"):
        Plan.from_json({})


def test_a_plan_of_sizes_cannot_be_called():
    with pytest.raises(ValueError, match=r"made for a chain of callables, .*use jacobian\(f, x, plan=plan\)"):
        _mixed()(torch.ones(4))


def test_a_plan_of_sizes_can_be_executed_on_callables_that_fit():
    net, x = _network(), torch.linspace(-1, 1, 6, dtype=torch.float64)
    slope = {"kind": "diag"}
    plan = Chain.from_sizes([6, 4, 4, 2, 2, 6], structures=[None, slope, None, slope, None]).plan()
    torch.testing.assert_close(jacobian(net, x, plan=plan), torch.func.jacrev(net)(x))


def _texts(figure):
    (axes,) = figure.axes
    return [text.get_text() for text in axes.texts], [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_drawing_shows_every_factor_every_step_and_the_totals(tmp_path):
    plan = plan_jacobian(_network(), torch.zeros(6, dtype=torch.float64))
    texts, legend = _texts(draw(plan))
    assert len(plan.factors) == 5
    for index, factor in enumerate(plan.factors, 1):
        (leaf,) = (text for text in texts if text.startswith(f"F{index}  "))
        assert factor.label in leaf and f"{factor.n} → {factor.m}" in leaf
    for step in plan.steps:
        shown = [text for text in texts if text.endswith(f"{step.fma:,} fma")]
        assert shown, step
    assert f"J = {plan.bracketing()}" in texts
    (title,) = (text for text in texts if "all tangents" in text)
    assert f"{price_text(plan.cost)} {plan.unit}" in title
    assert f"all adjoints {plan.adjoint_fma:,}" in title and "×)" in title
    assert len(legend) == len({step.mode for step in plan.steps})
    path = tmp_path / "plan.png"
    plan.plot(path)
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 10_000


@pytest.mark.parametrize("dims", [[3, 5], [784, 512, 32, 512, 784], list(range(2, 14))], ids=["1", "4", "11"])
def test_boxes_of_a_drawing_do_not_overlap(dims):
    figure = draw(Chain.from_sizes(dims, edges=[2 * n for n in dims[1:]]).plan())
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_bbox_patch().get_window_extent() for text in axes.texts if text.get_bbox_patch() is not None]
    assert len(boxes) >= len(dims) - 1
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:place])


def test_a_long_chain_is_not_drawn(tmp_path):
    with pytest.raises(ValueError, match="at most 40 factors, got 41"):
        Chain.from_sizes([2] * 42).plan().plot(tmp_path / "long.png")


def test_a_drawing_needs_a_path_of_a_known_format(tmp_path):
    plan = Chain.from_sizes([2, 3, 4]).plan()
    with pytest.raises(ValueError, match=r"Plan\.plot: path must end in one of .*\.png.*, got '.*plan\.doc'"):
        plan.plot(tmp_path / "plan.doc")
    with pytest.raises(TypeError, match=r"Plan\.plot: path must be a str or a Path, got int"):
        plan.plot(5)
    plan.plot(tmp_path / "plan")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]
