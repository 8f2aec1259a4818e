"""Text: language modelling on a corpus."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.architectures.interface import Interface, Tokens
from icl_bench.corpus.library import find_corpus
from icl_bench.corpus.tokens import Split
from icl_bench.errors import CorpusError
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers
from icl_bench.tasks.ngrams import NGrams, count_ngrams
from icl_bench.tasks.sampling import octave
from icl_bench.tasks.vocabulary import Alphabet, Vocabulary, numbered

BYTES = 256
SHORTEST = 4
"""Smallest length of a row, of which half is a prefix of two tokens."""
SHOWN_BYTES: Mapping[int, str] = {ord(" "): "␣", ord("\n"): "⏎", ord("\t"): "⇥"}
LONGER = (2, 4)
"""Lengths that are evaluated and not trained, relative to the longest one that is trained."""
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@TASKS.register("text")
class Text(Task):
    """Predict every next token of a text; documents are held out whole.

    A row is a stretch of one document, from a place that is uniform over all places where a row fits. Every position
    but the last is scored: the target is the token that follows. Accuracy is the share of bits saved, 1 - loss /
    log(vocab), for bytes 1 - bits per byte / 8. One document in twenty is for tests, and one for validation, chosen by
    its content. Rows of all evaluated lengths come from documents that hold the longest of them, so that lengths are
    compared on the same documents. Groups are octaves of the position, counted from 1: their mean losses are the
    in-context curve. Because the next token is not determined by those before it, the oracle, which reads it where it
    stands, is out of reach.

    The corpus `installed` is the Python sources of this machine, as bytes, built when it is first asked for; other
    corpora are token files of `icl-bench corpus build`, given by their path. A run knows its corpus by the hash of the
    content. `text:stretch=16384` draws rows from stretches of 16,384 tokens, that is, from long documents alone: the
    control that tells long documents apart from long contexts.

    Controls: `second half` scores the second half of a row, `prefix swap` scores the same tokens after the first half
    of another row. Their difference is the worth of the far context.

    Source: Buckman et al., "Scaling context requires rethinking attention" (arXiv 2507.04239), section on LongCrawl64.
    Chance: 0, all tokens equally likely.

    >>> task = Text(corpus="example", length=12, extrapolate=())
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> "".join(task.spell(token) for token in batch.inputs[0].tolist())
    's␣Gogosu␣in␣'
    """

    axes = (Axis("length", lowest=SHORTEST, extrapolated=True),)
    load_name = "tokens"
    budget = TrainingBudget(steps=250, lr=1e-2, params="length=128", arch="power")
    picture = "corpus=example,length=24,extrapolate=[]"
    group_unit = "position"
    scores_leading = True

    corpus: str = "installed"
    """Corpus: `installed`, `example` (small, made up), the path of a token file, or the id of a corpus."""
    vocab: int = Field(default=BYTES, ge=2)
    """Token ids of the corpus, 256 for bytes."""
    length: IntegerList = (128,)
    """Positions in a row, T, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = (256, 512)
    """Lengths that are evaluated but not trained; by default 2 and 4 times the longest that is trained."""
    stretch: int = Field(default=0, ge=0)
    """Tokens of the stretch of a document from which a training row is one of equal pieces; 0 for the row itself."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_lengths(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "extrapolate" not in given:
            length = given.get("length", cls.model_fields["length"].default)
            lengths = length if isinstance(length, tuple | list) else (length,)
            if lengths and all(isinstance(one, int) for one in lengths):
                return {**given, "extrapolate": tuple(factor * max(lengths) for factor in LONGER)}
        return given

    def resolved(self) -> Self:
        """Return the task with its corpus by id; raise CorpusError if the corpus does not fit."""
        corpus = find_corpus(self.corpus)
        if corpus.header.vocabulary != self.vocab:
            raise CorpusError(
                f"vocab must be that of the corpus; got {self.vocab}, {corpus.id} has {corpus.header.vocabulary} token "
                f"ids; write text:vocab={corpus.header.vocabulary}"
            )
        for split in SPLITS:
            needed = max(self.span(cell, split) for cell in self.eval_cells)
            longest = int(corpus.lengths[corpus.in_split(split)].max(initial=0))
            if longest < needed:
                raise CorpusError(
                    f"a row must fit into a document; the longest one for {split} has {longest:,} tokens, rows need "
                    f"{needed:,}; lower length, extrapolate or stretch, or choose a corpus of longer documents"
                )
        return self.model_copy(update={"corpus": corpus.id})

    @property
    def words(self) -> Vocabulary:
        tokens = Alphabet(BYTES, spell_byte) if self.vocab == BYTES else numbered("t", self.vocab)
        return Vocabulary({"tokens": tokens}, start=0)

    @property
    def interface(self) -> Interface:
        return Tokens(self.vocabulary, graded_by_bits=True)

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=sizes[0], load=sizes[0], scored=sizes[0] - 1)

    def span(self, cell: Cell, split: Split) -> int:
        """Return the tokens of the stretch from which a row is a piece; a document holds at least as many."""
        if split == "train":
            return max(cell.length, self.stretch)
        return max((*self.length, *self.extrapolate))

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        return self.sample_split(keys, cell, "test")

    def sample_split(self, keys: Tensor, cell: Cell, split: Split) -> Batch:
        span = self.span(cell, split)
        places = places_of(self.corpus, split, span, keys.device)
        drawn = random.uniform(keys, "place", 2)
        place = (drawn[:, 0] * places.total).long().clamp(max=places.total - 1)
        piece = (drawn[:, 1] * (span // cell.length)).long().clamp(max=span // cell.length - 1)
        start = place + places.firsts[torch.searchsorted(places.ends, place, right=True)] + cell.length * piece
        row = torch.arange(cell.length, device=keys.device)
        inputs = tokens_on(self.corpus, keys.device)[start[:, None] + row].long()
        return scored_at(inputs, row[:-1].expand(len(keys), -1))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return inputs.gather(1, positions + 1)

    def floor_unigram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Guess by the frequency of each token in training documents; returns the logarithm of a probability."""
        return ngrams_of(self.corpus, inputs.device).log_probabilities(inputs, positions, order=1)

    def floor_trigram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Guess by the two tokens before, from counts in training documents, interpolated by Witten and Bell."""
        return ngrams_of(self.corpus, inputs.device).log_probabilities(inputs, positions, order=3)

    def hits(self, answers: Tensor, batch: Batch, cell: Cell) -> Tensor:
        """Return the share of bits saved by each answer, a logarithm of the target's probability; a token is 1 or 0."""
        if answers.is_floating_point():
            return 1 + answers.double() / math.log(self.vocab)
        return super().hits(answers, batch, cell)

    def state_bits(self, cell: Cell) -> float:
        """Return 0: the bits that a text makes one carry are not known."""
        return 0.0

    def controls(self, batch: Batch, cell: Cell) -> Mapping[str, Batch]:
        half = cell.length // 2
        later = half + torch.arange(cell.scored, device=batch.inputs.device) % (cell.length - 1 - half)
        swapped = torch.cat([batch.inputs.roll(1, dims=0)[:, :half], batch.inputs[:, half:]], dim=1)
        positions = later.expand_as(batch.positions)
        return {"second half": scored_at(batch.inputs, positions), "prefix swap": scored_at(swapped, positions)}


