"""Runs that end at a validation accuracy, alone and in fleets."""

import pytest

from icl_bench.errors import SpecError
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.results import member_result
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.probes import ProbePoint, Probes
from icl_bench.runs.record import MetricPoint
from icl_bench.runs.spec import RunSpec
from tests.harness.training.small_runs import CPU, Trained, specs, trained, with_rate

POINTS = ("evaluation.points=4", "evaluation.validation=64")


def points_of(result: Trained, member: int) -> list[MetricPoint]:
    return [point for one, point in result.logged if one == member]


def stopping(rates: tuple[float, ...], limit: float | None) -> list[RunSpec]:
    extra = POINTS if limit is None else (*POINTS, f"train.stop_above={limit}")
    (run,) = specs("softmax", extra=extra)
    return [with_rate(run, rate).model_copy(update={"seed": seed}) for seed, rate in enumerate(rates)]


def limit_between(rates: tuple[float, ...], above: int) -> float:
    """Return an accuracy that so many of the runs exceed at a validation before the last."""
    whole = trained(stopping(rates, None))
    best = sorted((max(p.accuracy for p in points_of(whole, m)[:-1]) for m in range(len(rates))), reverse=True)
    assert best[above - 1] > best[above]
    return (best[above - 1] + best[above]) / 2


def test_a_stopped_member_ends_as_its_run_alone_and_the_others_go_on() -> None:
    rates = (1e-4, 1e-3, 1e-2, 3e-2)
    limit = limit_between(rates, above=2)
    fleet, whole = trained(stopping(rates, limit)), trained(stopping(rates, None))
    stopped = [scores.stopped_at for scores in fleet.scores.members]
    assert sorted(map(bool, stopped)) == [False, False, True, True]
    for member, run in enumerate(stopping(rates, limit)):
        alone = trained([run])
        assert points_of(fleet, member) == points_of(alone, 0)
        assert fleet.scores.members[member] == alone.scores.members[0]
        result = member_result(run, fleet.scores, member, "")
        assert result.status == "ok" and result.steps == (stopped[member] or 12)
        if stopped[member]:
            assert (
                points_of(fleet, member)[-1].accuracy
                > limit
                >= max([0.0, *(point.accuracy for point in points_of(fleet, member)[:-1])])
            )
            assert alone.loop.trainer.done == stopped[member] == points_of(fleet, member)[-1].step
        else:
            assert fleet.scores.members[member] == whole.scores.members[member]


def test_a_fleet_that_lost_members_to_both_ends_is_tested_whole() -> None:
    rates = (1e38, 1e-2, 3e-2)
    fleet = trained(stopping(rates, 0.0))
    diverged, first, second = fleet.scores.members
    assert diverged.diverged_at and not diverged.cells and not diverged.stopped_at
    assert first.stopped_at and second.stopped_at and first.cells and second.cells
    assert fleet.loop.trainer.done < 12 and fleet.loop.roster.held == [0, 1, 2]
    assert [point.step for point in points_of(fleet, 0)] == [3, 6, 9, 12]  # as alone


def test_a_stopped_member_has_the_probes_of_its_run_alone() -> None:
    rates = (1e-4, 1e-3, 1e-2)
    runs = stopping(rates, limit_between(rates, above=1))  # one of three stops, and is held with the others
    fleet, *alone = (trained(some, keep=("probes",)).scores for some in (runs, *([run] for run in runs)))
    steps = [[[point.step for point in probes_of(files)] for files in scores.kept] for scores in (fleet, *alone)]
    assert steps[0] == [own for (own,) in steps[1:]]
    last = [own[-1] for own in steps[0]]
    assert last == [member.stopped_at or 12 for member in fleet.members] and min(last) < 12


def probes_of(files: dict[str, bytes]) -> tuple[ProbePoint, ...]:
    return Probes.model_validate_json(files["probes.json"]).points


def test_a_run_without_a_limit_has_its_former_id_and_a_limit_is_an_accuracy() -> None:
    (run,) = specs("softmax")
    assert "stop_above" not in run.train.model_dump()
    with pytest.raises(SpecError, match="stop_above"):
        specs("softmax", extra=("train.stop_above=1.5",))


def test_the_end_of_training_is_reported_when_it_is_known() -> None:
    reports = []
    loop = TrainingLoop(Trainer(stopping((1e-2,), 0.0), Machine(CPU)), reports.append, lambda member, point: None)
    loop.run()
    assert reports[-1].step == reports[-1].steps == loop.trainer.done < 12
