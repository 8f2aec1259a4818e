"""Comma-separated values of every run of a report, failed runs included."""

import csv
import io
from collections.abc import Iterator, Sequence
from functools import lru_cache

from icl_bench.reports.analysis import Section, run_order
from icl_bench.reports.text import plain
from icl_bench.runs.outline import MeasuredRun

SCORE_COLUMNS = ("accuracy", "exact_match", "floor")
CSV_CELL_COLUMNS = ("cell", "load", "length", *SCORE_COLUMNS)
ACTIVE = ("=", "+", "-", "@")
"""First characters from which a spreadsheet recognises a formula."""


def csv_of(sections: Sequence[Section]) -> bytes:
    """Write a row for each run and cell, in the order of the report; a run without cells has one row."""
    runs = [(outline, entry) for section in sections for entry in section.entries for outline in entry.runs]
    ordered = sorted(runs, key=lambda pair: run_order(pair[0]))
    rows = [row for outline, entry in ordered for row in csv_rows(entry.load(outline.id))]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def csv_rows(run: MeasuredRun) -> Iterator[dict[str, object]]:
    """Yield the rows of a run, each with every column."""
    result = run.result
    own = {
        "id": result.id,
        "task": inert(result.task),
        "architecture": inert(result.arch),
        "seed": result.seed,
        "data_seed": run.spec["data_seed"],
        "learning_rate": result.lr,
        "status": result.status,
        "state_elements": result.state.elements if result.state else "",
        "state_bytes": result.state.bytes if result.state else "",
        "parameters": result.params or "",
        "steps": result.steps,
        "validation": run.curve[-1][1] if run.curve else "",
    }
    for cell in result.cells:
        scores = (getattr(cell, name) for name in SCORE_COLUMNS)
        yield own | dict(zip(CSV_CELL_COLUMNS, (inert(cell.label), cell.load, cell.length, *scores), strict=True))
    if not result.cells:
        yield own | dict.fromkeys(CSV_CELL_COLUMNS, "")


@lru_cache(maxsize=4096)  # many thousand rows contain few names
def inert(text: str) -> str:
    """Return text that a spreadsheet shows unchanged."""
    text = plain(text)
    return f"'{text}" if text.startswith(ACTIVE) else text
