"""The index: what reports and listings need of every finished run, in one file, so that 100,000 runs are read at once.

It is a cache of the folders. A missing, damaged or outdated one is made again, and deleting it changes nothing. It is
replaced whole and never written in place: no lock is taken, and a reader keeps the file that it opened.
"""

import gc
import itertools
import json
import os
import secrets
import shutil
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TypeVar, overload
from urllib.parse import quote

from icl_bench.errors import RecordError
from icl_bench.runs.outline import Outline
from icl_bench.runs.record import Manifest, MetricPoint, RunRecord, RunResult
from icl_bench.runs.store import Store
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import parse_model, read_bytes, sha256
from icl_bench.runs.store.rows import (
    DamagedError,
    Detail,
    Row,
    Summary,
    fill,
    fingerprint,
    read_detail,
    read_outlines,
    read_summaries,
    row_of,
)

NAME = "index.sqlite"
T = TypeVar("T")


class Metrics(Sequence[MetricPoint]):
    """The validations of a run: steps and accuracies are at hand; the rest is read from the store when asked for."""

    def __init__(self, store: Store, run_id: str, curve: str, digest: str) -> None:
        self.store, self.run_id, self.digest = store, run_id, digest
        self.curve: tuple[tuple[int, float], ...] = tuple((step, accuracy) for step, accuracy in json.loads(curve))
        """Step and accuracy of each validation."""

    @cached_property
    def points(self) -> tuple[MetricPoint, ...]:
        """All of them; raises RecordError."""
        path = self.store.path(self.run_id) / "metrics.jsonl"
        data = read_bytes(path)
        if sha256(data) != self.digest:
            raise RecordError(f"a stored file never changes; {path} did; run `icl-bench runs verify`")
        return tuple(parse_model(MetricPoint, line, path) for line in data.splitlines())

    @overload
    def __getitem__(self, place: int) -> MetricPoint: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[MetricPoint, ...]: ...
    def __getitem__(self, place: int | slice) -> MetricPoint | tuple[MetricPoint, ...]:
        return self.points[place]

    def __len__(self) -> int:
        return len(self.curve)

    def __iter__(self) -> Iterator[MetricPoint]:
        return iter(self.points)


class Shelf:
    """Reads whole records: from an index that is open, or from the folders of the store where a row is damaged."""

    def __init__(self, index: "Index", base: sqlite3.Connection) -> None:
        self.index, self.base = index, base
        self.taken: dict[str, RunRecord] = {}
        weakref.finalize(self, base.close)

    def read(self, outline: Outline) -> RunRecord:
        """The record of a run; raises RecordError."""
        if outline.id not in self.taken:
            try:
                self.taken[outline.id] = self.record_of(outline, read_detail(self.base, outline))
            except (DamagedError, sqlite3.Error):
                with suppress(OSError):  # so that it is made again
                    self.index.path.unlink()
                self.taken[outline.id] = self.index.store.load(outline.id)
        return self.taken[outline.id]

    def record_of(self, outline: Outline, detail: Detail) -> RunRecord:
        """One run; built without validation where its parts are valid, since there may be very many."""
        try:
            result = RunResult.model_validate_json(detail.result)
            metrics = Metrics(self.index.store, outline.id, detail.curve, result.files["metrics.jsonl"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError from error
        return RunRecord.model_construct(
            spec=outline.setting.spec_of(outline.seeds, outline.lr),
            manifest=Manifest.model_construct(**vars(outline.environment), started=detail.started),
            result=result,
            metrics=metrics,
        )


class Index:
    """The index of a store.

    Args:
        store: The store; where its folder cannot be written, the index serves this object alone.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path = store.root / NAME
        self.kept = True
        """Whether the index could be written."""

    def summaries(self) -> tuple[list[Summary], list[RecordError]]:
        """A line for each finished run, in the order of ids, and what keeps others from being read."""

        def read(base: sqlite3.Connection) -> list[Summary]:
            with closing(base):
                return read_summaries(base)

        return self.query(read)

    def outlines(self) -> tuple[list[Outline], list[RecordError]]:
        """Every finished run in outline, in no order, and what keeps others from being read."""
        with uncollected():
            return self.query(lambda base: read_outlines(base, Shelf(self, base).read))

    def records(self) -> tuple[list[RunRecord], list[RecordError]]:
        """Every finished run, in the order of ids, and what keeps others from being read."""
        found, problems = self.outlines()
        with uncollected():
            return [outline.record for outline in sorted(found, key=attrgetter("id"))], problems

    def query(self, read: Callable[[sqlite3.Connection], list[T]]) -> tuple[list[T], list[RecordError]]:
        """Bring the index up to date and read from it; a damaged one is made again, once."""
        base, problems = self.refreshed()
        try:
            return read(base), problems
        except (DamagedError, sqlite3.Error):
            self.path.unlink(missing_ok=True)
        base, problems = self.refreshed()
        return read(base), problems

    def refreshed(self) -> tuple[sqlite3.Connection, list[RecordError]]:
        """The index, up to date, and the errors that keep runs out of it."""
        there, known = stamps(self.store), self.known()
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
        except (OSError, sqlite3.Error):
            self.kept = False
        problems = []
        return self.in_memory(self.rows(new, there, problems), dropped, fresh=known is None), problems

    def rows(self, new: Iterable[str], there: Mapping[str, str], problems: list[RecordError]) -> Iterator[Row]:
        """Rows of runs read from their folders; appends to `problems` what keeps others from being read."""
        for run_id in new:
            try:
                yield row_of(self.store.load(run_id), there[run_id])
            except RecordError as error:
                problems.append(error)

    def known(self) -> dict[str, str] | None:
        """Stamp of every indexed run; None where there is no index of this version that can be read."""
        if not self.path.is_file() or self.path.is_symlink():
            return None
        try:
            with closing(connect(self.path)) as base:
                if base.execute("SELECT fingerprint FROM about").fetchall() != [(fingerprint(),)]:
                    return None
                return dict(base.execute("SELECT id, stamp FROM runs").fetchall())
        except (sqlite3.Error, TypeError):
            return None

    def rewritten(self, rows: Iterable[Row], dropped: Sequence[str], fresh: bool) -> sqlite3.Connection:
        """Write the index anew, from the old one and these rows."""
        temporary = self.store.root / f".{NAME}-{secrets.token_hex(4)}"
        try:
            if not fresh:
                shutil.copyfile(self.path, temporary)
            with closing(sqlite3.connect(temporary, isolation_level=None)) as base:
                fill(base, rows, dropped, fresh)
            reach("index-written")
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        reach("index-published")
        return connect(self.path)

    def in_memory(self, rows: Iterable[Row], dropped: Sequence[str], fresh: bool) -> sqlite3.Connection:
        """The same for this process alone, where the folder cannot be written."""
        base = sqlite3.connect(":memory:", isolation_level=None)
        if not fresh:
            with closing(connect(self.path)) as old:
                old.backup(base)
        fill(base, rows, dropped, fresh)
        return base


@contextmanager
def uncollected() -> Iterator[None]:
    """Make many objects without the collector looking through all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def connect(path: Path) -> sqlite3.Connection:
    """Open an index to read; it is never written in place, so nothing is locked."""
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True)


def stamps(store: Store) -> dict[str, str]:
    """For each run that is there, what changes when its result is written anew."""
    found = {}
    for run_id, path in store.folders():
        try:
            about = os.stat(f"{path}/result.json", follow_symlinks=False)  # noqa: PTH116 - a hundred thousand of them
        except OSError:
            continue
        found[run_id] = f"{about.st_mtime_ns}-{about.st_size}-{about.st_ino}"
    return found
