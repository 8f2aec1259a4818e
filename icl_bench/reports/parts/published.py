"""Published results beside the measured ones."""

from collections.abc import Sequence

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Content, Name, Prose, Table, table_of, titled
from icl_bench.reports.context import PublishedResult
from icl_bench.reports.entry import Entry
from icl_bench.reports.text import NONE, format_bytes, format_interval, format_level, format_share

MET = 0.04
"""Largest difference in accuracy for which a published result counts as met."""
MEASURED = ("measured", "state", "accuracy", "interval of the median", "its level", "difference")
NOTE = (
    f"Met: the accuracies differ by at most {MET}. State: in bytes, as the source counts it and as it is counted here. "
    "Accuracy: mean over the evaluated cells; the measured one is the median over seeds."
)


def published_table(sections: Sequence[Section], published: Sequence[PublishedResult]) -> Table:
    """Make a row for each published result, beside the entry that corresponds to it."""
    entries = [entry for section in sections for entry in section.entries] if published else []
    by_arch = {entry.example.result.arch: entry for entry in reversed(entries)}  # the first entry of an architecture
    return table_of([published_row(point, by_arch.get(point.arch or "")) for point in published])


def published_row(point: PublishedResult, entry: Entry | None) -> dict[str, str]:
    """Make the row of a published result."""
    told = {
        "published result": Name(point.label),
        "published state": format_bytes(point.bytes),
        "published accuracy": format_share(point.accuracy),
        "source": Name(point.source),
    }
    if entry is None or entry.accuracy is None:
        return {**told, **dict.fromkeys(MEASURED, NONE), "outcome": "not measured"}
    gap = entry.accuracy - point.accuracy
    size, accuracy = format_bytes(entry.state_bytes), format_share(entry.accuracy)
    interval = (format_interval(entry.interval), format_level(entry.interval))
    cells = (Name(entry.label), size, accuracy, *interval, f"{gap:+.3f}")
    return {**told, **dict(zip(MEASURED, cells, strict=True)), "outcome": "met" if abs(gap) <= MET else "not met"}


def published_blocks(sections: Sequence[Section], published: Sequence[PublishedResult]) -> list[Content]:
    """Return the table of published results; empty where there are none."""
    return titled(2, "Published results", published_table(sections, published), Prose(NOTE))
