"""Scores of a fleet on held-out examples, cell by cell, counted on the device.

Teacher forcing shows the right answer after each question, so that a model that lost its place finds it again. In free
running the model's own answer, its likeliest token, takes that place. The whole example goes through `step`, the prompt
included, so that the score also tests that the recurrent form does what the parallel form learned. A task that judges
whole answers (`WholeAnswerTask`) is scored on own answers alone, by the parallel form in its accuracy and by `step`.
"""

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.precision import WorkingModel
from icl_bench.runs.record import GroupScore
from icl_bench.schema import LARGEST_REAL
from icl_bench.tasks import Batch, Cell, DistributionTask, Task, WholeAnswerTask
from icl_bench.tasks.base import relative_probability

TOKENS_PER_PIECE = {"cpu": 1 << 18, "cuda": 1 << 20}
"""Most tokens of a piece by device, over all members: what a cache holds, and fewer than a fleet trains on at once."""
CONTROL_EXAMPLES = 256
"""Most changed examples of a cell."""
MOST_GROUPS = 64
"""Most groups of scored positions that a task may have."""


class PieceScores(NamedTuple):
    """Scores of a model at the scored positions of one piece, [M, B, S] each."""

    losses: Tensor
    """Cross-entropy with the target, or squared error."""
    hits: Tensor
    """Hits, by the rule of the task."""
    divergences: Tensor | None = None
    """Kullback-Leibler divergence of the model's distribution from the exact one, for a `DistributionTask`, in nats."""
    possible: Tensor | None = None
    """Mass of the model's distribution on tokens that are possible, for a `DistributionTask`."""


class CellCounts(NamedTuple):
    """Counts over the examples of a cell for every member; all tensors but the last are sums, in float64."""

    examples: int
    """Examples of each member."""
    positions: int
    """Scored positions of each member."""
    hits: Tensor
    """Hits of the model, [M]."""
    oracle_hits: Tensor
    """Hits of the oracle, [M]."""
    all_right: Tensor
    """Examples answered right at every scored position, [M]."""
    losses: Tensor
    """Sum of cross-entropies, or of squared errors if the task is scored by them, [M]."""
    oracle_errors: Tensor
    """Sum of the oracle's squared errors, [M]."""
    divergences: Tensor
    """Sum of the divergences from exact distributions, [M]; 0 for tasks without these."""
    possible: Tensor
    """Sum of the masses on tokens that are possible, [M]; 0 for tasks without exact distributions."""
    group_hits: Tensor
    """Hits of the model by group, [M, MOST_GROUPS]."""
    group_oracle_hits: Tensor
    """Hits of the oracle by group, [M, MOST_GROUPS]."""
    group_positions: Tensor
    """Scored positions by group, [M, MOST_GROUPS]."""
    group_losses: Tensor
    """Sum of cross-entropies or squared errors by group, [M, MOST_GROUPS]."""
    example_losses: Tensor
    """Mean loss of each example, [M, examples], for tasks that are graded by bits; [M, 0] for others."""

    def plus(self, other: "CellCounts") -> "CellCounts":
        """Return the counts over the examples of both."""
        pairs: Iterable[tuple[Any, Any]] = zip(self[:-1], other[:-1], strict=True)
        both = torch.cat([self.example_losses, other.example_losses], dim=1)
        return CellCounts(*[ours + theirs for ours, theirs in pairs] + [both])

    @property
    def accuracy(self) -> list[float]:
        """Hits of each member relative to the hits of the oracle."""
        return as_list(relative_hits(self.hits, self.oracle_hits))

    @property
    def exact_match(self) -> list[float]:
        """Fraction of examples that each member answers right at every scored position."""
        return as_list(self.all_right / self.examples)

    @property
    def loss(self) -> list[float]:
        """Mean cross-entropy of each member, or its mean squared error relative to answering 0."""
        return as_list(self.losses / self.positions)

    @property
    def oracle_error(self) -> list[float]:
        """Mean squared error of the oracle relative to answering 0; 0 for tokens."""
        return as_list(self.oracle_errors / self.positions)

    @property
    def divergence(self) -> list[float]:
        """Mean divergence of each member's distribution from the exact one, in nats."""
        return as_list(self.divergences / self.positions)

    @property
    def possible_mass(self) -> list[float]:
        """Mean mass of each member's distribution on tokens that are possible."""
        return as_list(self.possible / self.positions)

    def groups(self, task: Task) -> list[dict[str, GroupScore]]:
        """Return the scores of each member by label of group, for the groups that occur."""
        accuracies = relative_hits(self.group_hits, self.group_oracle_hits).tolist()
        means = (self.group_losses / self.group_positions).nan_to_num(posinf=LARGEST_REAL).tolist()
        rows = zip(accuracies, means, self.group_positions.tolist(), strict=True)
        keeps_loss = task.interface.graded_by_bits
        return [
            {
                task.group_label(group): GroupScore(
                    accuracy=accuracy[group], count=int(count), loss=losses[group] if keeps_loss else None
                )
                for group, count in enumerate(counts)
                if count > 0
            }
            for accuracy, losses, counts in rows
        ]


