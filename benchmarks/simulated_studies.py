"""Simulate studies with a known answer, and samples with a known median, and measure the statistics of reports on them.

    python benchmarks/simulated_studies.py [--studies 400] [--page docs/statistics.md]

A simulated study has four architectures at three sizes of equal state, or eight at two or four places, as
linear-vs-power-2 and -3 have, and scores drawn from known laws; it goes through the same analysis as a report on real
runs. A claim is false if the two laws are equal, if the other one is better, or if the other entry is untrained. Power
is the share of the true differences that are claimed. All numbers follow from a fixed seed.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from icl_bench.reports.analysis import analyse
from icl_bench.reports.context import PrimaryTest, StudyContext
from icl_bench.reports.fits import capacity
from icl_bench.reports.ranking import rankings
from icl_bench.reports.statistics import Interval, aggregate, interquartile_mean, median_interval, shift_between, wilson
from icl_bench.reports.text import NONE
from icl_bench.runs.declarations import ArchitectureDeclaration
from icl_bench.runs.outline import (
    CellExamples,
    Evaluation,
    FinishedRuns,
    MeasuredRun,
    Outline,
    Setting,
)
from icl_bench.runs.record import CellScore, Manifest, RunResult, StateReport, WorkReport

ARCHS = "abcdefgh"
SIZES = (1_000, 4_000, 16_000, 64_000)
FLOORS = {8: 0.15, 32: 0.06, 128: 0.03}
"""Floor by load, about those of associative recall."""
FLOOR = sum(FLOORS.values()) / len(FLOORS)
SCORED = 64
EXAMPLES = 512
TESTS: tuple[PrimaryTest, ...] = ("rank", "lock-in")
MARK = "<!-- simulated -->"

Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Draw the mean accuracies of n seeds."""


class Law(NamedTuple):
    """The distribution of the accuracy of a seed."""

    level: float
    """Mean accuracy of a locked-in seed."""
    spread: float = 0.05
    """Standard deviation of the accuracy of a locked-in seed."""
    rate: float = 1.0
    """Probability of lock-in."""

    def draw(self, rng: np.random.Generator, seeds: int) -> np.ndarray:
        """Draw the accuracy of each seed; a seed that is not locked in guesses a little below the floor."""
        locked = rng.random(seeds) < self.rate
        return np.where(locked, rng.normal(self.level, self.spread, seeds), rng.normal(FLOOR - 0.02, 0.01, seeds))

    def beats(self, other: "Law") -> bool:
        """Return whether this law is better than another: it trains more often or to a higher level, and not less."""
        trained = self.rate > 0 and other.rate > 0
        least = self.rate >= other.rate and self.level >= other.level
        return trained and least and (self.rate, self.level) != (other.rate, other.level)


class Scenario(NamedTuple):
    """The laws of a study, equal at each size."""

    name: str
    laws: tuple[Law, ...]
    """Law of each architecture."""
    sizes: tuple[int, ...] = SIZES[:3]
    """Sizes of the state, at each of which all architectures are compared."""

    @property
    def pairs(self) -> int:
        """Number of pairs in the family of tests."""
        return len(self.sizes) * math.comb(len(self.laws), 2)


