"""The process that writes a file, marked in the file's name, so that others can tell whether it still runs."""

import hashlib
import os
import platform
import re
import secrets
import time
from pathlib import Path
from typing import NamedTuple

PROCESSES = Path("/proc")
UNKNOWN = "00000000"
"""Start of a process where the system does not tell it."""
MARK = r"([0-9a-f]{8})-([0-9]{1,10})-([0-9a-f]{8})?[0-9a-f]{8}"
"""Pattern of a mark: host, process, start of the process (none in older versions), and a random token."""
SILENT_AFTER = 600.0
"""Seconds without a change after which a file of a process that cannot be looked up counts as left over."""
LARGEST_PROCESS = 2**31


def host_mark() -> str:
    """Return a hash of the name of this host and of the space in which its process ids count."""
    space = PROCESSES / "self" / "ns" / "pid"
    try:
        numbered = space.readlink().name
    except OSError:
        numbered = ""
    return hashlib.sha256(f"{platform.node()}{numbered}".encode()).hexdigest()[:8]


HOST = host_mark()
"""Hash of this host, which a container shares with no other."""


class Writer(NamedTuple):
    """The process that writes a file, as the name of the file tells."""

    host: str
    process: int
    start: str | None
    """Start of the process, by which a later process of the same id is told apart."""

    @classmethod
    def of(cls, found: re.Match[str], group: int) -> "Writer":
        """Return the writer whose mark begins at this group of a match."""
        return cls(found[group], int(found[group + 1]), found[group + 2])

    def is_alive(self, changed: float) -> bool:
        """Return whether the process runs; where that cannot be looked up, whether `changed`, in s, is recent."""
        if self.host != HOST or self.start is None:
            return time.time() - changed < SILENT_AFTER
        start = start_of(self.process)
        return start is not None and (start == self.start or UNKNOWN in (start, self.start))


def writer_mark() -> str:
    """Return a mark of this process with a new random token."""
    return f"{HOST}-{os.getpid()}-{start_of(os.getpid()) or UNKNOWN}{secrets.token_hex(4)}"


def start_of(process: int) -> str | None:
    """Return the start of a process as 8 hexadecimal digits, `UNKNOWN` if the system hides it; None if it has ended."""
    if process >= LARGEST_PROCESS:
        return None
    try:
        name, _, fields = (PROCESSES / str(process) / "stat").read_bytes().rpartition(b") ")
        state, *numbers = fields.split()
        if name and len(numbers) > 18:
            return None if state in (b"Z", b"X") else f"{int(numbers[18]) % 2**32:08x}"
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return UNKNOWN
