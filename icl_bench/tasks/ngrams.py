"""Counts of n-grams of a corpus, and the probability that they give to each token of a row.

    P_n(w | h) = (count(h w) + kinds(h) P_(n-1)(w | h')) / (count(h) + kinds(h)),   P_0 = 1 / vocabulary

h are the n - 1 tokens before w, h' all of them but the first, kinds(h) the number of different tokens seen after h:
interpolation by Witten and Bell ("The zero-frequency problem", IEEE Transactions on Information Theory 37, 1991).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from icl_bench.corpus.tokens import Corpus

COUNTED = 1 << 23
"""Tokens of training documents that are counted, about."""
LONGEST = 3
"""Largest n."""


class Counted(NamedTuple):
    """Sorted codes, each with a number, int64."""

    codes: Tensor
    numbers: Tensor

    def of(self, codes: Tensor) -> Tensor:
        """Return the number of each code, 0 for one that is not there."""
        place = torch.searchsorted(self.codes, codes).clamp(max=len(self.codes) - 1)
        return torch.where(self.codes[place] == codes, self.numbers[place], 0)

    def to(self, device: torch.device) -> "Counted":
        """Return the same on a device."""
        return Counted(self.codes.to(device), self.numbers.to(device))


class GramCounts(NamedTuple):
    """Counts of the n-grams of one n."""

    grams: Counted
    """Number of times that each n-gram occurs."""
    contexts: Counted
    """Number of n-grams with each context."""
    kinds: Counted
    """Number of different n-grams with each context."""

    def to(self, device: torch.device) -> "GramCounts":
        """Return the same on a device."""
        return GramCounts(*(part.to(device) for part in self))


class NGrams(NamedTuple):
    """Counts of n-grams for n from 1 up."""

    vocabulary: int
    counts: Sequence[GramCounts]

    def to(self, device: torch.device) -> "NGrams":
        """Return the same on a device."""
        return NGrams(self.vocabulary, [part.to(device) for part in self.counts])

    def log_probabilities(self, inputs: Tensor, positions: Tensor, order: int) -> Tensor:
        """Return the logarithm of the probability of the token after each position: inputs [N, T], positions [N, S].

        At most `order` - 1 tokens before it are read, fewer at the beginning of a row; [N, S] float64.
        """
        chances = torch.full(positions.shape, 1 / self.vocabulary, dtype=torch.float64, device=inputs.device)
        for n in range(1, order + 1):
            gram = torch.zeros_like(positions)
            for back in range(n):
                gram += self.vocabulary**back * inputs.gather(1, (positions + 1 - back).clamp(min=0))
            table, context = self.counts[n - 1], gram // self.vocabulary
            kinds = table.kinds.of(context)
            total = table.contexts.of(context) + kinds
            seen = (total > 0) & (positions + 1 >= n - 1)
            mixed = (table.grams.of(gram) + kinds * chances) / total.clamp(min=1)
            chances = torch.where(seen, mixed, chances)
        return chances.log()


def count_ngrams(corpus: Corpus) -> NGrams:
    """Count the n-grams of the first training documents, in the order of their digests."""
    training = np.flatnonzero(corpus.in_split("train"))
    ordered = training[np.argsort(corpus.digests[training], kind="stable")]
    documents, total = list[Tensor](), 0
    for document in ordered:
        tokens = corpus.tokens[corpus.offsets[document] : corpus.offsets[document + 1]]
        documents.append(torch.from_numpy(tokens.astype(np.int64)))
        total += tokens.size
        if total >= COUNTED:
            break
    vocabulary = corpus.header.vocabulary
    return NGrams(vocabulary, [count_grams(documents, n, vocabulary) for n in range(1, LONGEST + 1)])


def count_grams(documents: Sequence[Tensor], n: int, vocabulary: int) -> GramCounts:
    """Count the n-grams of documents; none reaches over the end of a document."""
    longer = [document for document in documents if len(document) >= n]
    weights = vocabulary ** torch.arange(n - 1, -1, -1)
    codes = torch.cat([document.unfold(0, n, 1) @ weights for document in longer])
    grams = Counted(*torch.unique(codes, return_counts=True))
    contexts, places, kinds = torch.unique(grams.codes // vocabulary, return_inverse=True, return_counts=True)
    totals = torch.zeros_like(kinds).index_add_(0, places, grams.numbers)
    return GramCounts(grams, Counted(contexts, totals), Counted(contexts, kinds))
