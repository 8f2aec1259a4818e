"""A store against a dictionary: runs, crashes, resumption, damage to the index, merges and removals in any order."""

import contextlib
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from icl_bench.runs.store import Store, attempt, checkpoint, files, index, merge, store
from icl_bench.runs.store.attempt import attempts, commit_fleet
from icl_bench.runs.store.checkpoint import Checkpoints, FleetState
from icl_bench.runs.store.faults import CRASH_POINTS
from icl_bench.runs.store.index import INDEX_NAME, Index
from icl_bench.runs.store.listing import unfinished
from icl_bench.runs.store.merge import merge_stores
from icl_bench.runs.store.verify import verify_store
from tests.runs.records import MANIFEST, NO_TENSORS, POINT, read_all, result, spec

SEEDS = st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True)
WHICH = st.sampled_from(["a", "b"])
INDEXED = (b'"accuracy":0.', b"assoc-recall", b"linear", b"step", b"")
"""Damage that the index must survive."""
IN_TRAINING = {"step-done", "validated", "trained", "tested"}
COMMITTING = st.sampled_from(["run-published", "fleet-sealed", "result-written", "fleet-published"])
STORE_POINTS = st.sampled_from([name for name in CRASH_POINTS if name not in IN_TRAINING])


class CutError(BaseException):
    """The end of a killed process, after which nothing is cleaned up."""


