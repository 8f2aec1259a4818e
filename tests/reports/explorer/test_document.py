"""The data document: its layout, its numbers beside those of the report, differences between stores, its size."""

import json

import pytest

from icl_bench.errors import RecordError
from icl_bench.reports.explorer.answers import figure_title, recall_answer
from icl_bench.reports.explorer.differences import store_differences
from icl_bench.reports.explorer.document import RUN_FIELDS, ViewedStore, explorer_document
from icl_bench.reports.explorer.glossary import GLOSSARY
from icl_bench.reports.statistics import median
from icl_bench.runs.kept import AnsweredExample, CellSamples, Samples
from icl_bench.runs.record import RunRecord
from tests.reports.factory import comparison, make_record, noise, section_of, sections_of

STATES = (1024, 4096)


def sizes(shift: float = 0.0, seeds: int = 8):
    """Two families at two sizes of matched state; the first is ahead at the larger size alone."""
    means = {("power:p=2", 0): (0.6, 0.4, 0.2), ("linear", 0): (0.6, 0.4, 0.2)}
    means |= {("power:p=2", 1): (0.9, 0.8, 0.7), ("linear", 1): (0.8 + shift, 0.85, 0.4)}
    return [
        make_record(f"{arch}{',' if ':' in arch else ':'}d_key={8 * (size + 1)}", seed, state=STATES[size],
                    accuracies=[min(1.0, value + noise(seed)) for value in values])
        for (arch, size), values in means.items()
        for seed in range(seeds)
    ]  # fmt: skip


def document_of(records, **fields):
    return explorer_document([ViewedStore("store", sections_of(records), **fields)], "title", "icl-bench view")


