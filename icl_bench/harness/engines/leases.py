"""Leases, by which supervisors that share a store agree on who runs a fleet. They are plain files; nothing is locked.

    leases/<fleet>.<generation>   created by the supervisor that takes the fleet, and touched while the fleet runs

The exclusive creation of a file succeeds for one process only, on network file systems too. A lease that was not
renewed for `expiry` seconds is passed on by creating the file of the next generation: of several supervisors that try,
one succeeds, and no supervisor that is alive ever loses its lease. The modification time of a lease is compared with
that of a file just touched in the same folder, so the clocks of the machines do not matter. If two supervisors still
run the same fleet, because a network file system showed an old time, the first to commit a run wins, as everywhere.
"""

import contextlib
import json
import os
import platform
import secrets
from collections.abc import Sequence
from pathlib import Path

from icl_bench.runs.spec import RunSpec
from icl_bench.schema import content_hash

EXPIRY = 120.0
"""Seconds without renewal after which a lease expires; network file systems may show a file's old time for 60 s."""


def lease_name(specs: Sequence[RunSpec]) -> str:
    """Return the name of the lease of a fleet, equal in every process."""
    return content_hash([spec.id for spec in specs], "icl-bench/lease/v1")[:16]


class Leases:
    """The leases of a store."""

    def __init__(self, root: Path, expiry: float = EXPIRY) -> None:
        self.folder, self.expiry = root / "leases", expiry
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clock = self.folder / f"clock-{secrets.token_hex(8)}"

    def generations(self) -> dict[str, int]:
        """Return the highest generation of each lease in the folder, by lease name."""
        found: dict[str, int] = {}
        for file in self.folder.iterdir():
            name, dot, number = file.name.partition(".")
            if dot and number.isdecimal():
                found[name] = max(found.get(name, 0), int(number))
        return found

    def claim(self, name: str, generation: int) -> bool:
        """Try to take a lease whose highest generation is `generation`, 0 for none; return True on success."""
        if generation and not self.expired(self.path(name, generation)):
            return False
        try:
            handle = os.open(self.path(name, generation + 1), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            json.dump({"host": platform.node(), "process": os.getpid()}, file)
        return True

    def expired(self, path: Path) -> bool:
        """Return True if the lease was not renewed within the expiry time."""
        self.clock.touch()
        try:
            with path.open() as file:  # opening the file makes a network file system ask for its time anew
                renewed = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return False  # just released: the next search shows why
        return self.clock.stat().st_mtime - renewed > self.expiry

    def renew(self, name: str, generation: int) -> None:
        """Renew a lease; if another supervisor has taken it over, the fleet still runs to its end."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path(name, generation))

    def release(self, name: str) -> None:
        """Remove all generations of a lease."""
        for path in self.folder.glob(f"{name}.*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the file whose time serves as the clock."""
        self.clock.unlink(missing_ok=True)

    def path(self, name: str, generation: int) -> Path:
        """Return the file of a lease."""
        return self.folder / f"{name}.{generation}"
