"""The estimate of time: at once, by finished runs or by a rule, and corrected while runs finish."""

import pytest

from icl_bench.errors import SpecError
from icl_bench.harness import estimate
from icl_bench.harness.estimate import (
    Forecast,
    estimate_runs,
    measured_seconds,
    operations_in_a_second,
    rough_seconds,
    run_kind,
    with_target,
)
from icl_bench.runs.events import Progress
from icl_bench.runs.store import Store
from tests.harness.training.small_runs import specs
from tests.runs.records import MANIFEST, filled, spec


def test_the_rule_grows_with_steps_batch_and_width_and_shrinks_for_no_run() -> None:
    base = rough_seconds(specs("softmax")[0], "cpu")
    twice = rough_seconds(specs("softmax", extra=("train.steps=24",))[0], "cpu")
    evaluation = 2 * base - twice
    assert base < twice < 2 * base and 0 < evaluation < base
    assert rough_seconds(specs("softmax", extra=("train.batch=16",))[0], "cpu") > base
    assert rough_seconds(specs("softmax", extra=("model.d_model=64",))[0], "cpu") > base
    assert rough_seconds(specs("softmax")[0], "cuda") < base


def test_wider_models_use_more_of_a_gpu_and_none_of_a_core() -> None:
    rates = [[operations_in_a_second(width, device) for width in (64, 128, 512, 4096)] for device in ("cpu", "cuda")]
    assert len(set(rates[0])) == 1 and [rate / rates[1][0] for rate in rates[1]] == [1, 1, 4, 8]
    assert [estimate_runs([], device).place for device in ("cpu", "cuda")] == ["in one process", "on one GPU"]


def test_a_layer_that_tells_no_work_on_its_state_is_estimated_all_the_same(tmp_path, monkeypatch) -> None:
    (tmp_path / "untold.py").write_text(
        "import torch\n\n\nclass Layer(torch.nn.Linear):\n"
        "    def __init__(self, d_model):\n        super().__init__(d_model, d_model)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert 0 < rough_seconds(specs("untold:Layer")[0], "cpu") < 60


def test_the_rule_is_applied_once_for_each_kind(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(estimate, "rough_seconds", lambda run, device: asked.append(run) or 2.0)
    runs = [run for arch in ("softmax", "linear") for run in specs(arch, seeds=range(5), lrs=(0.1, 0.2))]
    assert estimate_runs(runs, "cpu").seconds == 40.0 and len(asked) == 2


def test_finished_runs_of_the_same_kind_and_device_replace_the_rule(tmp_path) -> None:
    store = filled(tmp_path, 1, 2)
    known = measured_seconds(store, MANIFEST.device)
    assert known == {run_kind(spec(0).model_dump(mode="json")): 1.0}
    assert measured_seconds(store, "another") == {} == measured_seconds(Store(tmp_path / "none"), MANIFEST.device)
    found = estimate_runs([spec(3), spec(4), *specs("softmax")], "cpu", known)
    assert found.measured == 2 and found.seconds == pytest.approx(2.0 + rough_seconds(specs("softmax")[0], "cpu"))
    assert found.source.startswith("2 of 3 by finished runs, the others by a rule of thumb")
    assert estimate_runs([spec(3)], "cpu", known).source == "by finished runs of the same kind"


def test_a_forecast_follows_the_runs(monkeypatch) -> None:
    """Two workers; the rule says 10 s a run, and each takes 30 s."""
    monkeypatch.setattr(estimate, "rough_seconds", lambda run, device: 10.0)
    now = [0.0]
    forecast = Forecast("cpu", lambda: now[0])
    first, more = specs("softmax", seeds=range(4)), specs("linear", seeds=range(4))
    forecast.expect(more)
    forecast.plan([*first, spec(9)], first)
    assert (forecast.finished, forecast.total, forecast.seconds_left()) == (1, 9, 80.0)
    forecast.start()
    now[0] = 15.0
    half = Progress(6, 12, [0.0], [0.0], 1.0, 15.0)
    forecast.progress(first[:1], half)
    forecast.progress(first[1:2], half)
    assert forecast.seconds_left() == pytest.approx(70.0 * 15 / 10)  # seven eighths at the pace so far
    now[0] = 30.0
    for run in first[:2]:
        forecast.finish(run.id, 30.0)
    assert forecast.finished == 3 and forecast.seconds_left() == pytest.approx(90.0)  # six of 30 s by two workers
    forecast.progress(first[2:3], half._replace(began=6))
    assert forecast.seconds_left() == pytest.approx(90.0)  # what was done before counts as nothing


def test_a_plan_counts_no_finished_run_twice() -> None:
    runs, forecast = specs("softmax", seeds=range(3)), Forecast("cpu")
    forecast.plan(runs, [])
    forecast.plan([*runs, spec(7)], [spec(7)])
    assert (forecast.finished, forecast.total) == (3, 4)


def test_steps_follow_from_operations() -> None:
    """By hand: two layers of width 16, rows of 32 bytes, 8 rows a step, softmax, whose two forms are one."""
    (run,) = specs("softmax:heads=2,conv=0", task="text:corpus=example,length=32")
    d, length, layers, hidden = 16, 32, 2, 32
    mixers = layers * (8 * d * d + 2 * d * length)  # projections, and the causal half of scores and sums
    row = length * (mixers + layers * 6 * d * hidden) + (length - 1) * 2 * d * 256
    step = 3 * 8 * row
    assert with_target(run, 40.2 * step).train.steps == pytest.approx(40, abs=1)
    assert with_target(run, 1).train.steps == 1
    with pytest.raises(SpecError, match="--target-flops: steps: must be at most 10000000"):
        with_target(run, 1e30)


def test_steps_are_given_in_one_way(command) -> None:
    told = command("run", "copy", "-a", "linear", "--target-flops", "1e9", "--set", "train.steps=3")
    assert told.status == 2 and "--target-flops sets train.steps; got --set train.steps=3 too; leave one" in told.err
