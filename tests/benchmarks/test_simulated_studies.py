"""The statistics of reports on simulated studies and samples, whose right answers are known.

A few studies run in the quick tests; the slow tests count false claims over 400 studies of each kind, and the coverage
of every interval.
"""

import math
from pathlib import Path

import pytest
from scipy import stats

from tests.benchmarks.scripts import load_script

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"
STUDIES = 400
TRIALS = 2000
RARE = 1e-3
"""Probability with which a count may exceed its limit by chance."""


sim = load_script("simulated_studies")


def limit(studies: int, rate: float = 0.05) -> int:
    """The number of studies with a false claim that exceeds this rate by more than chance."""
    return int(stats.binom.ppf(1 - RARE, studies, rate))


def names(scenario) -> str:
    return f"{scenario.name}, {scenario.pairs} pairs"


def test_a_large_difference_is_claimed_and_an_untrained_entry_is_not_beaten() -> None:
    clear = next(one for one in sim.SCENARIOS if one.name == "one better by 4 deviations")
    found = sim.simulate(clear, 10, 5)["rank"]
    assert (found.with_false, found.true, found.possible) == (0, 45, 45)
    untrained = next(one for one in sim.SCENARIOS if one.name == "two untrained, two equal")
    assert sim.simulate(untrained, 10, 10)["rank"].with_false <= limit(10)


def test_what_counts_as_better() -> None:
    good, bad = sim.Law(0.9), sim.Law(0.8)
    assert good.beats(bad) and not bad.beats(good) and not good.beats(good)
    assert sim.Law(0.9, rate=0.9).beats(sim.Law(0.9, rate=0.5))
    assert not good.beats(sim.Law(0.8, rate=0.0))  # an untrained entry is no opponent
    assert not sim.Law(0.9, rate=0.5).beats(sim.Law(0.8, rate=0.9))  # neither is better


def test_the_page_holds_a_row_for_every_simulated_study() -> None:
    page = PAGE.read_text()
    assert all(f"| {scenario.name} | {scenario.pairs} | 10 |" in page for scenario in sim.SCENARIOS)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", sim.SCENARIOS, ids=names)
@pytest.mark.parametrize("seeds", [5, 10])
def test_false_claims_are_rare(scenario, seeds: int) -> None:
    for found in sim.simulate(scenario, seeds, STUDIES).values():
        assert found.with_false <= limit(STUDIES)


@pytest.mark.slow
@pytest.mark.parametrize("law", list(sim.LAWS))
@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
def test_intervals_of_medians_and_shifts_cover_what_they_say(law: str, seeds: int) -> None:
    for measure in (sim.median_coverage, sim.shift_coverage):
        held, level = measure(law, seeds, TRIALS)
        slack = 4 * math.sqrt(level * (1 - level) / TRIALS)  # four standard deviations of the share
        assert held >= level - slack
        assert held <= level + slack or law != "normal"  # equal values make an interval wider


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1.0, 0.8])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_of_k50_cover_what_they_say(rate: float, seeds: int) -> None:
    held, level = sim.capacity_coverage(rate, seeds, TRIALS)
    assert held >= level - 4 * math.sqrt(level * (1 - level) / TRIALS)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
def test_the_interval_of_a_rate_covers_on_average(seeds: int) -> None:
    mean, least = sim.rate_coverage(seeds)
    assert mean >= 0.95 and least >= 0.83  # Wilson's least coverage, near rates of 0 and 1 (Agresti and Coull 1998)


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [2, 8, 24])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_over_tasks_cover_nearly_what_they_say(tasks: int, seeds: int) -> None:
    held, _ = sim.aggregate_coverage(tasks, seeds, 1000)
    assert held >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 1000) - 0.01  # the bootstrap of a trimmed mean is no exact law