def relative_hits(hits: Tensor, oracle_hits: Tensor) -> Tensor:
    """Return hits / oracle hits within [0, 1], 0 for answers that are not finite.

    Vectors may have fewer hits than answering 0, which has none.
    """
    return (hits / oracle_hits).nan_to_num(nan=0.0).clamp(0, 1)


def as_list(values: Tensor) -> list[float]:
    """Return [M] on the host; waits for the device."""
    found: list[float] = values.tolist()
    return found


def evaluation_pieces(stream: ExampleStream, examples: int) -> Iterator[Batch]:
    """Make the first `examples` examples of a stream in pieces that fit the device."""
    return stream.pieces(examples, TOKENS_PER_PIECE[stream.device.type] // (stream.members * stream.cell.length))


@torch.no_grad()
def evaluate(model: WorkingModel, stream: ExampleStream, pieces: Iterable[Batch]) -> CellCounts:
    """Score the examples of a cell for every member; never waits for the device."""
    with model.evaluating():
        counts = (count_piece(score_piece(model, batch, stream), batch, stream) for batch in pieces)
        return reduce(CellCounts.plus, counts)


def score_piece(model: WorkingModel, batch: Batch, stream: ExampleStream) -> PieceScores:
    """Return losses and hits of one piece; if other answers than the target may be right, the task judges the hits."""
    if isinstance(stream.task, DistributionTask):
        return compare_distributions(model, batch, stream.task, stream.cell)
    scores = PieceScores(*model.scores(batch.inputs, batch.positions, batch.targets))
    if not stream.task.several_correct:
        return scores
    inputs = read_own_answers(model, batch) if isinstance(stream.task, WholeAnswerTask) else batch.inputs
    return scores._replace(hits=judge_answers(model.answers(inputs, batch.positions), batch, stream))


def compare_distributions(model: WorkingModel, batch: Batch, task: DistributionTask, cell: Cell) -> PieceScores:
    """Score the distributions of one piece against the exact ones."""
    logits: Tensor = model.call(model.model, batch.inputs, batch.positions)  # [M, B, S, V]
    logs = logits.double().log_softmax(-1)
    flat = flatten_members(batch)
    exact = task.distribution(flat.inputs, flat.positions, cell).view(logs.shape)
    return PieceScores(
        losses=-logs.gather(-1, batch.targets[..., None])[..., 0],
        hits=relative_probability(logits.argmax(-1), exact),
        divergences=torch.where(exact > 0, exact * (exact.log() - logs), 0.0).sum(-1),
        possible=(logs.exp() * (exact > 0)).sum(-1),
    )


def judge_answers(answers: Tensor, batch: Batch, stream: ExampleStream) -> Tensor:
    """Return the hits of answers [M, B, S] by the rule of the task, float64."""
    return stream.task.hits(answers.flatten(0, 1), flatten_members(batch), stream.cell).view(answers.shape)


def read_own_answers(model: WorkingModel, batch: Batch) -> Tensor:
    """Return the inputs [M, B, T] with the model's own greedy answers in place of those shown after scored positions.

    The parallel form runs once for each answer, so that any layer can do it, also one without a recurrent form.
    """
    tokens = batch.inputs.clone()
    for place in batch.positions.split(1, dim=2)[:-1]:  # no scored position reads the last answer
        tokens.scatter_(2, place + 1, model.answers(tokens, place))
    return tokens


def flatten_members(batch: Batch) -> Batch:
    """Join members and examples: [M, B, ...] -> [M B, ...]."""
    return Batch(*(part.flatten(0, 1) for part in batch))


def count_piece(scores: PieceScores, batch: Batch, stream: ExampleStream) -> CellCounts:
    """Count the scores [M, B, S] of one piece."""
    oracle = stream.task.oracle_grade(flatten_members(batch), stream.cell)
    hits, oracle_hits = scores.hits.double(), oracle.hits.view(scores.hits.shape)
    missed, allowed = oracle_hits.sum(-1) - hits.sum(-1), stream.task.tolerance * oracle_hits.sum(-1).abs()  # [M, B]
    groups = batch.groups.flatten(1)  # [M, B S]
    empty = torch.zeros(hits.shape[0], MOST_GROUPS, device=hits.device, dtype=torch.float64)
    none, losses = torch.zeros_like(hits), scores.losses.double()
    return CellCounts(
        examples=hits.shape[1],
        positions=hits.shape[1] * hits.shape[2],
        hits=hits.sum((1, 2)),
        oracle_hits=oracle_hits.sum((1, 2)),
        all_right=(missed <= allowed).double().sum(-1),
        losses=losses.sum((1, 2)),
        oracle_errors=oracle.errors.view(hits.shape).sum((1, 2)),
        divergences=(none if scores.divergences is None else scores.divergences).sum((1, 2)),
        possible=(none if scores.possible is None else scores.possible).sum((1, 2)),
        group_hits=empty.scatter_add(1, groups, hits.flatten(1)),
        group_oracle_hits=empty.scatter_add(1, groups, oracle_hits.flatten(1)),
        group_positions=empty.scatter_add(1, groups, torch.ones_like(hits).flatten(1)),
        group_losses=empty.scatter_add(1, groups, losses.flatten(1)),
        example_losses=losses.mean(2) if stream.task.interface.graded_by_bits else empty[:, :0],
    )


def evaluate_controls(model: WorkingModel, stream: ExampleStream, examples: int) -> dict[str, list[float]]:
    """Return the accuracy of every member on changed examples of a cell, by control.

    As many of the first `examples` examples are changed as fit the device at once, at most 256.
    """
    batch = next(evaluation_pieces(stream, min(examples, CONTROL_EXAMPLES)))
    return {
        name: evaluate(model, stream, [Batch(*map(Tensor.view_as, changed, batch))]).accuracy
        for name, changed in stream.task.controls(flatten_members(batch), stream.cell).items()
    }


MOST_EXAMPLES = 128
"""Most examples of a cell that run freely: each token costs a step, and 128 examples tell a fraction to 0.09."""
STATE_PER_PIECE = {"cpu": 1 << 24, "cuda": 1 << 30}
"""Most state elements of a piece by device, over all members."""


class FreeRunning(NamedTuple):
    """Scores of each member on one cell when it reads its own answers."""

    accuracy: list[float]
    """Fraction of scored positions answered right."""
    exact_match: list[float]
    """Fraction of examples answered right at every scored position."""


@torch.no_grad()
def run_freely(model: WorkingModel, stream: ExampleStream, examples: int, state: int) -> FreeRunning:
    """Score the first examples of a cell of a `generative` task, at most 128, without showing the right answers.

    Every layer of the model has a recurrent form. `state` is the number of state elements of one sequence, which limits
    how many sequences run at once.
    """
    hits = []
    size = STATE_PER_PIECE[stream.device.type] // (stream.members * max(1, state))
    with model.evaluating():
        for batch in stream.pieces(min(examples, MOST_EXAMPLES), size):
            hits.append(judge_answers(generate(model, batch.inputs, batch.positions), batch, stream))
    right = torch.cat(hits, dim=1)  # [M, B, S]
    return FreeRunning(right.mean((1, 2)).tolist(), right.prod(-1).mean(-1).tolist())


def generate(model: WorkingModel, inputs: Tensor, positions: Tensor) -> Tensor:
    """Return greedy answers at the scored positions, [M, B, S] int64, each read back as the next token.

    The inputs, [M, B, T], show the answers, but the token after a scored position, [M, B, S], is never read.
    """
    scored = torch.zeros_like(inputs, dtype=torch.bool).scatter(2, positions, True)  # [M, B, T]
    tokens = inputs.clone()
    answers = torch.empty_like(inputs)
    state = None
    for t in range(inputs.shape[2]):
        logits, state = model.step(tokens[:, :, t], state, t)  # [M, B, vocabulary]
        answers[:, :, t] = logits.argmax(-1)
        if t + 1 < inputs.shape[2]:
            tokens[:, :, t + 1] = torch.where(scored[:, :, t], answers[:, :, t], tokens[:, :, t + 1])
    return answers.gather(2, positions)
