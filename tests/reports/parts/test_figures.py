"""Figures: their contents and panels, and none where there is nothing to show."""

import math
from itertools import pairwise

import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.canvas import COLOURS, figure_settings, series_style, svg
from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.labels import End, label_ends
from icl_bench.reports.panels import panels_of
from icl_bench.reports.parts import accuracy, learning, rates
from icl_bench.reports.parts.accuracy import accuracy_by_load, load_axis
from icl_bench.reports.parts.capacity import capacity_by_state
from icl_bench.reports.parts.learning import learning_curves
from icl_bench.reports.parts.rates import learning_rates
from icl_bench.reports.parts.state import of_one_size, recall_by_state
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
    assert [panel.title for panel in panels] == ["power:p=2, by state elements", "window, by state elements"]
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
    assert recall_by_state(section_of([make_record()]), NO_STUDY) is None  # nothing to compare


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


def ticks(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def test_entries_of_one_size_are_rows_by_falling_median() -> None:
    lost = [make_record("linear", seed, accuracies=(0.01, 0.01, 0.01)) for seed in range(5)]
    good = [make_record(seed=seed, accuracies=(0.9, 0.8, 0.7 if seed else 0.01)) for seed in range(5)]
    section = section_of([*good, *lost])
    figure = recall_by_state(section, NO_STUDY)
    assert figure is not None
    (axes,) = figure.axes
    assert ticks(axes) == ["power:p=2", "linear (untrained)"]
    rows = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
    assert [(len(line.get_xdata()), line.get_markerfacecolor() == "white") for line in rows] == [
        (5, False), (0, True), (0, False), (5, True)
    ]  # fmt: skip
    assert all(-0.3 < y < 0.3 for y in rows[0].get_ydata()) and len(set(rows[0].get_ydata())) == 5


def test_many_entries_that_no_line_joins_are_rows() -> None:
    places = [(f"arch{i}", layers) for i in range(7) for layers in (1, 2)]
    fall = {"accuracies": (1.0, 0.9, 0.5, 0.2, 0.1), "loads": LOADS}
    section = section_of([make_record(arch, state=1000 * n, model={"layers": n}, **fall) for arch, n in places])
    with figure_settings():
        figures = recall_by_state(section, NO_STUDY), capacity_by_state(section, NO_STUDY)
    assert [figure and len(ticks(figure.axes[0])) for figure in figures] == [14, 14]


def test_no_line_goes_through_an_untrained_entry() -> None:
    sizes = [make_record("linear:d_key=8", s, accuracies=(0.9,) * 3, state=1000) for s in range(3)]
    sizes += [make_record("linear:d_key=16", s, accuracies=(0.01,) * 3, state=4000) for s in range(3)]
    sizes += [make_record("linear:d_key=32", s, accuracies=(0.95,) * 3, state=16_000) for s in range(3)]
    figure = recall_by_state(section_of(sizes), NO_STUDY)
    assert figure is not None
    first, second = figure.axes[0].get_lines()[:2]
    assert list(first.get_xdata()) == [1000, 16_000] and first.get_linestyle() == "-"
    assert list(second.get_xdata()) == [4000] and second.get_linestyle() == "None"


def test_lines_have_their_names_at_their_ends_without_overlaps() -> None:
    section = section_of([make_record(f"arch{i}", accuracies=(1.0, 0.9, 0.9)) for i in range(7)])
    with figure_settings():
        figure = accuracy_by_load(section, NO_STUDY)
        assert figure is not None
        svg(figure)
        labels = [text for text in figure.axes[0].texts if text.get_text().startswith("arch")]
        boxes = [Text.get_window_extent(text) for text in labels]  # that of an annotation has its leader
    assert len(labels) == 7 and figure.legends == []
    boxes.sort(key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    lines = [
        line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 3 and line.get_linestyle() != "None"
    ]
    heights = {round(line.get_transform().transform((4, 1.0))[1], 2) for line in lines if line.get_color() != "#57606a"}
    assert len(heights) == 7  # lines that coincide are drawn side by side


def test_labels_that_do_not_fit_are_a_legend() -> None:
    axes = canvas.new_figure(120)[1][0]
    assert not label_ends(axes, [End(1.0, 0.5, str(i), "k") for i in range(9)], 120)
    assert label_ends(axes, [End(1.0, 0.5, str(i), "k") for i in range(3)], 120)


def test_settings_have_a_panel_each_where_most_families_have_one_size() -> None:
    runs = [make_record(f"arch{i}", model={"layers": layers}) for i in range(6) for layers in (1, 2)]
    panels = panels_of(section_of(runs))
    assert [(panel.title, len(panel.entries)) for panel in panels] == [("layers=1", 6), ("layers=2", 6)]
    assert panels[0].styles == panels[1].styles and panels[0].names == tuple(f"arch{i}" for i in range(6))
    assert len(panels_of(section_of(runs), crowded=True)) == 12
    many = [make_record(f"arch{i}", model={"layers": layers}) for i in range(9) for layers in (1, 2)]
    assert len({(one.colour, one.dash) for one in panels_of(section_of(many))[0].styles}) == 9
    for size in (4, 8):  # one size in each panel
        runs += [make_record(f"power:p=2,d_key={size}", state=4_000, model={"layers": size // 4})]
    assert [panel.names[-1] for panel in panels_of(section_of(runs))] == ["power:p=2"] * 2


def test_sizes_of_an_architecture_have_dashes_of_their_own_in_the_panel_of_a_setting() -> None:
    runs = [make_record(f"arch{i}", model={"layers": layers}) for i in range(6) for layers in (1, 2)]
    runs += [make_record("power:p=2,d_key=8", state=5_000, model={"layers": layers}) for layers in (1, 2)]
    runs += [make_record("power:p=2,d_key=4", state=4_000, model={"layers": layers}) for layers in (1, 2)]
    for panel in panels_of(section_of(runs)):
        assert panel.names[0] == "arch0" and panel.names[-2:] == ("power:p=2,d_key=4", "power:p=2,d_key=8")
        small, large = panel.styles[-2:]
        assert small.colour == large.colour and small.dash != large.dash
        assert len(set(panel.styles)) == 8


def test_entries_of_one_state_and_several_widths_are_rows_and_are_named_by_their_width() -> None:
    runs = [make_record(f"arch{i}", model={"d_model": width}) for i in range(8) for width in (64, 128)]
    section = section_of(runs)
    assert of_one_size(section)
    assert {panel.names for panel in panels_of(section, crowded=True)} == {("d_model=64", "d_model=128")}


def test_titles_of_panels_are_whole_and_rates_are_drawn_where_several_were_tried() -> None:
    arch = "power:p=3,spectrum=learned,normalizer=rms"
    runs = [make_record(arch, model={"layers": layers}, lr=lr) for layers in (1, 2, 3) for lr in (1e-3, 1e-2)]
    runs += [make_record(f"arch{i}", model={"layers": 1}) for i in range(6)]
    figure = learning_rates(section_of(runs), NO_STUDY)
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    lines = "power:p=3,spectrum=learned,\nnormalizer=rms, layers="
    assert titles == [f"{lines}{layers}" for layers in (1, 2, 3)]


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
