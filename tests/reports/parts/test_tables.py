"""Tables of a section, each of which is left out where it has nothing to show."""

from icl_bench.reports.explorer.answers import rates_answer
from icl_bench.reports.parts.controls import controls_table, own_answers_table
from icl_bench.reports.parts.rates import rate_table
from icl_bench.reports.parts.summary import main_table
from icl_bench.reports.text import NONE
from tests.reports.factory import comparison, make_record, section_of, with_cells


def test_the_main_table_holds_floor_oracle_and_what_failed() -> None:
    section = section_of([*comparison(2), make_record("linear", 9, status="error")])
    table = main_table(section)
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert rows["linear"]["failed runs"] == "1/3"
    assert [rows[name]["accuracy"] for name in ("floor", "oracle")] == ["0.146", "1.000"]
    assert [rows[name]["chance-corrected"] for name in ("floor", "oracle")] == ["0.000", "1.000"]
    assert rows["linear"]["FLOPs per token"] == "184,096"  # 180,000 on parameters, 2 x 2,048 on the state


def test_the_window_of_rates_is_reported() -> None:
    records = [make_record(lr=lr, validation=value) for lr, value in ((1e-4, 0.0), (1e-3, 1.0), (1e-2, 0.0))]
    section = section_of(records)
    row, floor, oracle = rate_table(section).rows
    assert row[-2:] == ("0.20", "inside")
    assert (floor[5], oracle[5]) == ("0.146", "1.000")
    assert rate_table(section_of([make_record()])).rows == ()


def test_an_entry_that_no_rate_trained_has_no_window() -> None:
    section = section_of([make_record(lr=lr, validation=0.01) for lr in (1e-4, 1e-3, 1e-2)])
    assert rate_table(section).rows[0][-2:] == (NONE, "no rate trained")
    assert rates_answer(section) == "No learning rate trained a seed"


def test_own_answers_are_shown_beside_shown_ones() -> None:
    runs = [with_cells(make_record(seed=s), free_running=0.5, free_running_exact=0.1) for s in range(3)]
    table = own_answers_table(section_of([*runs, make_record("linear")]))
    assert [row[:4] for row in table.rows[2:4]] == [
        ("power:p=2", "its own", "tokens", "0.500"),
        ("power:p=2", "its own", "examples", "0.100"),
    ]
    assert {row[0] for row in table.rows} == {"power:p=2", "oracle"}
    assert own_answers_table(section_of([make_record()])).rows == ()


def test_controls_are_told_of_runs_that_are_locked_in() -> None:
    solves, fails = make_record(accuracies=(1.0, 1.0, 1.0)), make_record("linear", accuracies=(0.2, 0.2, 0.2))
    half = make_record("softmax", accuracies=(0.5, 0.5, 0.5))
    both = [with_cells(run, controls={"rebound": 0.98, "no keys": 0.01}) for run in (solves, fails)]
    assert [row[0] for row in controls_table(section_of([with_cells(half, controls={"rebound": 0.4})])).rows] == [
        "softmax", "softmax", "floor",
    ]  # fmt: skip
    table = controls_table(section_of(both))
    assert [row[:4] for row in table.rows] == [
        ("power:p=2", "1", "unchanged", "1.000"),
        ("power:p=2", "1", "no keys", "0.010"),
        ("power:p=2", "1", "rebound", "0.980"),
        ("floor", NONE, "unchanged", "0.250"),
    ]
    assert controls_table(section_of([both[1]])).rows == ()
    assert controls_table(section_of([solves])).rows == ()
