"""The two ends of a model: how inputs enter it, how its outputs are scored, and how a batch of them is laid out.

A task names its interface: `Tokens` (an embedding, a head that ends in logits, cross-entropy) or `Vectors` (a
projection, a head that ends in vectors, squared error). The layers between the two ends are the same.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from icl_bench.architectures.initialisation import normal
from icl_bench.architectures.layers import Embedding, StackedLinear
from icl_bench.kernels.fleet.cross_entropy import cross_entropy
from icl_bench.kernels.fleet.embedding import TokenOccurrences, embed_beside

InputLayer = Embedding | StackedLinear
"""Layer that takes inputs to the model width: a table for tokens, a projection for vectors."""


class Scores(NamedTuple):
    """Losses and hits at the scored positions, [M, B, S] float32 each (float64 for a model in float64)."""

    losses: Tensor
    """Cross-entropy with the target; for vectors the squared error."""
    hits: Tensor
    """1 where the target's logit is above all others, else 0, or the share of bits saved; for vectors by the rule of
    the task; not differentiable."""


class Interface(ABC):
    """Inputs and outputs of a model, made for a fleet of M members."""

    dtype: ClassVar[torch.dtype]
    """Type of inputs and targets; positions are stored in the same type, which float32 does exactly up to 2^24."""
    sorts_tokens: ClassVar[bool]
    """Let the occurrences of each token be sorted in advance, for the gradient of the embedding."""
    squared_error: ClassVar[bool]
    """Score outputs by a squared error, which is reported next to the accuracy."""
    graded_by_bits: bool
    """Grade answers by the share of bits saved; results then keep the mean loss of each group of positions."""

    @abstractmethod
    def make_embedding(self, members: int, width: int, scale: float) -> InputLayer:
        """Make the layer that takes inputs to the model width, C; a token embedding starts at std `scale` / sqrt(C)."""

    @abstractmethod
    def make_head(self, members: int, width: int, tied: bool) -> StackedLinear | None:
        """Make the layer that takes the model width to outputs; None where the embedding serves (`tied`)."""

    @abstractmethod
    def embed(
        self, embedding: InputLayer, inputs: Tensor, occurrences: TokenOccurrences | None
    ) -> tuple[Tensor, Tensor]:
        """Apply the embedding: inputs [M, B, T] or [M, B, T, I] -> [M, B, T, C]; return its weight too, for `score`.

        `occurrences` of each token save the gradient a sort.
        """

    @abstractmethod
    def outputs(self, rows: Tensor, embedding: InputLayer, head: StackedLinear | None) -> Tensor:
        """Return logits or vectors: [M, ..., C] -> [M, ..., O], O the vocabulary for tokens."""

    @abstractmethod
    def score(self, rows: Tensor, table: Tensor, head: StackedLinear | None, targets: Tensor) -> Scores:
        """Score the rows [M, B, S, C] that the head sees against targets [M, B, S] or [M, B, S, O].

        Without a head, the table [M, O, C] of the embedding serves.
        """

    @abstractmethod
    def batch_shapes(self, length: int, scored: int) -> list[tuple[int, ...]]:
        """Return the shapes of inputs, positions and targets of one example of T and S positions."""


@final
@dataclass(frozen=True)
class Tokens(Interface):
    """Token ids in, logits over the same vocabulary out."""

    size: int
    """Number of token ids, the vocabulary."""
    graded_by_bits: bool = False
    """Grade an answer by the share of bits saved, 1 - loss / log(size), in place of a hit for the likeliest token."""

    dtype = torch.int64
    sorts_tokens = True
    squared_error = False

    def make_embedding(self, members: int, width: int, scale: float) -> Embedding:
        return Embedding(members, self.size, width, scale)

    def make_head(self, members: int, width: int, tied: bool) -> StackedLinear | None:
        return None if tied else StackedLinear(members, width, self.size, kind="table")

    def embed(
        self, embedding: InputLayer, inputs: Tensor, occurrences: TokenOccurrences | None
    ) -> tuple[Tensor, Tensor]:
        return embed_beside(inputs, embedding.weight, occurrences)

    def outputs(self, rows: Tensor, embedding: InputLayer, head: StackedLinear | None) -> Tensor:
        if head is not None:
            return head(rows)
        flat = torch.bmm(rows.flatten(1, -2), embedding.weight.transpose(1, 2))
        return flat.view(*rows.shape[:-1], -1)

    def score(self, rows: Tensor, table: Tensor, head: StackedLinear | None, targets: Tensor) -> Scores:
        rows = rows.flatten(1, -2)
        words = table if head is None else head.weight.transpose(1, 2)
        losses, hits = cross_entropy(rows, words.to(rows.dtype), targets.flatten(1))
        if self.graded_by_bits:
            hits = 1 - losses.detach() / math.log(self.size)
        return Scores(losses.view(targets.shape), hits.view(targets.shape))

    def batch_shapes(self, length: int, scored: int) -> list[tuple[int, ...]]:
        return [(length,), (scored,), (scored,)]


@final
@dataclass(frozen=True)
class Vectors(Interface):
    """Vectors of real numbers in and out."""

    width_in: int
    """Components of an input, I."""
    width_out: int
    """Components of a target, O."""
    grade: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Return losses and hits, [M, B, S], of answers and targets [M, B, S, O]."""
    graded_by_bits: bool = False

    dtype = torch.float32
    sorts_tokens = False
    squared_error = True

    def make_embedding(self, members: int, width: int, scale: float) -> StackedLinear:
        # without a bias, the norm that follows would remove the length of an input
        return StackedLinear(members, self.width_in, width, bias=normal(1.0), kind="table")

    def make_head(self, members: int, width: int, tied: bool) -> StackedLinear:
        return StackedLinear(members, width, self.width_out, kind="table")

    def embed(
        self, embedding: InputLayer, inputs: Tensor, occurrences: TokenOccurrences | None
    ) -> tuple[Tensor, Tensor]:
        return embedding(inputs.to(embedding.weight.dtype)), embedding.weight

    def outputs(self, rows: Tensor, embedding: InputLayer, head: StackedLinear | None) -> Tensor:
        assert head is not None
        return head(rows)

    def score(self, rows: Tensor, table: Tensor, head: StackedLinear | None, targets: Tensor) -> Scores:
        assert head is not None
        answers = head(rows)
        with torch.autocast(answers.device.type, enabled=False):  # distances are compared in float32
            return Scores(*self.grade(answers.to(torch.promote_types(answers.dtype, torch.float32)), targets))

    def batch_shapes(self, length: int, scored: int) -> list[tuple[int, ...]]:
        return [(length, self.width_in), (scored,), (scored, self.width_out)]
