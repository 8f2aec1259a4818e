"""Figures: their contents and panels, and none where there is nothing to show."""

import math
from itertools import pairwise

import pytest

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.canvas import COLOURS, figure_settings, series_style, svg
from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.panels import panels_of
from icl_bench.reports.parts import accuracy, learning, rates
from icl_bench.reports.parts.accuracy import accuracy_by_load, load_axis
from icl_bench.reports.parts.capacity import capacity_by_state
from icl_bench.reports.parts.learning import learning_curves
from icl_bench.reports.parts.rates import learning_rates
from icl_bench.reports.parts.state import recall_by_state
from icl_bench.runs.record import RunRecord
from tests.reports.factory import comparison, make_record, section_of

LOADS = (4, 8, 16, 32, 64)


def sized(arch: str, state: int, k50: float) -> RunRecord:
    """A run whose accuracy falls to one half at a load."""
    levels = [1 / (1 + (load / k50) ** 3) for load in LOADS]
    accuracies = [1 / load + (1 - 1 / load) * level for load, level in zip(LOADS, levels, strict=True)]
    return make_record(arch, accuracies=accuracies, loads=LOADS, state=state)


@pytest.fixture(scope="module")
def sizes() -> Section:
    """Two families at four sizes."""
    plan = [(f"window:w={w}", 100 * w, w / 2) for w in (8, 16, 32, 64)]
    plan += [(f"power:p=2,d_key={d}", 100 * d * d // 8, float(d)) for d in (8, 12, 16, 24)]
    return section_of([sized(*row) for row in plan])


def test_many_entries_get_a_panel_for_each_family(sizes: Section) -> None:
    panels = panels_of(sizes)
    assert [panel.title for panel in panels] == ["power:p=2", "window"]
    assert panels[1].names == ("800", "1.6k", "3.2k", "6.4k")
    assert panels[0].styles[-1].colour == series_style(0).colour  # the largest in full colour
    assert len(set(panels[0].styles)) == 4
    figure = accuracy_by_load(sizes, NO_STUDY)
    assert figure is not None
    assert len(figure.axes) == 2


def test_few_entries_share_a_panel_in_colours_of_their_own() -> None:
    (panel,) = panels_of(section_of(comparison(1)))
    assert panel.names == ("linear", "power:p=2", "softmax", "window:w=16")
    assert len({style.colour for style in panel.styles}) == 4
    assert len({series_style(i) for i in range(3 * len(COLOURS))}) == 3 * len(COLOURS)


def test_capacity_joins_what_was_measured_and_shows_the_rest_as_arrows(sizes: Section) -> None:
    figure = capacity_by_state(sizes, NO_STUDY)
    assert figure is not None
    lines = figure.axes[0].get_lines()
    joined = [line for line in lines if len(line.get_xdata()) > 1 and line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in joined] == [[800, 1800, 3200, 7200], [800, 1600, 3200, 6400]]
    assert list(joined[0].get_ydata()) == pytest.approx([8, 12, 16, 24], rel=0.05)
    assert capacity_by_state(section_of(comparison(1)), NO_STUDY) is None  # none falls to one half among the loads
    above = capacity_by_state(section_of([sized("softmax", 100, 1000), sized("linear", 200, 16)]), NO_STUDY)
    assert above is not None
    assert [line.get_marker() for line in above.axes[0].get_lines() if list(line.get_xdata()) == [100]] == ["^"]


def test_the_chosen_rate_is_ringed() -> None:
    records = [make_record(lr=lr, validation=value) for lr, value in ((1e-3, 0.4), (1e-2, 0.9), (1e-1, 0.0))]
    figure = learning_rates(section_of(records), NO_STUDY)
    assert figure is not None
    (ring,) = [line for line in figure.axes[0].get_lines() if line.get_markersize() == 11]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([1e-2], [0.9])
    assert learning_rates(section_of(comparison(1)), NO_STUDY) is None


def test_nothing_is_drawn_where_there_is_nothing_to_show() -> None:
    failed = section_of([make_record(status="error"), make_record("linear", status="diverged")])
    drawn = (accuracy_by_load, learning_curves, learning_rates, recall_by_state, capacity_by_state)
    assert [make(failed, NO_STUDY) for make in drawn] == [None] * 5
    assert recall_by_state(section_of([make_record(), make_record("linear")]), NO_STUDY) is None  # equal state


def test_state_is_drawn_by_bytes_too_where_elements_differ_in_size() -> None:
    runs = [make_record(), make_record("linear", state=2_000)]
    figure = recall_by_state(section_of(runs), NO_STUDY)
    assert figure is not None and len(figure.axes) == 2
    assert runs[1].result.state is not None
    small = runs[1].result.state.model_copy(update={"bytes": 4_000})
    halved = runs[1].model_copy(update={"result": runs[1].result.model_copy(update={"state": small})})
    figure = recall_by_state(section_of([runs[0], halved]), NO_STUDY)
    assert figure is not None
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert [label.split(" after")[0] for label in labels] == ["state elements", "state bytes", "parameters"]


def test_one_cell_is_drawn_once() -> None:
    alone = {"loads": (4,), "accuracies": (0.5,)}
    section = section_of([make_record(**alone), make_record("linear", state=2_000, **alone)])
    assert accuracy_by_load(section, NO_STUDY) is None
    assert recall_by_state(section, NO_STUDY) is not None


def test_loads_stand_on_the_scale_that_suits_them() -> None:
    wide = load_axis(section_of([make_record()]))
    assert (wide.logarithmic, wide.ticks, wide.label) == (True, ("4", "8", "16"), "pairs")
    hops = load_axis(section_of([make_record(loads=(0, 1, 2))]))
    assert (hops.logarithmic, hops.ticks) == (False, ("0", "1", "2"))


def test_one_cell_and_odd_names_draw_without_a_warning() -> None:
    section = section_of([make_record("$x_{ \\frac 漢字 _y" * 5, loads=(4,), accuracies=(math.nextafter(1, 0),))])
    with figure_settings():
        figure = accuracy_by_load(section, NO_STUDY)
        assert figure is not None
        assert b"$x_{ \\frac" in svg(figure)


def test_very_many_seeds_are_drawn_by_quantiles_with_both_ends() -> None:
    values = [((8 * i) % 1001) / 1000 for i in range(1001)]
    drawn = canvas.thinned(values)
    assert len(drawn) == canvas.MOST_DOTS and (drawn[0], drawn[-1]) == (0.0, 1.0)
    assert max(b - a for a, b in pairwise(drawn)) <= 1 / (canvas.MOST_DOTS - 1) + 1e-3
    assert canvas.thinned(values[: canvas.MOST_DOTS]) == values[: canvas.MOST_DOTS]


def test_a_caption_says_what_a_figure_leaves_out() -> None:
    few = section_of([make_record(seed=seed) for seed in range(canvas.MOST_DOTS)])
    many = section_of([make_record(seed=seed) for seed in range(canvas.MOST_DOTS + 1)])
    for part in (accuracy.LOAD_PART, accuracy.GROUP_PART):
        assert part.figure is not None
        assert part.figure.full_caption(few) == part.figure.caption
        remark = " Of more than 30 seeds in one place, 30 quantiles are drawn."
        assert part.figure.full_caption(many) == part.figure.caption + remark
    assert rates.PART.figure is not None and learning.PART.figure is not None
    swept = [make_record(seed=seed, lr=lr) for seed in range(canvas.MOST_DOTS + 1) for lr in (1e-3, 1e-2)]
    assert "30 quantiles are drawn" in rates.PART.figure.full_caption(section_of(swept))
    assert "the first 20 are drawn" in learning.PART.figure.full_caption(many)
    assert learning.PART.figure.full_caption(section_of([make_record()])) == learning.PART.figure.caption
