"""The merging of stores: whole copies, named conflicts, nothing overwritten."""

import json

import pytest

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.declarations import ArchitectureDeclaration
from icl_bench.runs.store.attempt import check_field
from icl_bench.runs.store.files import sha256
from icl_bench.runs.store.merge import merge_stores
from icl_bench.runs.store.verify import verify_store
from icl_bench.schema import canonical_json
from tests.runs.records import MANIFEST, NO_TENSORS, POINT, filled, result, spec


def test_runs_that_are_not_there_are_copied_whole(tmp_path) -> None:
    one, two, target = filled(tmp_path / "a", 0, 1), filled(tmp_path / "b", 1, 2), filled(tmp_path / "c", 3)
    done = merge_stores([one.root, two.root], target)
    assert (done.copied, done.present, done.conflicts, done.problems) == (3, 1, [], [])
    for seed in range(4):
        source = one if seed < 2 else two if seed == 2 else target
        for path in source.path(spec(seed).id).iterdir():
            assert (target.path(spec(seed).id) / path.name).read_bytes() == path.read_bytes()
    assert not list((target.root / "attempts").iterdir())
    assert merge_stores([one.root, two.root], target).copied == 0


def test_other_numbers_are_a_conflict_that_is_named_and_changes_nothing(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a", 0, accuracy=0.25), filled(tmp_path / "b", 0, accuracy=0.5)
    done = merge_stores([theirs.root], ours)
    assert done.conflicts == [f"{spec(0).id}: cells differs in {theirs.root}; {ours.root} keeps its own"]
    assert ours.load(spec(0).id).result.accuracy == 0.5 and done.copied == done.present == 0


def test_times_hosts_declarations_and_floors_are_no_conflict(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a"), filled(tmp_path / "b", 0)
    writer = theirs.begin(spec(0), MANIFEST.model_copy(update={"device": "another"}))
    writer.log(POINT)
    declared = (ArchitectureDeclaration(name="linear"),)
    changes = {"seconds": 9.0, "examples_per_second": 1.0, "declarations": declared}
    (cell,) = result(spec(0)).cells
    cells = (cell.model_copy(update={"floor": 0.9, "floor_solver": "better", "repeated": 0.1}),)
    writer.commit(result(spec(0)).model_copy(update={**changes, "cells": cells}))
    assert merge_stores([theirs.root], ours).present == 1


def test_what_is_damaged_is_named_and_not_copied(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a", 0, 1), filled(tmp_path / "b")
    path = theirs.path(spec(0).id) / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    done = merge_stores([theirs.root], ours)
    assert done.copied == 1 and list(ours.ids()) == [spec(1).id] and str(path) in str(done.problems[0])


def test_links_in_a_source_are_not_followed(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a", 0, 1), filled(tmp_path / "b")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = theirs.path(spec(0).id) / "spec.json"
    path.unlink()
    path.symlink_to(secret)
    folder = theirs.path(spec(1).id)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    done = merge_stores([theirs.root], ours)
    assert done.copied == 0 and len(done.problems) == 1 and list(ours.ids()) == []


def test_a_source_must_be_another_store(tmp_path) -> None:
    ours = filled(tmp_path / "a", 0)
    with pytest.raises(StoreError, match="a source of a merge is a store"):
        merge_stores([tmp_path], ours)
    with pytest.raises(StoreError, match="the sources of a merge differ from its target"):
        merge_stores([ours.root], ours)


def test_kept_files_are_copied_and_verified(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a"), filled(tmp_path / "b")
    for seed in (0, 1):
        writer = theirs.begin(spec(seed), MANIFEST)
        writer.keep("model.safetensors", NO_TENSORS)
        writer.commit(result(spec(seed)))
    damaged = theirs.path(spec(1).id) / "model.safetensors"
    damaged.write_bytes((3).to_bytes(8, "little") + b"{ }")
    done = merge_stores([theirs.root], ours)
    assert done.copied == 1 and str(damaged) in str(done.problems[0]) and not list((ours.root / "attempts").iterdir())
    assert ours.read_kept(spec(0).id, "model.safetensors") == NO_TENSORS
    assert verify_store(ours).problems == [] and str(damaged) in verify_store(theirs).problems[0]
    with pytest.raises(RecordError, match=r"samples\.json: the run did not keep it"):
        ours.read_kept(spec(0).id, "samples.json")
    with pytest.raises(RecordError, match=r"a stored file never changes"):
        theirs.read_kept(spec(1).id, "model.safetensors")


def test_files_that_a_stranger_names_are_not_copied(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a", 0), filled(tmp_path / "b")
    path = theirs.path(spec(0).id) / "result.json"
    outcome = json.loads(path.read_bytes())
    outcome["files"]["../../../secret"] = "0" * 64
    blank = (canonical_json({**outcome, "check": ""}) + "\n").encode()
    path.write_bytes(blank.replace(check_field(""), check_field(sha256(blank))))
    done = merge_stores([theirs.root], ours)
    assert done.copied == 0 and len(done.problems) == 1 and len(verify_store(theirs).problems) == 1
