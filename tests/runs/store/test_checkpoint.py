"""Checkpoints: an interrupted fleet continues bit for bit, and unsuitable checkpoints are skipped."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch as safetensors
import torch

from icl_bench.errors import SpecError, StoreError
from icl_bench.harness import interruption
from icl_bench.harness.interruption import Interrupted, Interruption, deferred
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.results import FleetScores
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.record import MetricPoint
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store, checkpoint, verify
from icl_bench.runs.store.checkpoint import Checkpoints, Saved, checkpoint_interval, clear_checkpoints
from icl_bench.runs.store.files import Handle, sha256
from tests.runs.records import NO_TENSORS

CPU = torch.device("cpu")
TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
SMALL = (
    "model.d_model=16", "train.steps=12", "train.batch=8", "evaluation.examples=16", "evaluation.validation=8",
    "evaluation.points=3",
)  # fmt: skip


class CutError(BaseException):
    """The end of a killed process."""


class Trained(NamedTuple):
    scores: FleetScores
    logged: dict[int, list[MetricPoint]]
    state: dict[str, torch.Tensor]


def specs(seeds=(0, 1), lrs=(), arch="power:p=2", extra=()) -> list[RunSpec]:
    return expand_request(Request(TASK, [arch], seeds=seeds, lrs=lrs, settings=(*SMALL, *extra)))


def kept(root: Path, runs: list[RunSpec], every: float = 0.0, version: str = torch.__version__) -> Checkpoints:
    return Checkpoints(root, runs, version, "cpu", every)


def train(runs: list[RunSpec], checkpoints: Checkpoints | None, cut_at: int | None = None) -> Trained:
    """Train to the end, or until the reporter raises an exception."""

    def report(progress) -> None:
        if progress.step == cut_at:
            raise CutError

    trainer, logged = Trainer(runs, Machine(CPU)), {member: [] for member in range(len(runs))}
    loop = TrainingLoop(trainer, report, lambda member, point: logged[member].append(point), 0.0, checkpoints)
    return Trained(loop.run(), logged, loop.roster.state(loop.trainer))


def assert_same(one: Trained, other: Trained) -> None:
    assert one.scores.members == other.scores.members and one.logged == other.logged
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


@pytest.mark.parametrize("arch", ["power:p=2", "gated-conv+softmax"])
@pytest.mark.parametrize("cut_at", [1, 2, 4, 5, 8, 12])
def test_a_fleet_that_was_cut_continues_bit_for_bit(tmp_path, arch: str, cut_at: int) -> None:
    runs = specs(arch=arch)
    whole = train(runs, None)
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs), cut_at)
    assert_same(train(runs, kept(tmp_path, runs)), whole)


def test_a_fleet_of_one_continues(tmp_path) -> None:
    runs = specs(seeds=(0,))
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs), 8)
    assert_same(train(runs, kept(tmp_path, runs)), train(runs, None))


@pytest.mark.parametrize("cut_at", [3, 7, 11])
def test_bfloat16_and_a_fixed_training_set_continue_too(tmp_path, cut_at: int) -> None:
    runs = [
        spec.model_copy(update={"precision": "bfloat16"})
        for spec in specs(extra=("train.examples=24",))
    ]  # fmt: skip
    whole = train(runs, None)
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs), cut_at)
    assert_same(train(runs, kept(tmp_path, runs)), whole)


def test_members_that_were_dropped_stay_as_they_were(tmp_path) -> None:
    runs = specs(seeds=(0,), lrs=(1e-3, 1e30, 1e31))
    whole = train(runs, None)
    assert [bool(member.diverged_at) for member in whole.scores.members] == [False, True, True]
    for cut_at in (6, 11):
        with pytest.raises(CutError):
            train(runs, kept(tmp_path, runs), cut_at)
        resumed = train(runs, kept(tmp_path, runs))
        assert resumed.scores.members == whole.scores.members and resumed.logged == whole.logged
        kept(tmp_path, runs).remove()


def test_members_that_stopped_stay_so(tmp_path) -> None:
    free = specs(seeds=range(4), extra=("evaluation.validation=64",))
    first = sorted(points[0].accuracy for points in train(free, None).logged.values())
    assert first[1] < first[2]
    limit = (first[1] + first[2]) / 2  # two of four stop at the first validation, and are dropped
    runs = [run.model_copy(update={"train": run.train.model_copy(update={"stop_above": limit})}) for run in free]
    whole = train(runs, None)
    assert sum(member.stopped_at == 4 for member in whole.scores.members) == 2
    for cut_at in (6, 11):
        with pytest.raises(CutError):
            train(runs, kept(tmp_path, runs), cut_at)
        assert_same(train(runs, kept(tmp_path, runs)), whole)
        kept(tmp_path, runs).remove()


def test_the_newest_two_are_kept(tmp_path) -> None:
    runs = specs()
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs), 11)
    assert steps(kept(tmp_path, runs)) == ["000000010", "000000009"]
    assert sorted(path.name for path in kept(tmp_path, runs).folder.iterdir())[-1] == "fleet.json"


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "sha256"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:], lambda b: b""])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path, caplog, name: str, damage: Callable[[bytes], bytes]
) -> None:
    runs = specs()
    whole = train(runs, None)
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs), 11)
    newest = kept(tmp_path, runs).folder / steps(kept(tmp_path, runs))[0] / name
    newest.write_bytes(damage(newest.read_bytes()))
    with caplog.at_level(logging.INFO):
        assert_same(train(runs, kept(tmp_path, runs)), whole)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("checkpoint skipped: ") and said[1] == "continued from step 9 of 12"
    assert all("\n" not in line for line in said)


def spoil(checkpoints: Checkpoints, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file of the newest checkpoint, and its digest with it."""
    folder = checkpoints.folder / steps(checkpoints)[0]
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    digests = {one: sha256((folder / one).read_bytes()) for one in ("tensors.safetensors", "state.json")}
    (folder / "sha256").write_bytes(checkpoint.digests_of(digests))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tensors.safetensors", lambda data: b""),
        ("tensors.safetensors", lambda data: (1 << 62).to_bytes(8, "little") + data[8:]),
        ("tensors.safetensors", lambda data: (2).to_bytes(8, "little") + b"{}"),
        ("tensors.safetensors", lambda data: data + bytes(1 << 25)),
        ("state.json", lambda data: data.replace(b'"solved_at":[null,null]', b'"solved_at":[null]')),
        ("state.json", lambda data: data.replace(b'"step":11', b'"step":999')),
        ("state.json", lambda data: data.replace(b'"step":11', b'"step":"11"')),
    ],
)
def test_a_checkpoint_that_fits_its_digest_and_not_the_fleet_gives_way_to_the_one_before(
    tmp_path, caplog, name: str, change: Callable[[bytes], bytes]
) -> None:
    runs = specs(lrs=(1e-5,))
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs), 12)
    spoil(kept(tmp_path, runs), name, change)
    with caplog.at_level(logging.INFO):
        assert_same(train(runs, kept(tmp_path, runs)), train(runs, None))
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("checkpoint skipped: ") and said[1] == "continued from step 10 of 12"
    assert all("\n" not in line for line in said)


