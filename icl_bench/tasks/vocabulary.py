"""Token ids of a task: special tokens that all tasks share, then the alphabets of the task, one after the other."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

PAD, BOS, SEP, QUERY, EOS = range(5)
RESERVED = 16
"""Number of token ids kept for special tokens; the alphabets of a task begin here."""
NOISE = 16
"""Size of the noise alphabet, which comes first in a task that has one."""
SHOWN_COMPONENTS = 3
"""Number of components of a vector that are spelled."""
SPECIAL: Mapping[int, str] = {PAD: "·", BOS: "^", SEP: "|", QUERY: "?", EOS: "$"}


class Alphabet(NamedTuple):
    """Consecutive token ids of one kind, such as keys or values."""

    size: int
    """Number of token ids."""
    spell: Callable[[int], str]
    """Spelling of the token with a given number, counted from 0 within the alphabet."""


def numbered(prefix: str, size: int) -> Alphabet:
    """Return an alphabet spelled with a prefix and a number: k0, k1, k2, ..."""
    return Alphabet(size, lambda number: f"{prefix}{number}")


def letters(size: int) -> Alphabet:
    """Return an alphabet spelled a, b, c, ..., or s0, s1, s2, ... where 26 letters are too few."""
    return Alphabet(size, lambda number: chr(ord("a") + number)) if size <= 26 else numbered("s", size)


class Vocabulary:
    """All token ids of a task: how many there are, where each alphabet begins, and how a token is spelled.

    An alphabet given by its size alone is spelled by the first letter of its name and a number.

    >>> words = Vocabulary({"noise": NOISE, "keys": 64, "values": 64})
    >>> words.size, words.first("keys"), words.spell(40), words.spell(SEP)
    (160, 32, 'k8', '|')
    """

    def __init__(
        self, alphabets: Mapping[str, Alphabet | int], special: Mapping[int, str] = SPECIAL, start: int = RESERVED
    ) -> None:
        self.special = {**SPECIAL, **special}
        self.size = start
        self._ranges: dict[str, tuple[int, Callable[[int], str]]] = {}
        for name, given in alphabets.items():
            alphabet = numbered(name[0], given) if isinstance(given, int) else given
            self._ranges[name] = (self.size, alphabet.spell)
            self.size += alphabet.size

    def first(self, name: str) -> int:
        """Return the lowest token id of an alphabet."""
        return self._ranges[name][0]

    def spell(self, token: int) -> str:
        """Return a short text for a token."""
        for first, spell in reversed(self._ranges.values()):
            if token >= first:
                return spell(token - first)
        return self.special.get(token, str(token))


def spell_components(vector: Sequence[float]) -> str:
    """Return a short text for a vector: its first components."""
    shown = ",".join(f"{value:.1f}" for value in vector[:SHOWN_COMPONENTS])
    return shown + (",…" if len(vector) > SHOWN_COMPONENTS else "")
