"""What a report says of answers that are vectors: their error, in place of accuracy or beside it."""

from collections.abc import Sequence

from icl_bench.reports.analysis import Entry, Section, cell_of, repeated
from icl_bench.reports.statistics import Interval, mean_interval, median
from icl_bench.reports.tables import MAIN_HEADER, Name, Table, main_table
from icl_bench.reports.text import NONE, bracketed, share

ZERO = 1.0
"""Error of answering 0, on average, by which errors are divided."""
PLACE = MAIN_HEADER.index("accuracy")


def measure_table(section: Section) -> Table:
    """The main table; where answers are vectors, with the error and its interval in place of the accuracy."""
    table = main_table(section)
    if not section.has_errors:
        return table
    *own, _, oracle = table.rows
    rows = [
        replaced(row, error_of(entry), error_interval(entry)) for row, entry in zip(own, section.entries, strict=True)
    ]
    zero = replaced((Name("answering 0"), *(NONE for _ in MAIN_HEADER[1:])), share(ZERO), None)
    best = replaced(oracle, share(mean([oracle_error(section, cell.label) for cell in section.cells])), None)
    return Table(replaced(MAIN_HEADER, "error", None, MAIN_HEADER[PLACE + 1]), (*rows, zero, best))


def replaced(row: Sequence[str], error: str, interval: Interval | None, label: str | None = None) -> tuple[str, ...]:
    """A row with an error where its accuracy was."""
    return (*row[:PLACE], error, label or bracketed(interval) or NONE, *row[PLACE + 2 :])


def error_table(section: Section) -> Table:
    """Median error by cell, that of answering 0 and the oracle's; empty for tokens."""
    cells = section.cells if section.has_errors else ()
    rows = [(Name(entry.label), *(cell_error(entry, cell.label) for cell in cells)) for entry in section.entries]
    rows += [
        (Name("answering 0"), *(share(ZERO) for _ in cells)),
        (Name("oracle"), *(share(oracle_error(section, cell.label)) for cell in cells)),
    ]
    return Table(("architecture", *(Name(cell.label) for cell in cells)), tuple(rows) if cells else ())


def cell_error(entry: Entry, label: str) -> str:
    """Median error in a cell over seeds; a diverged run counts as answering 0."""
    scores = [cell_of(run, label) for run in entry.scored]
    errors = [ZERO if score is None else score.error for score in scores]
    known = [error for error in errors if error is not None]
    return share(median(known)) if known else NONE


def error_of(entry: Entry) -> str:
    """Median over seeds of the mean error over cells."""
    return share(median(list(entry.errors.values()))) if entry.errors else NONE


def error_interval(entry: Entry) -> Interval | None:
    """95 % interval of the mean error, not below 0."""
    found = mean_interval(list(entry.errors.values()))
    return Interval(max(0.0, found.low), found.high) if found else None


def oracle_error(section: Section, label: str) -> float:
    """The oracle's error in a cell, median over runs."""
    return median([one.oracle_error for one in repeated(section.seen[label]) if one.oracle_error is not None])


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