def spoil_member(root: Path, runs: list[RunSpec], name: str) -> None:
    """Put a NaN into a flat tensor of the newest checkpoint, where the second member has its part."""

    def change(data: bytes) -> bytes:
        tensors = safetensors.load(data)
        Trainer(runs, Machine(CPU)).optimiser.layout.rows(tensors[name])[0][1].view(-1)[0] = float("nan")
        return safetensors.save(tensors)

    spoil(kept(root, runs), "tensors.safetensors", change)


@pytest.mark.parametrize("name", ["parameters", "means", "squares"])
def test_a_checkpoint_with_what_is_no_number_gives_way_to_the_one_before(tmp_path, caplog, name: str) -> None:
    runs = specs(lrs=(1e-5,))
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs), 12)
    spoil_member(tmp_path, runs, name)
    with caplog.at_level(logging.INFO):
        assert_same(train(runs, kept(tmp_path, runs)), train(runs, None))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"checkpoint skipped: step 11 has numbers in {name!r} that are none",
        "continued from step 10 of 12",
    ]


def test_a_member_that_diverged_may_be_saved_with_what_is_no_number(tmp_path, caplog) -> None:
    runs = specs(seeds=(0,), lrs=(1e-3, 1e30))
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs), 12)
    spoil_member(tmp_path, runs, "squares")
    with caplog.at_level(logging.INFO):
        resumed = train(runs, kept(tmp_path, runs))
    assert resumed.scores.members == train(runs, None).scores.members
    assert [record.getMessage() for record in caplog.records] == ["continued from step 11 of 12"]


