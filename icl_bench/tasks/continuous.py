"""The contract of tasks whose inputs and targets are vectors of real numbers."""

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from icl_bench.architectures.interface import Interface, Vectors
from icl_bench.tasks.base import Batch, Grade, Task
from icl_bench.tasks.cells import Cell
from icl_bench.tasks.vocabulary import Vocabulary

REAL_BITS = math.log2(100) / 2
"""Bits of a normal number known to a relative squared error of 0.01 (Shannon's rate-distortion function)."""


class ContinuousTask(Task):
    """Base class of tasks whose inputs and targets are vectors of real numbers, scored by their squared error.

    Accuracy is derived from the errors in one of two ways. `nearest`: the fraction of answers that are nearer to their
    own target than to any other target of the example. `explained`: the reduction of the squared error compared with
    answering 0, as a fraction of the oracle's reduction; 0 where the error is larger.
    """

    criterion: ClassVar[Literal["nearest", "explained"]]
    """Way in which accuracy is derived from errors."""

    @property
    @abstractmethod
    def width_in(self) -> int:
        """Components of an input, I."""

    @property
    @abstractmethod
    def width_out(self) -> int:
        """Components of a target, O."""

    @property
    def variance(self) -> float:
        """Mean square of a component of a target, by which squared errors are divided."""
        return 1.0

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({}, start=0)

    @property
    def interface(self) -> Interface:
        return Vectors(self.width_in, self.width_out, self.grade)

    @property
    def tolerance(self) -> float:
        return 0.0 if self.criterion == "nearest" else 0.01

    def grade(self, answers: Tensor, targets: Tensor) -> Grade:
        """Return errors and hits of answers [..., S, O]."""
        errors = (answers - targets).square().mean(dim=-1) / self.variance
        if self.criterion == "nearest":
            return Grade(errors, nearest_target(answers, targets))
        return Grade(errors, targets.square().mean(dim=-1) / self.variance - errors.detach())

    def hits(self, answers: Tensor, batch: Batch, cell: Cell) -> Tensor:
        return self.grade(answers.double(), batch.targets.double()).hits

    def oracle_grade(self, batch: Batch, cell: Cell) -> Grade:
        answers = self.oracle(batch.inputs, batch.positions, cell)
        return self.grade(answers.double(), batch.targets.double())


@torch.no_grad()
def nearest_target(answers: Tensor, targets: Tensor) -> Tensor:
    """Return 1 for an answer nearer to its own target than to all others of the example: [..., S, O] -> [..., S]."""
    # |a - t|^2 less |a|^2, which is the same for all targets
    distances = targets.square().sum(dim=-1)[..., None, :] - 2 * answers.to(targets.dtype) @ targets.mT
    own = distances.diagonal(dim1=-2, dim2=-1)
    others = distances.masked_fill(torch.eye(own.shape[-1], dtype=torch.bool, device=own.device), math.inf)
    return (own < others.amin(dim=-1)).to(answers.dtype)
