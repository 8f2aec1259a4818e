"""Records of others: what is out of range, coerced, doubled or spelled otherwise is named, and the rest is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_bench.errors import RecordError
from icl_bench.runs.record import MetricPoint
from icl_bench.runs.spec import RUN_DOMAIN, RunSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.attempt import check_field
from icl_bench.runs.store.files import sha256
from icl_bench.runs.store.index import Index
from icl_bench.runs.store.merge import merge_stores
from icl_bench.runs.store.parsing import parse_lines, text_of
from icl_bench.runs.store.verify import verify_store
from icl_bench.schema import canonical_json
from tests.runs.records import POINT, filled, result, spec

EXTREMES = [-0.5, -1, 10**400, 1e308, "0.5", True, None, [], {}, 2**63]


def forge(store: Store, name: str, data: bytes) -> Path:
    """Give the run of seed 0 another file, with digests and an id that fit, and return its folder."""
    folder = store.path(spec(0).id)
    (folder / name).write_bytes(data)
    outcome = json.loads((folder / "result.json").read_bytes())
    if name != "result.json":
        outcome["files"][name] = sha256(data)
    if name == "spec.json":
        outcome["digest"] = sha256(RUN_DOMAIN.encode() + b"\0" + data.removesuffix(b"\n"))
        outcome["id"] = outcome["digest"][:16]
    blank = (canonical_json({**outcome, "check": ""}) + "\n").encode()
    if name == "result.json" and b"  " in data:
        blank = data.replace(check_field(outcome["check"]), check_field(""), 1)
    (folder / "result.json").write_bytes(blank.replace(check_field(""), check_field(sha256(blank)), 1))
    if outcome["id"] != spec(0).id:
        moved = store.path(outcome["id"])
        moved.parent.mkdir(exist_ok=True)
        folder.rename(moved)
        return moved
    return folder


def assert_skipped(store: Store, folder: Path, target: Path) -> None:
    """Check that one run is named and the other is read, whatever reads them."""
    rows, problems = Index(store).summaries()
    assert [row.id for row in rows] == [spec(1).id] and len(problems) == 1
    assert str(folder) in str(problems[0]) and "\n" not in str(problems[0])
    found = verify_store(store)
    assert found.runs == 1 and len(found.problems) == 1 and str(folder) in found.problems[0]
    done = merge_stores([store.root], Store(target))
    assert done.copied == 1 and len(done.problems) == 1


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        f"{field}={value!r:.9}": lambda one, field=field, value=value: one["cells"][0].update({field: value})
        for field in ("accuracy", "floor", "load", "scored")
        for value in EXTREMES
    },
    **{f"lr={value!r:.9}": lambda one, value=value: one.update(lr=value) for value in EXTREMES},
    "another architecture": lambda one: one.update(arch="softmax"),
    "another task": lambda one: one.update(task="copy"),
    "a parameter that it does not have": lambda one: one.update(arch="linear:heads=99"),
    "more steps than the specification": lambda one: one.update(steps=10**6),
    "a cell twice": lambda one: one.update(cells=one["cells"] * 2),
    "scores of a failure": lambda one: one.update(status="error"),
    "no scores": lambda one: one.update(cells=[]),
    "a law that never ends": lambda one: one.update(
        declarations=[
            {
                "name": "linear",
                "size_parameters": [],
                "shown": [],
                "law": {"degree": 10**18, "key_width": 1, "key_heads": 1, "value_width": 1},
                "reach": None,
                "short_range": False,
            }
        ]
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_result_that_says_something_impossible_is_named(tmp_path, what: str) -> None:
    store = filled(tmp_path / "store", 0, 1)
    outcome = json.loads((store.path(spec(0).id) / "result.json").read_bytes())
    CHANGES[what](outcome)
    folder = forge(store, "result.json", (canonical_json(outcome) + "\n").encode())
    assert_skipped(store, folder, tmp_path / "target")


SPELLINGS: dict[str, Callable[[str], str]] = {
    "white space": lambda text: text.replace(",", ", ", 1),
    "another spelling of a number": lambda text: text.replace('"lr":0.01', '"lr":0.010'),
    "a whole number for a real one": lambda text: text.replace('"mlp":2.0', '"mlp":2'),
    "a default left out": lambda text: text.replace('"precision":"float32",', ""),
    "a former default written out": lambda text: text.replace('"tied"', '"canon":"none","tied"'),
    "a key twice": lambda text: text.replace('"seed":0', '"seed":0,"seed":0'),
    "a boolean for a number": lambda text: text.replace('"seed":0', '"seed":false'),
    "booleans for both seeds": lambda text: text.replace('seed":0', 'seed":false'),
    "no end of line": lambda text: text.removesuffix("\n"),
}


@pytest.mark.parametrize("what", SPELLINGS)
def test_another_spelling_of_a_specification_is_no_second_run(tmp_path, what: str) -> None:
    store = filled(tmp_path / "store", 0, 1)
    text = (store.path(spec(0).id) / "spec.json").read_text()
    assert SPELLINGS[what](text) != text
    store.load(spec(1).id)  # a specification of equal setting was found to be right
    folder = forge(store, "spec.json", SPELLINGS[what](text).encode())
    assert_skipped(store, folder, tmp_path / "target")


def test_a_specification_of_equal_setting_is_not_validated_again(tmp_path, monkeypatch) -> None:
    store = filled(tmp_path, 0, 1, 2)
    store.load(spec(0).id)
    monkeypatch.setattr(RunSpec, "model_validate", lambda plain: pytest.fail("validated again"))
    assert [store.load(spec(seed).id).spec["data_seed"] for seed in (1, 2)] == [1, 2]


@pytest.mark.parametrize(
    ("place", "ends"),
    [
        (("cells", 0), {"accuracy": 0.0, "exact_match": 1.0, "floor": 0.0, "loss": 0.0, "state_bits": 0.0, "load": 0}),
        (("cells", 0), {"accuracy": 1.0, "exact_match": 0.0, "floor": 1.0, "error": 0.0, "oracle_error": 0.0}),
        (("work",), {"weights": 0.0, "state": 0.0}),
        ((), {"seconds": 0.0, "examples_per_second": 0.0, "params": 0, "steps": 0}),
    ],
)
def test_values_at_the_ends_of_their_ranges_are_read(tmp_path, place: tuple, ends: dict) -> None:
    store = filled(tmp_path, 0)
    outcome = json.loads((store.path(spec(0).id) / "result.json").read_bytes())
    part = outcome
    for key in place:
        part = part[key]
    part |= ends
    forge(store, "result.json", (canonical_json(outcome) + "\n").encode())
    assert verify_store(store).problems == []


def test_a_key_twice_in_a_result_is_named(tmp_path) -> None:
    store = filled(tmp_path / "store", 0, 1)
    path = store.path(spec(0).id) / "result.json"
    blank = path.read_bytes().replace(b'"params":10', b'"params":9,"params":10')
    blank = blank.replace(check_field(json.loads(blank)["check"]), check_field(""))
    path.write_bytes(blank.replace(check_field(""), check_field(sha256(blank))))
    assert_skipped(store, path.parent, tmp_path / "target")


METRICS: dict[str, list[dict[str, Any]]] = {
    "a step twice": [{"step": 5}, {"step": 5}],
    "steps that go back": [{"step": 5}, {"step": 4}],
    "a step after the end": [{"step": 10**6}],
    "a boolean": [{"step": True}],
    "text": [{"accuracy": "0.5"}],
    "beyond a float": [{"train_loss": 10**400}],
}


@pytest.mark.parametrize("what", METRICS)
def test_metrics_that_cannot_be_are_named(tmp_path, what: str) -> None:
    store = filled(tmp_path / "store", 0, 1)
    lines = [canonical_json({**POINT.model_dump(mode="json"), **change}) + "\n" for change in METRICS[what]]
    folder = forge(store, "metrics.jsonl", "".join(lines).encode())
    assert_skipped(store, folder, tmp_path / "target")


@pytest.mark.parametrize("data", [b"\n", b"\n\n", b"[]\n", b"{}{}\n", b"{},{}\n", b"\xff\n"])
def test_lines_hold_one_record_each(tmp_path, data: bytes) -> None:
    with pytest.raises(RecordError):
        parse_lines(MetricPoint, data, tmp_path / "metrics.jsonl")
    whole = text_of(POINT)
    assert (
        parse_lines(MetricPoint, whole * 2, tmp_path) == (POINT, POINT)
        and parse_lines(MetricPoint, b"", tmp_path) == ()
    )
    with pytest.raises(RecordError):
        parse_lines(MetricPoint, whole.replace(b"\n", b",") + whole, tmp_path / "metrics.jsonl")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(POINT.model_dump())), inner),
    max_leaves=6,
)


@given(plain=PLAIN, data=st.binary(max_size=40))
def test_any_json_is_read_or_named_in_a_line(tmp_path_factory, plain: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    for text in (json.dumps(plain).encode() + b"\n", data):
        try:
            parse_lines(MetricPoint, text, path)
        except RecordError as error:
            assert "\n" not in str(error) and str(error).isascii()


@given(
    accuracy=st.floats(0, 1),
    loss=st.floats(-1e100, 1e100),
    count=st.integers(0, 2**63 - 1),
    name=st.text(max_size=5).filter(lambda text: text.isprintable()),
)
def test_what_this_program_writes_is_read_back(accuracy: float, loss: float, count: int, name: str) -> None:
    point = MetricPoint(step=count, train_loss=loss, train_accuracy=0.1, accuracy=accuracy, by_cell={name: accuracy})
    assert parse_lines(MetricPoint, text_of(point), Path("x")) == (point,)
    assert result(spec(0), accuracy).accuracy == accuracy
