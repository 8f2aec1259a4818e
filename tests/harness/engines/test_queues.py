"""Queues of fleets, and the leases by which several supervisors share a store."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from icl_bench.errors import StoreError
from icl_bench.harness.engines.leases import Leases, lease_name
from icl_bench.harness.engines.queues import Item, LeaseQueue
from icl_bench.harness.environment import make_manifest
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from tests.runs import records


def runs(count: int) -> list[RunSpec]:
    return expand_request(Request("assoc-recall", ["linear"], seeds=range(count)))


def finish(specs, store: Store) -> None:
    manifest = make_manifest(torch.device("cpu"), "auto", 1)
    for spec in specs:
        store.begin(spec, manifest).commit(records.result(spec))


def test_two_queues_share_fleets_and_each_is_taken_once(tmp_path) -> None:
    fleets, store = [[spec] for spec in runs(4)], Store(tmp_path)
    ours, theirs = (LeaseQueue(fleets, store, Leases(tmp_path), start) for start in (0, 2))
    taken = [ours.take(), theirs.take(), ours.take(), theirs.take()]
    assert sorted(item.specs[0].seed for item in taken if item) == [0, 1, 2, 3]
    assert ours.take() is None and theirs.take() is None
    for queue, item in zip((ours, theirs, ours, theirs), taken, strict=True):
        finish(item.specs, store)
        queue.settle(item)
    assert ours.left() == 2  # what others do is looked at now and then
    ours.next_scan = theirs.next_scan = 0.0
    assert ours.left() == theirs.left() == 0
    ours.close()
    theirs.close()
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_fleet_whose_holder_vanished_is_passed_on_to_one_alone(tmp_path) -> None:
    fleet = runs(1)
    name = lease_name(fleet)
    holder = LeaseQueue([fleet], Store(tmp_path), Leases(tmp_path))
    assert holder.take() == Item(fleet, 0, name)
    heirs = [Leases(tmp_path, expiry=60.0) for _ in range(16)]
    assert not any(heir.claim(name, 1) for heir in heirs)
    long_ago = time.time() - 100.0
    os.utime(tmp_path / "leases" / f"{name}.1", (long_ago, long_ago))
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
    path = tmp_path / "leases" / f"{item.name}.1"
    os.utime(path, (0.0, 0.0))
    queue.keep()
    assert path.stat().st_mtime == 0.0
    queue.renewed -= 11.0
    queue.keep()
    assert path.stat().st_mtime > 1e9
    queue.close()
    other = LeaseQueue([fleet], store, Leases(tmp_path))
    assert other.take() == item


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


def test_leases_behind_a_link_are_refused(tmp_path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "leases").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="the folders of a store are no links"):
        Leases(tmp_path / "store")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("kind", [os.mkfifo, lambda path: path.symlink_to("/etc/hostname"), Path.mkdir])
def test_what_is_no_lease_ends_no_search(tmp_path, kind) -> None:
    leases = Leases(tmp_path, expiry=60.0)
    kind(tmp_path / "leases" / f"{'a' * 16}.1")
    (tmp_path / "leases" / f"{'b' * 16}.{'9' * 200}").touch()
    assert leases.generations() == {"a" * 16: 1}
    assert leases.claim("b" * 16, 0) and leases.claim("a" * 16, 1) in (True, False)
    leases.release("a" * 16)
    leases.close()
