"""Leases: which of several supervisors that share a store has a fleet in hand. Files alone, no locks.

    leases/<fleet>.<generation>   made by the one that takes the fleet, its time renewed while the work goes on

Making a file that must not exist succeeds for one process alone, on network file systems too. A lease that was not
renewed for `expiry` seconds is passed on by making the next generation: of several that try, one succeeds, and nothing
is ever taken from a holder that is alive. Times are compared with that of a file just touched in the same folder, so
that the clocks of the machines do not matter. Should two supervisors still do the same fleet, because a network file
system showed an old time, the first to commit a run wins, as everywhere.
"""

import contextlib
import json
import os
import platform
import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from icl_bench.harness.engines.queue import SUSPECT, Item
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.schema import content_hash

EXPIRY = 120.0
"""Seconds; more than the 60 for which network file systems may keep an old time of a file."""
SCAN_EVERY = 2.0
"""Seconds between looks for a fleet, after one in vain."""


def fleet_name(specs: Sequence[RunSpec]) -> str:
    """Equal for the same fleet in every process."""
    return content_hash([spec.id for spec in specs], "icl-bench/lease/v1")[:16]


class Leases:
    """The leases of a store."""

    def __init__(self, root: Path, expiry: float = EXPIRY) -> None:
        self.folder, self.expiry = root / "leases", expiry
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clock = self.folder / f"clock-{secrets.token_hex(8)}"

    def generations(self) -> dict[str, int]:
        """The highest generation of each fleet that is, or was, in hand."""
        found: dict[str, int] = {}
        for file in self.folder.iterdir():
            name, dot, number = file.name.partition(".")
            if dot and number.isdecimal():
                found[name] = max(found.get(name, 0), int(number))
        return found

    def claim(self, name: str, generation: int) -> bool:
        """Take a fleet whose highest generation is that, 0 for none; whether it worked."""
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
        """Whether a lease was not renewed for too long."""
        self.clock.touch()
        try:
            with path.open() as file:  # opening it makes a network file system ask for the time anew
                renewed = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return False  # released just now: whoever asks next sees why
        return self.clock.stat().st_mtime - renewed > self.expiry

    def renew(self, name: str, generation: int) -> None:
        """Say that the work goes on; where the lease was taken away, the work goes on all the same."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path(name, generation))

    def release(self, name: str) -> None:
        """Remove all generations."""
        for path in self.folder.glob(f"{name}.*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the clock."""
        self.clock.unlink(missing_ok=True)

    def path(self, name: str, generation: int) -> Path:
        """The file of a lease."""
        return self.folder / f"{name}.{generation}"


class LeaseQueue:
    """Fleets shared by several supervisors, each of which takes what nobody has in hand.

    Args:
        fleets: The fleets, the same in all of them.
        store: The store that they share.
        leases: Its leases.
        start: Where to begin to look, different in each so that they seldom meet.
    """

    def __init__(self, fleets: Sequence[Sequence[RunSpec]], store: Store, leases: Leases, start: int = 0) -> None:
        turned = [*fleets[start:], *fleets[:start]]
        self.unfinished = {fleet_name(fleet): fleet for fleet in turned}
        self.store, self.leases = store, leases
        self.held: dict[str, int] = {}
        self.parts: dict[str, int] = {}
        self.waiting: deque[Item] = deque()
        self.idle_until = 0.0
        self.renewed = time.monotonic()

    def left(self) -> int:
        """Fleets that are not known to be finished; looks again where nothing is in hand here."""
        if not self.held and time.monotonic() >= self.idle_until:
            self.drop_finished()
        return len(self.unfinished)

    def take(self) -> Item | None:
        """A fleet that nobody has in hand; one whose holder vanished counts as having cost a worker."""
        if self.waiting and self.waiting[0].losses < SUSPECT:
            return self.waiting.popleft()
        item = next(self.claims(), None) if time.monotonic() >= self.idle_until else None
        if item is None and self.waiting:
            return self.waiting.popleft()
        if item is None and time.monotonic() >= self.idle_until:
            self.idle_until = time.monotonic() + min(SCAN_EVERY, self.leases.expiry / 4)
        return item

    def claims(self) -> Iterator[Item]:
        """Fleets as they are claimed."""
        self.drop_finished()
        generations = self.leases.generations()
        for name, fleet in list(self.unfinished.items()):
            if name in self.held or not self.leases.claim(name, generations.get(name, 0)):
                continue
            self.held[name], self.parts[name] = generations.get(name, 0) + 1, 1
            missing = [spec for spec in fleet if not self.store.has(spec.id)]  # its last holder may just have finished
            item = Item(missing, generations.get(name, 0), name)
            if missing:
                yield item
            else:
                self.settle(item)

    def settle(self, item: Item, again: Sequence[Item] = ()) -> None:
        """Put back what is to be done again; with the last part of a fleet its lease ends."""
        for part in again:
            (self.waiting.append if part.losses >= SUSPECT else self.waiting.appendleft)(part)
        self.parts[item.name] += len(again) - 1
        if not self.parts[item.name]:
            self.leases.release(item.name)
            del self.held[item.name], self.unfinished[item.name]

    def drop_finished(self) -> None:
        """Forget fleets that others have finished."""
        for name, fleet in list(self.unfinished.items()):
            if name not in self.held and all(self.store.has(spec.id) for spec in fleet):
                del self.unfinished[name]

    def keep(self) -> None:
        """Renew the leases, several times within their expiry."""
        if time.monotonic() - self.renewed > self.leases.expiry / 6:
            self.renewed = time.monotonic()
            for name, generation in self.held.items():
                self.leases.renew(name, generation)

    def close(self) -> None:
        """Give back what is still held."""
        for name in self.held:
            self.leases.release(name)
        self.leases.close()
