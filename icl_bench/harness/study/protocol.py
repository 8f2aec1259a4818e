"""The protocol of a study: match sizes, choose learning rates on validation accuracy, measure fresh seeds.

A study has parts: one for every rung of its ladder, combination of its axes, task and size, in this order. A part tunes
the learning rate of each contender, measures fresh seeds at the chosen rate, and measures more of them where outcomes
are bimodal. A higher rung starts its grid around the rate that the rung below chose. All runs are ordinary runs, found
in the store by their ids, so that a study can grow, part by part, without repeating a finished run. Contenders do not
wait for each other: each is a chain of runs that follow from its own records.
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from icl_bench.errors import SpecError, StateBudgetError
from icl_bench.harness.engines.executor import Ask, Chain, Executor
from icl_bench.harness.matching import Budget, Match, Shape, match
from icl_bench.harness.resolve import Request, expand_request, make_task, merge_settings, model_of, task_component
from icl_bench.harness.study.file import Study
from icl_bench.harness.study.tuning import (
    Grid,
    any_locked_in,
    best_rate,
    grow_grid,
    rounded_rate,
    run_floor,
    spacing_of,
    tune,
)
from icl_bench.runs.rates import SCORED, is_bimodal
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec, TrainSpec
from icl_bench.runs.store import Store
from icl_bench.schema import build

MOST_PARTS = 10_000
"""Bound of the numbers by which parts are chosen."""


class Contender(NamedTuple):
    """An architecture at one size on one task, in one part of a study."""

    task: str
    arch: str
    """Architecture as typed, with the matched dimensions written out."""
    size: int | None
    """Size to match; none if the architecture stays as typed."""
    matched: Match | None
    settings: tuple[str, ...] = ()
    """Assignments of --set by which the part differs from others."""


class StudyPart(NamedTuple):
    """The contenders that are tuned and measured together."""

    title: str
    """Values by which the part differs from others; empty for a study of one part."""
    contenders: list[Contender]
    below: list[Contender]
    """The same contenders one rung below, in order; empty on the lowest rung."""
    height: int = 0
    """Number of rungs below this one."""


class StudyOutcome(NamedTuple):
    """The records that a finished study returns."""

    measured: list[RunRecord]
    """Runs on fresh seeds at the chosen learning rates."""
    tuning: list[RunRecord]
    """Runs of the grid of learning rates."""
    left_out: list[str]
    """Reasons why some contenders could not be made, and the parts that were not asked for, a message each."""


class StudyPartPlan(NamedTuple):
    """The runs of a part before its grids grow, and before bimodal contenders get more seeds."""

    part: StudyPart
    runs: int
    done: int
    """Number of tuning runs that the store holds already."""
    left: list[list[RunSpec]]
    """Unfinished runs of the two phases; measuring runs are listed at the first rate of the grid."""


class StudyPlan(NamedTuple):
    """The parts of a study and what is left of them."""

    parts: list[StudyPartPlan]
    left_out: list[str]
    """Reasons why some contenders could not be made, a message each."""

    @property
    def runs(self) -> int:
        """Number of runs of all parts."""
        return sum(part.runs for part in self.parts)

    @property
    def done(self) -> int:
        """Number of tuning runs of all parts that the store holds already."""
        return sum(part.done for part in self.parts)


def study_parts(study: Study) -> tuple[list[StudyPart], list[str]]:
    """Return the parts of a study in the order in which they run, and why some contenders cannot be matched."""
    steps = build(TrainSpec, merge_settings(study.preset, study.settings).get("train", {}), "train").steps
    lowest, left_out = [], []
    for place in itertools.product(study.combinations, study.tasks, study.sizes or (None,)):
        contenders, messages = match_contenders(study, *place)
        left_out += messages
        if contenders:
            lowest.append(StudyPart(place_title(study, *place), contenders, []))
    parts: list[StudyPart] = []
    for height, rung in enumerate(study.ladder):
        budget = (f"train.steps={steps * rung}",) if len(study.ladder) > 1 else ()
        below = [part.contenders for part in parts[-len(lowest) :]] or [[]] * len(lowest)
        for part, under in zip(lowest, below, strict=True):
            here = [each._replace(settings=(*each.settings, *budget)) for each in part.contenders]
            parts.append(StudyPart(", ".join(filter(None, [part.title, *budget])), here, under, height))
    return parts, list(dict.fromkeys(left_out))


def place_title(study: Study, combination: tuple[str, ...], task: str, size: int | None) -> str:
    """Return the values by which a place of a study differs from its other places."""
    own_task, own_size = (task,) * (len(study.tasks) > 1), (f"{size} {study.match.by}",) * (len(study.sizes) > 1)
    return ", ".join((*combination, *own_task, *own_size))


def match_contenders(
    study: Study, combination: tuple[str, ...], task: str, size: int | None
) -> tuple[list[Contender], list[str]]:
    """Match every architecture to a size on a task; also return why some of them cannot be matched."""
    if size is None:
        return [Contender(task, arch, None, None, combination) for arch in study.archs], []
    found, left_out = [], []
    model = model_of(study.preset, (*study.settings, *combination))
    length = max(cell.length for cell in make_task(task_component(task)).eval_cells)
    shape = Shape(model.d_model, model.layers, length, model.canon, model.mlp_width)
    budget = Budget(size, study.match.by, study.match.cut, study.match.padding)
    for arch in study.archs:
        try:
            matched = match(arch, budget, shape)
            found.append(Contender(task, matched.arch, size, matched, combination))
        except StateBudgetError as error:
            left_out.append(": ".join([*combination, str(error)]))
    return found, left_out


def runs_of(study: Study, contender: Contender, lrs: Sequence[float], seeds: Sequence[int]) -> list[RunSpec]:
    """Return the run specifications of one contender at these learning rates and seeds."""
    settings = (*study.settings, *contender.settings)
    return expand_request(
        Request(contender.task, [contender.arch], study.preset, lrs, seeds, study.precision, settings)
    )


def run_study(study: Study, executor: Executor, numbers: Sequence[int] = ()) -> StudyOutcome:
    """Tune the learning rate of each contender, then measure it at its best rate.

    Contenders go on side by side, each as soon as its own runs are there, and runs of earlier parts go first in studies
    that take long. With `numbers`, run these parts alone, counted from 1, and those below them; raises SpecError for
    others.
    """
    parts, left_out = study_parts(study)
    asked = chosen_parts(parts, numbers)
    tuning: dict[Contender, list[RunRecord]] = {}
    measured: dict[Contender, list[RunRecord]] = {}
    executor.follow([climb(study, ladder, tuning, measured) for ladder in ladders_of(asked)])
    return collected_outcome(asked, tuning, measured, [*left_out, *lines_of_missing(parts, asked)])


def finished_study(study: Study, store: Store, numbers: Sequence[int] = ()) -> StudyOutcome:
    """Collect the contenders that a store has finished, without training, and name those that it has not.

    `numbers` chooses parts as in `run_study`; raises SpecError for numbers that no part has.
    """
    parts, left_out = study_parts(study)
    asked = chosen_parts(parts, numbers)
    tuning: dict[Contender, list[RunRecord]] = {}
    measured: dict[Contender, list[RunRecord]] = {}
    for ladder in ladders_of(asked):
        replay(climb(study, ladder, tuning, measured), store)
    for part in asked:
        if lacking := [each.arch for each in part.contenders if each not in measured]:
            place = f" at {part.title}" if part.title else ""
            count = f"{len(lacking)} of {len(part.contenders)} architectures"
            left_out.append(f"{count} have not finished{place}: {', '.join(lacking)}")
    return collected_outcome(asked, tuning, measured, [*left_out, *lines_of_missing(parts, asked)])


def replay(chain: Chain, store: Store) -> None:
    """Give a chain the records that it asks for, until it ends or the store lacks one."""
    records: list[RunRecord] | None = None
    with suppress(StopIteration):
        while True:
            runs = (chain.send(records) if records else next(chain)).runs
            if not all(store.has(spec.id) for spec in runs):
                return
            records = [store.load(spec.id) for spec in runs]


def collected_outcome(
    asked: Sequence[StudyPart],
    tuning: Mapping[Contender, list[RunRecord]],
    measured: Mapping[Contender, list[RunRecord]],
    left_out: list[str],
) -> StudyOutcome:
    """Return the records of the contenders that were measured, in the order of their parts."""
    contenders = [
        each for each in dict.fromkeys(each for part in asked for each in part.contenders) if each in measured
    ]
    ends, grids = ([record for each in contenders for record in kind.get(each, ())] for kind in (measured, tuning))
    return StudyOutcome(ends, grids, left_out)


def lines_of_missing(parts: Sequence[StudyPart], asked: Sequence[StudyPart]) -> list[str]:
    """Return a line about the parts that were not asked for; none if all were."""
    missing = [number for number, part in enumerate(parts, start=1) if part not in asked]
    first = f"of these first part {missing[0]}, {parts[missing[0] - 1].title}" if missing else ""
    return [f"{len(missing)} of {len(parts)} parts have not run, {first}"] if missing else []


def ladders_of(parts: Sequence[StudyPart]) -> list[list[tuple[int, Contender]]]:
    """Return the rungs of each contender that these parts have, from the lowest on, each with the place of its part."""
    ladders: dict[Contender, list[tuple[int, Contender]]] = {}  # by their highest rung so far
    for place, part in enumerate(parts):
        for i, each in enumerate(part.contenders):
            if each not in ladders:  # an architecture may be listed twice
                ladders[each] = [*(ladders.pop(part.below[i], []) if part.below else []), (place, each)]
    return list(ladders.values())


def climb(
    study: Study,
    ladder: Sequence[tuple[int, Contender]],
    tuning: dict[Contender, list[RunRecord]],
    measured: dict[Contender, list[RunRecord]],
) -> Chain:
    """Tune a contender and measure it, rung by rung; put the records into `tuning` and `measured`."""
    below: list[RunRecord] = []
    planned = [planned_runs(study, rung, height) for height, (_, rung) in enumerate(ladder)]
    for height, (place, each) in enumerate(ladder):
        above = [spec for phases in planned[height + 1 :] for runs in phases for spec in runs]
        later = [*planned[height][1], *above]
        if study.tunes(height):
            ask_at = lambda grid: Ask(runs_of(study, each, grid, study.tune_seeds), place, later)  # noqa: B023, E731
            grow = lambda grid, records: next_grid(study, grid, records, height)  # noqa: B023, E731
            below = tuning[each] = yield from tune(first_grid(study, below), ask_at, grow)
        rate = rate_of(study, below)
        records = yield Ask(runs_of(study, each, [rate], study.seeds), place, above)
        if study.more_seeds and is_bimodal_contender(records):
            records += yield Ask(runs_of(study, each, [rate], study.more_seeds), place, above)
        measured[each] = records


def parse_parts(text: str) -> tuple[int, ...]:
    """Parse the numbers of parts, `1,2,7` or `1..3`; raise SpecError for other text.

    >>> parse_parts("1,3..5")
    (1, 3, 4, 5)
    """
    numbers: list[int] = []
    for piece in text.split(","):
        first, dots, last = piece.partition("..")
        if not (first.isdecimal() and (last.isdecimal() or not dots) and int(last or first) < MOST_PARTS):
            raise SpecError(f"--parts takes numbers such as 1,2,7 or 1..3; got {text!r:.60}; list them with --dry-run")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def chosen_parts(parts: Sequence[StudyPart], numbers: Sequence[int]) -> list[StudyPart]:
    """Return the parts of these numbers, and those one rung below each, whose rates they start from; all without any.

    Raises SpecError for a number that no part has.
    """
    if wrong := [number for number in numbers if not 1 <= number <= len(parts)]:
        raise SpecError(f"this study has parts 1 to {len(parts)}; got {wrong[0]}; list them with --dry-run")
    chosen: list[StudyPart] = []
    for part in reversed(parts):
        needed = any(part.contenders == other.below for other in chosen)
        if needed or not numbers or parts.index(part) + 1 in numbers:
            chosen.append(part)
    return chosen[::-1]


def first_grid(study: Study, below: Sequence[RunRecord]) -> Grid:
    """Return the first grid of a contender: around the rate of the rung below, where its runs trained."""
    if not any_locked_in(below):
        return study.lr
    spacing, rate = spacing_of(study.lr), rate_of(study, below)
    return rounded_rate(rate / spacing), rate, rounded_rate(rate * spacing)


def next_grid(study: Study, grid: Grid, records: Sequence[RunRecord], height: int) -> Grid:
    """Return the grid that follows these records on a rung, the lowest of which has the height 0.

    By protocol 2 a grid at which no seed left the floor stays as it is.
    """
    if study.protocol > 1 and not any_locked_in(records):
        return grid
    refined = study.refined_rungs is None or height < study.refined_rungs
    return grow_grid(grid, rate_of(study, records), study.lr, refine=study.protocol > 1 and refined)


def rate_of(study: Study, records: Sequence[RunRecord]) -> float:
    """Return the best learning rate of a contender by its tuning runs; without any, the only rate of the study."""
    return best_rate(records, study.choice) if records else study.lr[0]


def is_bimodal_contender(records: Sequence[RunRecord]) -> bool:
    """Return whether the seeds of a contender fall into two modes by their test accuracy."""
    return is_bimodal([one.result.accuracy for one in records if one.result.status in SCORED], run_floor(records))


def plan_study(study: Study, store: Store) -> StudyPlan:
    """Count the runs of a study before tuning; the measuring runs are counted at the first learning rate."""
    parts, left_out = study_parts(study)
    return StudyPlan([plan_part(study, part, store) for part in parts], left_out)


def plan_part(study: Study, part: StudyPart, store: Store) -> StudyPartPlan:
    """Count the runs of a part before its grids grow."""
    planned = [planned_runs(study, each, part.height) for each in part.contenders]
    phases = [[spec for phases in planned for spec in phases[i]] for i in range(2)]
    left = [[spec for spec in runs if not store.has(spec.id)] for runs in phases]
    return StudyPartPlan(part, sum(map(len, phases)), len(phases[0]) - len(left[0]), left)


def planned_runs(study: Study, contender: Contender, height: int) -> tuple[list[RunSpec], list[RunSpec]]:
    """Return the first tuning runs of a contender, and its measuring runs, listed at the first rate of the grid.

    Above the lowest rung, whose height is 0, a grid has three rates.
    """
    rates = study.lr if study.tunes(height) else ()
    rates = rates[:3] if height else rates
    tuned = runs_of(study, contender, rates, study.tune_seeds) if rates else []
    return tuned, runs_of(study, contender, study.lr[:1], study.seeds)
