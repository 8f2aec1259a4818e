"""Seeds that solved a cell, with the interval of their proportion and the step."""

from icl_bench.reports.parts.findings import findings
from icl_bench.reports.parts.solved import solved_details, solved_table
from icl_bench.reports.parts.summary import main_notes, main_table
from icl_bench.reports.text import NONE
from icl_bench.runs.record import GroupScore, RunRecord
from tests.reports.factory import make_record, section_of, with_cells


def at_step(run: RunRecord, step: int | None) -> RunRecord:
    return run.model_copy(update={"result": run.result.model_copy(update={"solved_at": step})})


def seeds(last: list[float], steps: list[int | None]) -> list[RunRecord]:
    """Records of seeds that differ in the accuracy of the cell of 16 pairs."""
    return [
        at_step(make_record("softmax", seed=seed, accuracies=(1.0, 0.995, accuracy)), step)
        for seed, (accuracy, step) in enumerate(zip(last, steps, strict=True))
    ]


JUMPING = seeds([1.0, 0.4, 0.99, 0.3, 0.5], [1200, None, 800, None, None])


def test_solved_seeds_stand_with_their_interval_and_each_step() -> None:
    table = solved_table(section_of([*JUMPING, make_record("linear", seed=0, accuracies=(0.5, 0.4, 0.3))]))
    assert table.header == ("architecture", "all cells", "pairs=4", "pairs=8", "pairs=16", "solved at", "others")
    softmax = ["softmax", "2/5 [0.12, 0.77]", "5/5 [0.57, 1.00]", "5/5 [0.57, 1.00]", "2/5 [0.12, 0.77]"]
    linear, solving, floor = ([str(cell) for cell in row] for row in table.rows)
    assert solving == [*softmax, "800; 1,200", "0.765 to 0.832"]
    assert linear[1:] == [*["0/1 [0.00, 0.79]"] * 4, NONE, "0.400"]
    assert floor == ["floor", *[NONE] * 5, "0.146"]


def test_solved_seeds_come_in_place_of_scores_over_all_seeds() -> None:
    section = section_of(JUMPING)
    assert not {"accuracy", "interval of the median", "chance-corrected", "solved seeds"} & {
        *main_table(section).header
    }
    assert len(main_table(section).rows) == 1
    assert not any("median over seeds" in note for note in main_notes(section).items)
    assert "Seeds that solved all cells: 2 of 5 of softmax (after 800 to 1,200 updates)." in findings(section)


def test_no_table_where_seeds_agree_or_are_close() -> None:
    for last in ([1.0, 0.99, 1.0], [0.5, 0.6, 0.4], [1.0, 0.99, 0.8]):
        section = section_of(seeds(last, [None] * 3))
        assert not solved_table(section).rows
        assert "accuracy" in main_table(section).header
        assert not any(sentence.startswith("Seeds") for sentence in findings(section))


def test_groups_that_seeds_differ_in_have_a_row() -> None:
    def with_hops(run: RunRecord, second: float) -> RunRecord:
        hops = {"hop 1": GroupScore(accuracy=1.0, count=10), "hop 2": GroupScore(accuracy=second, count=10)}
        return with_cells(run, groups=hops)

    runs = [with_hops(run, 1.0 - run.result.seed / 2) for run in seeds([1.0, 0.4], [100, None])]
    rows = [[str(cell) for cell in row] for row in solved_details(section_of(runs)).table.rows]
    assert [row[1] for row in rows] == ["hop 2"]
    assert rows[0][2] == "1/2 [0.09, 0.91]"
