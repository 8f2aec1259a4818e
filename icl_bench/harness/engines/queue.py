"""What is left to do, from which a supervisor takes."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from icl_bench.harness.spec import RunSpec


class Item(NamedTuple):
    """A fleet, and how many workers were lost over it."""

    specs: Sequence[RunSpec]
    losses: int = 0

    def after_loss(self, rest: Sequence[RunSpec], limit: int) -> "list[Item]":
        """What is to be tried again: the same fleet or, the last time, each of its members alone.

        So that of many members only the one that ends workers is given up.
        """
        losses = self.losses + 1
        parts = [[spec] for spec in rest] if losses == limit - 1 else [rest]
        return [Item(part, losses) for part in parts]


class Queue(Protocol):
    """Fleets to be carried out."""

    def left(self) -> int:
        """Fleets that are not finished, those in hand here or elsewhere included."""

    def take(self) -> Item | None:
        """The next fleet; none where there is none, or none now."""

    def again(self, items: Iterable[Item]) -> None:
        """Put back what an item that was taken lacks; of nothing, the item is done."""

    def keep(self) -> None:
        """Called every second or so, for what must be kept alive."""


class FleetQueue:
    """Fleets of one supervisor, in their order; what is put back comes first."""

    def __init__(self, fleets: Iterable[Sequence[RunSpec]]) -> None:
        self.waiting = deque(Item(specs) for specs in fleets)
        self.taken = 0

    def left(self) -> int:
        """Fleets that wait or are in hand."""
        return len(self.waiting) + self.taken

    def take(self) -> Item | None:
        """The first that waits."""
        if not self.waiting:
            return None
        self.taken += 1
        return self.waiting.popleft()

    def again(self, items: Iterable[Item]) -> None:
        """Put back in front."""
        self.taken -= 1
        self.waiting.extendleft(items)

    def keep(self) -> None:
        """Nothing is held that others could take."""
