"""Stacked recall: key and value in one position, so that a memory is all that is needed."""

from typing import ClassVar

from pydantic import Field

from icl_bench.tasks.base import TASKS, TrainingBudget
from icl_bench.tasks.vector_recall import VectorRecall


@TASKS.register("stacked-recall")
class StackedRecall(VectorRecall):
    """Recall vectors where key and value stand in one position.

    The task is `vector-recall` with key and value of a pair in the same position, so that nothing needs to bind them:
    neither a convolution nor a first layer that moves values, and one layer suffices. It measures the capacity of the
    memory alone, to compare with the predicted law: one over the mean of (q·k)^(2p) of random keys, times the width of
    a value.

    Full size: `stacked-recall:length=512,dims=32,pairs=[4|8|16|32|64],extrapolate=[128|256]`.

    Source: the continuous variant of associative recall in zoology (Arora et al., arXiv 2312.04927), which scores each
    answer by its cross-entropy among 8192 fixed values; here values are drawn anew, and an answer is compared with the
    other values of the context. Chance: 1/pairs.

    >>> import torch
    >>> from icl_bench import random
    >>> task = StackedRecall(length=6, pairs=(2,), dims=4)
    >>> batch = task.sample(random.row_keys(torch.tensor(2), torch.arange(1)), task.eval_cells[0])
    >>> for vector in batch.inputs[0].tolist():
    ...     print(task.spell(vector))
    k(0.9,1.4,-0.6,…)v(-1.2,1.5,-0.5,…)
    k(-1.4,-0.5,0.1,…)v(0.8,0.2,-1.8,…)
    ·
    ·
    k(-1.4,-0.5,0.1,…)
    k(0.9,1.4,-0.6,…)
    >>> batch.positions.tolist(), " ".join(task.spell(vector) for vector in batch.targets[0].tolist())
    ([[4, 5]], '0.8,0.2,-1.8,… -1.2,1.5,-0.5,…')
    """

    budget = TrainingBudget(steps=250, lr=1e-2, params="pairs=4")
    picture = "length=8,pairs=4"
    stride: ClassVar[int] = 1

    length: int = Field(default=32, ge=2)
    """Positions in a sequence, T."""
