"""The sentences of findings: the claims that a report makes, and those that it must not make."""

from collections.abc import Sequence

import pytest

from icl_bench.reports.parts.findings import findings
from icl_bench.reports.ranking import rankings
from icl_bench.runs.record import SOLVED, RunRecord
from tests.reports.factory import comparison, make_record, section_of, several, with_cells


def sentences(records: Sequence[RunRecord]) -> str:
    found = findings(section_of(records))
    assert len(found) <= 4
    return " ".join(found)


def test_clear_differences_are_claimed_with_interval_and_p() -> None:
    text = sentences(comparison(5))
    assert "softmax recalls more than power:p=2 (by 0.011, 96.8 % interval [" in text
    assert "at unequal state (2,048 to 17,408 elements)" in text
    assert "one learning rate was tried for every architecture" in text


def test_one_seed_claims_nothing() -> None:
    text = sentences(comparison(1))
    assert "no ranking, since every architecture has one seed" in text
    assert "recalls more" not in text


def test_a_lone_architecture_is_described() -> None:
    assert "power:p=2 reaches an accuracy of 0.900; the floor is 0.146 (one seed" in sentences([make_record()])


@pytest.mark.parametrize(("accuracy", "reason"), [(0.995, "saturated"), (SOLVED, "saturated"), (0.05, "at the floor")])
def test_saturated_and_floor_cells_do_not_rank(accuracy: float, reason: str) -> None:
    records = [*several("linear", accuracy, 0.0), *several("softmax", accuracy + 0.002, 0.001)]
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


def test_what_a_cautious_choice_of_the_rate_costs_is_a_limit() -> None:
    tuned = [(1e-3, (0.6, 0.6, 0.6)), (1e-2, (0.3, 0.9, 0.9))]
    runs = [make_record("linear", 1000 + i, lr, (a,) * 3) for lr, row in tuned for i, a in enumerate(row)]
    runs += [make_record("linear", seed, 1e-3, (0.6,) * 3) for seed in range(5)]
    text = sentences([*runs, *several("softmax", 0.8)])
    assert "best median, at which the median validation accuracy of tuning seeds is up to 0.300 higher" in text


def test_sizes_are_ranked_among_equals() -> None:
    small = [*several("linear", 0.4, state=1000), *several("window:w=8", 0.3, state=1040)]
    large = [*several("linear:heads=8", 0.8, state=4000), *several("window:w=32", 0.9, state=4100)]
    loose = several("softmax", 1.0, state=9000)
    found = rankings(section_of([*small, *large, *loose]))
    assert [ranking.best.label for ranking in found if ranking.best] == ["linear", "window:w=32"]
    text = sentences([*small, *large, *loose])
    assert "at 1,000 to 1,040 state elements, linear is ahead of window (by 0.100 [0.096, 0.104])" in text
    assert "not ranked, for lack of a match in state: 1 architecture" in text


def test_many_sizes_without_a_ranking_for_one_reason_are_one_sentence() -> None:
    records = [*several("linear", 0.4, state=1000), *several("window:w=8", 0.3, state=1040)]
    for size in (2000 * 2**step for step in range(7)):
        records += [*several(f"linear:heads={size}", 1.0, state=size), *several(f"window:w={size}", 1.0, state=size)]
    text = sentences(records)
    assert "16 entries of 2 architectures" in text
    assert "at 1,000 to 1,040 state elements, linear " in text
    assert text.count("no ranking") == 1
    assert "at 7 of 8 sizes of matched state no ranking, since every cell is saturated" in text


def test_factors_that_differ_are_a_limit() -> None:
    mixed = [*several("linear:conv=0", 0.5), *several("softmax:conv=4", 0.9)]
    assert "architectures that are compared differ in conv (0 and 4)" in sentences(mixed)
    assert "differ in" not in sentences([*several("linear", 0.5), *several("softmax", 0.9)])


