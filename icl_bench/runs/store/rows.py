"""The tables of the index: runs to rows and back, each row with a check sum."""

import itertools
import json
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from icl_bench.runs.outline import PARSERS, Outline, Texts, seeds_of, texts_of
from icl_bench.runs.rates import validation_accuracy
from icl_bench.runs.record import SCHEMA, Manifest, RunRecord, RunResult
from icl_bench.schema import content_hash

LAYOUT = 4
"""Version of the tables."""
TABLES = """
CREATE TABLE runs (
    key INTEGER PRIMARY KEY, id TEXT UNIQUE, stamp TEXT, task TEXT, arch TEXT, seed INTEGER, lr REAL, status TEXT,
    accuracy REAL, started TEXT, seconds REAL, check_sum INTEGER
);
CREATE TABLE outlines (
    key INTEGER PRIMARY KEY, setting INTEGER, environment INTEGER, evaluation INTEGER, seed INTEGER, data_seed INTEGER,
    lr REAL, validation REAL, id TEXT, status TEXT, first_batch TEXT, check_sum INTEGER
);
CREATE TABLE details (key INTEGER PRIMARY KEY, id TEXT, started TEXT, curve TEXT, result TEXT, check_sum INTEGER);
CREATE TABLE texts (key INTEGER PRIMARY KEY, kind TEXT, text TEXT, check_sum INTEGER);
CREATE TABLE about (fingerprint TEXT);
"""


BATCH = 5000
"""Rows put in together, so that those of one table lie side by side and are read from a disk at once."""
NUMBERS = struct.Struct("<6q2d")
"""The numbers of a row of outlines, from its key to its validation."""


class Summary(NamedTuple):
    """A finished run in a listing."""

    id: str
    task: str
    arch: str
    seed: int
    lr: float
    status: str
    accuracy: float
    """Mean test accuracy over cells."""
    started: str
    """UTC time, ISO 8601."""
    seconds: float | None
    """Wall time of its fleet."""


class DamagedError(Exception):
    """The index cannot be used and is to be made again."""


class Row(NamedTuple):
    """A run as the index keeps it."""

    summary: tuple[Any, ...]
    """Columns of the table of runs."""
    texts: Texts
    outline: tuple[Any, ...]
    """The last columns of the table of outlines."""
    detail: tuple[Any, ...]
    """The last columns of the table of details."""


class Detail(NamedTuple):
    """What an outline leaves out of a run."""

    id: str
    started: str
    curve: str
    """Step and accuracy of each validation, as JSON."""
    result: str
    """As JSON."""


def row_of(record: RunRecord, stamp: str) -> Row:
    """A run as the index keeps it; texts that many runs share stand for themselves."""
    result = record.result
    summary = (result.id, stamp, result.task, result.arch, result.seed, result.lr, result.status, result.accuracy)
    curve = json.dumps([(point.step, point.accuracy) for point in record.metrics], separators=(",", ":"))
    return Row(
        (*summary, record.manifest.started, result.seconds),
        texts_of(record),
        (*seeds_of(record), result.lr, validation_accuracy(record), result.id, result.status, result.first_batch),
        (record.manifest.started, curve, result.model_dump_json(exclude_defaults=True)),
    )


def fill(base: sqlite3.Connection, rows: Iterable[Row], dropped: Sequence[str], fresh: bool) -> None:
    """Put rows in, after taking others out."""
    base.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + (TABLES if fresh else ""))
    base.execute("BEGIN")
    if fresh:
        base.execute("INSERT INTO about VALUES (?)", (fingerprint(),))
    for run_id in dropped:
        for table in ("outlines", "details"):
            base.execute(f"DELETE FROM {table} WHERE key = (SELECT key FROM runs WHERE id = ?)", (run_id,))
        base.execute("DELETE FROM runs WHERE id = ?", (run_id,))
    keys = {(kind, text): key for key, kind, text, _ in base.execute("SELECT * FROM texts")}
    next_key = base.execute("SELECT coalesce(max(key), 0) + 1 FROM runs").fetchone()[0]
    numbered = enumerate(rows, next_key)
    while batch := list(itertools.islice(numbered, BATCH)):
        texts = [[key_of(base, keys, text) for text in zip(Texts._fields, row.texts, strict=True)] for _, row in batch]
        insert(base, "runs", [(key, *row.summary) for key, row in batch])
        outlined = [(key, *shared, *row.outline) for (key, row), shared in zip(batch, texts, strict=True)]
        insert(base, "outlines", outlined, outline_sum)
        insert(base, "details", [(key, row.summary[0], *row.detail) for key, row in batch])
    base.execute("COMMIT")


