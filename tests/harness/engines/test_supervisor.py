"""The supervisor by itself, with workers whose messages the tests choose."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from icl_bench.errors import EngineError, StoreError
from icl_bench.harness.engines import places
from icl_bench.harness.engines.base import Agenda
from icl_bench.harness.engines.leases import Leases, lease_name
from icl_bench.harness.engines.messages import (
    Finished,
    FleetError,
    Heartbeat,
    Limits,
    Message,
    Order,
    ProgressReport,
    Ready,
    WorkerLost,
)
from icl_bench.harness.engines.places import WorkerSlot
from icl_bench.harness.engines.queues import FleetQueue, LeaseQueue
from icl_bench.harness.engines.supervisor import Submission, Supervisor, Usage
from icl_bench.harness.environment import make_manifest
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import Progress, SilentReporter
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from tests.runs import records

MACHINE = Machine(torch.device("cpu"))
Behaviour = Callable[[Order], list[Message]]


class Puppet:
    """A worker that answers an order as the behaviour of its pool says."""

    def __init__(self, behaviour: Behaviour, first: list[Message]) -> None:
        self.behaviour, self.messages = behaviour, [*first]
        self.ended: str | None = None

    def assign(self, order: Order) -> None:
        assert self.ended is None
        self.messages += self.behaviour(order)

    def ask_to_end(self) -> None:
        self.messages.append(WorkerLost("asked"))

    def kill(self) -> None:
        assert self.ended is None
        self.ended = "killed"


class PuppetPool:
    """A pool of such workers."""

    def __init__(self, behaviour: Behaviour, first: tuple[Message, ...] = (Ready(),)) -> None:
        self.behaviour, self.first = behaviour, list(first)
        self.started: list[Puppet] = []

    def start(self) -> Puppet:
        self.started.append(Puppet(self.behaviour, self.first))
        return self.started[-1]

    def listen(self, workers, seconds):
        spoken = False
        for worker in workers:
            while worker.messages and worker.ended is None:
                spoken = True
                yield worker, worker.messages.pop(0)
        if not spoken:
            time.sleep(0.01)

    def place_of(self, worker: Puppet) -> object:
        return worker

    def kill_all(self, workers) -> None:
        for worker in workers:
            worker.kill()

    def close(self) -> None: ...


class Quiet(SilentReporter):
    """Keeps the reasons of losses."""

    def __init__(self) -> None:
        self.losses: list[str] = []

    def lost(self, specs, reason) -> None:
        self.losses.append(reason)


def runs(count: int) -> list[RunSpec]:
    return expand_request(Request("assoc-recall", ["linear"], seeds=range(count)))


def commit(order: Order, specs) -> list:
    store, manifest = Store(order.root), make_manifest(MACHINE.device, "auto", 1)
    return [store.begin(spec, manifest).commit(records.result(spec)) for spec in specs]


def done(order: Order) -> list[Message]:
    return [ProgressReport(Progress(1, 1, [0.0], [0.0], 1.0, 1.0)), Finished(commit(order, order.specs), 0.0, False)]


def test_a_fleet_is_cut_among_workers_that_would_be_idle(tmp_path, monkeypatch) -> None:
    orders: list[int] = []

    def noted(order: Order) -> list[Message]:
        orders.append(len(order.specs))
        return done(order)

    monkeypatch.setattr(places, "WORTH_CUTTING", 0.0)
    pool = PuppetPool(noted)
    supervisor = Supervisor(pool, 3, MACHINE, Limits())
    for _ in range(3):
        supervisor.slots.append(WorkerSlot(pool.start(), 0.0, ready=True))
    agenda = Agenda([runs(7)])
    assert agenda.seconds > 0
    results = list(supervisor.submit(agenda, Store(tmp_path), Quiet()))
    assert len({result.id for result in results}) == 7 and sorted(orders) == [2, 2, 3]
    assert agenda.seconds == 0


def run_queue(pool: PuppetPool, fleets, root: Path, limits: Limits = Limits(), size: int = 2):  # noqa: B008
    reporter, supervisor = Quiet(), Supervisor(pool, size, MACHINE, limits)
    results = list(supervisor.submit(Agenda(fleets), Store(root), reporter))
    return results, reporter, supervisor


def test_of_a_fleet_that_ends_workers_only_the_guilty_member_is_given_up(tmp_path) -> None:
    orders = []

    def behave(order: Order) -> list[Message]:
        orders.append([spec.seed for spec in order.specs])
        return [WorkerLost("ended by SIGSEGV")] if 2 in orders[-1] else done(order)

    results, reporter, _ = run_queue(PuppetPool(behave), [runs(4)], tmp_path, size=1)
    assert orders[:2] == [[0, 1, 2, 3]] * 2 and sorted(orders[2:]) == [[0], [1], [2], [3]]
    assert {result.seed: result.status for result in results} == {0: "ok", 1: "ok", 2: "crashed", 3: "ok"}
    assert reporter.losses == ["ended by SIGSEGV"] * 3
    detail = next(result.detail for result in results if result.seed == 2)
    assert detail == "lost 3 workers, the last: ended by SIGSEGV"
    devices = [Store(tmp_path).load(result.id).manifest.device for result in results]
    assert len(set(devices)) == 1 and devices[0] != "a GPU elsewhere"


def test_where_someone_else_ends_workers_no_fleet_is_given_up_for_it(tmp_path) -> None:
    tries: Counter[int] = Counter()

    def behave(order: Order) -> list[Message]:
        seed = order.specs[0].seed
        tries[seed] += 1
        unlucky = tries[seed] < (9 if seed == 0 else 2)
        return [WorkerLost("ended by SIGKILL")] if unlucky or seed == 4 else done(order)

    results, reporter, _ = run_queue(PuppetPool(behave), [[spec] for spec in runs(5)], tmp_path, size=1)
    assert {result.seed: result.status for result in results} == {
        0: "ok", 1: "ok", 2: "ok", 3: "ok", 4: "crashed"
    }  # fmt: skip
    assert tries[0] == 9 and tries[4] == 10 and len(reporter.losses) == 3 + 8 + 10


def test_members_committed_before_the_loss_are_not_done_again(tmp_path) -> None:
    orders = []

    def behave(order: Order) -> list[Message]:
        orders.append([spec.seed for spec in order.specs])
        if len(orders) == 1:
            commit(order, order.specs[:2])
            return [WorkerLost("ended by SIGKILL")]
        return done(order)

    results, _, _ = run_queue(PuppetPool(behave), [runs(4)], tmp_path)
    assert orders == [[0, 1, 2, 3], [2, 3]]
    assert sorted(result.seed for result in results) == [0, 1, 2, 3]


def test_workers_that_cannot_start_stop_the_sweep(tmp_path) -> None:
    pool = PuppetPool(done, first=(WorkerLost("ended with exit status 1"),))
    with pytest.raises(EngineError, match=r"workers must start; 10 in a row did not, the last: ended with exit status"):
        run_queue(pool, [runs(1)], tmp_path)
    with pytest.raises(EngineError, match="must be ready within 0 s; none was"):
        run_queue(PuppetPool(done, first=()), [runs(1)], tmp_path, Limits(start=0.05))


def test_a_worker_with_a_broken_gpu_is_replaced(tmp_path) -> None:
    pool = PuppetPool(lambda order: [Finished(commit(order, order.specs), 0.0, True)])
    results, reporter, _ = run_queue(pool, [[spec] for spec in runs(3)], tmp_path, size=1)
    assert len(results) == len(pool.started) == 3 and reporter.losses == []


def test_a_silent_worker_is_ended_and_its_run_given_up_in_the_end(tmp_path) -> None:
    pool = PuppetPool(lambda order: [Heartbeat()])
    results, _, supervisor = run_queue(pool, [runs(1)], tmp_path, Limits(silence=0.1))
    assert [result.status for result in results] == ["timeout"] and supervisor.usage.lost == 3
    assert results[0].detail == "lost 3 workers, the last: no sign of life for 0.1 s"
    assert all(puppet.ended for puppet in pool.started[:3])


def test_a_call_of_code_from_outside_that_does_not_return_is_a_timeout_at_once(tmp_path) -> None:
    pool = PuppetPool(lambda order: [Heartbeat(outside=599.0), Heartbeat(outside=601.0)])
    results, _, supervisor = run_queue(pool, [runs(2)], tmp_path)
    assert [result.status for result in results] == ["timeout"] * 2 and supervisor.usage.lost == 0
    assert results[0].detail == "a call of code from outside took 601 s" and len(pool.started) == 1


def test_time_in_which_the_supervisor_sleeps_does_not_count(tmp_path) -> None:
    submission = Submission(
        Supervisor(PuppetPool(done), 1, MACHINE, Limits()), FleetQueue(Agenda()), Store(tmp_path), Quiet()
    )
    submission.last_tick -= 3600.0
    submission.advance_clock()
    assert submission.clock == 1.0


def test_a_worker_that_was_heard_a_moment_ago_goes_on(tmp_path) -> None:
    supervisor = Supervisor(PuppetPool(done), 1, MACHINE, Limits(silence=60.0))
    submission = Submission(supervisor, FleetQueue(Agenda([runs(1)])), Store(tmp_path), Quiet())
    slot = WorkerSlot(supervisor.pool.start(), last_heard=940.0, ready=True)
    supervisor.slots.append(slot)
    submission.clock = 1000.0
    assert list(submission.enforce_limits()) == [] and supervisor.slots == [slot]
    submission.clock = 1000.5
    assert list(submission.enforce_limits()) == [] and supervisor.slots == [] and supervisor.usage.lost == 1


def test_workers_are_given_their_grace_to_save(tmp_path, monkeypatch) -> None:
    supervisor = Supervisor(PuppetPool(done), 1, MACHINE, Limits())
    submission = Submission(supervisor, FleetQueue(Agenda([runs(1)])), Store(tmp_path), Quiet())
    supervisor.slots.append(WorkerSlot(supervisor.pool.start(), 0.0, ready=True))
    list(submission.fill_slots())
    monkeypatch.setattr(submission.reporter, "finished", lambda results: saved.extend(results))
    saved: list = []
    submission.stop_workers()
    assert len(saved) == 1 and supervisor.slots == []


def test_an_error_of_the_store_ends_the_sweep_and_lets_the_others_save(tmp_path) -> None:
    def behave(order: Order) -> list[Message]:
        return [FleetError(StoreError("no room"))] if order.specs[0].seed == 0 else []

    pool = PuppetPool(behave)
    with pytest.raises(StoreError, match="no room"):
        run_queue(pool, [[spec] for spec in runs(2)], tmp_path)
    assert [puppet.ended for puppet in pool.started] == ["killed", "killed"] and pool.started[1].messages == []


def test_workers_are_kept_from_one_submission_to_the_next(tmp_path) -> None:
    pool, store = PuppetPool(done), Store(tmp_path)
    supervisor = Supervisor(pool, 2, MACHINE, Limits())
    for seed in range(3):
        assert len(list(supervisor.submit(Agenda([[runs(3)[seed]]]), store, Quiet()))) == 1
    assert len(pool.started) == 1
    supervisor.close()
    assert pool.started[0].ended == "killed"


def test_the_overhead_of_a_fleet_is_what_its_trip_takes_beyond_its_own_time() -> None:
    assert Usage().overhead == 0.0
    assert Usage(trips=12.0, busy=9.0, fleets=2).overhead == 1.5


def test_a_fleet_that_cost_three_jobs_is_given_up(tmp_path) -> None:
    fleet, store, pool = runs(1), Store(tmp_path), PuppetPool(done)
    leases = Leases(tmp_path, expiry=-1.0)
    assert [leases.claim(lease_name(fleet), generation) for generation in range(3)] == [True] * 3
    supervisor = Supervisor(pool, 1, MACHINE, Limits())
    (result,) = supervisor.run_queue(LeaseQueue([fleet], store, leases), store, Quiet())
    assert result.status == "crashed" and result.detail == "lost 3 workers, here or elsewhere"
    assert store.load(result.id).result.status == "crashed"
