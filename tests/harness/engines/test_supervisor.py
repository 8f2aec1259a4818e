"""The supervisor by itself, with workers that do as they are told; and the leases that several supervisors share."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from icl_bench.errors import EngineError, StoreError
from icl_bench.harness.engines.leases import LeaseQueue, Leases, fleet_name
from icl_bench.harness.engines.messages import Beat, Finished, Gone, Message, Order, Raised, Ready, Told
from icl_bench.harness.engines.queue import FleetQueue, Item
from icl_bench.harness.engines.supervisor import Limits, Shift, Supervisor
from icl_bench.harness.environment import make_manifest
from icl_bench.harness.resolve import Request, expand
from icl_bench.harness.training.fleet import Machine, base_result
from icl_bench.runs.events import Progress
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

MACHINE = Machine(torch.device("cpu"))
Behaviour = Callable[[Order], list[Message]]


class Puppet:
    """A worker that answers an order as its crew says, or ends before it is ready."""

    def __init__(self, behaviour: Behaviour, first: list[Message]) -> None:
        self.behaviour, self.messages = behaviour, [*first]
        self.ended: str | None = None

    def give(self, order: Order) -> None:
        assert self.ended is None
        self.messages += self.behaviour(order)

    def ask_to_end(self) -> None:
        self.messages.append(Gone("asked"))

    def kill(self) -> None:
        assert self.ended is None
        self.ended = "killed"


class Puppets:
    """A crew of them."""

    def __init__(self, behaviour: Behaviour, first: tuple[Message, ...] = (Ready(),)) -> None:
        self.behaviour, self.first = behaviour, list(first)
        self.hired: list[Puppet] = []

    def hire(self) -> Puppet:
        self.hired.append(Puppet(self.behaviour, self.first))
        return self.hired[-1]

    def listen(self, workers, seconds):
        spoken = False
        for worker in workers:
            while worker.messages and worker.ended is None:
                spoken = True
                yield worker, worker.messages.pop(0)
        if not spoken:
            time.sleep(0.01)


class Quiet:
    """Keeps what was lost."""

    def __init__(self) -> None:
        self.losses: list[str] = []

    def planned(self, runs, done) -> None: ...

    def started(self, specs) -> None: ...

    def progressed(self, specs, progress) -> None: ...

    def lost(self, specs, reason) -> None:
        self.losses.append(reason)

    def finished(self, results) -> None: ...

    def closed(self) -> None: ...


def runs(count: int) -> list[RunSpec]:
    return expand(Request("assoc-recall", ["linear"], seeds=range(count)))


def commit(order: Order, specs) -> list:
    store, manifest = Store(order.root), make_manifest(MACHINE.device, "auto", 1)
    return [store.begin(spec, manifest).commit(base_result(spec)) for spec in specs]


def done(order: Order) -> list[Message]:
    return [Told(Progress(1, 1, [0.0], [0.0], 1.0, 1.0)), Finished(commit(order, order.specs), 0.0, False)]


def carry_out(crew: Puppets, fleets, root: Path, limits: Limits = Limits(), size: int = 2):  # noqa: B008
    reporter, supervisor = Quiet(), Supervisor(crew, size, MACHINE, limits)
    results = list(supervisor.carry_out(FleetQueue(fleets), Store(root), reporter))
    return results, reporter, supervisor


def test_of_a_fleet_that_ends_workers_only_the_guilty_member_is_given_up(tmp_path) -> None:
    orders = []

    def behave(order: Order) -> list[Message]:
        orders.append([spec.seed for spec in order.specs])
        return [Gone("ended by SIGSEGV")] if 2 in orders[-1] else done(order)

    results, reporter, _ = carry_out(Puppets(behave), [runs(4)], tmp_path, size=1)
    assert orders[:2] == [[0, 1, 2, 3]] * 2 and sorted(orders[2:]) == [[0], [1], [2], [3]]
    assert {result.seed: result.status for result in results} == {0: "ok", 1: "ok", 2: "crashed", 3: "ok"}
    assert reporter.losses == ["ended by SIGSEGV"] * 3
    detail = next(result.detail for result in results if result.seed == 2)
    assert detail == "lost 3 workers, the last: ended by SIGSEGV"


def test_where_someone_else_ends_workers_no_fleet_is_given_up_for_it(tmp_path) -> None:
    tries: Counter[int] = Counter()

    def behave(order: Order) -> list[Message]:
        seed = order.specs[0].seed
        tries[seed] += 1
        unlucky = tries[seed] < (9 if seed == 0 else 2)
        return [Gone("ended by SIGKILL")] if unlucky or seed == 4 else done(order)

    results, reporter, _ = carry_out(Puppets(behave), [[spec] for spec in runs(5)], tmp_path, size=1)
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
            return [Gone("ended by SIGKILL")]
        return done(order)

    results, _, _ = carry_out(Puppets(behave), [runs(4)], tmp_path)
    assert orders == [[0, 1, 2, 3], [2, 3]]
    assert sorted(result.seed for result in results) == [0, 1, 2, 3]


def test_workers_that_cannot_start_stop_the_sweep(tmp_path) -> None:
    crew = Puppets(done, first=(Gone("ended with exit status 1"),))
    with pytest.raises(EngineError, match=r"workers must start; 10 in a row did not, the last: ended with exit status"):
        carry_out(crew, [runs(1)], tmp_path)
    with pytest.raises(EngineError, match="must be ready within 0 s; none was"):
        carry_out(Puppets(done, first=()), [runs(1)], tmp_path, Limits(start=0.05))


def test_a_worker_with_a_broken_gpu_is_replaced(tmp_path) -> None:
    crew = Puppets(lambda order: [Finished(commit(order, order.specs), 0.0, True)])
    results, reporter, _ = carry_out(crew, [[spec] for spec in runs(3)], tmp_path, size=1)
    assert len(results) == len(crew.hired) == 3 and reporter.losses == []


def test_a_silent_worker_is_ended_and_its_run_given_up_in_the_end(tmp_path) -> None:
    crew = Puppets(lambda order: [Beat()])
    results, _, supervisor = carry_out(crew, [runs(1)], tmp_path, Limits(silence=0.1))
    assert [result.status for result in results] == ["timeout"] and supervisor.usage.lost == 3
    assert results[0].detail == "lost 3 workers, the last: no sign of life for 0.1 s"
    assert all(puppet.ended for puppet in crew.hired[:3])


def test_time_in_which_the_supervisor_sleeps_does_not_count(tmp_path) -> None:
    shift = Shift(Supervisor(Puppets(done), 1, MACHINE, Limits()), FleetQueue([]), Store(tmp_path), Quiet())
    shift.last -= 3600.0
    shift.pass_time()
    assert shift.clock == 1.0


def test_an_error_of_the_store_ends_the_sweep_and_lets_the_others_save(tmp_path) -> None:
    def behave(order: Order) -> list[Message]:
        return [Raised(StoreError("no room"))] if order.specs[0].seed == 0 else []

    crew = Puppets(behave)
    with pytest.raises(StoreError, match="no room"):
        carry_out(crew, [[spec] for spec in runs(2)], tmp_path)
    assert [puppet.ended for puppet in crew.hired] == ["killed", "killed"] and crew.hired[1].messages == []


def test_workers_are_kept_from_one_submission_to_the_next(tmp_path) -> None:
    crew, store = Puppets(done), Store(tmp_path)
    supervisor = Supervisor(crew, 2, MACHINE, Limits())
    for seed in range(3):
        assert len(list(supervisor.carry_out(FleetQueue([[runs(3)[seed]]]), store, Quiet()))) == 1
    assert len(crew.hired) == 1
    supervisor.close()
    assert crew.hired[0].ended == "killed"


def test_two_queues_share_fleets_and_each_is_taken_once(tmp_path) -> None:
    fleets, store = [[spec] for spec in runs(4)], Store(tmp_path)
    ours, theirs = (LeaseQueue(fleets, store, Leases(tmp_path), start) for start in (0, 2))
    taken = [ours.take(), theirs.take(), ours.take(), theirs.take()]
    assert sorted(item.specs[0].seed for item in taken if item) == [0, 1, 2, 3]
    assert ours.take() is None and theirs.take() is None
    for queue, item in zip((ours, theirs, ours, theirs), taken, strict=True):
        commit(Order(item.specs, tmp_path), item.specs)
        queue.settle(item)
    assert ours.left() == 2  # what others do is looked at now and then
    ours.idle_until = theirs.idle_until = 0.0
    assert ours.left() == theirs.left() == 0
    ours.close()
    theirs.close()
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_fleet_whose_holder_vanished_is_passed_on_to_one_alone(tmp_path) -> None:
    fleet = runs(1)
    name = fleet_name(fleet)
    holder = LeaseQueue([fleet], Store(tmp_path), Leases(tmp_path))
    assert holder.take() == Item(fleet, 0, name)
    heirs = [Leases(tmp_path, expiry=60.0) for _ in range(16)]
    assert not any(heir.claim(name, 1) for heir in heirs)
    long_ago = time.time() - 100.0
    os.utime(heirs[0].path(name, 1), (long_ago, long_ago))
    won: list[bool] = []
    threads = [threading.Thread(target=lambda heir=heir: won.append(heir.claim(name, 1))) for heir in heirs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True] and heirs[0].generations() == {name: 2}


def test_leases_are_renewed_and_given_back(tmp_path) -> None:
    fleet, store = runs(1), Store(tmp_path)
    queue = LeaseQueue([fleet], store, Leases(tmp_path, expiry=60.0))
    item = queue.take()
    path = queue.leases.path(item.name, 1)
    os.utime(path, (0.0, 0.0))
    queue.keep()
    assert path.stat().st_mtime == 0.0
    queue.renewed -= 11.0
    queue.keep()
    assert path.stat().st_mtime > 1e9
    queue.close()
    other = LeaseQueue([fleet], store, Leases(tmp_path))
    assert other.take() == item


def test_a_fleet_that_cost_three_jobs_is_given_up(tmp_path) -> None:
    fleet, store, crew = runs(1), Store(tmp_path), Puppets(done)
    leases = Leases(tmp_path, expiry=-1.0)
    assert [leases.claim(fleet_name(fleet), generation) for generation in range(3)] == [True] * 3
    supervisor = Supervisor(crew, 1, MACHINE, Limits())
    (result,) = supervisor.carry_out(LeaseQueue([fleet], store, leases), store, Quiet())
    assert result.status == "crashed" and result.detail == "lost 3 workers, here or elsewhere"
    assert store.load(result.id).result.status == "crashed"


def test_parts_of_a_fleet_share_its_lease(tmp_path) -> None:
    fleet = runs(3)
    queue = LeaseQueue([fleet], Store(tmp_path), Leases(tmp_path))
    item = queue.take()._replace(losses=1)
    parts = item.after_loss(fleet[1:], 3)
    queue.settle(item, parts)
    assert queue.left() == 1 and [len(part.specs) for part in parts] == [1, 1]
    for _ in parts:
        assert queue.leases.generations() == {item.name: 1}
        queue.settle(queue.take())
    assert queue.leases.generations() == {} and queue.left() == 0