def rows_of(document):
    columns = document["runs"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_runs_are_rows_with_their_scores_and_the_command_that_made_them() -> None:
    records = [*comparison(2), make_record("linear", 7, status="oom", detail="line\nout of memory")]
    document = document_of(records)
    rows = rows_of(document)
    assert list(document["runs"]) == list(RUN_FIELDS) and len(rows) == len(records)
    by_id = {record.result.id: record for record in records}
    for row in rows:
        result = by_id[row["id"]].result
        assert (row["seed"], row["status"]) == (result.seed, result.status)
        assert document["commands"][row["command"]] == "icl-bench run assoc-recall"
        if result.status == "ok":
            assert row["cells"] == [round(cell.accuracy, 4) for cell in result.cells]
            assert row["curve"][::2] == [100, 200, 300, 400, 500]
    (failed,) = (row for row in rows if row["status"] == "oom")
    assert (failed["cells"], failed["detail"]) == (None, "out of memory")
    assert document["stores"][0]["failures"] == "1 failed (1 oom) of 9 runs"


def test_medians_are_those_of_all_seeds_that_measure() -> None:
    document = document_of(comparison(5))
    (section,) = document["sections"]
    for entry in section["entries"]:
        mine = [row["accuracy"] for row in rows_of(document) if row["entry"] == section["entries"].index(entry)]
        assert entry["median"] == pytest.approx(median(mine), abs=1e-4)
        assert entry["interval"] == pytest.approx([min(mine), max(mine), 0.9375], abs=1e-4)
        assert entry["solved"][:2] == [sum(value >= 0.99 for value in mine), 5]
    assert [cell["floor"] for cell in section["cells"]] == [0.25, 0.125, 0.0625]


def test_titles_state_the_answer_with_its_uncertainty() -> None:
    (section,) = document_of(sizes())["sections"]
    assert [group["sizes"] for group in section["groups"]] == [[1024, 1024], [4096, 4096]]
    none, ahead = section["groups"]
    assert none["answer"].endswith("does not differ significantly from power:p=2")
    assert ahead["answer"].startswith("power:p=2 recalls more than linear (by 0.117 [0.1")
    assert section["answers"]["recall"] == f"{none['answer']}; {ahead['answer']}"
    assert section["answers"]["failures"] == "No run of 32 failed"


def test_a_title_over_many_groups_counts_those_without_a_trained_opponent() -> None:
    def pair(width: int, other: float) -> list[RunRecord]:
        sizes = {"model": {"d_model": width}}
        return [
            make_record(arch, seed, accuracies=(accuracy + 0.001 * seed,) * 3, **sizes)
            for arch, accuracy in (("linear", 0.8), ("window:w=1", other))
            for seed in range(10)
        ]

    runs = [*pair(32, 0.4), *pair(64, 0.01), *pair(128, 0.8)]
    title = recall_answer(section_of(runs))
    assert title.startswith("Of 3 groups of matched state, linear is ahead at 1 of 3 (by 0.400), ")
    assert title.endswith("no opponent is trained at 1 and no difference is significant at 1")
    alone = recall_answer(section_of([*pair(32, 0.01), *pair(64, 0.01), *pair(128, 0.01)]))
    assert alone == "In none of 3 groups of matched state is a difference significant; at 3 no opponent is trained"


def test_figures_of_a_report_have_their_answer_as_title() -> None:
    (section,) = sections_of(sizes())
    assert "power:p=2 recalls more than linear (by 0.117 [0.1" in figure_title("recall-by-state", section)
    by_load = figure_title("accuracy-by-load", section)
    assert by_load.startswith("At pairs=16 the best median is that of power:p=2,d_key=") and by_load.count(" [0.") == 2
    by_group = figure_title("accuracy-by-group", section)
    assert by_group.startswith("The best median is highest at gap 4..7, 0.8") and "and lowest at gap 8..15" in by_group
    assert figure_title("loss-by-work", section) == ""
    (one,) = sections_of([make_record("a", accuracies=(0.0,) * 3), make_record("b", accuracies=(0.0,) * 3)])
    assert figure_title("recall-by-state", one).startswith("No ranking, since every architecture has one")
    assert figure_title("accuracy-by-load", one).startswith("No load ranks architectures")


def test_medians_that_change_their_order_are_found() -> None:
    (section,) = document_of(sizes())["sections"]
    names = [entry["label"] for entry in section["entries"]]
    found = [{names[first], names[second], before, after} for first, second, before, after in section["crossings"]]
    assert {"linear:d_key=16", "power:p=2,d_key=16", 0, 1} in found
    assert {"linear:d_key=16", "power:p=2,d_key=16", 1, 2} in found


def test_equal_records_give_an_equal_document_in_any_order() -> None:
    records = comparison(3)
    assert json.dumps(document_of(records)) == json.dumps(document_of(records[::-1]))


def test_differences_between_stores_are_marked_where_they_are_significant() -> None:
    changed = store_differences(sections_of(sizes()), sections_of(sizes(shift=-0.5)))
    marked = {row["labels"][0]: row["differs"] for row in changed["rows"]}
    assert marked == {label: label == "linear:d_key=16" for label in marked} and len(marked) == 4
    assert changed["title"] == "1 of 4 architectures that both stores have differ significantly"
    (row,) = (row for row in changed["rows"] if row["differs"])
    assert row["shift"][0] == pytest.approx(-0.5 / 3, abs=1e-3) and row["p"] < 0.01
    same = store_differences(sections_of(sizes()), sections_of(sizes()))
    assert not any(row["differs"] for row in same["rows"])


def test_kept_examples_are_cut_to_a_few() -> None:
    example = AnsweredExample(
        inputs=("k1", "v1", "k1"), positions=(2,), targets=("v1",), answers=("v2",), hits=(0.0,), groups=("gap 2",),
        answer_probabilities=(0.75,), target_probabilities=(0.125,),
    )  # fmt: skip
    (record,) = records = [make_record()]
    cells = (CellSamples(label="pairs=4", load=4, examples=(example,) * 32),)
    kept = Samples(id=record.result.id, task="assoc-recall", arch="power:p=2", cells=cells)
    (found,) = document_of(records, samples=[kept])["samples"]
    assert found["run"] == record.result.id and len(found["cells"][0]["examples"]) == 4
    assert found["cells"][0]["examples"][0]["chances"] == [0.125]


def test_records_that_cannot_be_read_are_named() -> None:
    document = document_of(comparison(1), problems=[RecordError("b"), RecordError("a")])
    assert document["stores"][0]["problems"] == ["a", "b"]


def test_a_document_of_no_runs_is_a_document() -> None:
    document = document_of([])
    assert document["runs"]["id"] == document["sections"] == [] and set(document["glossary"]) == set(GLOSSARY)


def test_a_run_takes_few_bytes() -> None:
    """20,000 runs with three cells and five validations each are then at most 5 MB, opened in seconds."""
    few, many = (len(json.dumps(document_of(comparison(seeds)), separators=(",", ":"))) for seeds in (2, 12))
    assert (many - few) / 40 < 250
