"""Recall of an entry: K50 and K90, recalled bits, and the capacity that theory predicts."""

import math
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from icl_bench.reports.analysis import CellInfo, Section
from icl_bench.reports.entry import Entry
from icl_bench.reports.fits import Capacity, capacity
from icl_bench.reports.statistics import predicted_capacity, recalled_bits
from icl_bench.runs.outline import Seeds
from icl_bench.runs.record import SOLVED


class ScoredContents(NamedTuple):
    """The answers that a context contains, and the number of them that are scored."""

    answers: int
    """Number of independent answers; each is asked for with the same probability."""
    alphabet: int
    """Number of equally likely words, of which each answer is one."""
    scored: int
    """Number of scored positions of an example."""

    def bits(self, accuracy: float) -> float:
        """Return the number of bits of the context that this accuracy proves to be recalled.

        Where more positions are scored than there are answers, some positions repeat an answer or are known without it,
        and all errors are attributed to the answers. Where fewer are scored, they are a sample of the answers.
        """
        error = min(1.0, (1 - accuracy) * max(1.0, self.scored / self.answers))
        return recalled_bits(1 - error, self.answers, self.alphabet)


class Recall(NamedTuple):
    """The recall of an entry."""

    entry: Entry
    capacity: Capacity | None
    """K50 and K90; none with fewer than two loads to fit."""
    locked: Capacity | None
    """K50 and K90 of the locked-in seeds alone."""
    predicted: float | None
    """Number of pairs by `predicted_capacity`; none for an architecture to which that law does not apply."""
    bits: float | None
    """Recalled bits in the cell with the most; none where no answers are independent."""
    bound: float | None
    """Number of answers that the bits of the state can distinguish; none where no answers are independent."""

    @property
    def bits_per_element(self) -> float | None:
        """Recalled bits per state element."""
        elements = self.entry.state_elements
        return self.bits / elements if self.bits is not None and elements else None


@lru_cache(maxsize=64)  # the table, the figure and the findings need the same fits, which are slow
def recalls(section: Section) -> tuple[Recall, ...]:
    """Return the recall of each entry of a section that has a score."""
    alphabet = answer_alphabet(section)
    return tuple(
        Recall(
            entry=one,
            capacity=fitted(section, one, one.accuracies.keys()),
            locked=fitted(section, one, section.locked_seeds(one)),
            predicted=predicted(one, alphabet),
            bits=most_bits(section, one),
            bound=most_answers(section, one),
        )
        for one in section.entries
        if one.accuracies
    )


def models_language(entry: Entry) -> bool:
    """Return whether the runs of an entry are graded by the loss of every token, at lengths and not at loads."""
    cells = (cell for run in entry.scored for cell in run.result.cells)
    return any(score.loss is not None for cell in cells for score in cell.groups.values())


def fitted(section: Section, entry: Entry, among: Collection[Seeds]) -> Capacity | None:
    """Fit K50 and K90 of these seeds in cells of distinct loads above 0, except those that a trivial solver solves.

    None for language models, whose cells are lengths and no loads.
    """
    if models_language(entry):
        return None
    cells = [cell for cell in section.cells if cell.load > 0 and section.floors[cell.label].accuracy < SOLVED]
    if len(cells) < 2 or len({cell.load for cell in cells}) < len(cells):
        return None
    columns = [entry.in_cell(cell.label) for cell in cells]
    seeds = sorted(set(among).intersection(*columns))
    if not seeds:
        return None
    floors = [section.floors[cell.label].accuracy for cell in cells]
    return capacity([cell.load for cell in cells], [[column[seed] for column in columns] for seed in seeds], floors)


@lru_cache(maxsize=1024)  # needed for every entry, and slow with very many runs
def contents_of(section: Section, cell: CellInfo) -> ScoredContents | None:
    """Return the contents of a cell's context, from its records; None where its answers depend on each other."""
    found = {(one.answers, one.alphabet, one.scored) for one in section.cell_examples[cell.label]}
    answers, alphabet, scored = next(iter(found)) if len(found) == 1 else (None, None, 0)
    return ScoredContents(answers, alphabet, scored) if answers and alphabet else None


def answer_alphabet(section: Section) -> int | None:
    """Return the alphabet of answers where the load of every cell is the number of answers, else None."""
    contents = [(cell.load, contents_of(section, cell)) for cell in section.cells]
    words = {found.alphabet if found and found.answers == load else None for load, found in contents}
    return words.pop() if len(words) == 1 else None


def most_bits(section: Section, entry: Entry) -> float | None:
    """Return the most bits recalled in any cell, at the median accuracy; None where no answers are independent.

    The best of several cells is chosen on the test examples that measure it: a slightly optimistic bound.
    """
    found = [(contents_of(section, cell), entry.median_in(cell.label)) for cell in section.cells]
    return max((contents.bits(value) for contents, value in found if contents and value is not None), default=None)


def most_answers(section: Section, entry: Entry) -> float | None:
    """Return the number of answers that the bits of an entry's state can distinguish together, or None."""
    words = {contents.alphabet for cell in section.cells if (contents := contents_of(section, cell))}
    size = entry.state_bytes
    return 8 * size / math.log2(words.pop()) if size is not None and len(words) == 1 else None


def predicted(entry: Entry, alphabet: float | None) -> float | None:
    """Predict the number of pairs that one layer recalls, by the law of capacity that its architecture declares.

    Keys wider than the model have no more rank than keys of its width, and hold no more pairs.
    """
    law = entry.declarations[0].law
    if alphabet is None or len(entry.declarations) > 1 or law is None:
        return None
    return predicted_capacity(law.degree, min(law.key_width, width_of(entry)), law.key_heads, law.value_width, alphabet)


def width_of(entry: Entry) -> int:
    """Return the model width of an entry, which bounds the rank of keys that are a linear map of tokens."""
    return int(entry.example_outline.setting.spec["model"]["d_model"])


def padded_keys(entry: Entry) -> str | None:
    """Name the rank and the width of keys that are wider than the model; None where there are no such keys."""
    laws = [declared.law for declared in entry.declarations if declared.law]
    widest = max((law.key_width for law in laws), default=0)
    return f"rank {width_of(entry)} of d_key = {widest}" if widest > width_of(entry) else None
