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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, overload
from urllib.parse import quote

from icl_bench.errors import RecordError
from icl_bench.harness.record import Manifest, MetricPoint, RunRecord, RunResult
from icl_bench.harness.store import Store
from icl_bench.harness.store.faults import reach
from icl_bench.harness.store.files import parse_model, read_bytes, sha256
from icl_bench.harness.store.rows import DamagedError, Row, Summary, fill, fingerprint, intact, read_summaries, row_of

NAME = "index.sqlite"


class Metrics(Sequence[MetricPoint]):
    """The validations of a run: the last is at hand, the others are read from the store when they are asked for.

    Steps and accuracies of all are at hand too, as `curve`.
    """

    def __init__(self, store: Store, run_id: str, last: str, curve: str, digest: str) -> None:
        self.store, self.run_id, self.last, self.text, self.digest = store, run_id, last, curve, digest
        self.points: tuple[MetricPoint, ...] | None = None

    @cached_property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """Step and accuracy of each validation."""
        return tuple((step, accuracy) for step, accuracy in json.loads(self.text))

    def read(self) -> tuple[MetricPoint, ...]:
        """All of them; raises RecordError."""
        if self.points is None:
            path = self.store.path(self.run_id) / "metrics.jsonl"
            data = read_bytes(path)
            if sha256(data) != self.digest:
                raise RecordError(f"a stored file never changes; {path} did; run `icl-bench runs verify`")
            self.points = tuple(parse_model(MetricPoint, line, path) for line in data.splitlines())
        return self.points

    @overload
    def __getitem__(self, place: int) -> MetricPoint: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[MetricPoint, ...]: ...
    def __getitem__(self, place: int | slice) -> MetricPoint | tuple[MetricPoint, ...]:
        if place == -1 and self.last:
            return MetricPoint.model_validate_json(self.last)
        return self.read()[place]

    def __len__(self) -> int:
        return len(self.read())

    def __bool__(self) -> bool:
        return bool(self.last)

    def __iter__(self) -> Iterator[MetricPoint]:
        return iter(self.read())


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
        return self.query(read_summaries)

    def records(self) -> tuple[list[RunRecord], list[RecordError]]:
        """Every finished run, in the order of ids, and what keeps others from being read."""
        with uncollected():
            return self.query(self.read_records)

    def query(self, read: Any) -> tuple[list[Any], list[RecordError]]:
        """Bring the index up to date and read from it; a damaged one is made again, once."""
        base, problems = self.refreshed()
        try:
            with closing(base):
                return read(base), problems
        except (DamagedError, sqlite3.Error):
            self.path.unlink(missing_ok=True)
        base, problems = self.refreshed()
        with closing(base):
            return read(base), problems

    def refreshed(self) -> tuple[sqlite3.Connection, list[RecordError]]:
        """The index, up to date, and the errors that keep runs out of it."""
        there, known = stamps(self.store), self.known()
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

    def read_records(self, base: sqlite3.Connection) -> list[RunRecord]:
        """Every run as a report takes it.

        Raises:
            DamagedError: where a row is not as it was written.
        """
        texts = [row for *row, own in base.execute("SELECT * FROM texts") if intact(row, own)]
        try:
            manifests = {key: Manifest.model_validate_json(text) for key, kind, text in texts if kind == "manifest"}
            shared = {key: json.loads(text) for key, kind, text in texts if kind == "shared"}
            rows = sorted(base.execute("SELECT * FROM details"), key=itemgetter(1))
            return [self.record_of(row, shared, manifests) for *row, own in rows if intact(row, own)]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError from error

    def record_of(
        self, row: Sequence[Any], shared: Mapping[int, dict[str, Any]], manifests: Mapping[int, Manifest]
    ) -> RunRecord:
        """One run; built without validation, since its parts are valid, and there may be very many."""
        _, run_id, shape, manifest, data_seed, decay, last, curve, text = row
        result = RunResult.model_validate_json(text)
        own = {"seed": result.seed, "data_seed": data_seed}
        spec = {**shared[shape], **own, "train": {**shared[shape]["train"], "lr": result.lr, "weight_decay": decay}}
        metrics = Metrics(self.store, run_id, last, curve, result.files["metrics.jsonl"])
        return RunRecord.model_construct(spec=spec, manifest=manifests[manifest], result=result, metrics=metrics)


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
