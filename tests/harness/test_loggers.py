"""Loggers receive runs while they train and at their end, and no run fails whatever they do."""

import importlib.util
import logging
import sys
from types import SimpleNamespace

import pytest

from icl_bench.errors import SpecError
from icl_bench.harness import loggers
from icl_bench.harness.loggers import LOGGERS, LoggingReporter, about_record, final_values, log_finished, make_loggers
from icl_bench.runs.columns import SCORE_COLUMNS, STEP_COLUMNS
from icl_bench.runs.events import Progress
from icl_bench.runs.store import Store
from tests.runs.records import POINT, finished, spec


class Quiet:
    """A reporter that keeps the names of events."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        return lambda *arguments: self.calls.append(name)


class Kept:
    """A logger that keeps what it receives; it raises `error` in the method named `fails`."""

    def __init__(self, fails: str = "", error: BaseException | None = None) -> None:
        self.received: list[tuple] = []
        self.fails, self.error = fails, error

    def __call__(self, about):
        self.note("open", about.id)
        return SimpleNamespace(
            write=lambda step, values: self.note("write", about.id, step, dict(values)),
            end=lambda step, scores: self.note("end", about.id, step, dict(scores)),
            stop=lambda: self.note("stop", about.id),
        )

    def note(self, name: str, *parts) -> None:
        sys.stdout.write("noise\n")
        self.received.append((name, *parts))
        if name == self.fails:
            raise self.error

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.received]


def progress(step: int, members: int = 1, **more) -> Progress:
    return Progress(step, 10, [2.0] * members, [0.25] * members, 100.0, 1.0, **more)


def test_losses_validations_and_scores_are_logged_as_they_come(tmp_path, capsys) -> None:
    store, inner, kept = Store(tmp_path), Quiet(), Kept()
    times = iter([0.0, 0.0, 1.0, 6.0, 6.0, 6.0, 6.0])
    reporter = LoggingReporter(inner, store, {"kept": kept}, clock=lambda: next(times))
    runs = [spec(0), spec(1)]
    reporter.started(runs)
    reporter.progressed(runs, progress(1, 2))
    reporter.progressed(runs, progress(2, 2))  # too soon after the last loss
    reporter.progressed(runs, progress(4, 2))
    reporter.progressed(runs, progress(5, 2, validations=[POINT, POINT]))
    assert kept.names == ["open", "write"] * 2 + ["write"] * 4
    assert kept.received[-1] == (
        "write", spec(1).id, 5,
        {"train_loss": 1.5, "train_accuracy": 0.25, "validation": 0.5, "validation/pairs=2": 0.5},
    )  # fmt: skip
    finished(store, spec(0))
    reporter.finished([store.load(spec(0).id).result])
    assert kept.names[8:] == ["end"] and kept.received[-1][2] == 5  # its only validation is logged already
    reporter.closed()
    assert kept.received[-1] == ("stop", spec(1).id)
    assert inner.calls == ["started", *["progressed"] * 4, "finished", "closed"]
    assert capsys.readouterr().out == ""  # standard output is reserved for results


def test_what_no_report_brought_is_logged_at_the_end(tmp_path) -> None:
    store, kept = Store(tmp_path), Kept()
    finished(store, spec(0))
    LoggingReporter(Quiet(), store, {"kept": kept}).finished([store.load(spec(0).id).result])
    assert kept.names == ["open", "write", "end"] and kept.received[1][2] == 5


def test_steps_never_fall_and_numbers_are_finite(tmp_path) -> None:
    kept = Kept()
    reporter = LoggingReporter(
        Quiet(), Store(tmp_path), {"kept": kept}, clock=iter([0.0, 0.0, 9.0, 9.0, 20.0, 20.0]).__next__
    )
    reporter.progressed([spec(0)], progress(8))
    reporter.progressed([spec(0)], progress(3))  # a fleet that lost its worker starts again
    reporter.progressed([spec(0)], Progress(9, 10, [float("nan")], [float("nan")], 1.0, 1.0))
    assert [step for name, _, step, *_ in kept.received[1:]] == [8]


@pytest.mark.parametrize("fails", ["open", "write", "end", "stop"])
@pytest.mark.parametrize("error", [ConnectionError("no\nnetwork"), SystemExit(3)])
def test_a_logger_that_raises_is_dropped_and_the_others_go_on(tmp_path, caplog, fails: str, error) -> None:
    store, inner, bad, good = Store(tmp_path), Quiet(), Kept(fails, error), Kept()
    reporter = LoggingReporter(inner, store, {"bad": bad, "good": good})
    with caplog.at_level(logging.WARNING):
        for seed in (0, 1):
            reporter.progressed([spec(seed)], progress(1))
            finished(store, spec(seed))
            reporter.finished([store.load(spec(seed).id).result])
        reporter.progressed([spec(2)], progress(1))
        reporter.closed()
    assert bad.names.count(fails) == 1 and bad.names[-1] == fails
    assert good.names == ["open", "write", "write", "end"] * 2 + ["open", "write", "stop"]
    assert [record.getMessage() for record in caplog.records] == [
        f"logger bad is dropped: {type(error).__name__}: {' '.join(str(error).split())}"
    ]
    assert inner.calls == ["progressed", "finished", "progressed", "finished", "progressed", "closed"]


def test_a_run_that_cannot_be_read_back_is_named(tmp_path, caplog) -> None:
    store, good = Store(tmp_path), Kept()
    finished(store, spec(0))
    result = store.load(spec(0).id).result
    (store.path(spec(0).id) / "spec.json").unlink()
    with caplog.at_level(logging.WARNING):
        LoggingReporter(Quiet(), store, {"good": good}).finished([result])
    assert good.received == [] and "not logged" in caplog.text


def test_runs_that_are_done_already_are_named_with_the_way_to_log_them(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        LoggingReporter(Quiet(), Store(tmp_path), {"wandb": Kept()}).planned([spec(0), spec(1), spec(2)], [spec(1)])
    assert caplog.messages == ["2 runs are done already; `icl-bench runs export --to NAME` logs them (wandb)"]


def test_finished_runs_are_logged_from_their_records(tmp_path) -> None:
    store, good, bad = Store(tmp_path), Kept(), Kept("end", OSError("full"))
    finished(store, spec(0))
    records = [store.load(spec(0).id)]
    assert log_finished(records, {"good": good, "bad": bad}) == ["good"]
    assert good.names == ["open", "write", "end"]


def test_names_of_values_are_those_of_columns(tmp_path) -> None:
    finished(Store(tmp_path), spec(3))
    record = Store(tmp_path).load(spec(3).id)
    columns = {*SCORE_COLUMNS, *STEP_COLUMNS}
    final, config = final_values(record), about_record(record).config
    assert {name.partition("/")[0] for name in final} <= columns
    assert {"state_flops", "params", "accuracy", "accuracy/pairs=2", "floor/pairs=2", "seconds"} <= set(final)
    assert {name for name in config if "." not in name} <= columns | {"precision"}
    assert (config["seed"], config["lr"], config["train.steps"]) == (3, spec(3).train.lr, spec(3).train.steps)
    assert {name.partition("/")[0] for name in loggers.validation_values(POINT)} <= columns


def test_names_and_packages_are_checked_before_anything_runs(tmp_path, monkeypatch) -> None:
    with pytest.raises(
        SpecError, match="--log is one of tensorboard, trackio, wandb; got 'wandbb'; did you mean 'wandb'"
    ):
        make_loggers(["wandbb"], Store(tmp_path))
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    for name in LOGGERS:
        with pytest.raises(SpecError, match=rf"--log {name} needs the package .*pip install icl-bench\[{name}\]"):
            make_loggers([name], Store(tmp_path))
    assert make_loggers([], Store(tmp_path)) == {}


class Recorder:
    """Stands for a package and everything in it: keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple, dict]] = []
        self.summary: dict[str, float] = {}

    def __getattr__(self, name: str):
        def call(*arguments, **named):
            self.calls.append((name, arguments, named))
            return self

        return call


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_what_wandb_and_trackio_receive(tmp_path, monkeypatch, name: str) -> None:
    package = Recorder()
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: True)
    store = Store(tmp_path)
    finished(store, spec(3))
    assert log_finished([store.load(spec(3).id)], make_loggers([name], store)) == [name]
    calls = [(call, arguments, named) for call, arguments, named in package.calls if call != "update"]
    assert [call for call, *_ in calls] == (
        ["init", "log", "finish"] if name == "wandb" else ["init", "log", "log", "finish"]
    )
    config = calls[0][2]["config"]
    assert (config["lr"], config["seed"], config["train.steps"]) == (spec(3).train.lr, 3, spec(3).train.steps)
    assert calls[1][1][0]["validation"] == 0.5 and calls[1][2] == {"step": 5}
    scores = package.calls[-2][1][0] if name == "trackio" else package.summary
    assert scores["accuracy"] == scores["accuracy/pairs=2"] == 0.5 and scores["params"] == 10
    assert name == "trackio" or (calls[0][2]["mode"], calls[0][2]["reinit"]) == ("offline", "create_new")