SCENARIOS = (
    Scenario("equal", (Law(0.6, 0.1),) * 2, SIZES[:1]),
    Scenario("equal", (Law(0.6, 0.1),) * 4),
    Scenario("equal means, unequal spreads", (Law(0.6, 0.02), Law(0.6, 0.02), Law(0.6, 0.15), Law(0.6, 0.15))),
    Scenario("equal, bimodal: 60 % lock in", (Law(0.85, 0.03, 0.6),) * 2, SIZES[:1]),
    Scenario("equal, bimodal: 60 % lock in", (Law(0.85, 0.03, 0.6),) * 4),
    Scenario("equal, bimodal: 30 % lock in", (Law(0.85, 0.03, 0.3),) * 4),
    Scenario("two untrained, two equal", (Law(0.6, 0.1), Law(0.6, 0.1), Law(0.6, 0.1, 0.0), Law(0.6, 0.1, 0.0))),
    Scenario("all untrained", (Law(0.6, 0.1, 0.0),) * 4),
    Scenario("one better by 2 deviations", (Law(0.7), Law(0.6)), SIZES[:1]),
    Scenario("one better by 1 deviation", (Law(0.65), *(Law(0.6),) * 3)),
    Scenario("one better by 2 deviations", (Law(0.7), *(Law(0.6),) * 3)),
    Scenario("one better by 4 deviations", (Law(0.8), *(Law(0.6),) * 3)),
    Scenario("bimodal, one locks in at 90 % and not 50 %", (Law(0.85, 0.03, 0.9), *(Law(0.85, 0.03, 0.5),) * 3)),
    Scenario("bimodal, one locks in at 100 % and not 20 %", (Law(0.85, 0.03, 1.0), *(Law(0.85, 0.03, 0.2),) * 3)),
    Scenario("bimodal at 80 %, one better by 3 deviations", (Law(0.85, 0.03, 0.8), *(Law(0.76, 0.03, 0.8),) * 3)),
    Scenario("eight equal", (Law(0.6, 0.1),) * 8, SIZES[:2]),
    Scenario("eight, one better by 2 deviations", (Law(0.7), *(Law(0.6),) * 7), SIZES[:2]),
    Scenario("eight, one better by 3 deviations", (Law(0.75), *(Law(0.6),) * 7), SIZES[:2]),
    Scenario("eight equal", (Law(0.6, 0.1),) * 8, SIZES),
    Scenario("eight, one better by 2 deviations", (Law(0.7), *(Law(0.6),) * 7), SIZES),
    Scenario("eight, one better by 3 deviations", (Law(0.75), *(Law(0.6),) * 7), SIZES),
)


class Claims(NamedTuple):
    """Claims over many simulated studies."""

    studies: int
    with_false: int
    """Number of studies with a false claim."""
    true: int
    """Number of true differences that were claimed."""
    possible: int
    """Number of true differences."""


def simulate(scenario: Scenario, seeds: int, studies: int) -> dict[PrimaryTest, Claims]:
    """Simulate studies of a scenario, and count the claims of their reports by either primary test."""
    laws = dict(zip(ARCHS, scenario.laws, strict=False))
    better = sum(first.beats(second) for first, second in itertools.permutations(scenario.laws, 2))
    with_false, true = dict.fromkeys(TESTS, 0), dict.fromkeys(TESTS, 0)
    for number in range(studies):
        rng = np.random.default_rng([seeds, number, *scenario.name.encode()])
        study = made_up(laws, scenario.sizes, seeds, rng)
        for test in TESTS:
            claims = [laws[first].beats(laws[second]) for first, second in claimed(study, test)]
            with_false[test] += not all(claims)
            true[test] += sum(claims)
    possible = better * len(scenario.sizes) * studies
    return {test: Claims(studies, with_false[test], true[test], possible) for test in TESTS}


def claimed(study: FinishedRuns, test: PrimaryTest) -> Iterator[tuple[str, str]]:
    """Yield the two architectures of each difference that the report on a study claims."""
    (section,) = analyse(study, StudyContext(primary_test=test))
    for ranking in rankings(section):
        for row in ranking.by_claim.get("ahead", []):
            assert ranking.best
            yield ranking.best.family, row.other.family


def made_up(laws: Mapping[str, Law], sizes: Sequence[int], seeds: int, rng: np.random.Generator) -> FinishedRuns:
    """Draw the runs of a study."""
    environment = Manifest.model_construct()
    outlines, runs = [], {}
    evaluations = [evaluation(rng) for _ in range(seeds)]
    for (arch, law), size in itertools.product(laws.items(), sizes):
        setting = make_setting(arch, size)
        for seed, accuracy in enumerate(law.draw(rng, seeds)):
            run_id = f"{arch}{size}-{seed}"
            outlines.append(
                Outline(setting, environment, evaluations[seed], (seed, seed), 1e-3, accuracy, run_id, "ok", None)
            )
            runs[run_id] = run_of(setting, size, seed, accuracy, rng)
    return FinishedRuns(outlines, runs.__getitem__)


def evaluation(rng: np.random.Generator) -> Evaluation:
    """Draw the floors on the test examples of a data seed; four scored positions of an example are right together."""
    errors = rng.normal(0, 1, len(FLOORS))
    cells = [
        CellExamples(
            label=f"pairs={load}",
            load=load,
            length=2 * load,
            floor=floor + error * np.sqrt(floor * (1 - floor) * 4 / EXAMPLES / SCORED),
            floor_solver="any-value",
            answers=load,
            alphabet=512,
            scored=SCORED,
            oracle_error=None,
        )
        for error, (load, floor) in zip(errors, FLOORS.items(), strict=True)
    ]
    return Evaluation(tuple(cells), (), (), 256)


