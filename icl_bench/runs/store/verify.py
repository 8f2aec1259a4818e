"""The verification of a store: every byte is read and compared with its digest."""

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from icl_bench.errors import RecordError
from icl_bench.runs.store.attempt import COMPANIONS, kept_length
from icl_bench.runs.store.checkpoint import FLEET_FILE, saved_fleets, steps_in, verify_checkpoint
from icl_bench.runs.store.files import Folder, Handle
from icl_bench.runs.store.store import PREFIX, RUN_ID, Store, changed


class Verified(NamedTuple):
    """The outcome of a verification."""

    runs: int
    """Number of undamaged finished runs."""
    checkpoints: int
    """Number of undamaged checkpoints."""
    problems: list[str]
    """Messages on damaged files and on files that do not belong there, one line each."""


def verify_store(store: Store) -> Verified:
    """Read every run and checkpoint of a store, one after another; raise StoreError if its folder cannot be read."""
    runs, checkpoints, problems = 0, 0, list(foreign_entries(store))
    for run_id in store.folder_ids():
        try:
            verify_run(store, run_id)
            runs += 1
        except RecordError as error:
            if store.run_folder(run_id).exists():  # else somebody removed it meanwhile
                problems.append(str(error))
    for fleet in saved_fleets(store.root):
        for checked in verify_fleet(store.folder.at("checkpoints", fleet.name)):
            checkpoints += checked is None
            problems += [checked] if checked else []
    return Verified(runs, checkpoints, problems)


def verify_run(store: Store, run_id: str) -> None:
    """Read a run with every file that it kept; raise RecordError if one is damaged or unknown."""
    result = store.load(run_id).result
    with store.opened_run(run_id) as folder:
        for name in result.files.keys() - set(COMPANIONS):
            if folder.digest(name, kept_length(folder, name)) != result.files[name]:
                raise changed(folder.path / name)


def verify_fleet(place: Folder) -> Iterator[str | None]:
    """Yield a message for each damaged checkpoint of a fleet, and None for each undamaged one.

    A fleet that goes on deletes its older checkpoints, which is no damage.
    """
    with suppress(FileNotFoundError), place.opened() as fleet:
        for name in reversed(steps_in(fleet)):
            try:
                with fleet.below(name) as folder:
                    verify_checkpoint(folder)
                yield None
            except RecordError as error:
                if is_there(fleet, name):
                    yield str(error)
            except FileNotFoundError:
                continue


def is_there(fleet: Handle, name: str) -> bool:
    """Return whether nobody deletes this checkpoint: all of its files, and the file that names the fleet, are there."""
    return fleet.kind(FLEET_FILE) == "file" and fleet.kind(name) is not None


def foreign_entries(store: Store) -> Iterator[str]:
    """Yield a message on everything among the runs that is no run: links, files, folders with other names."""
    with suppress(FileNotFoundError), store.folder.at("runs").opened() as runs:
        for prefix in runs.names():
            if not PREFIX.fullmatch(prefix) or runs.kind(prefix) != "folder":
                yield foreign(runs, prefix)
                continue
            with runs.below(prefix) as folder:
                for name in folder.names():
                    if not RUN_ID.fullmatch(name) or not name.startswith(prefix) or folder.kind(name) != "folder":
                        yield foreign(folder, name)


def foreign(folder: Handle, name: str) -> str:
    """Return the message on something among the runs that is no run."""
    kind = "a link" if folder.kind(name) == "link" else "no run"
    return f"the folder runs contains nothing but runs; {folder.path / name} is {kind}; move it elsewhere"
