"""What is left to do, from which a supervisor takes."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from icl_bench.runs.spec import RunSpec

SUSPECT = 2
"""Lost workers from which a fleet waits until all others had their turn: by then it shows who ends workers."""


class Item(NamedTuple):
    """A fleet, how many workers were lost over it, and the name of the fleet that it is part of."""

    specs: Sequence[RunSpec]
    losses: int = 0
    name: str = ""

    def after_loss(self, rest: Sequence[RunSpec], limit: int) -> "list[Item]":
        """What is to be tried again: the same fleet or, from the last time on, each of its members alone.

        So that of many members only the one that ends workers is given up.
        """
        losses = self.losses + 1
        parts = [[spec] for spec in rest] if losses >= limit - 1 else [rest]
        return [Item(part, losses, self.name) for part in parts]


class Queue(Protocol):
    """Fleets to be carried out."""

    def left(self) -> int:
        """Fleets that are not finished, those in hand here or elsewhere included."""

    def take(self) -> Item | None:
        """The next fleet; none where there is none, or none now."""

    def settle(self, item: Item, again: Sequence[Item] = ()) -> None:
        """Nothing is left of an item that was taken, save what is to be done again."""

    def keep(self) -> None:
        """Called every second or so, for what must be kept alive."""

    def close(self) -> None:
        """Called at the end, also after an error."""


class FleetQueue:
    """Fleets of one supervisor, in their order; what is done again comes first, unless it is suspect."""

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

    def settle(self, item: Item, again: Sequence[Item] = ()) -> None:
        """Put back what is to be done again."""
        self.taken -= 1
        for part in again:
            (self.waiting.append if part.losses >= SUSPECT else self.waiting.appendleft)(part)

    def keep(self) -> None:
        """Nothing is held that others could take."""

    def close(self) -> None:
        """Nothing is held."""
