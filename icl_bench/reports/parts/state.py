"""Recall against the size of the state and against the number of parameters."""

from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.context import StudyContext
from icl_bench.reports.entry import Entry
from icl_bench.reports.labels import MOST_STRIPS, STRIP_HEIGHT, End, label_ends, name_rows
from icl_bench.reports.naming import natural_key, shared_settings, without_settings
from icl_bench.reports.panels import by_state
from icl_bench.reports.parts.base import Part, SectionFigure, measured_seeds_remark, shared_remark
from icl_bench.reports.parts.reach import ceilings, reach_remark
from icl_bench.reports.ranking import MATCHED, largest_budget
from icl_bench.reports.statistics import median
from icl_bench.runs.outline import Seeds

HEIGHT = 360
"""Height in pixels of the figure of sizes."""
ONE_SIZE = 1.2
"""Largest ratio of two states that count as one size in a figure."""
MOST_ALONE = 12
"""Largest number of entries on an axis of sizes if no line joins two sizes."""
SPREAD = 1.025
"""Factor within which the dots of a size are spread, so that equal accuracies are seen side by side."""
CEILING_REACH = 1.06
"""Factor by which the line at a ceiling reaches to each side of the size of its window."""
UNTRAINED = {"untrained": " (untrained)", "at the floor": " (at the floor)"}
"""Outcomes of training in which no seed is locked in, and how a row names them."""


def drawn_entries(section: Section) -> list[Entry]:
    """Return the entries that have a score; of several budgets of training the largest, at which claims are made."""
    return [entry for entry in largest_budget(section.entries) if entry.accuracies]


def shared_by_drawn(section: Section) -> tuple[str, ...]:
    """Return the settings that the figure's names leave out, since all entries of it have them."""
    return shared_settings([entry.label for entry in drawn_entries(section)])


def drawn_by_state(section: Section) -> bool:
    """Return whether the accuracies of a section have a figure of their own, beside that by load."""
    return len(drawn_entries(section)) > 1


def recall_by_state(section: Section, context: StudyContext) -> Figure | None:
    """Draw accuracy against state and against parameters, or a strip for each entry where all are of one size.

    State is in elements; in bytes too where elements have different sizes, and in bytes alone where published results,
    which count bytes, stand beside the measured ones. None with fewer than two entries that have a score.
    """
    if not drawn_by_state(section):
        return None
    if not context.published and of_one_size(section):
        return strips(section)
    ratios = {one.state_bytes / one.state_elements for one in section.entries if one.state_elements and one.state_bytes}
    sizes: list[tuple[str, Callable[[Entry], int | None]]] = []
    if not context.published:
        sizes.append(("state elements", lambda entry: entry.state_elements))
    if context.published or max(ratios) > MATCHED * min(ratios):
        sizes.append(("state bytes", lambda entry: entry.state_bytes))
    sizes.append(("parameters", lambda entry: entry.example.result.params))
    figure, panels = canvas.new_figure(HEIGHT, 1, len(sizes))
    ends: list[End] = []
    for axes, (label, size) in zip(panels, sizes, strict=True):
        ends = draw_sizes(axes, section, size)
        if label != "parameters":
            draw_ceilings(axes, section, size)
        canvas.size_axis(axes, label)
    for point in context.published:
        panels[0].add_line(canvas.hollow(float(point.bytes), point.accuracy, "o", 9, canvas.PUBLISHED_STYLE))
        spot = (float(point.bytes), point.accuracy)
        panels[0].annotate("published", spot, (0, 8), textcoords="offset points", ha="center", fontsize=8)
    canvas.share_axis(panels[0], "test accuracy, mean over cells")
    shared = shared_by_drawn(section)
    named = [end._replace(name=without_settings(end.name, shared)) for end in ends]
    if not label_ends(panels[-1], [*named, End(None, section.mean_floor or 0.0, "floor", canvas.GREY)], HEIGHT):
        styles = map(canvas.series_style, range(len(section.families)))
        handles = dict(zip(section.families, canvas.legend_handles(styles), strict=True))
        drawn = [family for family in section.families if any(end.name == family for end in ends)]
        floor, names = Line2D([], [], **canvas.FLOOR_LINE), [without_settings(family, shared) for family in drawn]
        canvas.add_legend(figure, [*(handles[family] for family in drawn), floor], [*names, "floor"])
    return figure


