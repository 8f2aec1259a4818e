"""Finished runs as one table, a row for each run and cell, for other tools: CSV, or Parquet by pyarrow."""

import csv
import importlib.util
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from icl_bench.errors import SpecError
from icl_bench.runs.record import CellScore, RunRecord
from icl_bench.runs.store.files import replace_file, writing

Cell = str | int | float | None

RUN_COLUMNS = ("id", "task", "arch", "seed", "data_seed", "lr", "weight_decay", "status", "detail", "params")
STATE_COLUMNS = ("state_elements", "state_bytes", "weight_flops", "state_flops")
END_COLUMNS = ("steps", "seconds", "solved_at", "device")
CELL_COLUMNS = ("cell", "load", "length", "accuracy", "exact_match", "loss", "floor", "floor_solver", "state_bits")
COLUMNS = (*RUN_COLUMNS, *STATE_COLUMNS, *END_COLUMNS, *CELL_COLUMNS)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


def export(records: Iterable[RunRecord], path: Path) -> int:
    """Write the table, whole or not at all; returns the number of its rows.

    Raises:
        SpecError: where the name ends in neither .csv nor .parquet, or pyarrow is not there for the latter.
        StoreError: where the file cannot be written.
    """
    if path.suffix not in WRITERS:
        raise SpecError(f"an export is a .csv or .parquet file; got {path}; choose one of these endings")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise SpecError(
            f"a .parquet file needs the package pyarrow, which is not installed; got {path}; write .csv, or run "
            "`pip install icl-bench[parquet]`"
        )
    rows = [row for record in records for row in rows_of(record)]
    with writing(path):
        replace_file(path, WRITERS[path.suffix](rows))
    return len(rows)


def rows_of(record: RunRecord) -> Iterator[tuple[Cell, ...]]:
    """A row for each cell of a run; one with empty cells where it did not end well."""
    head = run_cells(record)
    for cell in record.result.cells or (None,):
        yield (*head, *score_cells(cell))


def run_cells(record: RunRecord) -> tuple[Cell, ...]:
    """What a row says of its run."""
    result, spec = record.result, record.spec
    state = (result.state.elements, result.state.bytes) if result.state else (None, None)
    head = (result.id, result.task, result.arch, result.seed, spec["data_seed"], result.lr)
    rest = (spec["train"]["weight_decay"], result.status, result.detail, result.params, *state)
    work = (result.work.weights, result.work.state, result.steps, result.seconds, result.solved_at)
    return (*head, *rest, *work, record.manifest.device)


def score_cells(cell: CellScore | None) -> tuple[Cell, ...]:
    """What a row says of its cell."""
    if cell is None:
        return (None,) * len(CELL_COLUMNS)
    scores = (cell.accuracy, cell.exact_match, cell.loss, cell.floor, cell.floor_solver, cell.state_bits)
    return (cell.label, cell.load, cell.length, *scores)


def as_csv(rows: Sequence[Sequence[Cell]]) -> bytes:
    """Comma-separated values, with a quote before text that a spreadsheet would take for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([harmless(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def harmless(cell: Cell) -> Cell:
    """A cell that no spreadsheet runs."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def as_parquet(rows: Sequence[Sequence[Cell]]) -> bytes:
    """Parquet."""
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    return bytes(sink.getvalue())


WRITERS = {".csv": as_csv, ".parquet": as_parquet}
