"""Loggers receive every committed run, and no run fails whatever they do."""

import importlib.util
import logging
import sys
from types import SimpleNamespace

import pytest

from icl_bench.errors import SpecError
from icl_bench.harness import loggers
from icl_bench.harness.loggers import LOGGERS, LoggingReporter, make_loggers
from icl_bench.runs.store import Store
from tests.runs.records import finished, spec


class Quiet:
    """A reporter that keeps the names of events."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        return lambda *arguments: self.calls.append(name)


def test_a_logger_that_raises_is_dropped_and_the_others_go_on(tmp_path, caplog, capsys) -> None:
    store, inner, bad, good = Store(tmp_path), Quiet(), [], []

    def fail(record) -> None:
        bad.append(record.result.id)
        sys.stdout.write("noise\n")
        raise ConnectionError("no\nnetwork")

    reporter = LoggingReporter(inner, store, {"bad": fail, "good": lambda record: good.append(record.result.id)})
    reporter.planned(2, 0)
    with caplog.at_level(logging.WARNING):
        for seed in (0, 1):
            finished(store, spec(seed))
            reporter.finished([store.load(spec(seed).id).result])
    reporter.closed()
    assert inner.calls == ["planned", "finished", "finished", "closed"]
    assert bad == [spec(0).id] and good == [spec(0).id, spec(1).id]
    assert [record.getMessage() for record in caplog.records] == ["logger bad is dropped: ConnectionError: no network"]
    assert capsys.readouterr() == ("", "noise\n")


def test_a_run_that_cannot_be_read_back_is_named(tmp_path, caplog) -> None:
    store, good = Store(tmp_path), []
    finished(store, spec(0))
    result = store.load(spec(0).id).result
    (store.path(spec(0).id) / "spec.json").unlink()
    with caplog.at_level(logging.WARNING):
        LoggingReporter(Quiet(), store, {"good": good.append}).finished([result])
    assert good == [] and "not logged" in caplog.text


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
    store = Store(tmp_path)
    finished(store, spec(3))
    LOGGERS[name](tmp_path / "logs", store.load(spec(3).id))
    calls = {call: (arguments, named) for call, arguments, named in package.calls}
    assert calls["init"][1]["config"]["train.lr"] == spec(3).train.lr and calls["init"][1]["config"]["seed"] == 3
    assert calls["log"][0][0]["accuracy/validation"] == 0.5 and calls["log"][1] == {"step": 5} and "finish" in calls
    if name == "wandb":
        assert calls["init"][1]["mode"] == "offline" and package.summary["test/accuracy"] == 0.5


def test_what_tensorboard_receives(tmp_path, monkeypatch) -> None:
    package = Recorder()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=package.SummaryWriter))
    store = Store(tmp_path)
    finished(store, spec(3))
    LOGGERS["tensorboard"](tmp_path / "logs", store.load(spec(3).id))
    assert ("add_scalar", ("accuracy/validation", 0.5, 5), {}) in package.calls
    assert package.calls[0][1] == (str(tmp_path / "logs" / spec(3).id),) and package.calls[-1][0] == "close"


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_itself(tmp_path) -> None:
    store = Store(tmp_path)
    finished(store, spec(3))
    make_loggers(["tensorboard"], store)["tensorboard"](store.load(spec(3).id))
    assert list((tmp_path / "logs" / "tensorboard" / spec(3).id).glob("events*"))