def of_one_size(section: Section) -> bool:
    """Return whether a figure has no axis of sizes: entries are of about one size, or many with one for each family."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for one in drawn_entries(section):
        if one.state_elements:
            sizes[one.family].append(one.state_elements)
    alone = sum(map(len, sizes.values())) > MOST_ALONE and all(max(of) <= ONE_SIZE * min(of) for of in sizes.values())
    states = [state for of in sizes.values() for state in of]
    return alone or not states or max(states) <= ONE_SIZE * min(states)


def strips(section: Section) -> Figure:
    """Draw a row for each entry, by falling median: its seeds, the median as a bar, and the interval of the median."""
    scored = [(entry.accuracy, entry) for entry in drawn_entries(section) if entry.accuracy is not None]
    entries = [entry for _, entry in sorted(scored, key=lambda row: (-row[0], natural_key(row[1].label)))][:MOST_STRIPS]
    figure, (axes,) = canvas.new_figure(80 + STRIP_HEIGHT * len(entries))
    for row, entry in enumerate(entries):
        style = canvas.series_style(section.families.index(entry.family))
        middle = median(list(entry.accuracies.values()))
        if entry.interval is not None:
            ends = [entry.interval.low, entry.interval.high]
            axes.plot(ends, [row, row], color=(*style.colour, 0.22), linewidth=8, solid_capstyle="butt")
        axes.plot([middle, middle], [row - 0.34, row + 0.34], color=style.colour, linewidth=2.4)
        draw_row(axes, row, entry.accuracies, section.locked_seeds(entry), style)
    axes.axvline(section.mean_floor or 0.0, **canvas.FLOOR_LINE)
    axes.annotate(
        "floor", (section.mean_floor or 0.0, 1.0), (3, 2), ("data", "axes fraction"), "offset points", color=canvas.GREY
    )
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.set_xlabel("test accuracy, mean over cells")
    training, shared = [section.training(entry) for entry in entries], shared_by_drawn(section)
    labels = [without_settings(entry.label, shared) for entry in entries]
    names = [f"{label}{UNTRAINED.get(known, '')}" for label, known in zip(labels, training, strict=True)]
    name_rows(axes, names, [known in UNTRAINED for known in training])
    return figure


def draw_row(
    axes: Axes, row: int, accuracies: Mapping[Seeds, float], locked: Container[Seeds], style: canvas.SeriesStyle
) -> None:
    """Draw the seeds of an entry side by side in its row: filled if locked in, else open."""
    for filled in (True, False):
        found = canvas.thinned([value for seeds, value in accuracies.items() if (seeds in locked) == filled])
        places = [row + 0.2 * canvas.jitter(i) for i in range(len(found))]
        axes.plot(found, places, clip_on=False, in_layout=False, **canvas.dot_looks(style, filled))


def draw_sizes(axes: Axes, section: Section, size: Callable[[Entry], int | None]) -> list[End]:
    """Draw a dot for each seed, a short bar at each median, a line through the medians of a family, and the floor.

    The line leaves out untrained entries, which say nothing of capacity: their seeds and medians stand alone, open.
    Return the ends of the lines.
    """
    ends = []
    for i, family in enumerate(section.families):
        style = canvas.series_style(i)
        members = [one for one in drawn_entries(section) if one.family == family]
        places = [(found, one) for one in members if (found := size(one))]
        places.sort(key=lambda place: (place[0], by_state(place[1])))
        sizes, columns = [found for found, _ in places], [one.accuracies for _, one in places]
        medians = [median(list(column.values())) for column in columns]
        learnt = [section.training(one) not in UNTRAINED for _, one in places]
        bars: Any = {"marker": "_", "markersize": 16, "markeredgewidth": 1.8, "color": style.colour}
        joined = [(x, y) for x, y, kept in zip(sizes, medians, learnt, strict=True) if kept]
        apart = [(x, y) for x, y, kept in zip(sizes, medians, learnt, strict=True) if not kept]
        axes.plot([x for x, _ in joined], [y for _, y in joined], linestyle=style.dash, **bars)
        axes.plot([x for x, _ in apart], [y for _, y in apart], linestyle="none", alpha=0.5, **bars)
        for x, column, (_, one) in zip(sizes, columns, places, strict=True):
            canvas.draw_locked(axes, [x], [column], section.locked_seeds(one), style, factor=SPREAD)
        if medians:
            x, y = (joined or apart)[-1]
            ends.append(End(float(x), y, family, style.colour))
    axes.axhline(section.mean_floor or 0.0, **canvas.FLOOR_LINE)
    return ends


def draw_ceilings(axes: Axes, section: Section, size: Callable[[Entry], int | None]) -> None:
    """Draw a short thin line at the ceilings of each window, for one layer and for all.

    They are not joined: windows of one size differ in reach where their heads differ in width.
    """
    styles = {family: canvas.series_style(i) for i, family in enumerate(section.families)}
    for one in ceilings(section):
        if (place := size(one.entry)) is not None:
            ends = [place / CEILING_REACH, place * CEILING_REACH]
            axes.plot(ends, [one.mean] * 2, **one.line(styles[one.entry.family]))


def budget_remark(section: Section) -> str:
    """Return the remark that of several budgets of training the largest alone is drawn."""
    several = len(largest_budget(section.entries)) < len(section.entries)
    return " Of several budgets of training the largest alone is drawn." if several else ""


def drawn_remark(section: Section) -> str:
    """Return the remark that names what all entries of the figure share."""
    return shared_remark(drawn_entries(section))


def strips_remark(section: Section) -> str:
    """Return the remark that not every entry is drawn, where there are too many for strips."""
    number = sum(entry.accuracy is not None for entry in drawn_entries(section))
    return f" The best {MOST_STRIPS} of {number} are drawn." if number > MOST_STRIPS and of_one_size(section) else ""


PART = Part(
    "Recall against state",
    figure=SectionFigure(
        "recall-by-state",
        "Test accuracy, mean over cells, and the state after the longest sequence: a dot for each seed, a bar at each "
        "median. Open dots are seeds that are not locked in; untrained architectures say nothing of capacity, and no "
        "line goes through them.",
        recall_by_state,
        lambda section: "".join(
            remark(section)
            for remark in (measured_seeds_remark, budget_remark, drawn_remark, strips_remark, reach_remark)
        ),
    ),
)