def test_normalisers_of_any_mixer_are_factors() -> None:
    mixed = [
        *several("ssm:d_state=4", 0.5, arch_params={"normalizer": "rms", "taps": 2}),
        *several("power:p=2", 0.9, arch_params={"normalizer": "sum"}),
    ]
    text = sentences(mixed)
    assert "differ in normalizer (rms and sum)" in text
    assert "taps" not in text  # one of the two has none


def test_a_parameter_that_a_record_lacks_has_its_default() -> None:
    old, new = several("power:p=2", 0.5), several("power:p=3", 0.9, arch_params={"silu": True})
    assert "differ in silu (default and true)" in sentences([*old, *new])


def test_an_untrained_entry_is_named_and_is_no_opponent() -> None:
    text = sentences([*several("linear", 0.9), *several("softmax", 0.92), *several("window:w=1", 0.01, 0.001)])
    assert "untrained, so no opponent: window:w=1" in text
    assert "untrained, below the floor: window:w=1" in text


def test_a_test_that_cannot_decide_is_a_limit() -> None:
    few = [make_record(f"ssm:a={i}", seed, accuracies=(0.1 * i,) * 3) for i in range(3, 9) for seed in range(4)]
    assert "with 15 pairs, no difference is significant below 6 seeds on a side" in sentences(few)


def test_a_sweep_in_which_nothing_trained_has_no_best_rate() -> None:
    sweep = [make_record(lr=lr, validation=value) for lr, value in ((1e-3, 0.01), (1e-2, 0.02), (1e-1, 0.01))]
    text = sentences([*sweep, make_record("linear")])
    assert "no learning rate trained power:p=2" in text


def test_unequal_bytes_of_equal_elements_are_a_limit() -> None:
    runs = [*several("linear", 0.5, state=1000), *several("window:w=8", 0.6, state=1000)]
    halved = [halve_bytes(run) if run.result.arch == "linear" else run for run in runs]
    assert "states of equal elements differ in bytes of state, up to 2.0 times" in sentences(halved)


def halve_bytes(run: RunRecord) -> RunRecord:
    """A record whose state takes half the bytes."""
    assert run.result.state is not None
    state = run.result.state.model_copy(update={"bytes": run.result.state.bytes // 2})
    return run.model_copy(update={"result": run.result.model_copy(update={"state": state})})


def test_curves_that_still_rise_are_a_limit() -> None:
    assert "of every architecture still rose" in sentences(comparison(2))  # the curves here are straight lines
    flat = [
        run.model_copy(update={"metrics": tuple(p.model_copy(update={"accuracy": 0.9}) for p in run.metrics)})
        for run in comparison(2)
    ]
    assert "still rose" not in sentences(flat)
    stopped = [
        run.model_copy(update={"result": run.result.model_copy(update={"steps": run.result.steps - 1})})
        for run in comparison(2)
    ]
    assert "still rose" not in sentences(stopped)  # they were accurate enough


def test_a_padded_state_is_a_limit() -> None:
    wide = [*several("linear:d_key=99", 0.5), *several("linear:d_key=64", 0.9)]
    assert "padded state, which can hold less than its size: " in sentences(wide)
    assert "(rank 64 of d_key = 99)" in sentences(wide) and "of d_key = 64" not in sentences(wide)


def test_test_examples_that_were_trained_on_are_a_limit() -> None:
    seen = [with_cells(run, repeated=0.0625) for run in several("linear", 0.5)]
    assert "test examples of the same content as training examples: 6.2% of pairs=4, 6.2% of pairs=8 and" in sentences(
        seen
    )
    assert "same content" not in sentences(several("linear", 0.5))


def test_entries_that_compute_the_same_are_a_limit() -> None:
    both = [*several("window:w=99", 0.5), *several("softmax", 0.5), *several("linear", 0.6)]
    assert "equal in every seed and cell, as one function is: softmax and window:w=99" in sentences(both)
    assert "equal in every" not in sentences([*several("linear", 1.0, 0), *several("softmax", 1.0, 0)])
