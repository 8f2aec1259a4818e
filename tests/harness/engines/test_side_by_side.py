"""Several fleets at once: the records of one at a time, how many, their memory, and their end after an error."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from icl_bench.errors import StoreError
from icl_bench.harness import interruption
from icl_bench.harness.engines import side_by_side
from icl_bench.harness.engines.base import Agenda
from icl_bench.harness.engines.executor import Executor
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.engines.side_by_side import LEAST_GAIN, Lane, Occupancy, SideBySide
from icl_bench.harness.interruption import Interrupted
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training import fleet as fleets
from icl_bench.harness.training.fleet import pack
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import Progress, SilentReporter
from icl_bench.runs.store import Store
from tests.harness.engines.test_contract import TASK, TINY, comparable
from tests.runs.records import finished, spec

MACHINE = Machine(torch.device("cpu"))


def progress(step: int, seconds: float, steps: int = 1000) -> Progress:
    return Progress(step, steps, [0.0], [0.0], 1.0, seconds)


def beside(most: int = 4) -> SideBySide:
    return SideBySide(MACHINE, InlineEngine(MACHINE).run_alone, most)


class Stage:
    """A stand-in for `run_fleet`: each fleet trains until its gate is open; keeps the most that trained at once."""

    def __init__(self, monkeypatch) -> None:
        self.training, self.most, self.lock = 0, 0, threading.Lock()
        self.gates: dict[int, threading.Event] = {}
        monkeypatch.setattr(fleets, "run_fleet", self.run)

    def run(self, specs, store, machine, report):
        with self.lock:
            self.training += 1
            self.most = max(self.most, self.training)
        try:
            self.train(specs, report)
        finally:
            with self.lock:
                self.training -= 1
        report(progress(1000, 1.0))
        for run in specs:
            finished(store, run)
        return [store.load(run.id).result for run in specs]

    def train(self, specs, report) -> None:
        report(progress(1, 0.1))
        if gate := self.gates.get(specs[0].seed):
            assert gate.wait(10)


def seeds_of(results) -> list[int]:
    return sorted(result.seed for result in results)


def test_the_records_are_those_of_one_fleet_at_a_time(tmp_path: Path) -> None:
    specs = expand_request(Request(TASK, ["power:p=2", "softmax", "linear"], seeds=range(2), settings=TINY))
    engine = beside()
    engine.occupancy.gains = {n: [2.0] for n in range(2, 5)}
    records = Executor(Store(tmp_path / "beside"), engine, 2, SilentReporter()).finish(specs)
    alone = Executor(Store(tmp_path / "alone"), InlineEngine(MACHINE), 2, SilentReporter()).finish(specs)
    assert [comparable(one) for one in records] == [comparable(one) for one in alone]


def test_the_next_fleet_is_prepared_while_one_trains(tmp_path: Path, monkeypatch) -> None:
    """The first fleet waits in its training until the second has ended; at most three train at once."""
    stage, store = Stage(monkeypatch), Store(tmp_path)
    stage.gates[0] = threading.Event()

    class Opening(SilentReporter):
        def finished(self, results) -> None:
            if results[0].seed == 1:
                stage.gates[0].set()

    results = list(beside().submit(Agenda([[spec(seed)] for seed in range(4)]), store, Opening()))
    assert seeds_of(results) == [0, 1, 2, 3] and 2 <= stage.most <= 4 and stage.training == 0


@pytest.mark.parametrize(("gains", "most"), [({3: [1.2]}, 4), ({3: [1.0], 4: [1.2]}, 3)])
def test_as_many_train_at_once_as_helped(tmp_path: Path, monkeypatch, gains, most: int) -> None:
    """Of three at once that helped, a fourth is tried beside them."""
    stage, engine = Stage(monkeypatch), beside(8)
    engine.occupancy.gains = dict(gains)
    stage.gates = {seed: threading.Event() for seed in range(most)}

    class Opening(SilentReporter):
        def progressed(self, specs: Sequence, progress: Progress) -> None:
            if specs[0].seed == most - 1 and progress.step == 1:
                for gate in stage.gates.values():
                    gate.set()

    results = list(engine.submit(Agenda([[spec(seed)] for seed in range(6)]), Store(tmp_path), Opening()))
    assert seeds_of(results) == list(range(6)) and stage.most == most
    assert engine.occupancy.wanted == most - 1


def test_fleets_that_do_not_fit_beside_each_other_take_turns(tmp_path: Path, monkeypatch) -> None:
    stage, engine = Stage(monkeypatch), beside(8)
    engine.occupancy.gains = {n: [2.0] for n in range(2, 9)}
    monkeypatch.setattr(side_by_side, "memory_budget", lambda machine: 10.0)
    monkeypatch.setattr(side_by_side, "memory_of", lambda fleet: 6.0)
    results = list(engine.submit(Agenda([[spec(seed)] for seed in range(4)]), Store(tmp_path), SilentReporter()))
    assert seeds_of(results) == [0, 1, 2, 3] and stage.most == 1


def test_code_from_outside_runs_alone_in_the_calling_thread(tmp_path: Path, monkeypatch) -> None:
    stage, alone = Stage(monkeypatch), []
    foreign = spec(1).model_copy(update={"task": spec(1).task.model_copy(update={"source": "0" * 16})})

    def run_alone(fleet, store, reporter):
        assert not stage.training and threading.current_thread() is threading.main_thread()
        alone.append(fleet)
        yield from stage.run(fleet, store, MACHINE, lambda progress: None)

    engine = SideBySide(MACHINE, run_alone)
    agenda = Agenda([[spec(0)], [foreign], [spec(2)]])
    assert seeds_of(engine.submit(agenda, Store(tmp_path), SilentReporter())) == [0, 1, 2]
    assert alone == [[foreign]]


def test_an_error_stops_the_other_fleets_and_is_raised(tmp_path: Path, monkeypatch) -> None:
    stage, threads = Stage(monkeypatch), threading.active_count()
    told = threading.Event()

    def train(specs, report) -> None:
        report(progress(1, 0.1))
        if specs[0].seed == 1:
            raise StoreError("the disk is full")
        told.wait(10)
        report(progress(2, 0.2))  # in which it learns that it must stop
        pytest.fail("went on")

    monkeypatch.setattr(stage, "train", train)
    monkeypatch.setattr(side_by_side.Lanes, "stop", lambda self, stop=side_by_side.Lanes.stop: (told.set(), stop(self)))
    engine = beside()
    monkeypatch.setattr(side_by_side.LaneStopped, "__init__", lambda self: None)
    with pytest.raises(StoreError, match="the disk is full"):
        list(engine.submit(Agenda([[spec(0)], [spec(1)], [spec(2)]]), Store(tmp_path), SilentReporter()))
    assert stage.training == 0 and threading.active_count() == threads and not list(Store(tmp_path).ids())


def test_a_device_that_fails_in_a_thread_ends_the_command(tmp_path: Path, monkeypatch) -> None:
    def fail(machine: Machine) -> None:
        raise RuntimeError("no stream")

    monkeypatch.setattr(side_by_side, "use_own_stream", fail)
    with pytest.raises(RuntimeError, match="no stream"):
        list(beside().submit(Agenda([[spec(0)], [spec(1)]]), Store(tmp_path), SilentReporter()))


def test_a_signal_stops_all_fleets(tmp_path: Path, monkeypatch) -> None:
    specs = expand_request(Request(TASK, ["linear", "softmax"], settings=[*TINY, "train.steps=1000000"]))

    class Stopping(SilentReporter):
        def progressed(self, specs: Sequence, progress: Progress) -> None:
            monkeypatch.setattr(interruption.CURRENT, "received", 2)

    store = Store(tmp_path)
    with pytest.raises(Interrupted):
        list(beside().submit(Agenda(pack(specs, 1)), store, Stopping()))
    assert not list(store.ids()) and not list((tmp_path / "attempts").iterdir())


def test_the_gain_of_a_fleet_beside_others_is_told_by_its_own_speeds() -> None:
    """Alone 100 steps a second, beside another 70: two do 140, which is 1.4 times as much."""
    lane, occupancy = Lane([spec(0)], 0.0), Occupancy()
    assert occupancy.wanted == 3 and Occupancy(most=1).wanted == 1
    lane.note(progress(0, 0.0), changes=0, training=1)
    lane.note(progress(100, 1.0), changes=0, training=1)
    lane.note(progress(110, 2.0), changes=1, training=2)  # another one came in between: no speed of either
    lane.note(progress(180, 3.0), changes=1, training=2)
    assert lane.speeds == {1: [100.0], 2: [70.0]}
    occupancy.measure([lane])
    assert occupancy.gains == {2: [pytest.approx(1.4)]} and occupancy.wanted == 3


def test_a_fleet_gives_its_place_away_a_second_before_its_end() -> None:
    lane = Lane([spec(0)], 0.0)
    assert not lane.stays
    lane.phase = "training"
    for step, stays in ((1, True), (899, True), (900, False), (999, False)):
        lane.note(progress(step, step / 100), 0, 1)
        assert lane.stays == stays
    lane.phase = "ending"
    assert not lane.stays


def test_one_more_is_tried_until_it_does_not_help() -> None:
    occupancy = Occupancy(most=4)
    occupancy.gains = {2: [LEAST_GAIN], 3: [1.5, 1.0, 1.0], 4: [2.0]}
    assert occupancy.wanted == 2
    occupancy.gains[3] += [1.5, 1.5]
    assert occupancy.wanted == 4


def test_fleets_run_beside_each_other_on_a_gpu_where_there_are_several(tmp_path: Path, monkeypatch) -> None:
    assert InlineEngine(MACHINE).beside is None
    engine = InlineEngine(Machine(torch.device("cuda")))
    assert engine.beside is not None and InlineEngine(engine.machine, at_once=1).beside is None
    taken: list[str] = []

    def note(name: str, count: int):
        def submit(agenda: Agenda | Sequence, *_):
            taken.append(name)
            for _ in range(count if isinstance(agenda, Agenda) else 0):
                agenda.take()
            return iter(())

        return submit

    monkeypatch.setattr(engine.beside, "submit", note("beside", 2))
    monkeypatch.setattr(engine, "run_alone", note("alone", 0))
    for count in (1, 3):
        list(engine.submit(Agenda([[spec(seed)] for seed in range(count)]), Store(tmp_path), SilentReporter()))
    assert taken == ["alone", "beside", "alone"]
