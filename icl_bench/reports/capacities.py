"""How much an entry recalls: K50 and K90, recalled bits, and the law they are held against."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from icl_bench.reports.analysis import SOLVED, CellInfo, Entry, Section
from icl_bench.reports.statistics import Capacity, capacity, median, predicted_capacity, recalled_bits

COUNTS_ANSWERS = frozenset({"pairs"})
"""Names of loads that count independent answers, so that the bits of a load divide evenly over them."""


class Recall(NamedTuple):
    """How much an entry recalls."""

    entry: Entry
    capacity: Capacity | None
    """K50 and K90; none where there are fewer than two loads to fit."""
    predicted: float | None
    """Pairs that the law of `predicted_capacity` gives; none where the law does not speak of the architecture."""
    bits: float | None
    """Recalled bits in the cell where they are most; none where the load does not count answers."""

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
        Recall(entry, fitted(section, entry), predicted(entry, alphabet), most_bits(section, entry, alphabet))
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


def answer_alphabet(section: Section) -> float | None:
    """Words that an answer is one of, from the bits that the cells require; none where the load counts no answers."""
    if section.load_name not in COUNTS_ANSWERS:
        return None
    bits = {round(score.state_bits / cell.load, 6) for cell in section.cells for score in section.scores[cell.label]}
    return float(2 ** bits.pop()) if len(bits) == 1 else None


def most_bits(section: Section, entry: Entry, alphabet: float | None) -> float | None:
    """The most bits recalled in any cell, at the median accuracy."""
    if alphabet is None:
        return None
    found = [(cell.load, list(entry.in_cell(cell.label).values())) for cell in section.cells]
    return max((recalled_bits(median(values), load, alphabet) for load, values in found if values), default=None)


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
