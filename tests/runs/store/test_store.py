"""The store: whole records or none, nothing overwritten, nothing outside its folder."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_bench.errors import RecordError, StoreError
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.runs.store import Store
from icl_bench.runs.store.index import Index
from tests.runs.records import MANIFEST, POINT, finished, result, spec


def test_a_run_is_read_back_as_written(tmp_path) -> None:
    store, run = Store(tmp_path), spec()
    folder = finished(store, run)
    record = store.load(run.id)
    assert record.result.accuracy == 0.5 and record.metrics == (POINT,) and record.manifest == MANIFEST
    assert record.spec["train"]["lr"] == run.train.lr and list(store.ids()) == [run.id]
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "metrics.jsonl",
        "result.json",
        "spec.json",
    ]
    assert not list((tmp_path / "attempts").iterdir())


def test_a_run_cut_short_looks_unfinished(tmp_path) -> None:
    store, run = Store(tmp_path), spec()
    writer = store.begin(run, MANIFEST)
    writer.log(POINT)
    assert not store.has(run.id) and list(store.ids()) == []
    finished(store, run)
    assert store.has(run.id)


def test_of_two_that_end_the_same_run_the_first_wins(tmp_path) -> None:
    store, run = Store(tmp_path), spec()
    slow = store.begin(run, MANIFEST)
    finished(store, run, accuracy=0.75)
    slow.commit(result(run, accuracy=0.25))
    assert store.load(run.id).result.accuracy == 0.75
    assert not list((tmp_path / "attempts").iterdir())


def test_an_abandoned_attempt_leaves_nothing(tmp_path) -> None:
    store = Store(tmp_path)
    store.begin(spec(), MANIFEST).abandon()
    assert not list((tmp_path / "attempts").iterdir())


@pytest.mark.parametrize("run_id", ["", "..", "../../etc/passwd", "0123456789abcdeG", "0123456789abcdef0", "a/b"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path, run_id: str) -> None:
    with pytest.raises(StoreError, match="a run id is 16 hexadecimal digits; got"):
        Store(tmp_path).path(run_id)


def test_a_store_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match=r"the store is a folder that can be written; .*/file/x: .*; choose another with --store"
    ):
        Store(tmp_path / "file" / "x").check_writable()


def test_a_changed_file_is_noticed(tmp_path) -> None:
    store, run = Store(tmp_path), spec()
    path = finished(store, run) / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.9"))
    with pytest.raises(RecordError, match=r"a stored file never changes; .*metrics.jsonl did; restore it or delete"):
        store.load(run.id)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a record must be JSON; .*result.json"),
        (b"{", "a record must be JSON; .*result.json"),
        (b"\xff\xfe", "a record must be JSON"),
        (b"[1]", "a record must be a JSON object"),
        (
            b'{"schema_version": 99}',
            "records are read in version 2; .* has version 99; use the icl-bench that wrote it",
        ),
        (b'{"schema_version": 2}', "a record must have the fields of RunResult; .*: id: Field required; delete"),
    ],
)
def test_an_unreadable_record_is_named_and_skipped(tmp_path, content: bytes, message: str) -> None:
    store, good, bad = Store(tmp_path), spec(0), spec(1)
    finished(store, good)
    (finished(store, bad) / "result.json").write_bytes(content)
    with pytest.raises(RecordError, match=message):
        store.load(bad.id)
    rows, problems = Index(store).summaries()
    assert [row.id for row in rows] == [good.id] and len(problems) == 1


@given(data=st.binary(max_size=60))
def test_any_bytes_give_a_record_error(tmp_path_factory, data: bytes) -> None:
    store, run = Store(tmp_path_factory.mktemp("store")), spec()
    (finished(store, run) / "result.json").write_bytes(data)
    with pytest.raises(RecordError) as caught:
        store.load(run.id)
    assert "\n" not in str(caught.value)


def test_identity_is_that_of_the_resolved_specification() -> None:
    one = expand_request(Request("assoc-recall", ["power"]))[0]
    same = expand_request(
        Request("assoc-recall:length=64", ["power:p=2,heads=4"], settings=["train.steps=300"], lrs=[0.01])
    )[0]
    other = expand_request(Request("assoc-recall", ["power:p=4"]))[0]
    assert one.id == same.id != other.id and len(one.digest) == 64
    assert json.loads(json.dumps(one.model_dump(mode="json"))) == one.model_dump(mode="json")


def test_identity_is_pinned() -> None:
    """A changed default changes the id of every run: change this test only with a line in the changelog."""
    assert expand_request(Request("assoc-recall", ["power:p=2"]))[0].id == "55d73cc13ba551d2"


def test_files_of_a_run_are_readable_by_all_and_written_by_their_owner(tmp_path) -> None:
    mask = os.umask(0o022)
    try:
        folder = finished(Store(tmp_path), spec(0))
    finally:
        os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