class StoreMachine(RuleBasedStateMachine):
    """Two stores, each beside a dictionary of its expected content: accuracy by seed."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.stores = {name: Store(self.root / name) for name in ("a", "b")}
        self.model: dict[str, dict[int, float]] = {"a": {}, "b": {}}
        self.tries = 0

    @initialize()
    def start(self) -> None:
        for made in self.stores.values():
            made.check_writable()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def train(self, name: str, seeds: list[int]) -> None:
        """Do what a command does: open the store, skip finished runs, save a checkpoint, commit the fleet."""
        self.tries += 1
        made = self.stores[name]
        made.check_writable()
        missing = [spec(seed) for seed in seeds if not made.has(spec(seed).id)]
        if not missing:
            return
        writers = [made.begin(run, MANIFEST) for run in missing]
        checkpoints = Checkpoints(made.root, missing, "2", "cpu", 0.0)
        next(checkpoints.saved(), None)
        for writer in writers:
            writer.log(POINT)
        checkpoints.save(
            FleetState(
                origin=checkpoints.origin, step=self.tries, seconds=1.0, training=1.0,
                solved_at=(None,) * len(missing), metrics=((),) * len(missing),
            ),
            NO_TENSORS,
        )  # fmt: skip
        commit_fleet(writers, [result(run, accuracy(run.seed)) for run in missing])
        checkpoints.remove()

    @rule(name=WHICH, seeds=SEEDS)
    def run(self, name: str, seeds: list[int]) -> None:
        self.train(name, seeds)
        self.model[name] |= {seed: accuracy(seed) for seed in seeds}
        self.stores[name].check_writable()
        assert not [left.run_id for left in attempts(self.stores[name].root) if self.stores[name].has(left.run_id)]
        assert not {row.id for row in unfinished(self.stores[name])} & {spec(seed).id for seed in seeds}

    @rule(
        name=WHICH,
        seeds=st.permutations(range(8)).map(lambda order: order[:3]),
        point=COMMITTING,
        count=st.integers(1, 3),
    )
    def crash_while_committing(self, name: str, seeds: list[int], point: str, count: int) -> None:
        self.crash(name, seeds, point, count)

    @rule(name=WHICH, seeds=SEEDS, point=STORE_POINTS, count=st.integers(1, 3))
    def crash(self, name: str, seeds: list[int], point: str, count: int) -> None:
        """Check that a fleet is there completely or not at all, once the next process has opened the store."""
        before = dict(self.model[name])
        with cut_at(point, count):
            self.train(name, seeds)
        self.stores[name].check_writable()
        there = {seed for seed in seeds if self.stores[name].has(spec(seed).id)}
        new = {seed for seed in seeds if seed not in before}
        assert there - before.keys() in (set(), new)
        self.model[name] = before | {seed: accuracy(seed) for seed in there}

    @rule(name=WHICH, seeds=SEEDS, point=STORE_POINTS, count=st.integers(1, 3))
    def resume(self, name: str, seeds: list[int], point: str, count: int) -> None:
        """Crash, then run the same command again, with nothing in between."""
        with cut_at(point, count):
            self.train(name, seeds)
        self.run(name, seeds)

    @rule(name=WHICH, point=STORE_POINTS, count=st.integers(1, 3))
    def merge(self, name: str, point: str, count: int) -> None:
        """Merge one store into the other: interrupted at first, then completely."""
        other = "b" if name == "a" else "a"
        with cut_at(point, count):
            merge_stores([self.stores[other].root], self.stores[name])
        done = merge_stores([self.stores[other].root], self.stores[name])
        assert done.conflicts == [] and done.problems == []
        self.model[name] |= self.model[other]

    @rule(name=WHICH, seed=st.integers(0, 7))
    def remove(self, name: str, seed: int) -> None:
        if self.model[name].pop(seed, None) is not None:
            self.stores[name].remove(spec(seed).id)

    @rule(name=WHICH)
    def delete_index(self, name: str) -> None:
        (self.stores[name].root / INDEX_NAME).unlink(missing_ok=True)

    @rule(name=WHICH, text=st.sampled_from(INDEXED), bit=st.integers(0, 7))
    def damage_index(self, name: str, text: bytes, bit: int) -> None:
        self.read_through_the_index(name)
        path = self.stores[name].root / INDEX_NAME
        content = bytearray(path.read_bytes())
        content[(content.rfind(text) + len(text)) % len(content)] ^= 1 << bit
        path.write_bytes(content)
        self.read_through_the_index(name)

    @rule(name=WHICH, point=st.sampled_from(["index-written", "index-published"]))
    def crash_while_indexing(self, name: str, point: str) -> None:
        with cut_at(point, 1):
            Index(self.stores[name]).summaries()

    @rule(name=WHICH)
    def read_through_the_index(self, name: str) -> None:
        runs, problems = Index(self.stores[name]).runs()
        assert problems == []
        assert {run.result.seed: run.result.accuracy for run in runs.each()} == self.model[name]
        assert all(run.curve[-1] == (POINT.step, POINT.accuracy) for run in runs.each())
        rows, _ = Index(self.stores[name]).summaries()
        assert {row.seed: row.accuracy for row in rows} == self.model[name] and len(rows) == len(self.model[name])

    @rule(name=WHICH)
    def verify(self, name: str) -> None:
        found = verify_store(self.stores[name])
        assert found.problems == [] and found.runs == len(self.model[name])

    @invariant()
    def what_is_there_is_whole(self) -> None:
        for name, made in self.stores.items():
            assert {record.result.seed: record.result.accuracy for record in read_all(made)} == self.model[name]


def accuracy(seed: int) -> float:
    """Return the accuracy of the run with this seed."""
    return seed / 8


@contextlib.contextmanager
def cut_at(point: str, count: int):
    """End the code inside at a crash point, without cleaning up."""
    left = [count]

    def reach(name: str) -> None:
        left[0] -= name == point
        if left[0] == 0 and name == point:
            raise CutError

    with contextlib.ExitStack() as patched:
        for module in (attempt, checkpoint, files, index, merge, store):
            patched.enter_context(mock.patch.object(module, "reach", reach))
        # A killed process does not run its `finally` clauses, which delete files and folders.
        real = files.Handle.remove
        alive = lambda self, name: real(self, name) if left[0] > 0 else None  # noqa: E731
        patched.enter_context(mock.patch.object(files.Handle, "remove", alive))
        with contextlib.suppress(CutError):
            yield


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@pytest.mark.slow
def test_store_at_length() -> None:
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=300, stateful_step_count=40, deadline=None, derandomize=False)
    )
