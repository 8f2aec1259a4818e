"""Failures by their outcomes and by the causes that probes show."""

from icl_bench.reports.analysis import Section, analyse
from icl_bench.reports.canvas import figure_settings
from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.parts.causes import PART, cause_table, draw_onsets, typical_runs
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.probes import ProbePoint, Probes
from icl_bench.runs.record import RunRecord, RunResult
from tests.reports.factory import make_record

NAMES = ("gradient", "block0.eps_share", "block1.eps_share")


def keeping(record: RunRecord, steps: int = 500) -> RunRecord:
    """The record of a run of so many updates that clips gradients and keeps probes."""
    result = record.result.model_copy(update={"files": {"probes.json": "0" * 64}, "steps": steps})
    spec = {**record.spec, "train": {**record.spec["train"], "clip": 1.0}}
    return record.model_copy(update={"spec": spec, "result": result})


def probes_of(result: RunResult) -> Probes | None:
    """Probes of a run: tokens of the second layer are at the constant where it has not trained."""
    share = 0.9 if result.lr < 1e-2 else 0.0
    points = tuple(ProbePoint(step=step, values=(2.0, None, share)) for step in (10, 20))
    known = {"id": result.id, "task": result.task, "arch": result.arch}
    return Probes(**known, names=NAMES, points=points) if result.files else None


def section_of(*records: RunRecord) -> Section:
    return analyse(FinishedRuns.of(records, probes_of))[0]


LOST = keeping(make_record("power:p=6", 1, 0.3, status="diverged", detail="diverged at step 15: loss not finite"), 15)
STUCK = keeping(make_record("power:p=6", 1, 1e-3, [0.1] * 3, floors=[0.1] * 3, validation=0.1))
WELL = [keeping(make_record("power:p=6", seed, 1e-2, floors=[0.1] * 3, validation=2.5)) for seed in (1, 2)]
WITHOUT = make_record("linear", 1, 1e-2)


def test_a_row_counts_outcomes_and_the_causes_of_failures_alone() -> None:
    table = cause_table(section_of(LOST, STUCK, *WELL, WITHOUT))
    (row,) = [dict(zip(table.header, cells, strict=True)) for cells in table.rows]  # one keeps no probes
    assert row["architecture"] == "power:p=6, clip=1.0"
    assert (row["runs"], row["trained"], row["plateau"], row["nan"]) == tuple("4211")
    assert (row["eps"], row["sink"], row["starved"], row["over-clipped"]) == tuple("1002")


def test_a_run_of_each_outcome_is_drawn_the_worst_first() -> None:
    section = section_of(LOST, STUCK, *WELL)
    names = [run.name for run in typical_runs(section)]
    assert names == [
        f"{kind}: power:p=6, rate {rate}" for kind, rate in (("nan", 0.3), ("plateau", 0.001), ("trained", 0.01))
    ]
    with figure_settings():
        figure = draw_onsets(section, NO_STUDY)
    assert figure is not None
    gradient, scores, eps, _ = figure.axes
    assert [len(axes.lines) for axes in (gradient, scores, eps)] == [3, 0, 3]
    assert [line.get_xydata().tolist() for line in eps.lines[:2]] == [[[10.0, 0.0]], [[10.0, 0.9], [20.0, 0.9]]]


def test_runs_that_train_or_keep_no_probes_draw_nothing() -> None:
    assert draw_onsets(section_of(*WELL), NO_STUDY) is None
    assert PART.blocks(section_of(WITHOUT), None) == []
