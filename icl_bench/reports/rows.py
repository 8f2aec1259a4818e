"""Every run of a report as a row of comma-separated values, failed ones too."""

import csv
import io
from collections.abc import Sequence
from functools import lru_cache

from icl_bench.reports.analysis import Section, curve_of, order_of
from icl_bench.reports.text import plain

HEADER = (
    "id",
    "task",
    "architecture",
    "seed",
    "data_seed",
    "learning_rate",
    "status",
    "state_elements",
    "state_bytes",
    "parameters",
    "steps",
    "validation",
    "cell",
    "load",
    "length",
    "accuracy",
    "exact_match",
    "floor",
)
ACTIVE = ("=", "+", "-", "@")
"""First characters that a spreadsheet takes for the beginning of a formula."""


def run_rows(sections: Sequence[Section]) -> bytes:
    """A row for each run and cell, in the order of the report; a run without cells has one row, with no score."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for section in sections:
        for outline in sorted(section.runs, key=order_of):
            run = outline.record
            result = run.result
            state = (result.state.elements, result.state.bytes) if result.state else ("", "")
            curve = curve_of(run)
            names = (result.id, inert(result.task), inert(result.arch))
            sizes = (*state, result.params or "", result.steps, curve[-1][1] if curve else "")
            own = (*names, result.seed, run.spec["data_seed"], result.lr, result.status, *sizes)
            cells: list[tuple[object, ...]] = [
                (inert(cell.label), cell.load, cell.length, cell.accuracy, cell.exact_match, cell.floor)
                for cell in result.cells
            ]
            writer.writerows((*own, *cell) for cell in cells or [("",) * len(HEADER[len(own) :])])
    return out.getvalue().encode()


@lru_cache(maxsize=4096)  # many thousand rows hold few names
def inert(text: str) -> str:
    """Text that a spreadsheet shows as it is."""
    text = plain(text)
    return f"'{text}" if text.startswith(ACTIVE) else text
