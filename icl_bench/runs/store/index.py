"""The index: the values that reports and listings need of every finished run, in one file, to read 100,000 at once.

It is a cache of the folders. A missing, damaged or outdated index is made again, and deleting it changes nothing. It is
replaced whole and never written in place: no lock is taken, and a reader keeps the file that it opened. Each row has a
check sum.
"""

import atexit
import gc
import itertools
import json
import shutil
import sqlite3
import struct
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.outline import PARSERS, FinishedRuns, MeasuredRun, Outline, measured, seeds_of, shared_texts
from icl_bench.runs.rates import validation_accuracy
from icl_bench.runs.record import SCHEMA, Manifest, RunRecord, RunResult
from icl_bench.runs.store import Store
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.floors import read_floors, with_floors
from icl_bench.runs.store.kept_records import probes_if_kept
from icl_bench.schema import content_hash

INDEX_NAME = "index.sqlite"
INDEX_VERSION = 7
"""Version of the tables; a change makes every index anew."""
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
"""Number of rows inserted together, so that rows of one table lie side by side and are read from a disk at once."""
MOST_LOADED = 8192
"""Number of runs that stay in memory once they are loaded."""
NUMBERS = struct.Struct("<6q2d")
"""Binary form of the numeric columns of an outline, from its key to its validation accuracy."""
ReadT = TypeVar("ReadT")


class Summary(NamedTuple):
    """A finished run in a listing."""

    id: str
    task: str
    arch: str
    seed: int | None
    """Seed; None where it is unknown, of a run without a result."""
    lr: float
    status: str
    accuracy: float
    """Mean test accuracy over cells."""
    started: str
    """UTC time, ISO 8601."""
    seconds: float | None
    """Wall time of the fleet that the run was a member of."""


class DamagedError(Exception):
    """The index cannot be used and must be made again."""


class IndexRow(NamedTuple):
    """The columns of a run in the tables of the index."""

    summary: tuple[Any, ...]
    """Columns of `runs` after the key."""
    texts: dict[str, str]
    """Texts by kind; `outlines` refers to them by key."""
    outline: tuple[Any, ...]
    """Columns of `outlines` after the keys."""
    detail: tuple[Any, ...]
    """Columns of `details` after key and id."""


class IndexReader:
    """Load runs from an open index, or from the folders of the store where a row is damaged."""

    def __init__(self, index: "Index", base: sqlite3.Connection) -> None:
        self.index, self.base = index, base
        weakref.finalize(self, base.close)
        self.outlines = read_outlines(base)

    def load(self, run_id: str) -> MeasuredRun:
        """Load the run with this id; raises RecordError."""
        try:
            return read_measured(self.base, self.outlines[run_id])
        except (DamagedError, sqlite3.Error):
            self.index.drop()
            return measured(self.index.store.load(run_id))


