"""Free running: a model reads its own answers, token by token, through the recurrent form of every layer.

Teacher forcing shows the right answer after each question, so that a model which lost its place finds it again. Here
its own answer, the likeliest word, takes that place. The whole example goes through `step`, the prompt too, so that a
score also says that the recurrent form does what the parallel form learned.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.plain import PlainMixer
from icl_bench.harness.training.data import Feed, slices
from icl_bench.harness.training.precision import WorkingModel

MOST_EXAMPLES = 128
"""Examples of a cell that run freely: a token costs a step of its own, and a share of 128 is known to .09."""
STATE_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 30}
"""State elements of a piece by device, over all members."""


class FreeRunning(NamedTuple):
    """Scores of each member in one cell where it reads its own answers."""

    accuracy: list[float]
    """Share of scored positions answered right."""
    exact_match: list[float]
    """Share of examples answered right throughout."""


def is_recurrent(model: Backbone) -> bool:
    """Whether every layer has a recurrent form."""
    return not any(isinstance(block.mixer, PlainMixer) for block in model.blocks)


@torch.no_grad()
def run_freely(model: WorkingModel, feed: Feed, examples: int, members: int, state: int) -> FreeRunning:
    """Score the first examples of a cell, at most 128, without showing answers.

    Args:
        model: A model with a recurrent form.
        feed: Examples of a task that is `generative`.
        examples: How many there are.
        members: Size of the fleet, M.
        state: State elements of a sequence, which limit how many run at once.
    """
    device = feed.streams.device
    count = min(examples, MOST_EXAMPLES)
    hits = []
    for part in slices(count, members * max(1, state), STATE_AT_ONCE[device.type]):
        batch = feed.batch(torch.arange(part.start, part.start + part.size, device=device))
        hits.append(generate(model, batch.inputs, batch.positions) == batch.targets)
    right = torch.cat(hits, dim=1).double()
    return FreeRunning(right.mean((1, 2)).tolist(), right.prod(-1).mean(-1).tolist())


def generate(model: WorkingModel, inputs: Tensor, positions: Tensor) -> Tensor:
    """Greedy answers at the scored positions, each read back as the token that follows it.

    Args:
        model: A model with a recurrent form.
        inputs: Examples with their answers shown, [M, B, T]; the token after a scored position is never read.
        positions: Scored positions, [M, B, S].

    Returns:
        [M, B, S] int64.
    """
    scored = torch.zeros_like(inputs, dtype=torch.bool).scatter(2, positions, True)
    tokens = inputs.clone()
    answers = torch.empty_like(inputs)
    state = None
    for t in range(inputs.shape[2]):
        logits, state = model.step(tokens[:, :, t], state, t)
        answers[:, :, t] = logits.argmax(-1)
        if t + 1 < inputs.shape[2]:
            tokens[:, :, t + 1] = torch.where(scored[:, :, t], answers[:, :, t], tokens[:, :, t + 1])
    return answers.gather(2, positions)
