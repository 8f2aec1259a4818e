"""Export of finished runs as one table with a row for each run and cell: CSV, or Parquet with pyarrow."""

import csv
import importlib.util
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from icl_bench.errors import SpecError
from icl_bench.runs.outline import MeasuredRun
from icl_bench.runs.store.files import replace_file, writing

ExportValue = str | int | float | None

EXPORT_COLUMNS = (
    *("id", "task", "arch", "seed", "data_seed", "lr", "weight_decay", "status", "detail", "params"),
    *("state_elements", "state_bytes", "weight_flops", "state_flops", "steps", "seconds", "solved_at", "device"),
    *("cell", "load", "length", "accuracy", "exact_match", "loss", "floor", "floor_solver", "state_bits"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters that a spreadsheet takes for the beginning of a formula."""


def export_records(records: Iterable[MeasuredRun], path: Path) -> int:
    """Write a .csv or .parquet file, completely or not at all, and return the number of its rows."""
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


def rows_of(record: MeasuredRun) -> Iterator[tuple[ExportValue, ...]]:
    """Yield a row for each cell of a run; a run without scores has one row with empty values."""
    result, spec = record.result, record.spec
    run = {
        **vars(result),
        "data_seed": spec["data_seed"],
        "weight_decay": spec["train"]["weight_decay"],
        "state_elements": result.state and result.state.elements,
        "state_bytes": result.state and result.state.bytes,
        "weight_flops": result.work.weights,
        "state_flops": result.work.state,
        "device": record.manifest.device,
    }
    for cell in result.cells or (None,):
        values = {**run, **vars(cell), "cell": cell.label} if cell else run
        yield tuple(values.get(name) for name in EXPORT_COLUMNS)


def as_csv(rows: Sequence[Sequence[ExportValue]]) -> bytes:
    """Return the rows as CSV, with a quote before text that a spreadsheet would take for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EXPORT_COLUMNS)
    for row in rows:
        writer.writerow(f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row)
    return text.getvalue().encode()


def as_parquet(rows: Sequence[Sequence[ExportValue]]) -> bytes:
    """Return the rows in the Parquet format."""
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[i] for row in rows] for i, name in enumerate(EXPORT_COLUMNS)}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    return bytes(sink.getvalue())


WRITERS = {".csv": as_csv, ".parquet": as_parquet}
