"""Leases, by which supervisors that share a store agree on who runs a fleet. They are plain files; nothing is locked.

    leases/<fleet>.<generation>   created by the supervisor that takes the fleet, and touched while the fleet runs

The exclusive creation of a file succeeds for one process only, on network file systems too. A lease that was not
renewed for `expiry` seconds is passed on by creating the file of the next generation: of several supervisors that try,
one succeeds, and no supervisor that is alive ever loses its lease. The modification time of a lease is compared with
that of a file just touched in the same folder, so the clocks of the machines do not matter. If two supervisors still
run the same fleet, because a network file system showed an old time, the first to commit a run wins, as everywhere.
"""

import errno
import json
import os
import platform
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store.files import READ, Folder, Handle
from icl_bench.schema import content_hash

EXPIRY = 120.0
"""Seconds without renewal after which a lease expires; network file systems may show a file's old time for 60 s."""


def lease_name(specs: Sequence[RunSpec]) -> str:
    """Return the name of the lease of a fleet, equal in every process."""
    return content_hash([spec.id for spec in specs], "icl-bench/lease/v1")[:16]


LEASE = re.compile(r"([0-9a-f]{16})\.([0-9]{1,9})")


class Leases:
    """The leases of a store."""

    def __init__(self, root: Path, expiry: float = EXPIRY) -> None:
        self.folder, self.expiry = Folder(root, ("leases",)), expiry
        self.clock = f"clock-{secrets.token_hex(8)}"
        with self.folder.opened(make=True):
            return

    def generations(self) -> dict[str, int]:
        """Return the highest generation of each lease in the folder, by lease name."""
        found: dict[str, int] = {}
        with self.folder.opened(make=True) as folder:
            for lease in filter(None, map(LEASE.fullmatch, folder.names())):
                found[lease[1]] = max(found.get(lease[1], 0), int(lease[2]))
        return found

    def claim(self, name: str, generation: int) -> bool:
        """Try to take a lease whose highest generation is `generation`, 0 for none; return True on success."""
        with self.folder.opened(make=True) as folder:
            if generation and not self.expired(folder, f"{name}.{generation}"):
                return False
            claimed = json.dumps({"host": platform.node(), "process": os.getpid()}).encode()
            try:
                folder.create(f"{name}.{generation + 1}", claimed)
            except FileExistsError:
                return False
        return True

    def expired(self, folder: Handle, file: str) -> bool:
        """Return True if the lease was not renewed within the expiry time."""
        touched = os.open(self.clock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644, dir_fd=folder.number)
        try:
            os.utime(touched)
            now = os.fstat(touched).st_mtime
        finally:
            os.close(touched)
        try:
            # Opening the file makes a network file system ask for its time anew.
            lease = os.open(file, READ, dir_fd=folder.number)
        except FileNotFoundError:
            return False  # just released: the next search shows why
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return True  # no supervisor makes a link
        try:
            return now - os.fstat(lease).st_mtime > self.expiry
        finally:
            os.close(lease)

    def renew(self, name: str, generation: int) -> None:
        """Renew a lease; if another supervisor has taken it over, the fleet still runs to its end."""
        with suppress(FileNotFoundError), self.folder.opened() as folder:
            os.utime(f"{name}.{generation}", dir_fd=folder.number, follow_symlinks=False)

    def release(self, name: str) -> None:
        """Remove all generations of a lease."""
        with suppress(FileNotFoundError), self.folder.opened() as folder:
            for file in folder.names():
                if (lease := LEASE.fullmatch(file)) and lease[1] == name:
                    folder.remove(file)

    def close(self) -> None:
        """Remove the file whose time serves as the clock."""
        with suppress(FileNotFoundError), self.folder.opened() as folder:
            folder.remove(self.clock)
