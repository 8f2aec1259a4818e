"""Export of finished runs as one table: CSV, JSON, JSON lines, or Parquet with pyarrow.

A table has a row for each run and cell; of curves, for each run, validation and cell; of probes, for each run that
keeps them, step and number. Rows are written one after another, so that a store of any size fits in memory.
"""

import csv
import importlib.util
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Literal

from icl_bench.errors import RecordError, SpecError
from icl_bench.runs.columns import (
    PROBE_COLUMNS,
    SCORE_COLUMNS,
    STEP_COLUMNS,
    Row,
    csv_values,
    curve_rows,
    probe_rows,
    score_rows,
)
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.store.files import replacing, writing
from icl_bench.runs.store.store import Store

TableKind = Literal["cells", "curves", "probes"]
"""Kind of the rows of a table, beside their run."""
ROWS_PER_GROUP = 1 << 16
"""Rows of a Parquet file that are written together."""


def write_table(
    runs: FinishedRuns, store: Store, path: Path, kind: TableKind = "cells"
) -> tuple[int, list[RecordError]]:
    """Write a table of the runs of a store, completely or not at all.

    Return the number of rows, and the errors of runs that could not be read. Raise SpecError for an ending that is
    none of the formats, or without pyarrow for .parquet; StoreError if the file cannot be written.
    """
    check_format(path)
    problems: list[RecordError] = []
    makers: Mapping[TableKind, tuple[Mapping[str, type], Iterator[Row]]] = {
        "cells": (SCORE_COLUMNS, (row for run in runs.each() for row in score_rows(run))),
        "curves": (STEP_COLUMNS, steps_of(runs, store, problems)),
        "probes": (PROBE_COLUMNS, probes_of(runs, problems)),
    }
    columns, rows = makers[kind]
    counted = CountedRows(rows)
    with writing(path), replacing(path) as file:
        WRITERS[path.suffix](file, columns, counted)
    return counted.count, problems


def check_format(path: Path) -> None:
    """Refuse a file whose ending names no format, and Parquet without pyarrow; raises SpecError."""
    if path.suffix not in WRITERS:
        raise SpecError(f"an export is a {', '.join(WRITERS)} file; got {path}; choose one of these endings")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise SpecError(
            f"a .parquet file needs the package pyarrow, which is not installed; got {path}; write .csv, or run "
            "`pip install icl-bench[parquet]`"
        )


def steps_of(runs: FinishedRuns, store: Store, problems: list[RecordError]) -> Iterator[Row]:
    """Yield the curves of each run, in the order of ids; append the errors of runs that cannot be read."""
    for run_id in sorted(outline.id for outline in runs.outlines):
        try:
            record = store.load(run_id)
        except RecordError as error:
            problems.append(error)
            continue
        yield from curve_rows(record)


def probes_of(runs: FinishedRuns, problems: list[RecordError]) -> Iterator[Row]:
    """Yield the probes of each run that keeps them, in the order of ids; append the errors of damaged ones."""
    for run in runs.each():
        try:
            probes = runs.probes(run.result)
        except RecordError as error:
            problems.append(error)
            continue
        if probes is not None:
            yield from probe_rows(run, probes)


class CountedRows:
    """Rows that are counted as they are read."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            self.count += 1
            yield row


def write_csv(file: IO[bytes], columns: Mapping[str, type], rows: Iterable[Row]) -> None:
    """Write rows as CSV, with text that no spreadsheet takes for a formula."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(csv_values(row[name] for name in columns))
    text.detach()


def write_json(file: IO[bytes], columns: Mapping[str, type], rows: Iterable[Row]) -> None:
    """Write rows as one JSON document, a row in a line."""
    file.write(b'{"schema": 1, "rows": [')
    for i, row in enumerate(rows):
        file.write(b",\n" if i else b"\n")
        file.write(json.dumps(row, allow_nan=False).encode())
    file.write(b"\n]}\n")


def write_json_lines(file: IO[bytes], columns: Mapping[str, type], rows: Iterable[Row]) -> None:
    """Write each row as a JSON object in a line of its own."""
    for row in rows:
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")


def write_parquet(file: IO[bytes], columns: Mapping[str, type], rows: Iterable[Row]) -> None:
    """Write rows in the Parquet format; every column has its type, also where all its values are missing."""
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    left = iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(itertools.islice(left, ROWS_PER_GROUP)):
            shown = [dict(zip(columns, csv_values(row[name] for name in columns), strict=True)) for row in group]
            writer.write_table(pyarrow.Table.from_pylist(shown, schema=schema))


WRITERS: Mapping[str, Callable[[IO[bytes], Mapping[str, type], Iterable[Row]], None]] = {
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".json": write_json,
    ".jsonl": write_json_lines,
}
"""Writers of a table by the ending of the file."""
