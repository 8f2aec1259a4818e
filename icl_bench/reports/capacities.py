"""How much an entry recalls: K50 and K90, recalled bits, and the law they are held against."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from icl_bench.reports.analysis import SOLVED, CellInfo, Entry, Section
from icl_bench.reports.fits import Capacity, capacity
from icl_bench.reports.statistics import median, predicted_capacity, recalled_bits


class Held(NamedTuple):
    """What a context holds and how much of it is scored."""

    answers: int
    """Independent answers, each as likely to be asked as any other."""
    alphabet: int
    """Words of which each is one."""
    scored: int
    """Scored positions of an example."""

    def bits(self, accuracy: float) -> float:
        """Bits that this accuracy proves to be recalled.

        Where more is scored than there are answers, some positions repeat or are known, and all errors are laid on the
        answers; where less is scored, it is a sample of them.
        """
        error = min(1.0, (1 - accuracy) * max(1.0, self.scored / self.answers))
        return recalled_bits(1 - error, self.answers, self.alphabet)


class Recall(NamedTuple):
    """How much an entry recalls."""

    entry: Entry
    capacity: Capacity | None
    """K50 and K90; none where there are fewer than two loads to fit."""
    predicted: float | None
    """Pairs that the law of `predicted_capacity` gives; none where the law does not speak of the architecture."""
    bits: float | None
    """Recalled bits in the cell where they are most; none where no answers are independent."""
    bound: float | None
    """Answers that the bits of the state can hold; none where no answers are independent."""

    @property
    def bits_per_element(self) -> float | None:
        """Recalled bits a state element."""
        elements = self.entry.state_elements
        return self.bits / elements if self.bits is not None and elements else None


@lru_cache(maxsize=64)  # table, figure and sentence ask alike, and the fits take a while
def recalls(section: Section) -> tuple[Recall, ...]:
    """What the entries of a section recall; those without a score are left out."""
    alphabet = answer_alphabet(section)
    return tuple(
        Recall(
            entry,
            fitted(section, entry),
            predicted(entry, alphabet),
            most_bits(section, entry),
            most_answers(section, entry),
        )
        for entry in section.entries
        if entry.accuracies
    )


def fitted_cells(section: Section) -> list[CellInfo]:
    """The cells of a fit by load: one for each load above 0, none whose floor solves it."""
    cells = [cell for cell in section.cells if cell.load > 0 and section.floors[cell.label].accuracy < SOLVED]
    distinct = {cell.load for cell in cells}
    return cells if len(distinct) == len(cells) else []


def fitted(section: Section, entry: Entry) -> Capacity | None:
    """K50 and K90 of an entry."""
    cells = fitted_cells(section)
    columns = [entry.in_cell(cell.label) for cell in cells]
    if len(cells) < 2:
        return None
    seeds = sorted(set.intersection(*(set(column) for column in columns)))
    if not seeds:
        return None
    floors = [section.floors[cell.label].accuracy for cell in cells]
    return capacity([cell.load for cell in cells], [[column[seed] for column in columns] for seed in seeds], floors)


@lru_cache(maxsize=1024)  # asked for every entry, and it looks at every run
def held_answers(section: Section, cell: CellInfo) -> Held | None:
    """What the context of a cell holds, as its records say; none where its answers depend on each other."""
    found = {(one.answers, one.alphabet, one.scored) for one in section.seen[cell.label]}
    answers, alphabet, scored = next(iter(found)) if len(found) == 1 else (None, None, 0)
    return Held(answers, alphabet, scored) if answers and alphabet else None


def answer_alphabet(section: Section) -> int | None:
    """Words that an answer is one of, where the load counts answers, as the law of pairs supposes."""
    held = [(cell.load, held_answers(section, cell)) for cell in section.cells]
    words = {found.alphabet if found and found.answers == load else None for load, found in held}
    return words.pop() if len(words) == 1 else None


def most_bits(section: Section, entry: Entry) -> float | None:
    """The most bits recalled in any cell, at the median accuracy; none where no answers are independent."""
    found = [(held_answers(section, cell), list(entry.in_cell(cell.label).values())) for cell in section.cells]
    return max((held.bits(median(values)) for held, values in found if held and values), default=None)


def most_answers(section: Section, entry: Entry) -> float | None:
    """Answers that the bits of an entry's state can tell apart, all together; none where no answers are independent."""
    words = {held.alphabet for cell in section.cells if (held := held_answers(section, cell))}
    state = entry.example.result.state
    return 8 * state.bytes / math.log2(words.pop()) if state and len(words) == 1 else None


def predicted(entry: Entry, alphabet: float | None) -> float | None:
    """Pairs that Hebbian sums of this shape recall, of one layer; none for an architecture without power sums."""
    first, *others = entry.example.spec["arch"]
    degree = degree_of(first)
    if alphabet is None or others or degree is None:
        return None
    params = first["params"]
    return predicted_capacity(degree, params["d_key"], params["kv_heads"], params["d_value"], alphabet)


def degree_of(component: Mapping[str, Any]) -> int | None:
    """The power of the scores, for architectures that the law speaks of."""
    params = component["params"]
    if component["name"] == "power":
        return int(params["p"])
    if component["name"] == "linear" and params.get("feature_map", "identity") == "identity":
        return 1
    return None
