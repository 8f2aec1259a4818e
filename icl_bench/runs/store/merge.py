"""Stores of several machines put together: runs that are not there are copied, whole; nothing is overwritten."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store.attempt import HOST, clear_attempts, publish
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import read_bytes, remove_folder, sync_folder, write_file, writing
from icl_bench.runs.store.store import FILES, Store

OWN_FIELDS = frozenset({"seconds", "examples_per_second", "files", "check"})
"""Fields of a result that tell of its machine: two runs of one specification may differ in them."""


class Merged(NamedTuple):
    """What a merge did."""

    copied: int
    present: int
    """Runs that both stores have, with equal numbers."""
    conflicts: list[str]
    """Runs that both have with other numbers; the target keeps its own."""
    problems: list[RecordError]
    """What cannot be read, and is not copied."""


def merge(sources: Sequence[Path], target: Store) -> Merged:
    """Copy the finished runs of stores into another.

    Raises:
        StoreError: where a source is no store, or the target cannot be written; what was copied by then stays.
    """
    for source in sources:
        check_source(source, target)
    target.check_writable()
    copied, present, conflicts, problems = 0, 0, [], []
    for source in sources:
        theirs = Store(source)
        for run_id in theirs.ids():
            try:
                record = theirs.load(run_id)
                if not target.has(run_id):
                    copy(theirs, target, run_id)
                    copied += 1
                    continue
                difference = differing(record, target.load(run_id))
            except RecordError as error:
                problems.append(error)
                continue
            present += difference is None
            if difference is not None:
                conflicts.append(f"{run_id}: {difference} differs in {source}; {target.root} keeps its own")
        clear_attempts(target.root, set(theirs.ids()))
    return Merged(copied, present, conflicts, problems)


def check_source(source: Path, target: Store) -> None:
    """Refuse to merge what is no store; raises StoreError."""
    if not (source / "runs").is_dir():
        raise StoreError(f"a merge takes stores, folders with a folder runs; got {source}; check the path")
    if source.resolve() == target.root.resolve():
        raise StoreError(f"a merge takes other stores than its target; got {source} twice; leave it out")


def copy(source: Store, target: Store, run_id: str) -> None:
    """Copy one run: to a folder of its own, read back there, then moved to its place."""
    attempt = target.root / "attempts" / f"{run_id}-{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    with writing(attempt):
        attempt.mkdir(parents=True)
        try:
            for name in sorted(FILES | {"result.json"}):
                write_file(attempt / name, read_bytes(source.path(run_id) / name))
            sync_folder(attempt)
            reach("merge-copied")
            publish(attempt, target.path(run_id), target.root)
        finally:
            remove_folder(attempt)
    reach("merge-published")
    target.load(run_id)


def differing(theirs: RunRecord, ours: RunRecord) -> str | None:
    """The first part in which two runs of one specification differ, times and host aside."""
    if theirs.result.digest != ours.result.digest:
        return "the specification"
    if theirs.metrics != ours.metrics:
        return "metrics.jsonl"
    mine, other = own_numbers(ours), own_numbers(theirs)
    return next((name for name in mine if mine[name] != other[name]), None)


def own_numbers(record: RunRecord) -> Mapping[str, Any]:
    """A result without what tells of its machine."""
    return record.result.model_dump(exclude=set(OWN_FIELDS))