def test_what_tensorboard_receives(tmp_path, monkeypatch) -> None:
    package = Recorder()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=package.SummaryWriter))
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: True)
    store = Store(tmp_path)
    finished(store, spec(3))
    assert log_finished([store.load(spec(3).id)], make_loggers(["tensorboard"], store)) == ["tensorboard"]
    assert ("add_scalar", ("validation", 0.5, 5), {}) in package.calls
    folder = tmp_path / "logs" / "tensorboard" / spec(3).id
    assert package.calls[0][1] == (str(folder),) and package.calls[-1][0] == "close"
    config, scores = package.calls[-2][1]
    assert config["seed"] == 3 and config["arch"] == "linear" and scores["accuracy/pairs=2"] == 0.5


@pytest.mark.parametrize("name", list(LOGGERS))
def test_the_packages_themselves(tmp_path, monkeypatch, name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}")
    monkeypatch.setenv("WANDB_SILENT", "true")
    store = Store(tmp_path)
    runs = [spec(3), spec(4)]
    reporter = LoggingReporter(Quiet(), store, make_loggers([name], store))
    for run in runs:  # two runs at a time, as members of a fleet are
        reporter.progressed([run], progress(1))
    for run in runs:
        finished(store, run)
        reporter.finished([store.load(run.id).result])
    reporter.closed()
    assert list(reporter.logs.loggers) == [name] and reporter.logs.logs == {}
    assert any((tmp_path / "logs" / name).rglob("*"))
