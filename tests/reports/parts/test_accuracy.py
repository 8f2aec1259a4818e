"""Errors of answers that are vectors, in reports."""

import io
from collections.abc import Sequence

from rich.console import Console

from icl_bench.commands.tables import results_table
from icl_bench.reports.blocks import Heading, Table
from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.document import compose
from icl_bench.reports.parts.accuracy import cell_table, divergence_table, error_table, group_table, ranking_note
from icl_bench.reports.parts.findings import findings
from icl_bench.reports.parts.summary import main_table
from icl_bench.reports.text import NONE
from icl_bench.runs.record import GroupScore, RunRecord
from tests.reports.factory import make_record, section_of, with_cells


def with_errors(arch: str, seed: int, errors: Sequence[float]) -> RunRecord:
    """A run whose cells have these errors, of which the oracle makes 0.1."""
    record = make_record(arch, seed, accuracies=[(1 - error) / 0.9 for error in errors])
    cells = tuple(
        cell.model_copy(update={"error": error, "oracle_error": 0.1})
        for cell, error in zip(record.result.cells, errors, strict=True)
    )
    return record.model_copy(update={"result": record.result.model_copy(update={"cells": cells})})


def column(table: Table, name: str) -> dict[str, str]:
    place = table.header.index(name)
    return {row[0]: row[place] for row in table.rows}


RUNS = [
    *(with_errors("softmax", seed, (0.1, 0.2, 0.3 + 0.03 * seed)) for seed in range(3)),
    *(with_errors("linear", seed, (0.4, 0.5, 0.6)) for seed in range(3)),
]


def test_the_error_stands_in_place_of_the_accuracy() -> None:
    table = main_table(section_of(RUNS))
    assert "accuracy" not in table.header
    assert column(table, "error") == {"linear": "0.500", "softmax": "0.210", "answering 0": "1.000", "oracle": "0.100"}
    intervals, levels = column(table, "interval of the median"), column(table, "its level")
    assert (intervals["linear"], intervals["softmax"]) == ("[0.500, 0.500]", "[0.200, 0.220]")
    assert levels["linear"] == "75 %"  # three seeds allow no more
    assert intervals["oracle"] == NONE and all(len(row) == len(table.header) for row in table.rows)


def test_errors_by_cell_are_medians_over_seeds() -> None:
    table = error_table(section_of(RUNS))
    assert column(table, "pairs=16") == {
        "linear": "0.600",
        "softmax": "0.330",
        "answering 0": "1.000",
        "oracle": "0.100",
    }


def test_a_diverged_run_counts_as_answering_0() -> None:
    dead = make_record("linear", 3, status="diverged")
    section = section_of([*RUNS, dead, make_record("linear", 4, status="diverged")])
    (linear,) = (entry for entry in section.entries if entry.label == "linear")
    assert sorted(linear.errors.values())[2:] == [0.5, 1.0, 1.0]


def test_divergences_from_exact_distributions_have_a_table() -> None:
    runs = [with_cells(make_record(seed=s), divergence=0.1 * (1 + s), possible_mass=0.9) for s in range(3)]
    table = divergence_table(section_of(runs))
    assert [row[1:3] for row in table.rows] == [("divergence", "0.200"), ("possible mass", "0.900")]
    assert divergence_table(section_of(RUNS)).rows == ()


def test_tokens_have_no_errors() -> None:
    section = section_of([make_record("softmax", 0)])
    assert error_table(section).rows == ()
    table = main_table(section)
    assert "error" not in table.header and column(table, "accuracy")["softmax"] == "0.900"


def test_what_was_found_names_errors() -> None:
    section = section_of(RUNS[:1])
    text = " ".join(findings(section))
    assert "softmax reaches an error of 0.200, an accuracy of 0.889" in text
    section = section_of([RUNS[0], RUNS[3]])
    text = " ".join(findings(section))
    assert "error softmax 0.200 and linear 0.500" in text


def test_the_terminal_has_a_column_of_errors() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(results_table(RUNS))
    lines = {line.split()[0]: line.split() for line in console.export_text().splitlines() if line.strip()}
    assert lines["architecture"][-1] == "error" and lines["softmax"][-1] == "0.210" and lines["floor"][-1] == NONE
    console.print(results_table([make_record("softmax", 0)]))
    assert "error" not in console.export_text()


def test_a_report_has_both_tables() -> None:
    headings = [
        block.text
        for block in compose([section_of(RUNS)], lambda i, figure: None, [], "", NO_STUDY)
        if isinstance(block, Heading)
    ]
    assert headings.index("Error by load") + 1 == headings.index("Accuracy by load")


def test_solvers_that_keep_the_context_have_a_row_of_their_own() -> None:
    section = section_of([with_cells(make_record(seed=seed), references={"induction": 0.9}) for seed in range(2)])
    rows = {row[0]: row[1:] for row in cell_table(section).rows}
    assert rows["induction"] == ("0.900",) * 3 and rows["floor"] == ("0.250", "0.125", "0.062")
    assert ranking_note(section).startswith("Without training, but with the whole context kept: induction. A cell")
    assert ranking_note(section_of([make_record()])).startswith("A cell does not rank")


def test_solvers_have_rows_by_group_where_they_are_known() -> None:
    plain = make_record()
    assert [row[0] for row in group_table(section_of([plain])).rows] == ["power:p=2"]
    groups = {
        "near": GroupScore(accuracy=0.7, count=9, floor=0.25, references={"induction": 0.5}),
        "far": GroupScore(accuracy=0.1, count=9),
    }
    run = with_cells(plain, groups=groups, references={"induction": 0.5})
    table = group_table(section_of([run]))
    places = [table.header.index(name) for name in ("near", "far")]
    rows = {row[0]: [row[place] for place in places] for row in table.rows}
    assert rows == {"power:p=2": ["0.700", "0.100"], "floor": ["0.250", NONE], "induction": ["0.500", NONE]}
