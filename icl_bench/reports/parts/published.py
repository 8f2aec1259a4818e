"""Published results beside the measured ones."""

import math
from collections.abc import Sequence

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Content, Name, Prose, Table, table_of, titled
from icl_bench.reports.context import PublishedLoss, PublishedResult, StudyContext
from icl_bench.reports.entry import Entry
from icl_bench.reports.parts.positions import bits, operations, published_places, trained_median
from icl_bench.reports.text import NONE, format_bytes, format_interval, format_level, format_share

MET = 0.04
"""Largest difference in accuracy for which a published result counts as met."""
MEASURED = ("measured", "state", "accuracy", "interval of the median", "its level", "difference")
NOTE = (
    f"Met: the accuracies differ by at most {MET}. State: in bytes, as the source counts it and as it is counted here. "
    "Accuracy: mean over the evaluated cells; the measured one is the median over seeds."
)

LOSS_NOTE = (
    "Trained on: tokens. A setting is the same where vocabulary and length of rows agree and the study has the "
    "architecture; the text, its split, the optimiser and the budget may still differ, so that no difference is given."
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


def published_loss_table(sections: Sequence[Section], published: Sequence[PublishedLoss]) -> Table:
    """Make a row for each published loss in each section of its setting, and one for a loss that fits in none."""
    rows = []
    for point in published:
        told = {
            "published loss": Name(point.label),
            "row": f"{point.length:,} of {point.vocabulary:,} tokens",
            "trained on": operations(point.tokens),
            "bits": bits(point.loss / math.log(2)),
            "source": Name(point.source),
        }
        places = [place for section in sections for place in published_places(section, (point,))]
        rows += [
            {**told, "measured": Name(place.entry.label), "measured bits": bits(trained_median(place.entry))}
            for place in places
        ] or [{**told, "measured": "another setting", "measured bits": NONE}]
    return table_of(rows)


def published_blocks(sections: Sequence[Section], context: StudyContext) -> list[Content]:
    """Return the tables of published results and losses; empty where there are none."""
    return [
        *titled(2, "Published results", published_table(sections, context.published), Prose(NOTE)),
        *titled(2, "Published losses", published_loss_table(sections, context.published_losses), Prose(LOSS_NOTE)),
    ]
