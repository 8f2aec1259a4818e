"""A fleet on a device: M runs of the same shape, trained one step at a time.

A training step, in order:

1. `Trainer.step` picks the cell whose turn it is; the order of the cells is known from the start.
2. `BatchQueue.refill`, on the first step and then every `steps` steps of a cell, makes the examples of the next steps:
   `random.row_keys` of seed and index, then `Task.sample`; where a step is long, those of the next one beside each.
3. `BatchQueue.take` serves the batch of this step: inputs [M, B, T], positions [M, B, S], targets [M, B, S].
4. `WorkingModel.scores` runs `Backbone.scores` in the run's precision: embedding, layers, the last norm at the scored
   positions.
5. `Interface.score` gives losses and hits [M, B, S]: the cross-entropy of tokens, the squared error of vectors.
6. `DivergenceMonitor.mean_losses` averages them for each member, [M], adds the means to its sums, and makes a loss
   that has exploded infinite.
7. `FleetOptimiser.differentiate` writes the gradients of all members into one flat buffer.
8. `FleetOptimiser.step` clips each member's gradient, marks members whose loss or gradient is not finite as diverged,
   updates the others, and rounds their parameters to the working copies of the next step.
9. `TrainingLoop` (loop.py) reads the sums now and then. Nothing before this point waits for the device, so that 2 and
   3 to 8 are two CUDA graphs a cell.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench import random
from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.base import DegreeRise
from icl_bench.architectures.interface import Scores
from icl_bench.architectures.plain import PlainMixer
from icl_bench.corpus.tokens import Split
from icl_bench.errors import SpecError
from icl_bench.harness.accounting import Footprint
from icl_bench.harness.resolve import make_arch, make_task
from icl_bench.harness.training import batches
from icl_bench.harness.training.evaluate import (
    FreeRunning,
    evaluate,
    evaluate_controls,
    evaluation_pieces,
    run_freely,
)
from icl_bench.harness.training.graphs import StepGraphs
from icl_bench.harness.training.held_out import floors_by_member, repeated_shares
from icl_bench.harness.training.optimiser import DivergenceMonitor, FleetOptimiser
from icl_bench.harness.training.outside_layers import check_layer, check_sources
from icl_bench.harness.training.precision import WORKING_TYPES, WorkingModel
from icl_bench.harness.training.ranks import Ranks
from icl_bench.harness.training.results import cell_scores
from icl_bench.kernels.backends import has_triton
from icl_bench.runs.record import CellScore
from icl_bench.runs.spec import RunSpec
from icl_bench.tasks import Batch, Cell

MEMBER_BUFFER = "member buffer "
"""Beginning of the names of buffers whose first axis is that of the members."""


class Machine(NamedTuple):
    """The device of a fleet and its kernels; nothing here changes a run's numbers beyond rounding."""

    device: torch.device
    impl: str = "auto"
    """Kernel implementation, `auto` for the best on the device."""
    graphs: bool = True
    """Capture training steps on a CUDA device in graphs."""
    keep: tuple[str, ...] = ()
    """Files that runs keep beside their records, by the names of `KEPT_FILES`."""
    accumulate: int = 1
    """Parts of a training batch that go through the model one after the other; their gradients are added."""
    recompute: bool = False
    """Keep the inputs of layers alone in training, and compute the activations inside them again."""
    ranks: Ranks | None = None
    """The processes among which each batch is divided; None for this one alone."""


def recompute_error(spec: RunSpec) -> SpecError:
    """Return the error of layers whose activations cannot be computed again."""
    return SpecError(f"--recompute is for built-in layers that share no values; got {spec.arch_label}; leave it out")


