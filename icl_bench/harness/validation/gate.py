"""The gate that a task must pass: no shallow solver answers more than the stated floor says, in any group of any cell.

On the test examples of a cell a solver is compared with the best stated floor, position by position. With D_i the sum
of the differences of hits over the positions of a group in example i, the statistic is

    z = sum_i D_i / sqrt(sum_i D_i^2)

and for independent D_i that are symmetric about 0 or below, P(z >= x) <= exp(-x^2 / 2) at any number of examples
(Efron, "Student's t-test under symmetry conditions", 1969). A solver is above the floor if z is above
`limit_of(FALSE_ALARM)`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from icl_bench.architectures.interface import Tokens
from icl_bench.corpus.tokens import Split
from icl_bench.errors import SpecError
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.validation.shallow import FOR_TOKENS, FOR_VECTORS, LOOK_UPS, Rule
from icl_bench.tasks import TASKS, Batch, Cell, ContinuousTask, Task
from icl_bench.tasks.base import Solver, cells_by_label
from icl_bench.tasks.continuous import REAL_BITS

FALSE_ALARM = 1e-6
"""Largest probability that one comparison is above by chance; all tasks together have some 10^4 comparisons."""
PIECE = 1 << 22
"""Most entries of a comparison of every position with every question, which bounds the examples answered at once."""
QUESTION = 3
"""Tokens up to a scored position that every view keeps."""
VIEWS = ("last-tokens", "first-tokens")
"""Names of the truncated views."""
VIEWED = 0.5
"""Fraction of the stated bits of a state that a view holds at most."""

Standing = Literal["below", "above", "by rule"]
"""Outcome of a comparison; `by rule` is above, for a solver that the task names as its own rule."""


class Sample(NamedTuple):
    """Numbers of examples of a cell."""

    trained: int
    """Training examples, on which solvers count."""
    tested: int
    """Test examples, on which they answer."""


QUICK, FULL = Sample(2_000, 400), Sample(20_000, 4_000)


class FloorComparison(NamedTuple):
    """A solver against what is stated of a cell, or of one group of it."""

    cell: str
    """Label of the cell."""
    group: str
    """Label of the group; empty for the whole cell."""
    solver: str
    """Name of the solver."""
    accuracy: float
    """Accuracy of the solver, relative to the oracle."""
    stated: float
    """Accuracy that the task states: of the best floor, for a look-up also of the best reference."""
    stated_by: str
    """Name of that floor or reference."""
    statistic: float
    """Statistic z of the difference."""
    outcome: Standing


def limit_of(false_alarm: float) -> float:
    """Return the statistic that is exceeded by chance with at most this probability."""
    return math.sqrt(-2 * math.log(false_alarm))


def names_answers(task: Task) -> bool:
    """Return whether answers are tokens or vectors, which a shallow solver can name, and not probabilities."""
    return not (isinstance(task.interface, Tokens) and task.interface.graded_by_bits)


class CellVerdict(NamedTuple):
    """The shallow solvers of a cell in short."""

    cell: str
    """Label of the cell."""
    floor: float
    """Accuracy of the best stated floor."""
    floor_by: str
    """Name of that floor."""
    best: float
    """Accuracy of the best shallow solver that is not the rule of the task and keeps a few tokens or counts."""
    best_by: str
    """Name of that solver."""
    by_rule: Mapping[str, float]
    """Accuracy of the solvers that the task names as its own rule, where they are above the floor."""
    trained: Mapping[str, float]
    """Accuracy of trained solvers, by name."""
    above: tuple[FloorComparison, ...]
    """The comparisons above the floor, in any group."""


def validate_task(task: Task, sample: Sample, trained: Mapping[str, Rule] = {}) -> list[CellVerdict]:
    """Compare all shallow solvers, and trained rules by name, with the floors of a task, cell by cell.

    Raise SpecError for a task that is graded by bits.
    """
    if not names_answers(task):
        raise SpecError(
            f"shallow solvers name answers; {TASKS.name_of(type(task))} grades probabilities; its floors are n-grams"
        )
    cells = cells_by_label(task).values()
    return [verdict_of(cell.label, validate_cell(task, cell, sample, trained), trained) for cell in cells]


def verdict_of(cell: str, found: list[FloorComparison], trained: Mapping[str, Rule]) -> CellVerdict:
    """Sum up the comparisons of a cell."""
    whole = {one.solver: one for one in found if not one.group}
    shallow = [one for one in whole.values() if one.solver not in (*trained, *VIEWS, *LOOK_UPS)]
    small = [one for one in shallow if one.outcome != "by rule"]
    best = max(small, key=lambda one: one.accuracy)
    return CellVerdict(
        cell, best.stated, best.stated_by, best.accuracy, best.solver,
        by_rule={one.solver: one.accuracy for one in whole.values() if one.outcome == "by rule"},
        trained={name: whole[name].accuracy for name in trained},
        above=tuple(one for one in found if one.outcome == "above"),
    )  # fmt: skip


def validate_cell(task: Task, cell: Cell, sample: Sample, trained: Mapping[str, Rule] = {}) -> list[FloorComparison]:
    """Compare all shallow solvers with the floors of a cell, in the whole cell and in each of its groups."""
    seen, asked = (draw(task, cell, *one) for one in (("train", sample.trained), ("test", sample.tested)))
    hits = CellHits(task, cell, asked)
    stated = {name: hits.of_solver(solver) for name, solver in task.floors.items()}
    kept = {name: hits.of_solver(solver) for name, solver in task.references.items()}
    vectors = isinstance(task, ContinuousTask)
    solvers = FOR_VECTORS if vectors else FOR_TOKENS
    found = []
    for name, rule in [(name, fit(seen, task.vocabulary)) for name, fit in solvers.items()] + [*trained.items()]:
        allowed, own = stated | kept if name in LOOK_UPS else stated, hits.of_rule(rule)
        found += [compare_solver(task, hits, (name, group), own, allowed) for group in (None, *hits.groups)]
    for name, view in views(task, cell).items():
        own = hits.of_view(view)
        found.append(compare_view(task, hits, name, own, view.share, stated))
    return found


def draw(task: Task, cell: Cell, split: Split, examples: int) -> Batch:
    """Make the first examples of a split with data seed 0, their questions in the order of positions.

    The order in which a task lists its questions may tell what no input tells.
    """
    stream = ExampleStream(task, cell, split, [0], torch.device("cpu"))
    batch = Batch(*(part[0] for part in stream.first(examples)))
    order = batch.positions.argsort(dim=1)
    places = order if batch.targets.dim() == 2 else order[..., None].expand_as(batch.targets)
    positions, groups = (part.gather(1, order) for part in (batch.positions, batch.groups))
    return Batch(batch.inputs, positions, batch.targets.gather(1, places), groups)


class TruncatedView(NamedTuple):
    """A part of the tokens before a question, in which the rest is that of another example."""

    first: int
    """First tokens kept."""
    last: int
    """Last tokens kept, up to the position that is scored."""
    share: float
    """Most bits of these tokens, as a fraction of the stated bits of the state."""


def views(task: Task, cell: Cell) -> Mapping[str, TruncatedView]:
    """Return the views that hold at most half of the stated bits; none where that is less than a question.

    Only where answers are independent does a part of the bits answer no more than that part of the questions.
    """
    if task.contents(cell) is None:
        return {}
    token = task.words.size and math.log2(task.words.size)
    bits = token or task.interface.batch_shapes(1, 1)[0][-1] * REAL_BITS
    state = task.state_bits(cell)
    tokens = min(int(VIEWED * state / bits), cell.length)
    if tokens <= QUESTION:
        return {}
    share = tokens * bits / state
    return dict(
        zip(VIEWS, (TruncatedView(0, tokens, share), TruncatedView(tokens - QUESTION, QUESTION, share)), strict=True)
    )


class CellHits:
    """Hits of solvers on the test examples of a cell, a number for each scored position."""

    def __init__(self, task: Task, cell: Cell, asked: Batch) -> None:
        self.task, self.cell, self.asked = task, cell, asked
        self.best = task.oracle_grade(asked, cell).hits.double()
        numbers = [int(number) for number in asked.groups.unique()]
        self.groups = {task.group_label(number): asked.groups == number for number in numbers}

    def pieces(self) -> Iterator[Batch]:
        """Iterate over the examples in pieces in which all positions can be compared with all questions."""
        rows = max(1, PIECE // (self.cell.length * self.cell.scored * max(1, self.task.vocabulary // 64)))
        for parts in zip(*(part.split(rows) for part in self.asked), strict=True):
            yield Batch(*parts)

    def of_rule(self, rule: Rule) -> Tensor:
        """Return the hits of a rule, [N, S] float64."""
        parts = [self.task.hits(rule(one.inputs, one.positions), one, self.cell) for one in self.pieces()]
        return torch.cat(parts).double()

    def of_solver(self, solver: Solver) -> Tensor:
        """Return the hits of a solver of the task, [N, S] float64."""
        return self.of_rule(lambda inputs, positions: solver(inputs, positions, self.cell))

    def of_view(self, view: TruncatedView) -> Tensor:
        """Return the hits of the oracle on a view, at one scored position of each example; NaN at the others.

        The tokens outside the view are those of the example before.
        """
        inputs, positions = self.asked.inputs, self.asked.positions
        order = torch.arange(len(inputs))[:, None] % positions.shape[1]
        here, place = positions.gather(1, order), torch.arange(inputs.shape[1])
        kept = (place < view.first) | (place > here - view.last)
        mixed = torch.where(kept.view(*kept.shape, *(1,) * (inputs.dim() - 2)), inputs, inputs.roll(1, dims=0))
        answers = self.task.oracle(mixed, positions, self.cell)
        hits = self.task.hits(answers, self.asked, self.cell).double()
        return torch.full_like(hits, math.nan).scatter(1, order, hits.gather(1, order))


def compare_solver(
    task: Task, hits: CellHits, name: tuple[str, str | None], own: Tensor, allowed: Mapping[str, Tensor]
) -> FloorComparison:
    """Compare a solver, in a group of a cell or in all of it, with the best of what is allowed there."""
    solver, group = name
    inside = torch.ones_like(own) if group is None else hits.groups[group].double()
    sums = {key: float((value * inside).sum()) for key, value in allowed.items()}
    best = max(sums, key=sums.__getitem__)
    total = float((hits.best * inside).sum())
    z = statistic(((own - allowed[best]) * inside).sum(dim=1))
    accuracy, stated = (max(0.0, value / total) for value in (float((own * inside).sum()), sums[best]))
    return FloorComparison(hits.cell.label, group or "", solver, accuracy, stated, best, z, outcome_of(task, solver, z))


def compare_view(
    task: Task, hits: CellHits, name: str, own: Tensor, share: float, stated: Mapping[str, Tensor]
) -> FloorComparison:
    """Compare a view of a share of the bits with that share, and the floor for the rest."""
    asked = ~own.isnan()
    best = max(stated, key=lambda key: float(stated[key].sum()))
    floor, oracle, answered = (part[asked] for part in (stated[best], hits.best, own))
    allowed = share * oracle + (1 - share) * floor
    z = statistic(answered - allowed)
    accuracy, bound = (float(part.sum() / oracle.sum()) for part in (answered, allowed))
    by = f"{share:.0%} of the bits"
    return FloorComparison(hits.cell.label, "", name, accuracy, bound, by, z, outcome_of(task, name, z))


def statistic(differences: Tensor) -> float:
    """Return the sum of differences over the root of the sum of their squares; 0 where all are 0."""
    norm = float(differences.norm())
    return float(differences.sum()) / norm if norm else 0.0


def outcome_of(task: Task, solver: str, z: float) -> Standing:
    """Return the outcome of a comparison with statistic z."""
    if z <= limit_of(FALSE_ALARM):
        return "below"
    return "by rule" if solver in task.by_rule else "above"