def make_setting(arch: str, size: int) -> Setting:
    """Return the setting of an architecture at a size of its state."""
    spec = {
        "arch": [{"name": arch, "version": 1, "params": {"d_key": size}}],
        "train": {"steps": 2000},
        "evaluation": {"examples": EXAMPLES},
    }
    declared = ArchitectureDeclaration(name=arch, size_parameters=("d_key",))
    return Setting("recall", f"{arch}:d_key={size}", "pairs", spec, (declared,))


def run_of(setting: Setting, size: int, seed: int, accuracy: float, rng: np.random.Generator) -> MeasuredRun:
    """Draw the accuracies of a run by cell: easier ones above the mean, harder ones below, and noise of the cells."""
    tilts = np.array([0.1, 0.0, -0.1]) * min(1.0, max(0.0, accuracy - FLOOR) * 4)
    values = np.clip(accuracy + tilts + rng.normal(0, 0.01, len(FLOORS)), 0, 1)
    cells = [
        CellScore.model_construct(label=f"pairs={load}", load=load, accuracy=float(value), controls={}, groups={})
        for load, value in zip(FLOORS, values, strict=True)
    ]
    result = RunResult.model_construct(
        id=f"{setting.arch}-{seed}",
        arch=setting.arch,
        seed=seed,
        lr=1e-3,
        status="ok",
        params=100_000,
        state=StateReport(elements=size, bytes=4 * size, length=256),
        work=WorkReport(weights=1.0, state=1.0),
        cells=tuple(cells),
    )
    spec = {**setting.spec, "seed": seed, "data_seed": seed}
    return MeasuredRun(spec, Manifest.model_construct(), result, (), ())


LAWS: Mapping[str, Draw] = {
    "normal": lambda rng, n: rng.normal(0.7, 0.1, n),
    "bimodal, 70 % at .9": lambda rng, n: np.where(
        rng.random(n) < 0.7, rng.normal(0.9, 0.03, n), rng.normal(0.1, 0.02, n)
    ),
    "skewed": lambda rng, n: 1 - np.minimum(1.0, rng.exponential(0.1, n)),
}
"""Laws of a sample, by name."""


def coverage(truth: float, intervals: Sequence[Interval | None]) -> tuple[float, float]:
    """Return the share of intervals that hold the true value, and their mean level."""
    known = [one for one in intervals if one is not None]
    held = sum(one.low <= truth <= one.high for one in known)
    return held / len(known), float(np.mean([one.level for one in known]))


def median_coverage(law: str, seeds: int, trials: int) -> tuple[float, float]:
    """Return coverage and level of the interval of a median."""
    rng = np.random.default_rng([seeds, trials])
    truth = float(np.median(LAWS[law](np.random.default_rng(1), 1_000_001)))
    return coverage(truth, [median_interval(LAWS[law](rng, seeds).tolist()) for _ in range(trials)])


def shift_coverage(law: str, seeds: int, trials: int) -> tuple[float, float]:
    """Return coverage and level of the interval of a shift of .1 between two samples of one law."""
    rng = np.random.default_rng([seeds, trials, 1])
    draw = LAWS[law]
    found = [shift_between((draw(rng, seeds) + 0.1).tolist(), draw(rng, seeds).tolist()) for _ in range(trials)]
    return coverage(0.1, [one.interval for one in found])


def rate_coverage(seeds: int) -> tuple[float, float]:
    """Return the coverage of Wilson's interval by counting: the mean over rates from .01 to .99, and the least."""
    intervals = [wilson(k, seeds) for k in range(seeds + 1)]
    rates = np.linspace(0.01, 0.99, 99)
    held = [[one.low <= rate <= one.high for one in intervals] for rate in rates]
    covered = (stats.binom.pmf(np.arange(seeds + 1), seeds, rates[:, None]) * np.array(held)).sum(axis=1)
    return float(covered.mean()), float(covered.min())


LOADS = (4, 8, 16, 32, 64, 128)


def recall_curves(rng: np.random.Generator, seeds: int, rate: float) -> np.ndarray:
    """Draw accuracies by seed and load: logistic with a K50 of 24 pairs and its spread, or near 0 without lock-in."""
    centres = np.log2(24) + rng.normal(0, 0.3, (seeds, 1))
    curves = 1 / (1 + np.exp((np.log2(LOADS)[None] - centres) / 0.5))
    curves = np.where(rng.random((seeds, 1)) < rate, curves, 0.02)
    return curves + rng.normal(0, 0.005, curves.shape)


