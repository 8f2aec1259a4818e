"""Every byte of a store, read and compared with its digest."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from icl_bench.errors import RecordError
from icl_bench.runs.store.checkpoint import STEP, fleets, read_checkpoint
from icl_bench.runs.store.store import RUN_ID, Store


class Verified(NamedTuple):
    """What was found."""

    runs: int
    """Finished runs that are as they were written."""
    checkpoints: int
    """Checkpoints that are."""
    problems: list[str]
    """What is damaged or does not belong there, a line each that names the file."""


def verify(store: Store) -> Verified:
    """Read everything; raises StoreError where the folder cannot be read at all."""
    runs, checkpoints, problems = 0, 0, list(strangers(store.root / "runs"))
    for run_id, _ in store.folders():
        try:
            store.load(run_id)
            runs += 1
        except RecordError as error:
            problems.append(str(error))
    for folder, _ in fleets(store.root):
        for path in sorted(path for path in folder.iterdir() if STEP.fullmatch(path.name)):
            try:
                read_checkpoint(path)
                checkpoints += 1
            except RecordError as error:
                problems.append(str(error))
    return Verified(runs, checkpoints, problems)


def strangers(folder: Path) -> Iterator[str]:
    """What lies among the runs and is none: links, files, folders of other names."""
    for prefix in sorted(folder.iterdir()) if folder.is_dir() else []:
        if prefix.is_symlink() or not prefix.is_dir():
            yield strange(prefix)
            continue
        for path in sorted(prefix.iterdir()):
            if path.is_symlink() or not RUN_ID.fullmatch(path.name) or path.name[:2] != prefix.name:
                yield strange(path)


def strange(path: Path) -> str:
    """What is said of a stranger."""
    kind = "a link" if path.is_symlink() else "no run"
    return f"the folder runs holds runs alone; {path} is {kind}; move it elsewhere"
