"""A topic of a section: a heading over a table, a figure and a note, each of which it may lack."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Content, Drawing, Folded, Notes, Prose, Table, titled
from icl_bench.reports.canvas import MOST_DOTS, add_title, figure_settings, svg
from icl_bench.reports.context import StudyContext
from icl_bench.reports.entry import Entry
from icl_bench.reports.naming import shared_settings
from icl_bench.reports.text import enumerate_words


class SectionFigure(NamedTuple):
    """A figure of a section."""

    name: str
    """Name of its file, without number and suffix."""
    caption: str
    draw: Callable[[Section, StudyContext], Figure | None]
    """Draw the figure; None where it would show nothing."""
    remark: Callable[[Section], str] = lambda section: ""
    """Return sentences for the caption: on seeds that the figure leaves out, and on lines that few figures have."""

    def render(self, section: Section, context: StudyContext, title: str = "") -> bytes | None:
        """Draw the figure as SVG, under a title if there is one; return None where it would show nothing."""
        with figure_settings():
            figure = self.draw(section, context)
            if figure is not None and title:
                add_title(figure, title)
            return None if figure is None else svg(figure)

    def full_caption(self, section: Section) -> str:
        """Return the caption with a remark on seeds that are left out."""
        return self.caption + self.remark(section)


class Part(NamedTuple):
    """A topic of a section."""

    heading: str
    """Heading; empty for the topic that opens the section."""
    table: Callable[[Section], Table] | None = None
    """Make the table; without rows the table, and with it the note, is left out."""
    figure: SectionFigure | None = None
    note: Callable[[Section], str | Notes] | str = ""
    """Explanation of the table."""
    details: Callable[[Section], Folded] | None = None
    """Make a table that stands folded under the note; without rows it is left out."""

    def blocks(self, section: Section, drawing: Drawing | None) -> list[Content]:
        """Return the content of the topic, with its figure if that was drawn; empty where there is nothing to show."""
        table = self.table(section) if self.table else None
        shown: list[Content] = [drawing] if drawing else []
        if table is not None and table.rows:
            note = self.note if isinstance(self.note, str) else self.note(section)
            shown += [table, *([Prose(note) if isinstance(note, str) else note] if note else [])]
            details = self.details(section) if self.details else None
            shown += [details] if details and details.table.rows else []
        return titled(3, self.heading, *shown) if self.heading else shown


def quantile_remark(numbers: Sequence[int]) -> str:
    """Return the remark that dots are quantiles, where one of these numbers of seeds is too large for a dot each."""
    remark = f" Of more than {MOST_DOTS} seeds in one place, {MOST_DOTS} quantiles are drawn."
    return remark if max(numbers, default=0) > MOST_DOTS else ""


def shared_remark(entries: Sequence[Entry]) -> str:
    """Return the remark that names what all entries of a figure share, which their names there leave out."""
    shared = shared_settings([entry.label for entry in entries])
    return f" All that is drawn has {enumerate_words(shared)}." if shared else ""


def measured_seeds_remark(section: Section) -> str:
    """Return the remark that dots are quantiles, for a figure of the runs that measure."""
    return quantile_remark([len(entry.accuracies) for entry in section.entries])