class Index:
    """The index of a store; where the folder of the store cannot be written, the index serves this object alone."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path = store.root / INDEX_NAME
        self.kept = True
        """True if the index could be written."""

    def summaries(self) -> tuple[list[Summary], list[RecordError]]:
        """Return a line for each finished run, in the order of ids, and the errors that keep others from being read."""
        return self.query(read_summaries)

    def runs(self) -> tuple[FinishedRuns, list[RecordError]]:
        """Return every finished run, and the errors that keep others from being read."""
        with uncollected():
            reader, problems = self.query(lambda base: IndexReader(self, base))
            runs = FinishedRuns(
                list(reader.outlines.values()), lru_cache(MOST_LOADED)(reader.load), partial(probes_if_kept, self.store)
            )
        return with_floors(runs, read_floors(self.store.root)), problems

    def query(self, read: Callable[[sqlite3.Connection], ReadT]) -> tuple[ReadT, list[RecordError]]:
        """Bring the index up to date and read from it; make a damaged index again, once."""
        base, problems = self.refreshed(self.known())
        try:
            return read(base), problems
        except (DamagedError, sqlite3.Error):
            self.drop()
        base, problems = self.refreshed(None)
        return read(base), problems

    def drop(self) -> None:
        """Delete a damaged index, so that the next command makes it again; it stays where it cannot be deleted."""
        with suppress(OSError, StoreError), self.store.folder.opened() as root:
            root.remove(INDEX_NAME)

    def refreshed(self, known: Mapping[str, str] | None) -> tuple[sqlite3.Connection, list[RecordError]]:
        """Open the index, up to date, and return the errors that keep runs out of it.

        `known` has the stamps of the indexed runs; without it, the index is made from nothing.
        """
        there = dict(self.store.stamps())
        if there == known:
            return connect(self.path), []
        new = [run_id for run_id, stamp in there.items() if (known or {}).get(run_id) != stamp]
        dropped = [run_id for run_id, stamp in (known or {}).items() if there.get(run_id) != stamp]
        problems: list[RecordError] = []
        rows = self.rows(new, there, problems)
        first = next(rows, None)
        if known is not None and first is None and not dropped:
            return connect(self.path), problems
        if first is not None:
            rows = itertools.chain([first], rows)
        try:
            return self.rewritten(rows, dropped, fresh=known is None), problems
        except (OSError, StoreError, sqlite3.Error):
            self.kept = False
        problems = []
        return self.in_memory(self.rows(new, there, problems), dropped, fresh=known is None), problems

    def rows(self, new: Iterable[str], there: Mapping[str, str], problems: list[RecordError]) -> Iterator[IndexRow]:
        """Read runs from their folders as rows; append to `problems` the errors that keep others from being read."""
        for run_id in new:
            try:
                yield row_of(self.store.load(run_id), there[run_id])
            except RecordError as error:
                problems.append(error)

    def known(self) -> dict[str, str] | None:
        """Return the stamp of every indexed run, or None without a readable index of this version."""
        try:
            with self.store.folder.opened() as root:
                if root.kind(INDEX_NAME) != "file":
                    return None
            with closing(connect(self.path)) as base:
                if base.execute("SELECT fingerprint FROM about").fetchall() != [(fingerprint(),)]:
                    return None
                return dict(base.execute("SELECT id, stamp FROM runs").fetchall())
        except (OSError, StoreError, sqlite3.Error, TypeError):
            return None

    def rewritten(self, rows: Iterable[IndexRow], dropped: Sequence[str], fresh: bool) -> sqlite3.Connection:
        """Write the index anew, from the old one and these rows, and open it.

        SQLite opens files by their path alone, so the draft is made first, under a name that nobody can foresee.
        """
        with self.store.folder.opened() as root:
            root.clear_drafts(lambda name: name == INDEX_NAME)
            with root.draft(INDEX_NAME) as draft:
                if not fresh:
                    shutil.copyfile(self.path, root.path / draft)
                with closing(sqlite3.connect(root.path / draft, isolation_level=None)) as base:
                    fill(base, rows, dropped, fresh)
                reach("index-written")
        reach("index-published")
        return connect(self.path)

    def in_memory(self, rows: Iterable[IndexRow], dropped: Sequence[str], fresh: bool) -> sqlite3.Connection:
        """Make the index in memory, for this process alone, where the folder cannot be written."""
        base = sqlite3.connect(":memory:", isolation_level=None)
        if not fresh:
            with closing(connect(self.path)) as old:
                old.backup(base)
        fill(base, rows, dropped, fresh)
        return base


@contextmanager
def uncollected() -> Iterator[None]:
    """Suspend garbage collection while many objects are made, and exclude these objects from later collections."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else Triton reports what is still there as leaks when the process ends
        if enabled:
            gc.enable()


def connect(path: Path) -> sqlite3.Connection:
    """Open an index to read, without a lock: an index is never written in place."""
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True)


def row_of(record: RunRecord, stamp: str) -> IndexRow:
    """Convert a record to columns; `stamp` tells whether the run's folder has changed since."""
    result = record.result
    summary = (result.id, stamp, result.task, result.arch, result.seed, result.lr, result.status, result.accuracy)
    points = [(point.step, point.accuracy, point.train_loss) for point in record.metrics]
    curve = json.dumps(points, separators=(",", ":"))
    return IndexRow(
        (*summary, record.manifest.started, result.seconds),
        shared_texts(record),
        (*seeds_of(record), result.lr, validation_accuracy(record), result.id, result.status, result.first_batch),
        (record.manifest.started, curve, result.model_dump_json(exclude_defaults=True)),
    )


def fill(base: sqlite3.Connection, rows: Iterable[IndexRow], dropped: Sequence[str], fresh: bool) -> None:
    """Delete the runs with the ids `dropped`, then insert rows; make the tables first where the file is fresh."""
    base.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + (TABLES if fresh else ""))
    base.execute("BEGIN")
    if fresh:
        base.execute("INSERT INTO about VALUES (?)", (fingerprint(),))
    for run_id in dropped:
        for table in ("outlines", "details"):
            base.execute(f"DELETE FROM {table} WHERE key = (SELECT key FROM runs WHERE id = ?)", (run_id,))
        base.execute("DELETE FROM runs WHERE id = ?", (run_id,))
    keys = {(kind, text): key for key, kind, text, _ in base.execute("SELECT * FROM texts")}
    numbered = enumerate(rows, *base.execute("SELECT coalesce(max(key), 0) + 1 FROM runs").fetchone())
    while batch := list(itertools.islice(numbered, BATCH)):
        texts = [[key_of(base, keys, text) for text in row.texts.items()] for _, row in batch]
        insert(base, "runs", [(key, *row.summary) for key, row in batch])
        insert(base, "outlines", [(key, *keyed, *row.outline) for (key, row), keyed in zip(batch, texts, strict=True)])
        insert(base, "details", [(key, row.summary[0], *row.detail) for key, row in batch])
    base.execute("COMMIT")


