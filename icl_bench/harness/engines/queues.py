"""The fleets that are left to run, for one supervisor alone or for several that share a store."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from icl_bench.harness.engines.base import Agenda, seconds_of
from icl_bench.harness.engines.leases import Leases, lease_name
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

LOSSES_TO_WAIT = 2
"""Lost workers after which a fleet waits until all others have run: by then it is known which fleets end workers."""
SCAN_SECONDS = 2.0
"""Seconds between two searches for a free fleet, after a search without success."""


class Item(NamedTuple):
    """A fleet, or the part of one that is left to run."""

    specs: Sequence[RunSpec]
    losses: int = 0
    """Workers that were lost while they ran the fleet."""
    name: str = ""
    """Name of the lease of the whole fleet."""

    def cut(self, members: int) -> "list[Item]":
        """Return the rest of the fleet and its first members, in the order in which the queue takes them back."""
        return [self._replace(specs=self.specs[members:]), self._replace(specs=self.specs[:members])]

    def after_loss(self, rest: Sequence[RunSpec], limit: int) -> "list[Item]":
        """Return the items to run after another loss: the runs of `rest` together or, before the last try, each alone.

        Running members alone finds the one that ends workers, so that only this member is given up.
        """
        losses = self.losses + 1
        parts = [[spec] for spec in rest] if losses >= limit - 1 else [rest]
        return [Item(part, losses, self.name) for part in parts]


class FleetQueue:
    """The fleets that are left to run: those of a single supervisor, from an agenda that may grow."""

    def __init__(self, agenda: Agenda) -> None:
        self.agenda = agenda
        self.waiting: deque[Item] = deque()
        self.taken = 0

    def left(self) -> int:
        """Return the number of unfinished fleets, including those that run here or elsewhere."""
        return len(self.waiting) + len(self.agenda) + self.taken

    @property
    def seconds_to_come(self) -> float:
        """Estimated seconds of the items that are not taken, and of the runs that will be asked for after them."""
        return self.agenda.seconds + self.agenda.seconds_later + sum(seconds_of(item.specs) for item in self.waiting)

    def take(self) -> Item | None:
        """Return the next item; None if there is none, or none at the moment."""
        is_known = bool(self.waiting) and (self.waiting[0].losses < LOSSES_TO_WAIT or not self.agenda)
        if not is_known and not self.agenda:
            return None
        self.taken += 1
        return self.waiting.popleft() if is_known else Item(self.agenda.take())

    def settle(self, item: Item, again: Sequence[Item] = ()) -> None:
        """Mark a taken item as done and put back the items of it that must run again."""
        self.taken -= 1
        put_back(self.waiting, again)

    def keep(self) -> None:
        """Renew what expires; the supervisor calls this about once a second."""

    def close(self) -> None:
        """Release everything; the supervisor calls this at the end, also after an error."""


class LeaseQueue(FleetQueue):
    """Fleets that several supervisors share; each takes a fleet that no other has leased.

    All supervisors list equal fleets; each begins its search at another index, `start`, so that they seldom compete.
    """

    def __init__(self, fleets: Sequence[Sequence[RunSpec]], store: Store, leases: Leases, start: int = 0) -> None:
        super().__init__(Agenda())
        self.unfinished = {lease_name(fleet): fleet for fleet in (*fleets[start:], *fleets[:start])}
        self.store, self.leases = store, leases
        self.held: dict[str, int] = {}
        self.parts: dict[str, int] = {}
        self.next_scan = 0.0
        self.renewed = time.monotonic()

    @property
    def seconds_to_come(self) -> float:
        """No bound: a fleet has one lease, so that it stays whole."""
        return float("inf")

    def left(self) -> int:
        """Return the number of fleets not known to be finished; look at the store if no fleet is held here."""
        if not self.held and time.monotonic() >= self.next_scan:
            self.drop_finished()
        return len(self.unfinished)

    def take(self) -> Item | None:
        """Return an item of a fleet held here, else lease a free fleet; an expired lease counts as a lost worker."""
        if self.waiting and self.waiting[0].losses < LOSSES_TO_WAIT:
            return self.waiting.popleft()
        item = next(self.claims(), None) if time.monotonic() >= self.next_scan else None
        if item is None and self.waiting:
            return self.waiting.popleft()
        if item is None and time.monotonic() >= self.next_scan:
            self.next_scan = time.monotonic() + min(SCAN_SECONDS, self.leases.expiry / 4)
        return item

    def claims(self) -> Iterator[Item]:
        """Lease free fleets one by one and yield each."""
        self.drop_finished()
        generations = self.leases.generations()
        for name, fleet in list(self.unfinished.items()):
            if name in self.held or not self.leases.claim(name, generations.get(name, 0)):
                continue
            self.held[name], self.parts[name] = generations.get(name, 0) + 1, 1
            missing = [spec for spec in fleet if not self.store.has(spec.id)]  # the last holder may just have finished
            item = Item(missing, generations.get(name, 0), name)
            if missing:
                yield item
            else:
                self.settle(item)

    def settle(self, item: Item, again: Sequence[Item] = ()) -> None:
        """Mark an item as done and put back the items that must run again; release the lease after the last item."""
        put_back(self.waiting, again)
        self.parts[item.name] += len(again) - 1
        if not self.parts[item.name]:
            self.leases.release(item.name)
            del self.held[item.name], self.unfinished[item.name]

    def drop_finished(self) -> None:
        """Remove the fleets that other supervisors have finished."""
        for name, fleet in list(self.unfinished.items()):
            if name not in self.held and all(self.store.has(spec.id) for spec in fleet):
                del self.unfinished[name]

    def keep(self) -> None:
        """Renew the leases held here, several times before they expire."""
        if time.monotonic() - self.renewed > self.leases.expiry / 6:
            self.renewed = time.monotonic()
            for name, generation in self.held.items():
                self.leases.renew(name, generation)

    def close(self) -> None:
        """Release the leases that are still held."""
        for name in self.held:
            self.leases.release(name)
        self.leases.close()


def put_back(waiting: deque[Item], again: Sequence[Item]) -> None:
    """Put items that must run again in front of the queue, or at its end if they have lost several workers."""
    for item in again:
        (waiting.append if item.losses >= LOSSES_TO_WAIT else waiting.appendleft)(item)
