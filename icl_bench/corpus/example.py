"""A small made-up corpus, equal on every machine: for tests, pictures and a first look.

A document is about a few people, whose names return: its far context is of use.
"""

import hashlib
from collections.abc import Iterator, Sequence

DOCUMENTS = 64
SENTENCES = 400
PEOPLE = 4
SYLLABLES = ("ba", "de", "fi", "go", "ka", "le", "mi", "no", "pa", "re", "su", "ta", "vo", "zu")
VERBS = (
    "asks",
    "finds",
    "follows",
    "greets",
    "hears",
    "helps",
    "knows",
    "meets",
    "remembers",
    "sees",
    "tells",
    "thanks",
)
PLACES = ("at the bridge", "by the river", "in the garden", "in the market", "near the mill", "on the hill")
TIMES = ("after noon", "at dawn", "in autumn", "in winter", "later", "on Monday")


def example_documents() -> Iterator[bytes]:
    """Yield the documents, of 17 to 18 thousand bytes each."""
    for number in range(DOCUMENTS):
        people = ["".join(chosen([SYLLABLES] * 3, "name", number, i)).title() for i in range(PEOPLE)]
        parts = [TIMES, people, VERBS, people, PLACES]
        sentences = (" ".join(chosen(parts, "sentence", number, i)) + ".\n" for i in range(SENTENCES))
        yield "".join(sentences).encode()


def chosen(parts: Sequence[Sequence[str]], *place: object) -> list[str]:
    """Choose one option of each part, by the bytes of the hash of a place."""
    digest = hashlib.sha256(repr(place).encode()).digest()
    return [options[byte % len(options)] for options, byte in zip(parts, digest, strict=False)]