def test_a_checkpoint_that_is_pruned_meanwhile_is_no_damage(tmp_path, monkeypatch) -> None:
    checkpoints = Checkpoints(tmp_path, specs(), "2", "cpu", 0.0)
    checkpoints.save(state_of(checkpoints), NO_TENSORS)

    def pruned(folder: Handle) -> None:
        checkpoints.remove()
        checkpoint.check_digests(folder, {})

    monkeypatch.setattr(verify, "verify_checkpoint", pruned)
    assert verify.verify_store(Store(tmp_path)).problems == []


def test_where_all_are_damaged_the_fleet_starts_anew(tmp_path, caplog) -> None:
    runs = specs()
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs), 11)
    for name in steps(kept(tmp_path, runs)):
        (kept(tmp_path, runs).folder / name / "state.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert_same(train(runs, kept(tmp_path, runs)), train(runs, None))
    assert not any("continued" in record.getMessage() for record in caplog.records)


def test_a_checkpoint_of_another_version_is_said_and_not_used(tmp_path, caplog) -> None:
    runs = specs()
    with pytest.raises(CutError):
        train(runs, kept(tmp_path, runs, version="1.0"), 11)
    with caplog.at_level(logging.WARNING):
        assert_same(train(runs, kept(tmp_path, runs)), train(runs, None))
    assert "has another version; the fleet starts from the beginning" in caplog.text


def test_another_fleet_has_checkpoints_of_its_own(tmp_path) -> None:
    runs = specs(seeds=(0, 1, 2))
    with pytest.raises(CutError):
        train(runs[:2], kept(tmp_path, runs[:2]), 11)
    assert newest(kept(tmp_path, runs[1:])) is None and newest(kept(tmp_path, runs[:1])) is None
    assert newest(kept(tmp_path, runs[:2])) is not None


def test_a_short_fleet_keeps_none(tmp_path) -> None:
    runs = specs()
    train(runs, kept(tmp_path, runs, every=60.0))
    assert not (tmp_path / "checkpoints").exists()


def test_the_interval_counts_from_the_last_one(tmp_path) -> None:
    now = [0.0]
    checkpoints = Checkpoints(tmp_path, specs(), "2", "cpu", 60.0, lambda: now[0])
    now[0] = 59.0
    assert not checkpoints.due()
    now[0] = 61.0
    assert checkpoints.due()
    checkpoints.save(state_of(checkpoints), NO_TENSORS)
    assert not checkpoints.due() and newest(checkpoints).tensors == NO_TENSORS


def steps(checkpoints: Checkpoints) -> list[str]:
    """Return the names of the checkpoints, newest first."""
    return sorted((path.name for path in checkpoints.folder.iterdir() if path.name.isdecimal()), reverse=True)


def newest(checkpoints: Checkpoints) -> Saved | None:
    """Return the newest usable checkpoint."""
    return next(checkpoints.saved(), None)


def state_of(checkpoints: Checkpoints) -> checkpoint.FleetState:
    return checkpoint.FleetState(
        origin=checkpoints.origin, step=3, seconds=1.0, training=1.0, solved_at=(None, None), metrics=((), ())
    )


@pytest.mark.parametrize("text", ["", "soon", "-1", "1e3", "nan", "1" * 20])
def test_the_interval_is_a_number_of_seconds(monkeypatch, text: str) -> None:
    monkeypatch.setenv(checkpoint.INTERVAL_VARIABLE, text)
    with pytest.raises(SpecError, match="ICL_BENCH_CHECKPOINT_EVERY is a number of seconds; got"):
        checkpoint_interval()


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path, monkeypatch) -> None:
    checkpoints = Checkpoints(tmp_path, specs(), "2", "cpu", 0.0)
    checkpoints.save(state_of(checkpoints), b"one")

    def full(self: Handle, name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Handle, "create", full)
    with pytest.raises(StoreError, match="No space left on device"):
        checkpoints.save(state_of(checkpoints).model_copy(update={"step": 4}), b"two")
    assert steps(checkpoints) == ["000000003"]
    assert not list(checkpoints.folder.glob(".new*"))