class Trainer:
    """The models, the optimiser and the batches of a fixed set of members, which are runs of one fleet key."""

    def __init__(self, specs: Sequence[RunSpec], machine: Machine) -> None:
        self.specs, self.spec, self.machine, self.device = list(specs), specs[0], machine, machine.device
        assert all(spec.fleet_key() == self.spec.fleet_key() for spec in specs)
        check_sources(self.spec)
        self.task = make_task(self.spec.task)
        self.cells = self.task.train_cells
        self.cell_of_step = batches.cell_order(self.cells, self.spec.train.steps)
        self.done = 0  # steps

        self.layers = [make_arch(component) for component in self.spec.layer_components]
        seeds = [spec.seed for spec in specs]
        gains = [spec.model.gain for spec in specs]
        model = Backbone(seeds, self.task.interface, self.layers, self.spec.model, machine.impl, gains)
        self.model = model.to(self.device)
        if machine.recompute:
            self.recompute_activations()
        if self.model.deals_examples and (machine.accumulate > 1 or machine.ranks is not None):
            raise SpecError(
                f"{self.spec.arch_label} deals the examples of a whole batch among its degrees; got a batch in parts; "
                "leave --accumulate out, and train in one process"
            )
        trained = list(self.model.parameters())
        rounded = WORKING_TYPES[self.spec.precision]
        self.optimiser = FleetOptimiser(trained, [spec.train for spec in specs], rounded)
        if rising := self.spec.train.curriculum * self.spec.train.steps:
            self.model.raise_degree(DegreeRise(self.optimiser.state.steps, rising))
        self.working_model = WorkingModel(self.model, self.optimiser.given_order, self.spec.precision)
        self.monitor = DivergenceMonitor(len(specs), self.device)
        self.queues = [self.make_queue(cell) for cell in range(len(self.cells))]
        self.validation: list[tuple[batches.ExampleStream, list[Batch]]] = []
        self.captured = machine.graphs and self.device.type == "cuda"
        self.refill_graphs = StepGraphs(self.device if self.captured else None)
        self.update_graphs = StepGraphs(self.device if self.captured else None)

    def recompute_activations(self) -> None:
        """Let the model compute activations twice; raise SpecError for layers whose second pass could differ."""
        if self.spec.from_outside or self.model.shares_first_layer:
            raise recompute_error(self.spec)
        self.model.recompute = True

    def check_outside_layers(self) -> None:
        """Check every layer from outside the package; raise LayerFaultError for what it must not do."""
        d_model, length = self.spec.model.d_model, max(cell.length for cell in self.cells)
        shape = (3, len(self.specs), 2, length, d_model)
        dtype = WORKING_TYPES[self.spec.precision] or torch.float32
        for component, layer, block in zip(self.spec.layer_components, self.layers, self.model.blocks, strict=True):
            if component.source is not None or isinstance(block.mixer, PlainMixer):
                drawn = random.normal_by_name(0, "outside layers", math.prod(shape)).view(shape).to(self.device, dtype)
                state = layer.state_size(d_model, length)
                self.working_model.call(check_layer, drawn, block.mixer, str(component.label), state)

    def make_stream(self, label: str, split: Split) -> batches.ExampleStream:
        """Make the stream of examples of the cell of this label and a split."""
        return batches.ExampleStream(
            self.task, self.task.cell(label), split, [spec.data_seed for spec in self.specs], self.device
        )

    def make_queue(self, index: int) -> batches.BatchQueue:
        """Make the queue of training batches of the cell of this index."""
        cell, train = self.cells[index], self.spec.train
        size = batches.training_set_size(self.cells, cell, train.examples)
        steps = batches.steps_per_refill(len(self.specs) * train.batch * cell.length, self.cell_of_step.count(index))
        whole = self.machine.accumulate == 1
        sort = whole and has_triton(self.monitor.sums) and self.task.interface.sorts_tokens
        stream = self.make_stream(cell.label, "train")
        return batches.BatchQueue(stream, train.batch, size, steps, sort, self.machine.ranks)

    def step(self) -> None:
        """Update every member once, on the cell whose turn it is; never waits for the device."""
        cell = self.cell_of_step[self.done]
        self.done += 1
        if self.queues[cell].count_step():
            self.run_refill(cell)
        self.run_update(cell)

    def run_refill(self, cell: int) -> None:
        """Make the next batches of a cell, by its graph on a CUDA device."""
        self.refill_graphs.run(lambda index: self.queues[index].refill(), cell)

    def run_update(self, cell: int) -> None:
        """Update every member on the next batch of a cell, by its graph on a CUDA device."""
        self.update_graphs.run(self.update, cell)

    @cached_property
    def refill_stream(self) -> torch.cuda.Stream:
        """Stream on which batches are made beside a step."""
        return torch.cuda.Stream(self.device)

    def update(self, cell: int) -> None:
        """Update every member on the next batch of a cell; on device tensors alone, so that a graph can hold it."""
        batch = self.queues[cell].take()  # inputs [M, B, T], positions [M, B, S], targets [M, B, S]
        with self.refilling(self.queues[cell]):
            self.update_on(batch)

    @contextmanager
    def refilling(self, queue: batches.BatchQueue) -> Iterator[None]:
        """Make the next batch on a stream of its own meanwhile, where the queue has it made beside the step."""
        if not queue.beside:
            yield
            return
        current = torch.cuda.current_stream(self.device)
        self.refill_stream.wait_stream(current)  # the batch of this step has been taken
        with torch.cuda.stream(self.refill_stream):
            queue.refill()
        try:
            yield
        finally:  # a capture that failed would else fail once more, and buffers be freed while they are written
            current.wait_stream(self.refill_stream)

    def update_on(self, batch: batches.TrainBatch) -> None:
        """Update every member on a batch."""
        if self.machine.accumulate > 1 or self.machine.ranks is not None:
            mean = self.accumulate(batch)
        else:
            losses, hits = self.working_model.scores(*batch)  # [M, B, S]
            losses = losses.flatten(1)
            mean = self.monitor.mean_losses(losses, hits.flatten(1))  # [M]
            self.optimiser.differentiate(losses)
        self.optimiser.step(mean)

    def accumulate(self, batch: batches.TrainBatch) -> Tensor:
        """Write the gradients of a batch, one part after the other, over all ranks; return the mean losses, [M]."""
        found: list[Scores] = []
        ranks = self.machine.ranks
        scored = batch.positions[0].numel() * (ranks.size if ranks else 1)

        def sums() -> Iterator[Tensor]:
            parts = (whole.chunk(self.machine.accumulate, dim=1) for whole in batch[:3])
            for inputs, positions, targets in zip(*parts, strict=True):
                scores = self.working_model.scores(inputs, positions, targets, batch.occurrences, batch.leading)
                found.append(Scores(scores.losses.detach(), scores.hits))
                yield scores.losses.flatten(1).sum(1) / scored

        if self.machine.accumulate == 1:
            self.optimiser.differentiate(next(sums()))  # without sums of pieces in float32
        else:
            self.optimiser.differentiate_pieces(sums())
        losses, hits = (torch.cat(parts, dim=1).flatten(1) for parts in zip(*found, strict=True))
        if ranks:
            ranks.add(self.optimiser.buffers.gradients)
            means = torch.stack([losses.mean(1), hits.float().mean(1)]) / ranks.size
            ranks.add(means)
            losses, hits = means[..., None]
        return self.monitor.mean_losses(losses, hits)

    @property
    def diverged_at(self) -> list[int]:
        """Step at which each member was found to have diverged, 0 for active members; waits for the device."""
        steps: list[int] = self.optimiser.state.diverged_at.tolist()
        return steps

    def take_means(self, steps: int) -> tuple[list[float], list[float]]:
        """Return the mean loss and accuracy of each member over the last `steps` steps, and reset their sums."""
        losses, accuracies = (self.monitor.sums / max(1, steps)).tolist()
        self.monitor.sums.zero_()
        return losses, accuracies

    def validate(self, model: WorkingModel) -> dict[str, list[float]]:
        """Return the validation accuracy of each member of a model, this trainer's or its copy, by label of cell.

        The examples are made once and kept.
        """
        if not self.validation:
            streams = [self.make_stream(cell.label, "val") for cell in self.task.eval_cells]
            count = self.spec.evaluation.validation
            self.validation = [(stream, list(evaluation_pieces(stream, count))) for stream in streams]
        return {stream.cell.label: evaluate(model, stream, pieces).accuracy for stream, pieces in self.validation}

    def test(self, models: Sequence[WorkingModel]) -> list[tuple[CellScore, ...]]:
        """Return the test scores of each member, one for each evaluated cell; none for a member that has diverged.

        Each of the models, this trainer's and copies of it, takes its share of the cells, the copies in threads. A
        member whose test loss is not finite has diverged in its last update, and is marked so.
        """
        active = [member for member, step in enumerate(self.diverged_at) if not step]
        cells = self.task.eval_cells if active else ()

        def share(index: int) -> dict[str, list[CellScore | None]]:
            own = cells[index :: len(models)]
            return {cell.label: self.test_cell(cell, active, models[index]) for cell in own}

        with ThreadPoolExecutor(len(models)) as pool:  # starts no thread for the first share
            others = [pool.submit(share, index) for index in range(1, len(models))]
            found = share(0)
            for other in others:
                found |= other.result()
        by_cell = [found[cell.label] for cell in cells]
        scores: list[tuple[CellScore, ...]] = [() for _ in self.specs]
        for member, measured in zip(active, zip(*by_cell, strict=True), strict=True):
            finite = tuple(score for score in measured if score is not None)
            if len(finite) == len(measured):
                scores[member] = finite
            else:
                self.optimiser.state.active[member] = False
                self.optimiser.state.diverged_at[member] = self.done
        return scores

    def test_cell(self, cell: Cell, members: Sequence[int], model: WorkingModel) -> list[CellScore | None]:
        """Return a model's test scores of these members on one cell; None for a member whose loss is not finite."""
        evaluation, stream = self.spec.evaluation, self.make_stream(cell.label, "test")
        counts = evaluate(model, stream, evaluation_pieces(stream, evaluation.examples))
        free = self.run_freely(stream, model)
        controls = evaluate_controls(model, stream, evaluation.examples)
        floors = floors_by_member(stream, evaluation.examples)
        return cell_scores(stream, counts, floors, self.repeated_shares(stream), free, controls, members)

    def repeated_shares(self, test: batches.ExampleStream) -> list[float] | None:
        """Return the share of each member's test examples that it was trained on; None where none can be expected.

        A member that stopped early counts as if it had read all that its updates would have drawn.
        """
        if not self.task.repeats:
            return None
        drawn = 0
        for i, cell in enumerate(self.cells):
            if cell.label == test.cell.label:
                size = batches.training_set_size(self.cells, cell, self.spec.train.examples)
                steps = self.cell_of_step.count(i) * self.spec.train.batch
                drawn = steps if size is None else min(size, steps)
        train = self.make_stream(test.cell.label, "train")
        return repeated_shares(test, self.spec.evaluation.examples, train, drawn)

    def run_freely(self, stream: batches.ExampleStream, model: WorkingModel) -> FreeRunning | None:
        """Score members that read their own answers; None if the task shows none or a layer has no recurrent form."""
        if not (self.task.generative and self.model.recurrent):
            return None
        shape = self.spec.model
        state = Footprint(self.layers, shape.d_model, stream.cell.length, shape.canon, shape.mlp_width).state
        return run_freely(model, stream, self.spec.evaluation.examples, state.elements if state else 0)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that steps change, by their names in a checkpoint; batches follow from the steps done.

        Buffers of layers from outside, which members do not share, have names of their own.
        """
        own = {id(buffer) for mixer in self.model.modules() if isinstance(mixer, PlainMixer) for buffer in mixer.held}
        buffers, members = self.optimiser.buffers, self.optimiser.state
        state = {"parameters": buffers.parameters, "means": buffers.means, "squares": buffers.squares}
        state |= {"sums": self.monitor.sums, "course": self.monitor.history}
        state |= {"steps": members.steps, "alive": members.active, "died_at": members.diverged_at}
        state |= {
            f"{MEMBER_BUFFER if id(buffer) in own else 'buffer '}{name}": buffer
            for name, buffer in self.model.named_buffers()
        }
        state |= {} if buffers.working is None else {"working": buffers.working}
        return state

    def skip_to(self, step: int) -> None:
        """Continue with the batches that follow `step` steps; the trainer must be at its start."""
        self.done = step
        for index, queue in enumerate(self.queues):
            queue.skip_to(self.cell_of_step[:step].count(index))
