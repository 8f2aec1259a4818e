"""What a report claims, and what it must not."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from icl_bench.commands.tables import accuracy_bars, results_table
from icl_bench.reports.across import aggregate_table, task_table
from icl_bench.reports.analysis import analyse
from icl_bench.reports.capacities import recalls
from icl_bench.reports.controls import controls_table
from icl_bench.reports.findings import findings
from icl_bench.reports.ranking import Ranking, rankings, state_groups
from icl_bench.reports.tables import MAIN_HEADER, main_table, own_answers_table, rate_table
from icl_bench.reports.text import NONE
from icl_bench.runs.record import RunRecord
from tests.reports.factory import comparison, make_record, noise

SEEDS = range(5)


def ranked(records: Sequence[RunRecord]) -> list[Ranking]:
    (section,) = analyse(records)
    return rankings(section)


def sentences(records: Sequence[RunRecord]) -> str:
    (section,) = analyse(records)
    found = findings(section, rankings(section), recalls(section))
    assert len(found) <= 3
    return " ".join(found)


def runs(arch: str, accuracy: float, spread: float = 0.01, **fields: Any) -> list[RunRecord]:
    values = {seed: accuracy + noise(seed, spread) for seed in SEEDS}
    return [make_record(arch, seed, accuracies=(value,) * 3, **fields) for seed, value in values.items()]


def test_clear_differences_are_claimed_with_interval_and_p() -> None:
    text = sentences(comparison(5))
    assert "softmax recalls more than power:p=2 (by 0.011, 95 % [" in text
    assert "at unequal state (2,048 to 17,408 elements)" in text
    assert "one learning rate was tried for every architecture" in text


def test_one_seed_claims_nothing() -> None:
    text = sentences(comparison(1))
    assert "one seed each, so no ranking is claimed" in text
    assert "recalls more" not in text


def test_a_lone_architecture_is_described() -> None:
    assert "power:p=2 reaches an accuracy of 0.900, against a floor of 0.146 (one seed" in sentences([make_record()])


@pytest.mark.parametrize(("accuracy", "reason"), [(0.995, "saturated"), (0.05, "at the floor")])
def test_saturated_and_floor_cells_do_not_rank(accuracy: float, reason: str) -> None:
    records = [*runs("linear", accuracy, 0.001), *runs("softmax", accuracy + 0.002, 0.001)]
    (ranking,) = ranked(records)
    assert set(ranking.verdicts.values()) == {reason}
    assert ranking.best is None
    assert f"nothing that ranks the architectures: every cell is {reason}" in sentences(records)


def test_a_difference_within_the_noise_is_not_claimed() -> None:
    noisy = [make_record("linear", seed, accuracies=(0.5 + noise(3 * seed, 0.2),) * 3) for seed in SEEDS]
    (ranking,) = ranked([*noisy, *runs("softmax", 0.51)])
    assert [row.outcome for row in ranking.comparisons] == ["not separated"]


def test_a_ranking_that_the_rate_decides_is_not_claimed() -> None:
    sweep = (1e-4, 1e-3, 1e-2)
    picky = [run for lr, value in zip(sweep, (0.1, 0.9, 0.1), strict=True) for run in runs("linear", value, lr=lr)]
    easy = [run for lr, value in zip(sweep, (0.7, 0.8, 0.7), strict=True) for run in runs("softmax", value, lr=lr)]
    (ranking,) = ranked([*picky, *easy])
    assert ranking.best is not None
    assert ranking.best.label == "linear"
    assert [row.outcome for row in ranking.comparisons] == ["rate decides"]
    assert "no order is claimed" in sentences([*picky, *easy])


def test_architectures_without_common_seeds_are_not_compared() -> None:
    others = [make_record("softmax", seed, accuracies=(0.9,) * 3) for seed in (10, 11)]
    (ranking,) = ranked([*runs("linear", 0.5), *others])
    assert [row.outcome for row in ranking.comparisons] == ["not compared"]


def test_sizes_are_ranked_among_equals() -> None:
    small = [*runs("linear", 0.4, state=1000), *runs("window:w=8", 0.3, state=1040)]
    large = [*runs("linear:heads=8", 0.8, state=4000), *runs("window:w=32", 0.9, state=4100)]
    loose = runs("softmax", 1.0, state=9000)
    found = ranked([*small, *large, *loose])
    assert [ranking.best.label for ranking in found if ranking.best] == ["linear", "window:w=32"]
    text = sentences([*small, *large, *loose])
    assert "at 1,000 to 1,040 elements linear is ahead of window (by 0.100 [0.100, 0.100])" in text
    assert "1 architecture without a match in state not ranked" in text


def test_states_match_within_five_percent_of_one_size() -> None:
    (section,) = analyse([make_record(f"window:w={w}", state=w) for w in (950, 1050, 1051, 2000)])
    groups = [[entry.state_elements for entry in group] for group in state_groups(section.entries)]
    assert groups == [[950, 1050], [1051], [2000]]


def test_the_main_table_holds_floor_oracle_and_what_failed() -> None:
    (section,) = analyse([*comparison(2), make_record("linear", 9, status="error")])
    rows = {row[0]: row for row in main_table(section).rows}
    assert rows["linear"][-1] == "1/3"
    place = MAIN_HEADER.index("accuracy")
    assert [rows[name][place] for name in ("floor", "oracle")] == ["0.146", "1.000"]
    corrected = MAIN_HEADER.index("corrected")
    assert [rows[name][corrected] for name in ("floor", "oracle")] == ["0.000", "1.000"]
    assert rows["linear"][MAIN_HEADER.index("FLOPs")] == "184,096"  # 180,000 on parameters, 2 x 2,048 on the state


def test_the_window_of_rates_is_reported() -> None:
    records = [make_record(lr=lr, validation=value) for lr, value in ((1e-4, 0.0), (1e-3, 1.0), (1e-2, 0.0))]
    (section,) = analyse(records)
    row, floor, oracle = rate_table(section).rows
    assert row[-2:] == ("0.20", "inside")
    assert (floor[5], oracle[5]) == ("0.146", "1.000")
    assert rate_table(analyse([make_record()])[0]).rows == ()


def test_tasks_are_aggregated_for_architectures_that_ran_on_all() -> None:
    records = [*runs("linear", 0.5, 0), *runs("softmax", 0.9, 0), *runs("linear", 0.7, 0, task="copy")]
    row, floor, oracle = aggregate_table(analyse(records)).rows
    corrected = [sum((value - f) / (1 - f) for f in (1 / 4, 1 / 8, 1 / 16)) / 3 for value in (0.5, 0.7)]
    assert (row[0], row[2]) == ("linear", f"{sum(corrected) / 2:.3f}")
    assert (floor[2], oracle[2]) == ("0.000", "1.000")
    assert [row[1] for row in task_table(analyse(records)).rows] == [f"{value:.3f}" for value in corrected]
    assert aggregate_table(analyse(comparison(2))).rows == ()


def test_architectures_matched_task_by_task_are_aggregated_by_family() -> None:
    records = [*runs("window:w=8", 0.5, 0), *runs("window:w=32", 0.7, 0, task="copy")]
    assert [row[0] for row in aggregate_table(analyse(records)).rows] == ["window", "floor", "oracle"]
    several = [*records, *runs("window:w=16", 0.6, 0)]
    assert aggregate_table(analyse(several)).rows == ()  # which of the two sizes would it be?


def test_recalled_bits_and_prediction_come_from_the_cells() -> None:
    (section,) = analyse([make_record(accuracies=(1.0, 1.0, 1.0)), make_record("softmax", accuracies=(1.0, 1.0, 1.0))])
    power, softmax = recalls(section)
    assert power.bits == pytest.approx(16 * 7.906891)  # log2 240
    assert power.predicted == pytest.approx((64 / (2 * 5.480639) - 1) * 96, rel=1e-5)
    assert softmax.predicted is None


def with_cells(run: RunRecord, **fields: Any) -> RunRecord:
    """A record whose cells have other values."""
    cells = tuple(cell.model_copy(update=fields) for cell in run.result.cells)
    return run.model_copy(update={"result": run.result.model_copy(update={"cells": cells})})


def test_errors_are_laid_on_the_answers_where_more_is_scored_than_there_are() -> None:
    run = with_cells(make_record(accuracies=(0.9, 0.9, 0.9)), answers=4, scored=8, alphabet=16)
    bound = 4 * (4 - (-0.2 * math.log2(0.2) - 0.8 * math.log2(0.8)) - 0.2 * math.log2(15))
    (found,) = recalls(analyse([run])[0])
    assert found.bits == pytest.approx(bound)  # one in ten of eight positions: two in ten of four answers
    assert found.predicted is None  # the load does not count answers
    sampled = with_cells(make_record(accuracies=(1.0, 1.0, 1.0)), answers=100, scored=1, alphabet=16)
    (found,) = recalls(analyse([sampled])[0])
    assert found.bits == pytest.approx(400)
    assert found.bound == pytest.approx(8 * 40_000 / 4)
    (found,) = recalls(analyse([with_cells(make_record(), answers=None)])[0])
    assert (found.bits, found.bound) == (None, None)


def test_own_answers_are_shown_beside_shown_ones() -> None:
    runs = [with_cells(make_record(seed=s), free_running=0.5, free_running_exact=0.1) for s in range(3)]
    table = own_answers_table(analyse([*runs, make_record("linear")])[0])
    assert [row[:4] for row in table.rows[2:4]] == [
        ("power:p=2", "its own", "tokens", "0.500"),
        ("power:p=2", "its own", "examples", "0.100"),
    ]
    assert {row[0] for row in table.rows} == {"power:p=2", "oracle"}
    assert own_answers_table(analyse([make_record()])[0]).rows == ()


def test_controls_are_told_of_runs_that_solve() -> None:
    solves, fails = make_record(accuracies=(1.0, 1.0, 1.0)), make_record("linear", accuracies=(0.5, 0.5, 0.5))
    both = [with_cells(run, controls={"rebound": 0.98, "no keys": 0.01}) for run in (solves, fails)]
    table = controls_table(analyse(both)[0])
    assert [row[:4] for row in table.rows] == [
        ("power:p=2", "1", "unchanged", "1.000"),
        ("power:p=2", "1", "no keys", "0.010"),
        ("power:p=2", "1", "rebound", "0.980"),
        ("floor", NONE, "unchanged", "0.250"),
    ]
    assert controls_table(analyse([both[1]])[0]).rows == ()
    assert controls_table(analyse([solves])[0]).rows == ()


def test_factors_that_differ_are_a_limit() -> None:
    mixed = [*runs("linear:conv=0", 0.5), *runs("softmax:conv=4", 0.9)]
    assert "architectures differ in conv (0 and 4)" in sentences(mixed)
    assert "differ in" not in sentences([*runs("linear", 0.5), *runs("softmax", 0.9)])


def test_curves_that_still_rise_are_a_limit() -> None:
    assert "every architecture still rose" in sentences(comparison(2))  # the curves here are straight lines
    flat = [
        run.model_copy(update={"metrics": tuple(p.model_copy(update={"accuracy": 0.9}) for p in run.metrics)})
        for run in comparison(2)
    ]
    assert "still rose" not in sentences(flat)


def test_the_terminal_shows_names_as_they_are() -> None:
    console = Console(width=120, color_system=None)
    records = [*comparison(2), make_record("[red]odd[/red]", status="diverged")]
    with console.capture() as capture:
        console.print(results_table(records))
    lines = capture.get().splitlines()
    assert any(line.startswith("[red]odd[/red] (1 failed)") for line in lines)
    floor = next(line.split() for line in lines if line.startswith("floor"))
    assert floor[4:8] == ["0.146", "0.250", "0.125", "0.062"]


def test_bars_stand_best_first_over_the_floor() -> None:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(accuracy_bars([*comparison(2), make_record(task="copy")]))
    lines = [line.split() for line in capture.get().splitlines()]
    assert [line[0] for line in lines[1:]] == ["softmax", "power:p=2", "linear", "window:w=16", "floor"]
    assert [len(line[1]) for line in lines[1:]] == [40, 40, 35, 14, 6]  # of 40 characters