def insert(
    base: sqlite3.Connection,
    table: str,
    rows: Sequence[Sequence[Any]],
    add_up: Callable[[Sequence[Any]], int] | None = None,
) -> None:
    """Put one or more rows into a table of that name, each with its check sum behind it."""
    add_up = add_up or sum_of
    places = ", ".join("?" * (len(rows[0]) + 1))
    base.executemany(f"INSERT INTO {table} VALUES ({places})", [(*row, add_up(row)) for row in rows])


def key_of(base: sqlite3.Connection, keys: dict[tuple[str, str], int], text: tuple[str, str]) -> int:
    """The key of a text and its kind, which are put in where they are new."""
    if text not in keys:
        keys[text] = len(keys) + 1
        insert(base, "texts", [(keys[text], *text)])
    return keys[text]


def read_summaries(base: sqlite3.Connection) -> list[Summary]:
    """A line for each run, in the order of ids.

    Raises:
        DamagedError: where a row is not as it was written.
    """
    rows = base.execute("SELECT * FROM runs ORDER BY id")
    return [Summary(row[1], *row[3:]) for *row, own in rows if intact(row, own)]


def read_outlines(base: sqlite3.Connection, read: Callable[[Outline], RunRecord]) -> list[Outline]:
    """Every run in outline, in no order; `read` reads the whole record of one.

    Raises:
        DamagedError: where a row is not as it was written.
    """
    texts = [row for *row, own in base.execute("SELECT * FROM texts") if intact(row, own)]
    try:
        shared = {key: PARSERS[kind](text) for key, kind, text in texts}
        rows = base.execute("SELECT * FROM outlines").fetchall()
        if any(outline_sum(row) != row[-1] for row in rows):
            raise DamagedError
        return [
            Outline(key, read, shared[setting], shared[environment], shared[evaluation], (seed, data_seed), *rest)
            for key, setting, environment, evaluation, seed, data_seed, *rest, _ in rows
        ]
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise DamagedError from error


def read_detail(base: sqlite3.Connection, outline: Outline) -> Detail:
    """What the outline of a run leaves out.

    Raises:
        DamagedError: where it is not as it was written.
    """
    found = base.execute("SELECT * FROM details WHERE key = ?", (outline.key,)).fetchone()
    if found is None or found[1] != outline.id or not intact(found[:-1], found[-1]):
        raise DamagedError
    return Detail(*found[1:-1])


def sum_of(values: Sequence[Any]) -> int:
    """A check sum over a row, whose last value may be long."""
    *head, last = values
    return zlib.crc32(str(last).encode(), zlib.crc32(repr(head).encode()))


def outline_sum(row: Sequence[Any]) -> int:
    """The check sum of a row of outlines; quicker than that of any row, since a report reads all of them."""
    return zlib.crc32(f"{row[8]} {row[9]} {row[10]}".encode(), zlib.crc32(NUMBERS.pack(*row[:8])))


def intact(values: Sequence[Any], check_sum: int) -> bool:
    """See that a row is as it was written.

    Raises:
        DamagedError: where it is not.
    """
    if sum_of(values) != check_sum:
        raise DamagedError
    return True


def fingerprint() -> str:
    """Changes with the layout of the tables and with what a result holds."""
    models = [RunResult.model_json_schema(), Manifest.model_json_schema()]
    return content_hash([LAYOUT, SCHEMA, *models], "icl-bench/index")