def test_checkpoints_of_finished_fleets_are_cleared(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, specs(), "2", "cpu", 0.0)
    checkpoints.save(state_of(checkpoints), b"one")
    clear_checkpoints(tmp_path, lambda run_id: run_id == specs()[0].id)
    assert newest(checkpoints) is not None
    clear_checkpoints(tmp_path, lambda run_id: True)
    assert not checkpoints.folder.exists()


@pytest.mark.parametrize("name", ["fleet.json", "tensors.safetensors", "000000003", "000000004"])
def test_a_fleet_goes_on_though_another_process_removes_its_checkpoints(tmp_path, monkeypatch, name, caplog) -> None:
    ours, theirs = (Checkpoints(tmp_path, specs(), "2", "cpu", 0.0) for _ in range(2))

    def remove_before(write: Callable) -> Callable:
        def write_after(self: Handle, *arguments) -> None:
            if any(name in part for part in arguments if isinstance(part, str)):
                theirs.remove()
            return write(self, *arguments)

        return write_after

    for step in (3, 4):
        with monkeypatch.context() as patched:
            for function in ("create", "move"):
                patched.setattr(Handle, function, remove_before(getattr(Handle, function)))
            ours.save(state_of(ours).model_copy(update={"step": step}), NO_TENSORS)
    assert "checkpoint not kept: another process removed" in caplog.text
    ours.save(state_of(ours).model_copy(update={"step": 5}), NO_TENSORS)
    assert newest(ours) is not None
    ours.remove()
    clear_checkpoints(tmp_path, lambda run_id: False)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.fixture
def fresh(monkeypatch) -> Interruption:
    """Make the process one that was not asked to stop."""
    current = Interruption()
    monkeypatch.setattr(interruption, "CURRENT", current)
    return current


def test_a_signal_lets_the_step_end_and_saves(tmp_path, fresh: Interruption) -> None:
    runs = specs()
    whole = train(runs, None)
    trainer = Trainer(runs, Machine(CPU))

    def report(progress) -> None:
        if progress.step == 6 and not progress.validations:
            fresh.receive(15, None)

    with pytest.raises(Interrupted) as caught, deferred():
        TrainingLoop(trainer, report, lambda member, point: None, 0.0, kept(tmp_path, runs, every=60.0)).run()
    assert caught.value.status == 143 and trainer.done == 6
    fresh.received = None
    assert steps(kept(tmp_path, runs)) == ["000000006"]
    assert_same(train(runs, kept(tmp_path, runs)), whole)


def test_a_signal_outside_of_a_fleet_is_raised_at_once(fresh: Interruption) -> None:
    with pytest.raises(Interrupted) as caught:
        fresh.receive(2, None)
    assert caught.value.status == 130


def test_a_signal_during_a_commit_is_raised_after_it(fresh: Interruption) -> None:
    done = []
    with pytest.raises(Interrupted), deferred():
        fresh.receive(2, None)
        done.append("committed")
    assert done == ["committed"]


def test_a_second_signal_ends_the_process(monkeypatch, fresh: Interruption) -> None:
    ended = []
    monkeypatch.setattr(interruption.os, "_exit", ended.append)
    with pytest.raises(Interrupted), deferred():
        fresh.receive(2, None)
        fresh.receive(15, None)
    assert ended == [143]
