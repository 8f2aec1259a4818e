"""Dilution: noise tokens between the tokens of a context, which multiply distances and leave the answers alone.

Source of the idea: an unpublished draft of 2024 on power attention, in which a window loses by dilution what it has by
locality.
"""

import functools
from abc import abstractmethod
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from icl_bench import random
from icl_bench.schema import later
from icl_bench.tasks.base import Batch, Solver, Task
from icl_bench.tasks.cells import Cell
from icl_bench.tasks.vocabulary import NOISE, Alphabet


class Diluted(Task):
    """Base of tasks whose context can be diluted.

    A class gives `sample_undiluted`, `oracle_undiluted`, and `controls_undiluted` if it has controls, in place of
    `sample`, `oracle` and `controls`. These and its solvers see examples and cells without dilution. Its vocabulary has
    an alphabet `noise`, at least where `dilute` is above 0 (`noise_alphabet`).
    """

    dilute: int = later(0, ge=0, le=1023)
    """Noise tokens after each token of the context; bits, answers and floors stay, distances are multiplied."""

    @property
    def noise_alphabet(self) -> dict[str, Alphabet | int]:
        """The alphabet of noise as the last one of a task that has none without dilution."""
        return {"noise": NOISE} if self.dilute else {}

    @abstractmethod
    def context_tokens(self, cell: Cell) -> int:
        """Return the number of tokens of an example, the first ones, that are diluted."""

    @abstractmethod
    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        """Make one example for each key: keys [N] int64."""

    @abstractmethod
    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Return the right answer at each scored position, from the inputs alone: [N, S]."""

    def controls_undiluted(self, batch: Batch, cell: Cell) -> Mapping[str, Batch]:
        """Return changed examples by name, which show how a model answers."""
        return {}

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        dense = super().eval_cells
        longer = [cell.length + self.dilute * self.context_tokens(cell) for cell in dense]
        return tuple(cell.model_copy(update={"length": length}) for cell, length in zip(dense, longer, strict=True))

    @final
    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        dense = undiluted_cell(self, cell)
        batch = self.sample_undiluted(keys, dense)
        if not self.dilute:
            return batch
        context = self.context_tokens(dense)
        noise = random.integers(keys, "dilution", context * self.dilute, NOISE) + self.words.first("noise")
        return self._spread(batch, noise.view(-1, context, self.dilute))

    @final
    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._solve(self.oracle_undiluted, inputs, positions, cell)

    @final
    def controls(self, batch: Batch, cell: Cell) -> Mapping[str, Batch]:
        dense = undiluted_cell(self, cell)
        inputs, positions, noise = self._gather_up(batch.inputs, batch.positions, dense)
        changed = self.controls_undiluted(batch._replace(inputs=inputs, positions=positions), dense)
        return {name: self._spread(own, noise) for name, own in changed.items()}

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {name: self._for_diluted(solver) for name, solver in super().floors.items()}

    @property
    def references(self) -> Mapping[str, Solver]:
        return {name: self._for_diluted(solver) for name, solver in super().references.items()}

    def _for_diluted(self, solver: Solver) -> Solver:
        """Return a solver of diluted examples, with the docstring of the solver, which pages print."""
        return functools.update_wrapper(functools.partial(self._solve, solver), solver)

    def _solve(self, solver: Solver, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        dense = undiluted_cell(self, cell)
        return solver(*self._gather_up(inputs, positions, dense)[:2], dense)

    def _spread(self, batch: Batch, noise: Tensor) -> Batch:
        """Put noise [N, context, m] after the tokens of the context."""
        context = noise.shape[1]
        apart = torch.cat([batch.inputs[:, :context, None], noise], dim=-1).flatten(1)
        inputs = torch.cat([apart, batch.inputs[:, context:]], dim=1)
        return batch._replace(inputs=inputs, positions=batch.positions + self.dilute * context)

    def _gather_up(self, inputs: Tensor, positions: Tensor, dense: Cell) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs and positions without dilution, and the noise [N, context, m]."""
        context = self.context_tokens(dense)
        apart = inputs[:, : context * (1 + self.dilute)].unflatten(1, (context, 1 + self.dilute))
        rest = inputs[:, context * (1 + self.dilute) :]
        return torch.cat([apart[..., 0], rest], dim=1), positions - self.dilute * context, apart[..., 1:]


def undiluted_cell(task: Diluted, cell: Cell) -> Cell:
    """Return the cell of the same label as it is without dilution."""
    return undiluted_cells(task)[cell.label] if task.dilute else cell


@functools.lru_cache
def undiluted_cells(task: Diluted) -> Mapping[str, Cell]:
    """Return the cells of a task as they are without dilution, by label."""
    return {cell.label: cell for cell in task.model_copy(update={"dilute": 0}).eval_cells}