def insert(base: sqlite3.Connection, table: str, rows: Sequence[Sequence[Any]]) -> None:
    """Insert one or more rows into the named table, each followed by its check sum."""
    check_sum = outline_sum if table == "outlines" else row_sum
    places = ", ".join("?" * (len(rows[0]) + 1))
    base.executemany(f"INSERT INTO {table} VALUES ({places})", [(*row, check_sum(row)) for row in rows])


def key_of(base: sqlite3.Connection, keys: dict[tuple[str, str], int], text: tuple[str, str]) -> int:
    """Return the key of a text with its kind; insert a text that is new."""
    if text not in keys:
        keys[text] = len(keys) + 1
        insert(base, "texts", [(keys[text], *text)])
    return keys[text]


def read_summaries(base: sqlite3.Connection) -> list[Summary]:
    """Read a line for each run, by id, and close `base`; raise DamagedError if a row is not as it was written."""
    with closing(base):
        rows = base.execute("SELECT * FROM runs ORDER BY id")
        return [Summary(row[1], *row[3:]) for *row, own in rows if intact(row, own)]


def read_outlines(base: sqlite3.Connection) -> dict[str, Outline]:
    """Read the outline of every run, by id; raise DamagedError if a row is not as it was written."""
    texts = [row for *row, own in base.execute("SELECT * FROM texts") if intact(row, own)]
    try:
        shared = {key: PARSERS[kind](text) for key, kind, text in texts}
        rows = base.execute("SELECT * FROM outlines").fetchall()
        if any(outline_sum(row) != row[-1] for row in rows) or count_rows(base, "runs") != len(rows):
            raise DamagedError
        return {
            rest[2]: Outline(shared[setting], shared[environment], shared[evaluation], (seed, data_seed), *rest)
            for _, setting, environment, evaluation, seed, data_seed, *rest, _ in rows
        }
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise DamagedError from error


def count_rows(base: sqlite3.Connection, table: str) -> int:
    """Return the number of rows of the named table."""
    (count,) = base.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


def read_measured(base: sqlite3.Connection, outline: Outline) -> MeasuredRun:
    """Read a whole run without validating its parts again; raise DamagedError if a row is not as it was written."""
    query = "SELECT details.* FROM runs JOIN details ON details.key = runs.key WHERE runs.id = ?"
    row = base.execute(query, (outline.id,)).fetchone()
    if row is None or row[1] != outline.id or not intact(row[:-1], row[-1]):
        raise DamagedError
    _, _, started, curve, result, _ = row
    try:
        points = json.loads(curve)
        return MeasuredRun(
            spec=outline.setting.spec_of(outline.seeds, outline.lr),
            manifest=Manifest.model_construct(**vars(outline.environment), started=started),
            result=RunResult.model_validate_json(result),
            curve=tuple((step, accuracy) for step, accuracy, _ in points),
            losses=tuple(loss for _, _, loss in points),
        )
    except (TypeError, ValueError) as error:
        raise DamagedError from error


def row_sum(values: Sequence[Any]) -> int:
    """Return the check sum of a row, whose last value may be long."""
    *head, last = values
    return zlib.crc32(str(last).encode(), zlib.crc32(repr(head).encode()))


def outline_sum(row: Sequence[Any]) -> int:
    """Return the check sum of a row of `outlines`; faster than `row_sum`, since a report checks every outline."""
    return zlib.crc32(f"{row[8]} {row[9]} {row[10]}".encode(), zlib.crc32(NUMBERS.pack(*row[:8])))


def intact(values: Sequence[Any], check_sum: int) -> bool:
    """Return True for a row that is as it was written; raise DamagedError for any other."""
    if row_sum(values) != check_sum:
        raise DamagedError
    return True


def fingerprint() -> str:
    """Return a hash that changes with the layout of the tables and with the fields of results and manifests."""
    models = [RunResult.model_json_schema(), Manifest.model_json_schema()]
    return content_hash([INDEX_VERSION, SCHEMA, *models], "icl-bench/index")
