"""The merging of stores: missing runs are copied completely, and nothing is overwritten."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from icl_bench.errors import LinkError, RecordError, StoreError
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store.attempt import COMPANIONS, clear_attempts, kept_length, publish_all
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import Folder, Handle, sync_folders, writing
from icl_bench.runs.store.processes import writer_mark
from icl_bench.runs.store.store import Store, StoredRun, changed

SOLVER_FIELDS = frozenset({"floor", "floor_solver", "references", "answers", "alphabet", "state_bits", "repeated"})
"""Fields of a cell that follow from the solvers which a version knows, not from the model."""
IGNORED_FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("seconds", "examples_per_second", "files", "check", "declarations"), True),
    "cells": {"__all__": {**dict.fromkeys(SOLVER_FIELDS, True), "groups": {"__all__": {"floor", "references"}}}},
}
"""Fields of a result that depend on the machine or the version, and may differ between runs of one specification."""


GROUP = 24
"""Number of runs that are copied together, so that they wait for the disk together."""


class Merged(NamedTuple):
    """The outcome of a merge."""

    copied: int
    """Number of runs copied."""
    present: int
    """Number of runs that both stores hold with equal results."""
    conflicts: list[str]
    """Messages on runs that both stores hold with different results; the target keeps its own."""
    problems: list[StoreError]
    """Errors of runs that cannot be read and are not copied."""


def merge_stores(sources: Sequence[Path], target: Store) -> Merged:
    """Copy the finished runs of several stores into another one; after a StoreError, runs copied before it stay."""
    for source in sources:
        check_source(source, target)
    target.check_writable()
    copied, present, conflicts = 0, 0, []
    problems: list[StoreError] = []
    for source in sources:
        theirs = Store(source)
        there = list(theirs.ids())
        for i in range(0, len(there), GROUP):
            missing = []
            for run_id in there[i : i + GROUP]:
                try:
                    if target.has(run_id):
                        difference = first_difference(theirs.load(run_id), target.load(run_id))
                    else:
                        missing.append(theirs.read(run_id))
                        continue
                except (RecordError, LinkError) as error:
                    problems.append(error)
                    continue
                present += difference is None
                if difference is not None:
                    conflicts.append(f"{run_id}: {difference} differs in {source}; {target.root} keeps its own")
            copied += copy_runs(theirs, missing, target, problems) if missing else 0
        clear_attempts(target.root, set(there))
    return Merged(copied, present, conflicts, problems)


def check_source(source: Path, target: Store) -> None:
    """Raise StoreError if a source is no store or is the target itself."""
    if not Folder(source, ("runs",)).exists():
        raise StoreError(
            f"a source of a merge is a store, a folder that contains a folder runs; got {source}; check the path"
        )
    if source.resolve() == target.root.resolve():
        raise StoreError(f"the sources of a merge differ from its target; got {source} twice; leave it out")


def copy_runs(source: Store, runs: Sequence[StoredRun], target: Store, problems: list[StoreError]) -> int:
    """Copy runs to new folders, wait for the disk, and move these to the places of the runs; return their number.

    What is written is what was read and compared with its digests; append errors of kept files to `problems`.
    """
    copies: dict[str, Handle] = {}
    with writing(target.root), target.folder.at("attempts").opened(make=True) as attempts, ExitStack() as opened:
        try:
            for run in runs:
                name = f"{run.record.result.id}-{writer_mark()}"
                copies[name] = folder = opened.enter_context(attempts.below(name, make=True))
                for file, data in run.contents.items():
                    folder.create(file, data)
                try:
                    copy_kept(source, run.record, folder)
                except RecordError as error:
                    problems.append(error)
                    attempts.remove(name)
                    del copies[name]
            sync_folders((folder, folder.names()) for folder in copies.values())
            reach("merge-copied")
            publish_all(target.root, attempts, list(copies))
        finally:
            for name in copies:
                attempts.remove(name)
    reach("merge-published")
    return len(copies)


def copy_kept(source: Store, record: RunRecord, target: Handle) -> None:
    """Copy the further files that a run kept; raise RecordError if one is damaged."""
    for name in record.result.files.keys() - set(COMPANIONS):
        with source.opened_run(record.result.id) as folder, target.creating(name) as copy:
            digest = hashlib.sha256()
            for block in folder.blocks(name, kept_length(folder, name)):
                digest.update(block)
                copy.write(block)
            if digest.hexdigest() != record.result.files[name]:
                raise changed(folder.path / name)


def first_difference(theirs: RunRecord, ours: RunRecord) -> str | None:
    """Return the first part in which two runs of one specification differ except for `IGNORED_FIELDS`, or None."""
    if theirs.result.digest != ours.result.digest:
        return "the specification"
    if theirs.metrics != ours.metrics:
        return "metrics.jsonl"
    mine, other = (record.result.model_dump(exclude=IGNORED_FIELDS) for record in (ours, theirs))
    return next((name for name in mine if mine[name] != other[name]), None)