def spell_byte(byte: int) -> str:
    """Spell a byte: itself where it is a visible character of ASCII, a sign for white space, else two digits."""
    return SHOWN_BYTES.get(byte) or (chr(byte) if ord(" ") < byte < 127 else f"{byte:02x}")


def scored_at(inputs: Tensor, positions: Tensor) -> Batch:
    """Return rows [N, T] scored at positions [N, S]: the target is the next token, the group the octave."""
    return Batch(inputs, positions, inputs.gather(1, positions + 1), octave(positions + 1))


class Places(NamedTuple):
    """The places of a split where a stretch of a number of tokens begins and fits into a document."""

    total: int
    """Number of places."""
    ends: Tensor
    """Number of places up to the end of each document that is long enough, [D]."""
    firsts: Tensor
    """Number that leads from a place to the token there, by document, [D]."""


@functools.lru_cache(maxsize=64)
def places_of(corpus: str, split: Split, span: int, device: torch.device) -> Places:
    """Return the places of a split, with their tables on a device."""
    found = find_corpus(corpus)
    chosen = found.in_split(split) & (found.lengths >= span)
    ends = np.cumsum(found.lengths[chosen] - span + 1)
    if not ends.size:
        raise CorpusError(
            f"a row must fit into a document; none for {split} has {span} tokens; lower length or stretch"
        )
    begins = np.concatenate([[0], ends[:-1]])
    firsts = found.offsets[:-1][chosen] - begins
    return Places(int(ends[-1]), *(torch.from_numpy(table).to(device) for table in (ends, firsts)))


@functools.lru_cache(maxsize=4)
def tokens_on(corpus: str, device: torch.device) -> Tensor:
    """Return the tokens of a corpus on a device: bytes as such, other ids as int32."""
    tokens = find_corpus(corpus).tokens
    return torch.from_numpy(np.array(tokens, np.uint8 if tokens.itemsize == 1 else np.int32)).to(device)


@functools.lru_cache(maxsize=4)
def ngrams_of(corpus: str, device: torch.device) -> NGrams:
    """Return the counts of n-grams of the training documents of a corpus, on a device."""
    return count_ngrams(find_corpus(corpus)).to(device)
