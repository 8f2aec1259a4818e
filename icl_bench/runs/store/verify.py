"""The verification of a store: every byte is read and compared with its digest."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from icl_bench.errors import RecordError
from icl_bench.runs.store.checkpoint import STEP_FOLDER, fleets, read_checkpoint
from icl_bench.runs.store.store import RUN_ID, Store


class Verified(NamedTuple):
    """The outcome of a verification."""

    runs: int
    """Number of undamaged finished runs."""
    checkpoints: int
    """Number of undamaged checkpoints."""
    problems: list[str]
    """Messages on damaged files and on files that do not belong there, one line each."""


def verify_store(store: Store) -> Verified:
    """Read every run and checkpoint of a store; raise StoreError if its folder cannot be read at all."""
    runs, checkpoints, problems = 0, 0, list(foreign_entries(store.root / "runs"))
    for run_id, _ in store.folders():
        try:
            store.load(run_id)
            runs += 1
        except RecordError as error:
            problems.append(str(error))
    for folder, _ in fleets(store.root):
        for path in sorted(path for path in folder.iterdir() if STEP_FOLDER.fullmatch(path.name)):
            try:
                read_checkpoint(path)
                checkpoints += 1
            except RecordError as error:
                problems.append(str(error))
    return Verified(runs, checkpoints, problems)


def foreign_entries(folder: Path) -> Iterator[str]:
    """Yield a message on everything among the runs that is no run: links, files, folders with other names."""
    for prefix in sorted(folder.iterdir()) if folder.is_dir() else []:
        whole = prefix.is_dir() and not prefix.is_symlink()
        for path in sorted(prefix.iterdir()) if whole else [prefix]:
            named = RUN_ID.fullmatch(path.name) and path.name[:2] == prefix.name
            if path.is_symlink() or not named:
                kind = "a link" if path.is_symlink() else "no run"
                yield f"the folder runs contains nothing but runs; {path} is {kind}; move it elsewhere"
