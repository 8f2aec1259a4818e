"""Learned shares of lower degrees over training, of runs that keep probes."""

from matplotlib.figure import Figure

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.context import StudyContext
from icl_bench.reports.entry import Entry
from icl_bench.reports.parts.base import Part, SectionFigure
from icl_bench.runs.probes import Probes

SHARE = ".theta"
"""Part of the name of a probed share, between its layer and its number."""
OPTIMUM = 1.0
"""Share at which random keys recall the most."""


def probed_shares(section: Section) -> dict[Entry, list[Probes]]:
    """Return the probes of the measuring runs of each entry whose lower degrees have learned shares."""
    found: dict[Entry, list[Probes]] = {}
    for entry in section.entries:
        kept = [probes for run in entry.measured if (probes := section.probes(run.result)) is not None]
        if any(SHARE in name for probes in kept for name in probes.names):
            found[entry] = kept
    return found


def draw_shares(section: Section, context: StudyContext) -> Figure | None:
    """Draw each share of each layer in a panel, a line for each seed; None where no run with probes has shares."""
    found = probed_shares(section)
    names = sorted({name for kept in found.values() for probes in kept for name in probes.names if SHARE in name})
    if not names:
        return None
    rows = -(-len(names) // 2)
    figure, axes = canvas.new_figure(60 + 210 * rows, rows, 2)
    for unused in axes[len(names) :]:
        unused.set_visible(False)
    styles = [canvas.series_style(i) for i in range(len(found))]
    for one, name in zip(axes, names, strict=False):
        for level in (0.0, OPTIMUM):
            one.axhline(level, color=canvas.GREY, linestyle=":", linewidth=1.1)
        for style, kept in zip(styles, found.values(), strict=True):
            for probes in kept:
                points = probes.largest(name)
                if points:
                    one.plot(*zip(*points, strict=True), color=style.colour, linestyle=style.dash, linewidth=1.1)
        one.set_title(name, loc="left", parse_math=False)
        one.set_xlabel("updates")
    canvas.legend_below(figure, styles, [entry.label for entry in found])
    return figure


PART = Part(
    "Shares of lower degrees",
    figure=SectionFigure(
        "shares",
        "Learned shares of lower degrees over training at the chosen learning rate, by layer: a line for each seed. "
        "Dotted: 0, the power alone, and 1, at which random keys recall the most.",
        draw_shares,
    ),
)
