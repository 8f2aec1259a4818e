"""The claims on a learned degree, from published runs: what the conclusions of the studies quote."""

import pytest

from icl_bench.harness.study.file import load_study
from tests.benchmarks.scripts import load_script

claims = load_script("degree_claims")


@pytest.mark.parametrize(
    ("study", "steps", "weak", "strong"),
    [
        (
            "adaptive-degree-2", 8000,
            "| 280, 4 tasks, p = 1 | 0.731 | 0.802 | -0.094 | -0.279 to -0.044 | 1.1e-05 | 0.00013 |",
            "| vector-recall, 280, p = 1 of 4 | 0.853 | 0.911 | -0.052 | -0.174 to -0.004 | 0.00073 | 0.0073 |",
        ),
        (
            "adaptive-degree-6", 32000,
            "| 280, 4 tasks, p = 1 | 0.810 | 0.870 | -0.048 | -0.077 to -0.004 | 0.023 | 0.023 |",
            "| vector-recall, 280, p = 1 of 1 | 0.909 | 0.912 | -0.001 | -0.008 to +0.006 | 0.73 | 1 |",
        ),
    ],
)  # fmt: skip
def test_published_runs_give_the_claims_that_are_quoted(study: str, steps: int, weak: str, strong: str) -> None:
    loaded = load_study(study)
    places = claims.entries_of(loaded, [*claims.published_rows(loaded)], steps, degree=2)
    assert weak in claims.table(claims.weak(places)) and strong in claims.table(claims.strong(places))


def test_seeds_above_the_level_are_counted_at_each_budget_of_the_smallest_size() -> None:
    place, large = claims.Place("copy", 280), claims.Place("copy", 600)
    entry, better = claims.Entry((0.5, 0.8, 0.9), 0.8), claims.Entry((0.86, 0.87, 0.9), 0.87)
    lines = claims.above_levels({2000: {}, 8000: {place: {1: entry}, large: {1: better}}, 32000: {place: {1: better}}})
    assert lines == [
        "| entry | 2000 | 8000 | 32000 |", "| :-- | --: | --: | --: |",
        "| copy, p = 1, above 0.85 |  | 1 of 3 | 3 of 3 |",
    ]  # fmt: skip
    assert claims.above_levels({8000: {large: {1: better}}}) == []


def test_answers_of_two_budgets_are_those_of_entries_that_both_have() -> None:
    copy, recall = claims.Place("copy", 280), claims.Place("recall", 280)
    low, middle, high = (claims.Entry(tuple(base + i / 1000 for i in range(8)), base) for base in (0.2, 0.5, 0.8))
    lower = {copy: {claims.LEARNED: high, 1: middle, 2: low}, recall: {claims.LEARNED: low, 1: low}}
    upper = {copy: {claims.LEARNED: middle, 1: high, 3: low}}
    budgets = claims.shared(lower, upper), claims.shared(upper, lower)
    assert budgets == ({copy: {claims.LEARNED: high, 1: middle}}, {copy: {claims.LEARNED: middle, 1: high}})
    head = ["| comparison | lower | upper |", "| :-- | :-- | :-- |"]
    changed = [*head, "| copy, 280 | above | below |", "", "0 of 1 answers are the same."]
    assert claims.answers(*map(claims.strong, budgets)) == changed
    assert claims.answers(claims.strong(lower), claims.strong(lower))[-1] == "2 of 2 answers are the same."
    assert claims.answers([], claims.weak(upper)) == []


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        ("power:p=3,heads=1,d_key=3", 3), ("power:p=2,spectrum=learned", claims.LEARNED),
        ("power:p=3,spectrum=learned", None), ("power:p=2,spectrum=length", None), ("power:p=2,offset=learned", None),
        ("power:heads=2,degrees=[1|2]", None),
    ],
)  # fmt: skip
def test_architectures_of_other_kinds_stand_in_no_claim(arch: str, kind: int | None) -> None:
    assert claims.kind_of(arch, degree=2) == kind
