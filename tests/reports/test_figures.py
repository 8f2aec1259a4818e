"""Figures: what is drawn, in which panels, and nothing where there is nothing to show."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section, analyse
from icl_bench.reports.canvas import COLOURS, look, settings, svg
from icl_bench.reports.figures import (
    accuracy_by_load,
    capacity_by_state,
    learning_curves,
    learning_rates,
    load_axis,
    recall_by_state,
)
from icl_bench.reports.panels import panels_of
from icl_bench.runs.record import RunRecord
from tests.reports.factory import comparison, make_record

LOADS = (4, 8, 16, 32, 64)


def section_of(records: Sequence[RunRecord]) -> Section:
    (section,) = analyse(records)
    return section


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
    assert panels[0].looks[-1].colour == look(0).colour  # the largest in full colour
    assert len(set(panels[0].looks)) == 4
    figure = accuracy_by_load(sizes)
    assert figure is not None
    assert len(figure.axes) == 2


def test_few_entries_share_a_panel_in_colours_of_their_own() -> None:
    (panel,) = panels_of(section_of(comparison(1)))
    assert panel.names == ("linear", "power:p=2", "softmax", "window:w=16")
    assert len({style.colour for style in panel.looks}) == 4
    assert len({look(i) for i in range(3 * len(COLOURS))}) == 3 * len(COLOURS)


def test_capacity_joins_what_was_measured_and_shows_the_rest_as_arrows(sizes: Section) -> None:
    figure = capacity_by_state(sizes)
    assert figure is not None
    lines = figure.axes[0].get_lines()
    joined = [line for line in lines if len(line.get_xdata()) > 1 and line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in joined] == [[800, 1800, 3200, 7200], [800, 1600, 3200, 6400]]
    assert list(joined[0].get_ydata()) == pytest.approx([8, 12, 16, 24], rel=0.05)
    assert capacity_by_state(section_of(comparison(1))) is None  # none falls to one half among the loads
    above = capacity_by_state(section_of([sized("softmax", 100, 1000), sized("linear", 200, 16)]))
    assert above is not None
    assert [line.get_marker() for line in above.axes[0].get_lines() if list(line.get_xdata()) == [100]] == ["^"]


def test_the_chosen_rate_is_ringed() -> None:
    records = [make_record(lr=lr, validation=value) for lr, value in ((1e-3, 0.4), (1e-2, 0.9), (1e-1, 0.0))]
    figure = learning_rates(section_of(records))
    assert figure is not None
    (ring,) = [line for line in figure.axes[0].get_lines() if line.get_markersize() == 11]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([1e-2], [0.9])
    assert learning_rates(section_of(comparison(1))) is None


def test_nothing_is_drawn_where_there_is_nothing_to_show() -> None:
    failed = section_of([make_record(status="error"), make_record("linear", status="diverged")])
    drawn = (accuracy_by_load, learning_curves, learning_rates, recall_by_state, capacity_by_state)
    assert [make(failed) for make in drawn] == [None] * 5
    assert recall_by_state(section_of([make_record(), make_record("linear")])) is None  # equal state


def test_one_cell_is_drawn_once() -> None:
    alone = {"loads": (4,), "accuracies": (0.5,)}
    section = section_of([make_record(**alone), make_record("linear", state=2_000, **alone)])
    assert accuracy_by_load(section) is None
    assert recall_by_state(section) is not None


def test_loads_stand_on_the_scale_that_suits_them() -> None:
    wide = load_axis(section_of([make_record()]))
    assert (wide.logarithmic, wide.ticks, wide.label) == (True, ("4", "8", "16"), "pairs")
    hops = load_axis(section_of([make_record(loads=(0, 1, 2))]))
    assert (hops.logarithmic, hops.ticks) == (False, ("0", "1", "2"))


def test_one_cell_and_odd_names_draw_without_a_warning() -> None:
    section = section_of([make_record("$x_{ \\frac 漢字 _y" * 5, loads=(4,), accuracies=(math.nextafter(1, 0),))])
    with settings():
        figure = accuracy_by_load(section)
        assert figure is not None
        assert b"$x_{ \\frac" in svg(figure)


def test_very_many_seeds_are_drawn_by_quantiles_with_both_ends() -> None:
    values = [((8 * i) % 1001) / 1000 for i in range(1001)]
    drawn = canvas.thinned(values)
    assert len(drawn) == canvas.MOST_DOTS and (drawn[0], drawn[-1]) == (0.0, 1.0)
    assert max(b - a for a, b in pairwise(drawn)) <= 1 / (canvas.MOST_DOTS - 1) + 1e-3
    assert canvas.thinned(values[: canvas.MOST_DOTS]) == values[: canvas.MOST_DOTS]
