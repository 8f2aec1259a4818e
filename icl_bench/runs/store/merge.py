"""The merging of stores: missing runs are copied completely, and nothing is overwritten."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store.attempt import COMPANIONS, HOST, clear_attempts, publish
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import read_bytes, remove_folder, sync_folder, write_file, writing
from icl_bench.runs.store.store import Store

SOLVER_FIELDS = frozenset({"floor", "floor_solver", "references", "answers", "alphabet", "state_bits", "repeated"})
"""Fields of a cell that follow from the solvers which a version knows, not from the model."""
IGNORED_FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("seconds", "examples_per_second", "files", "check", "declarations"), True),
    "cells": {"__all__": {**dict.fromkeys(SOLVER_FIELDS, True), "groups": {"__all__": {"floor", "references"}}}},
}
"""Fields of a result that depend on the machine or the version, and may differ between runs of one specification."""


class Merged(NamedTuple):
    """The outcome of a merge."""

    copied: int
    """Number of runs copied."""
    present: int
    """Number of runs that both stores hold with equal results."""
    conflicts: list[str]
    """Messages on runs that both stores hold with different results; the target keeps its own."""
    problems: list[RecordError]
    """Errors of runs that cannot be read and are not copied."""


def merge_stores(sources: Sequence[Path], target: Store) -> Merged:
    """Copy the finished runs of several stores into another one; after a StoreError, runs copied before it stay."""
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
                    copy_run(theirs, target, run_id)
                    copied += 1
                    continue
                difference = first_difference(record, target.load(run_id))
            except RecordError as error:
                problems.append(error)
                continue
            present += difference is None
            if difference is not None:
                conflicts.append(f"{run_id}: {difference} differs in {source}; {target.root} keeps its own")
        clear_attempts(target.root, set(theirs.ids()))
    return Merged(copied, present, conflicts, problems)


def check_source(source: Path, target: Store) -> None:
    """Raise StoreError if a source is no store or is the target itself."""
    if not (source / "runs").is_dir():
        raise StoreError(
            f"a source of a merge is a store, a folder that contains a folder runs; got {source}; check the path"
        )
    if source.resolve() == target.root.resolve():
        raise StoreError(f"the sources of a merge differ from its target; got {source} twice; leave it out")


def copy_run(source: Store, target: Store, run_id: str) -> None:
    """Copy one run to a new folder, move that to the place of the run, and read the run back."""
    attempt = target.root / "attempts" / f"{run_id}-{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    with writing(attempt):
        attempt.mkdir(parents=True)
        try:
            for name in (*COMPANIONS, "result.json"):
                write_file(attempt / name, read_bytes(source.path(run_id) / name))
            sync_folder(attempt)
            reach("merge-copied")
            publish(attempt, target.path(run_id), target.root)
        finally:
            remove_folder(attempt)
    reach("merge-published")
    target.load(run_id)


def first_difference(theirs: RunRecord, ours: RunRecord) -> str | None:
    """Return the first part in which two runs of one specification differ except for `IGNORED_FIELDS`, or None."""
    if theirs.result.digest != ours.result.digest:
        return "the specification"
    if theirs.metrics != ours.metrics:
        return "metrics.jsonl"
    mine, other = (record.result.model_dump(exclude=IGNORED_FIELDS) for record in (ours, theirs))
    return next((name for name in mine if mine[name] != other[name]), None)
