"""Seeds that solved a cell, with the interval of their proportion and the step."""

from icl_bench.reports.parts.solved import solved_details, solved_table
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


def test_solved_seeds_stand_with_their_interval_and_step() -> None:
    table = solved_table(section_of(seeds([1.0, 0.4, 0.99, 0.3, 0.5], [800, None, 1200, None, None])))
    assert table.header == ("architecture", "pairs=4", "pairs=8", "pairs=16", "solved at")
    assert [str(cell) for cell in table.rows[0]] == [
        "softmax", "5/5 [0.57, 1.00]", "5/5 [0.57, 1.00]", "2/5 [0.12, 0.77]", "1,000",
    ]  # fmt: skip


def test_no_table_where_seeds_agree() -> None:
    assert not solved_table(section_of(seeds([1.0, 0.99, 1.0], [100, 200, 300]))).rows
    assert not solved_table(section_of(seeds([0.5, 0.6, 0.4], [None] * 3))).rows


def test_groups_that_seeds_differ_in_have_a_row() -> None:
    def with_hops(run: RunRecord, second: float) -> RunRecord:
        hops = {"hop 1": GroupScore(accuracy=1.0, count=10), "hop 2": GroupScore(accuracy=second, count=10)}
        return with_cells(run, groups=hops)

    runs = [with_hops(run, 1.0 - run.result.seed / 2) for run in seeds([1.0, 0.4], [100, None])]
    rows = [[str(cell) for cell in row] for row in solved_details(section_of(runs)).table.rows]
    assert [row[1] for row in rows] == ["hop 2"]
    assert rows[0][2] == "1/2 [0.09, 0.91]"
