"""The ceiling that the reach of a window sets: the pairs that it can see, and a guess at the floor for the others.

The share of scored positions whose answer lies within a distance is read from the groups of a cell, which count the
positions by the octave of that distance; inside an octave distances count as uniform.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from icl_bench.reports.analysis import CellInfo, Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.canvas import SeriesStyle
from icl_bench.reports.entry import Entry, cell_of
from icl_bench.reports.parts.base import Part
from icl_bench.reports.ranking import largest_budget
from icl_bench.reports.text import format_integer, format_share

DISTANCES = re.compile(r"gap (\d+)(?:(?:-|\.\.)(\d+))?")
"""Name of a group of scored positions whose answers lie at these distances."""
NOTE = (
    "Accuracy of a window that answers all that it can see: r + (1 - r) f, where r is the share of scored positions "
    "whose answer lies within reach, by the distances in the test examples (uniform inside an octave), and f is the "
    "floor, for a guess at the others. One layer of width w sees w tokens, n layers one after the other n (w - 1) + 1. "
    "An accuracy near the ceiling is a property of the task, not of training."
)


class Ceiling(NamedTuple):
    """The ceilings of an entry by its reach through some of its layers."""

    entry: Entry
    layers: int
    """Number of layers that the reach goes through: one, or all."""
    reach: int
    """Largest distance, in tokens, at which an answer can be seen."""
    by_cell: Mapping[str, float]
    """Largest accuracy, by the label of a cell."""

    @property
    def mean(self) -> float:
        """Largest accuracy, mean over cells."""
        return sum(self.by_cell.values()) / len(self.by_cell)

    def line(self, style: SeriesStyle) -> Any:
        """Return the looks of the line that draws it: dotted through one layer, dash-dotted through several."""
        return {"color": style.colour, "linestyle": ":" if self.layers == 1 else "-.", "linewidth": 1.0}


def ceilings(section: Section) -> Iterator[Ceiling]:
    """Yield the ceilings of entries whose only mixer has a limited reach, at the largest budget of training.

    There are none where the groups do not tell the distances.
    """
    for entry in largest_budget(section.entries):
        width = entry.declarations[0].reach
        if width is None or len(entry.declarations) > 1 or not entry.scored:
            continue
        layers = int(entry.example_outline.setting.spec["model"]["layers"])
        for number in sorted({1, layers}):
            reach = number * (width - 1) + 1
            shares = {cell.label: share_within(entry, cell, reach) for cell in section.cells}
            floors = {label: floor.accuracy for label, floor in section.floors.items()}
            known = {label: share + (1 - share) * floors[label] for label, share in shares.items() if share is not None}
            if known:
                yield Ceiling(entry, number, reach, known)


def share_within(entry: Entry, cell: CellInfo, reach: int) -> float | None:
    """Return the share of scored positions of a cell whose answer lies within reach; None where that is not known."""
    near = total = 0.0
    for run in entry.scored:
        found = cell_of(run, cell.label)
        for name, group in (found.groups if found else {}).items():
            match = DISTANCES.fullmatch(name)
            if match is None:
                return None
            low, high = int(match[1]), min(int(match[2] or match[1]), cell.length - 1)
            near += group.count * min(1.0, max(0.0, (reach - low + 1) / (high - low + 1)))
            total += group.count
    return near / total if total else None


def reach_table(section: Section) -> Table:
    """Make a row for each window, through one layer and through all; no rows where there is none."""
    rows = [
        {
            "architecture": Name(one.entry.label),
            "layers": str(one.layers),
            "reach": format_integer(one.reach),
            **{Name(cell.label): format_share(one.by_cell.get(cell.label)) for cell in section.cells},
            "mean": format_share(one.mean),
            "measured": format_share(one.entry.accuracy),
        }
        for one in ceilings(section)
    ]
    return table_of(rows)


def reach_remark(section: Section) -> str:
    """Return the remark on the lines of ceilings, where there are any."""
    remark = (
        " Thin lines: the ceiling that the reach of a window sets, dotted through one layer, dash-dotted through all."
    )
    return remark if any(True for _ in ceilings(section)) else ""


PART = Part("Reach", reach_table, note=NOTE)
