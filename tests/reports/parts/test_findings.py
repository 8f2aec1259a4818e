"""The sentences of findings: the claims that a report makes, and those that it must not make."""

from collections.abc import Sequence

import pytest

from icl_bench.reports.parts.findings import findings
from icl_bench.reports.ranking import rankings
from icl_bench.runs.record import RunRecord
from tests.reports.factory import comparison, make_record, section_of, several


def sentences(records: Sequence[RunRecord]) -> str:
    found = findings(section_of(records))
    assert len(found) <= 3
    return " ".join(found)


def test_clear_differences_are_claimed_with_interval_and_p() -> None:
    text = sentences(comparison(5))
    assert "softmax recalls more than power:p=2 (by 0.011, 95 % interval [" in text
    assert "at unequal state (2,048 to 17,408 elements)" in text
    assert "one learning rate was tried for every architecture" in text


def test_one_seed_claims_nothing() -> None:
    text = sentences(comparison(1))
    assert "no ranking, since every architecture has one seed" in text
    assert "recalls more" not in text


def test_a_lone_architecture_is_described() -> None:
    assert "power:p=2 reaches an accuracy of 0.900; the floor is 0.146 (one seed" in sentences([make_record()])


@pytest.mark.parametrize(("accuracy", "reason"), [(0.995, "saturated"), (0.05, "at the floor")])
def test_saturated_and_floor_cells_do_not_rank(accuracy: float, reason: str) -> None:
    records = [*several("linear", accuracy, 0.001), *several("softmax", accuracy + 0.002, 0.001)]
    (ranking,) = rankings(section_of(records))
    assert set(ranking.verdicts.values()) == {reason}
    assert ranking.best is None
    assert f"no ranking, since every cell is {reason}" in sentences(records)


def test_a_ranking_that_the_rate_decides_is_not_claimed() -> None:
    sweep = (1e-4, 1e-3, 1e-2)
    picky = [run for lr, value in zip(sweep, (0.1, 0.9, 0.1), strict=True) for run in several("linear", value, lr=lr)]
    easy = [run for lr, value in zip(sweep, (0.7, 0.8, 0.7), strict=True) for run in several("softmax", value, lr=lr)]
    (ranking,) = rankings(section_of([*picky, *easy]))
    assert ranking.best is not None
    assert ranking.best.label == "linear"
    assert [row.claim for row in ranking.comparisons] == ["rate decides"]
    assert "no order is claimed" in sentences([*picky, *easy])


def test_sizes_are_ranked_among_equals() -> None:
    small = [*several("linear", 0.4, state=1000), *several("window:w=8", 0.3, state=1040)]
    large = [*several("linear:heads=8", 0.8, state=4000), *several("window:w=32", 0.9, state=4100)]
    loose = several("softmax", 1.0, state=9000)
    found = rankings(section_of([*small, *large, *loose]))
    assert [ranking.best.label for ranking in found if ranking.best] == ["linear", "window:w=32"]
    text = sentences([*small, *large, *loose])
    assert "at 1,000 to 1,040 state elements linear is ahead of window (by 0.100 [0.100, 0.100])" in text
    assert "not ranked, for lack of a match in state: 1 architecture" in text


def test_factors_that_differ_are_a_limit() -> None:
    mixed = [*several("linear:conv=0", 0.5), *several("softmax:conv=4", 0.9)]
    assert "architectures differ in conv (0 and 4)" in sentences(mixed)
    assert "differ in" not in sentences([*several("linear", 0.5), *several("softmax", 0.9)])


def test_curves_that_still_rise_are_a_limit() -> None:
    assert "of every architecture still rose" in sentences(comparison(2))  # the curves here are straight lines
    flat = [
        run.model_copy(update={"metrics": tuple(p.model_copy(update={"accuracy": 0.9}) for p in run.metrics)})
        for run in comparison(2)
    ]
    assert "still rose" not in sentences(flat)
