"""One fleet on a device: M runs of the same shape, one step at a time."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from icl_bench.architectures.backbone import Backbone, VectorBackbone, Vectors
from icl_bench.harness.data import Feed, Split, cell_order, training_set_size
from icl_bench.harness.evaluate import CellOutcome, batches, best_floors, evaluate
from icl_bench.harness.generate import FreeRunning, is_recurrent, run_freely
from icl_bench.harness.graphs import StepGraphs
from icl_bench.harness.optimiser import FleetAdamW
from icl_bench.harness.precision import WorkingModel, working_dtype
from icl_bench.harness.resolve import make_arch, make_task
from icl_bench.harness.spec import RunSpec
from icl_bench.harness.supply import Supply, steps_at_once
from icl_bench.kernels.backends import has_triton
from icl_bench.kernels.cross_entropy.means import mean_losses
from icl_bench.tasks import Batch, ContinuousTask


class Trainer:
    """A fleet and everything its steps need.

    Args:
        specs: Runs of one fleet key.
        device: Where to train.
        impl: Kernel implementation, `auto` for the best there.
        graphs: Whether steps on a CUDA device are captured in graphs.
    """

    def __init__(self, specs: Sequence[RunSpec], device: torch.device, impl: str, graphs: bool = True) -> None:
        first = specs[0]
        assert all(spec.fleet_key() == first.fleet_key() for spec in specs)
        self.specs, self.spec, self.device = list(specs), first, device
        self.task = make_task(first.task)
        self.model = self.make_model(impl).to(device)
        self.optimiser = FleetAdamW(
            list(self.model.parameters()), [spec.train for spec in specs], working_dtype(first.precision)
        )
        self.working = WorkingModel(self.model, self.optimiser.working, first.precision)
        self.cells = self.task.train_cells
        self.order = cell_order(self.cells, first.train.steps)
        self.train_feeds = [self.feed(cell.label, "train") for cell in self.cells]
        self.sums = torch.zeros(2, len(specs), device=device, dtype=torch.float64)
        self.supplies = [self.supply(which) for which in range(len(self.cells))]
        self.validation: list[tuple[Feed, list[Batch]]] = []
        self.done = 0
        captured = graphs and device.type == "cuda"
        self.updates = StepGraphs(self.update, device) if captured else None
        self.refills = StepGraphs(self.refill, device) if captured else None

    def make_model(self, impl: str) -> Backbone:
        """The models with their first parameters, on the CPU."""
        spec, seeds = self.spec, [spec.seed for spec in self.specs]
        width = spec.model.d_model
        layers = [make_arch(component) for component in spec.layer_components]
        if isinstance(self.task, ContinuousTask):
            vectors = Vectors(self.task.width_in, self.task.width_out, self.task.grade)
            return VectorBackbone(seeds, vectors, width, layers, round(spec.model.mlp * width), impl)
        model = spec.model
        return Backbone(
            seeds,
            self.task.vocabulary,
            width,
            layers,
            round(model.mlp * width),
            model.tied,
            impl,
            model.embedding_scale,
        )

    def feed(self, label: str, split: Split) -> Feed:
        """Examples of a cell and split."""
        return Feed(self.task, self.task.cell(label), split, [spec.data_seed for spec in self.specs], self.device)

    def supply(self, which: int) -> Supply:
        """Training batches of the cell of that index."""
        cell, train, members = self.cells[which], self.spec.train, len(self.specs)
        size = training_set_size(self.cells, cell, train.examples)
        steps = steps_at_once(members * train.batch * cell.length, self.order.count(which))
        sort = has_triton(self.sums) and not isinstance(self.task, ContinuousTask)
        return Supply(self.train_feeds[which], train.batch, members, size, steps, sort)

    def step(self) -> None:
        """One update of every member, on the cell whose turn it is; never waits for the device."""
        which = self.order[self.done]
        self.done += 1
        if self.supplies[which].due():
            self.run(self.refill, self.refills, which)
        self.run(self.update, self.updates, which)

    def run(self, work: Callable[[int], None], graphs: StepGraphs | None, which: int) -> None:
        """Do the work on the cell of that index, by its graph where there are graphs."""
        if graphs is None:
            work(which)
        else:
            graphs.run(which)

    def refill(self, which: int) -> None:
        """Make the next batches of the cell of that index."""
        self.supplies[which].refill()

    def update(self, which: int) -> None:
        """One update on the cell of that index; device tensors throughout, so that a graph can hold it."""
        scores = self.working.scores(*self.supplies[which].take())
        losses = mean_losses(scores.losses.flatten(1), scores.hits.flatten(1), self.sums)
        self.optimiser.differentiate(losses)
        self.optimiser.step(losses.detach())

    def state(self) -> dict[str, Tensor]:
        """Everything that steps change, as it lies on the device; batches follow from the number of steps."""
        slots, fleet = self.optimiser.slots, self.optimiser.state
        kept = {"parameters": slots.parameters, "means": slots.means, "squares": slots.squares, "sums": self.sums}
        kept |= {"steps": fleet.steps, "alive": fleet.alive, "died_at": fleet.died_at}
        kept |= {f"buffer {name}": buffer for name, buffer in self.model.named_buffers()}
        return kept if slots.working is None else {**kept, "working": slots.working}

    @torch.no_grad()
    def restore(self, step: int, kept: Mapping[str, Tensor]) -> None:
        """Go to where a fleet of these members was after that step, from before its first step."""
        for name, own in self.state().items():
            own.copy_(kept[name])
        self.done = step
        for which, supply in enumerate(self.supplies):
            supply.skip(self.order[:step].count(which))

    def take_means(self, steps: int) -> tuple[list[float], list[float]]:
        """Mean loss and accuracy of each member over the last `steps` steps; starts anew."""
        loss, accuracy = (self.sums / max(1, steps)).tolist()
        self.sums.zero_()
        return loss, accuracy

    def validate(self) -> dict[str, list[float]]:
        """Validation accuracy by cell and member; the examples are made once and kept."""
        count, members = self.spec.evaluation.validation, len(self.specs)
        if not self.validation:
            feeds = [self.feed(cell.label, "val") for cell in self.task.eval_cells]
            self.validation = [(feed, list(batches(feed, count, members))) for feed in feeds]
        return {feed.cell.label: evaluate(self.working, feed, kept).accuracy for feed, kept in self.validation}

    def test(self) -> tuple[dict[str, CellOutcome], dict[str, list[tuple[str, float]]]]:
        """Test scores, free-running ones among them where answers are shown, and floors, by cell."""
        spec, scores, floors = self.spec.evaluation, {}, {}
        for cell in self.task.eval_cells:
            feed = self.feed(cell.label, "test")
            outcome = evaluate(self.working, feed, batches(feed, spec.examples, len(self.specs)))
            scores[cell.label] = outcome._replace(free=self.run_freely(feed))
            floors[cell.label] = best_floors(self.feed(cell.label, "val"), feed, spec)
        return scores, floors

    def run_freely(self, feed: Feed) -> FreeRunning | None:
        """Scores where members read their own answers; none where none is shown, or a layer has no recurrent form."""
        if not (self.task.generative and is_recurrent(self.model)):
            return None
        layers = [make_arch(component) for component in self.spec.layer_components]
        state = sum(layer.state_elements(self.spec.model.d_model, feed.cell.length) for layer in layers)
        return run_freely(self.working, feed, self.spec.evaluation.examples, len(self.specs), state)
