"""One fleet on a device: M runs of the same shape, one step at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from icl_bench.architectures.backbone import Backbone, VectorBackbone, Vectors
from icl_bench.harness.resolve import make_arch, make_task
from icl_bench.harness.training.data import Feed, Split, cell_order, training_set_size
from icl_bench.harness.training.divergence import make_watch, mean_losses
from icl_bench.harness.training.evaluate import CellOutcome, batches, best_floors, evaluate, evaluate_controls
from icl_bench.harness.training.generate import FreeRunning, is_recurrent, run_freely
from icl_bench.harness.training.graphs import StepGraphs
from icl_bench.harness.training.members import Part, copy_members
from icl_bench.harness.training.optimiser import FleetAdamW
from icl_bench.harness.training.precision import WorkingModel, working_dtype
from icl_bench.harness.training.supply import Supply, steps_at_once
from icl_bench.kernels.backends import has_triton
from icl_bench.kernels.fleet.layout import Layout
from icl_bench.runs.spec import RunSpec
from icl_bench.tasks import Batch, ContinuousTask

Value = TypeVar("Value")


class Trainer:
    """A fleet and everything its steps need.

    Members whose training has diverged are never updated again. Once they are half of those in the work, the work goes
    on without them; what is told of a fleet has all its members in their order all the same.

    Args:
        specs: Runs of one fleet key.
        device: Where to train.
        impl: Kernel implementation, `auto` for the best there.
        graphs: Whether steps on a CUDA device are captured in graphs.
    """

    def __init__(self, specs: Sequence[RunSpec], device: torch.device, impl: str, graphs: bool = True) -> None:
        first = specs[0]
        assert all(spec.fleet_key() == first.fleet_key() for spec in specs)
        self.specs, self.spec, self.device, self.impl = list(specs), first, device, impl
        self.captured = graphs and device.type == "cuda"
        self.task = make_task(first.task)
        self.cells = self.task.train_cells
        self.order = cell_order(self.cells, first.train.steps)
        self.done = 0
        self.left: dict[str, Tensor] = {}
        self.means = [[0.0] * len(self.specs), [0.0] * len(self.specs)]
        self.accuracies: dict[str, list[float]] = {}
        self.assemble(list(range(len(self.specs))))

    def assemble(self, present: list[int]) -> None:
        """Set up these members at their start, and their graphs."""
        self.present, self.at_work = present, [self.specs[member] for member in present]
        self.model = self.make_model(self.impl).to(self.device)
        self.optimiser = FleetAdamW(
            list(self.model.parameters()), [spec.train for spec in self.at_work], working_dtype(self.spec.precision)
        )
        self.working = WorkingModel(self.model, self.optimiser.working, self.spec.precision)
        self.train_feeds = [self.feed(cell.label, "train") for cell in self.cells]
        self.watch = make_watch(len(present), self.device)
        self.supplies = [self.supply(which) for which in range(len(self.cells))]
        self.validation: list[tuple[Feed, list[Batch]]] = []
        self.updates = StepGraphs(self.update, self.device) if self.captured else None
        self.refills = StepGraphs(self.refill, self.device) if self.captured else None

    def make_model(self, impl: str) -> Backbone:
        """The models with their first parameters, on the CPU."""
        spec, seeds = self.spec, [spec.seed for spec in self.at_work]
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
        return Feed(self.task, self.task.cell(label), split, [spec.data_seed for spec in self.at_work], self.device)

    def supply(self, which: int) -> Supply:
        """Training batches of the cell of that index."""
        cell, train, members = self.cells[which], self.spec.train, len(self.present)
        size = training_set_size(self.cells, cell, train.examples)
        steps = steps_at_once(members * train.batch * cell.length, self.order.count(which))
        sort = has_triton(self.watch.sums) and not isinstance(self.task, ContinuousTask)
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
        losses = mean_losses(scores.losses.flatten(1), scores.hits.flatten(1), self.watch)
        self.optimiser.differentiate(losses)
        self.optimiser.step(losses.detach())

    @property
    def layout(self) -> Layout:
        """How the parameters of all members would lie."""
        return self.optimiser.layout._replace(members=len(self.specs))

    @property
    def died_at(self) -> list[int]:
        """By member: the step at which its training was found to have diverged; 0 where it never was."""
        left = self.left["died_at"].tolist() if self.left else [0] * len(self.specs)
        return self.spread(self.optimiser.died_at.tolist(), left)

    def spread(self, own: Sequence[Value], others: Sequence[Value]) -> list[Value]:
        """What is said of the members at work, in its place among what is said of all."""
        whole = list(others)
        for member, value in zip(self.present, own, strict=True):
            whole[member] = value
        return whole

    def drop_dead(self) -> None:
        """Go on without the members that have diverged, once they are half of those at work; waits for the device."""
        died = self.optimiser.died_at.tolist()
        alive = [member for member, step in zip(self.present, died, strict=True) if not step]
        if alive and 2 * len(alive) <= len(self.present):
            self.left = {name: tensor.cpu() for name, tensor in self.state().items()}
            self.updates = self.refills = None
            self.assemble(alive)
            self.go_to(self.done, self.left)

    @torch.no_grad()
    def go_to(self, step: int, kept: Mapping[str, Tensor]) -> None:
        """Take the members at work from their start to where all members were after that step."""
        self.done = step
        copy_members(Part(kept, self.layout, self.present), self.part())
        for which, supply in enumerate(self.supplies):
            supply.skip(self.order[:step].count(which))

    def part(self) -> Part:
        """What steps change, of the members at work."""
        slots, fleet = self.optimiser.slots, self.optimiser.state
        kept = {"parameters": slots.parameters, "means": slots.means, "squares": slots.squares}
        kept |= {"sums": self.watch.sums, "course": self.watch.course}
        kept |= {"steps": fleet.steps, "alive": fleet.alive, "died_at": fleet.died_at}
        kept |= {f"buffer {name}": buffer for name, buffer in self.model.named_buffers()}
        kept |= {} if slots.working is None else {"working": slots.working}
        return Part(kept, self.optimiser.layout, range(len(self.present)))

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """Everything that steps change, of all members; batches follow from the number of steps."""
        part = self.part()
        if not self.left:
            return dict(part.tensors)
        whole = {name: tensor.clone() for name, tensor in self.left.items()}
        copy_members(part, Part(whole, self.layout, self.present))
        return whole

    def restore(self, step: int, kept: Mapping[str, Tensor]) -> None:
        """Go to where a fleet of these members was after that step, from before its first step."""
        self.go_to(step, kept)
        self.drop_dead()

    def totals(self) -> Tensor:
        """Sums of mean loss and accuracy over the steps since the last `take_means`, on the CPU, [2, M]."""
        whole = torch.full((2, len(self.specs)), torch.nan, dtype=torch.float64)
        whole[:, self.present] = self.watch.sums.cpu()
        return whole

    def take_means(self, steps: int) -> tuple[list[float], list[float]]:
        """Mean loss and accuracy of each member over the last `steps` steps; starts anew.

        Of a member that was dropped before, they are the last that there are.
        """
        own = (self.watch.sums / max(1, steps)).tolist()
        self.means = [self.spread(new, old) for new, old in zip(own, self.means, strict=True)]
        self.watch.sums.zero_()
        return self.means[0], self.means[1]

    def validate(self) -> dict[str, list[float]]:
        """Validation accuracy by cell and member; the examples are made once and kept. Then drops the dead, if many.

        Of a member that was dropped before, it is the last measured: it is no longer updated.
        """
        count, members = self.spec.evaluation.validation, len(self.present)
        if not self.validation:
            feeds = [self.feed(cell.label, "val") for cell in self.task.eval_cells]
            self.validation = [(feed, list(batches(feed, count, members))) for feed in feeds]
        for feed, kept in self.validation:
            label, own = feed.cell.label, evaluate(self.working, feed, kept).accuracy
            self.accuracies[label] = self.spread(own, self.accuracies.get(label, [0.0] * len(self.specs)))
        self.drop_dead()
        return dict(self.accuracies)

    def test(self) -> tuple[dict[str, CellOutcome], dict[str, list[tuple[str, float]]]]:
        """Test scores, free-running ones among them where answers are shown, and floors, by cell.

        What they say of a dropped member is another's: of one that has diverged, no test score is kept.
        """
        spec, scores, floors = self.spec.evaluation, {}, {}
        for cell in self.task.eval_cells:
            feed = self.feed(cell.label, "test")
            outcome = evaluate(self.working, feed, batches(feed, spec.examples, len(self.present)))
            scores[cell.label] = CellOutcome(
                accuracy=self.fill(outcome.accuracy),
                exact_match=self.fill(outcome.exact_match),
                loss=self.fill(outcome.loss),
                oracle_error=self.fill(outcome.oracle_error),
                groups=self.fill(outcome.groups),
                free=self.run_freely(feed),
                controls={
                    name: self.fill(own) for name, own in evaluate_controls(self.working, feed, spec.examples).items()
                },
            )
            floors[cell.label] = self.fill(best_floors(self.feed(cell.label, "val"), feed, spec))
        return scores, floors

    def fill(self, own: Sequence[Value]) -> list[Value]:
        """What is said of the members at work; of the others, what is said of the first of these."""
        return self.spread(own, [own[0]] * len(self.specs))

    def run_freely(self, feed: Feed) -> FreeRunning | None:
        """Scores where members read their own answers; none where none is shown, or a layer has no recurrent form."""
        if not (self.task.generative and is_recurrent(self.model)):
            return None
        layers = [make_arch(component) for component in self.spec.layer_components]
        state = sum(layer.state_elements(self.spec.model.d_model, feed.cell.length) for layer in layers)
        own = run_freely(self.working, feed, self.spec.evaluation.examples, len(self.present), state)
        return FreeRunning(self.fill(own.accuracy), self.fill(own.exact_match))
