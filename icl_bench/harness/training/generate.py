"""Free running: a model reads its own answers, token by token, through the recurrent form of every layer.

Teacher forcing shows the right answer after each question, so that a model that lost its place finds it again. Here the
model's own answer, its likeliest token, takes that place. The whole example goes through `step`, the prompt included,
so that the score also tests that the recurrent form does what the parallel form learned.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.precision import WorkingModel

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
    for batch in stream.pieces(min(examples, MOST_EXAMPLES), size):
        hits.append(generate(model, batch.inputs, batch.positions) == batch.targets)
    right = torch.cat(hits, dim=1).double()  # [M, B, S]
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