def capacity_coverage(rate: float, seeds: int, trials: int) -> tuple[float, float]:
    """Return coverage and level of the interval of K50, where seeds lock in at a rate."""
    rng = np.random.default_rng([seeds, trials, 2])
    floors = [0.0] * len(LOADS)
    truth = capacity(LOADS, recall_curves(np.random.default_rng(1), 1501, rate).tolist(), floors)
    found = [capacity(LOADS, recall_curves(rng, seeds, rate).tolist(), floors) for _ in range(trials)]
    assert truth
    return coverage(truth.k50.value, [one.k50.interval if one else Interval(0, 0) for one in found])


def aggregate_coverage(tasks: int, seeds: int, trials: int) -> tuple[float, float]:
    """Return coverage and level of the interval of an interquartile mean over tasks of different levels."""
    rng = np.random.default_rng([tasks, seeds, trials])
    centres = np.linspace(0.1, 0.95, tasks)
    grid = stats.norm.ppf((np.arange(2001) + 0.5) / 2001)
    population = (centres[:, None] + 0.08 * grid).reshape(1, -1)
    truth = float(interquartile_mean(population, np.ones(population.size))[0])
    draws = (rng.normal(centres[:, None], 0.08, (tasks, seeds)).tolist() for _ in range(trials))
    return coverage(truth, [aggregate(scores)[1] for scores in draws])


def percent(share: float) -> str:
    """Format a proportion in percent."""
    return f"{100 * share:.1f} %"


def claims_table(studies: int) -> Iterator[str]:
    """Yield the rows of the table of simulated studies."""
    yield "| study | pairs | seeds | studies | false, rank | power, rank | false, lock-in | power, lock-in |"
    yield "| :-- | --: | --: | --: | --: | --: | --: | --: |"
    for scenario, seeds in itertools.product(SCENARIOS, (5, 10)):
        cells, number = [], studies * (5 if scenario.pairs == 1 else 1)  # of one pair, false claims come near 5 %
        for found in simulate(scenario, seeds, number).values():
            power = percent(found.true / found.possible) if found.possible else NONE
            cells += [percent(found.with_false / found.studies), power]
        yield f"| {scenario.name} | {scenario.pairs} | {seeds} | {number:,} | {' | '.join(cells)} |"


def coverage_table(trials: int) -> Iterator[str]:
    """Yield the rows of the table of coverage."""
    yield "| interval | sample | seeds | level | covered |"
    yield "| :-- | :-- | --: | --: | --: |"
    for law, seeds in itertools.product(LAWS, (3, 5, 10, 20)):
        held, level = median_coverage(law, seeds, trials)
        yield f"| median | {law} | {seeds} | {percent(level)} | {percent(held)} |"
    for law, seeds in itertools.product(LAWS, (3, 5, 10)):
        held, level = shift_coverage(law, seeds, trials)
        yield f"| shift | {law} | {seeds} and {seeds} | {percent(level)} | {percent(held)} |"
    for seeds in (3, 5, 10, 20):
        mean, least = rate_coverage(seeds)
        covered = f"{percent(mean)}, at least {percent(least)}"
        yield f"| lock-in rate | rates .01 to .99, counted | {seeds} | 95.0 % | {covered} |"
    for rate, seeds in itertools.product((1.0, 0.8), (3, 5, 10)):
        held, level = capacity_coverage(rate, seeds, trials // 5)
        yield f"| K50 | {100 * rate:.0f} % lock in | {seeds} | {percent(level)} | {percent(held)} |"
    for tasks, seeds in itertools.product((2, 8, 24), (3, 5)):
        held, level = aggregate_coverage(tasks, seeds, trials // 5)
        yield f"| interquartile mean | {tasks} tasks | {seeds} | {percent(level)} | {percent(held)} |"


def main() -> None:
    """Print both tables, and write them into a page between its two marks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    parts: list[list[str]] = []
    for rows in (claims_table(asked.studies), coverage_table(5 * asked.studies)):
        parts.append([])
        for row in rows:
            print(row, flush=True)
            parts[-1].append(row)
    if asked.page:
        before, _, after = asked.page.read_text().split(MARK)
        tables = "\n\n".join("\n".join(rows) for rows in parts)
        asked.page.write_text(f"{before}{MARK}\n\n{tables}\n\n{MARK}{after}")


if __name__ == "__main__":
    main()
