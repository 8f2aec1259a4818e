"""Malformed specs, study files and records give one line and exit status 2, or a record that is skipped and named.

The short tests try a few hundred inputs of each kind; the slow test tries more than 10,000 in all.
"""

import json
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from icl_bench.runs.spec import RUN_DOMAIN
from icl_bench.runs.store import Store
from icl_bench.runs.store.attempt import check_field
from icl_bench.runs.store.files import sha256
from tests.conftest import Outcome
from tests.runs.records import finished, spec

HOSTILE = [
    "../../x", "/etc/passwd", "os:system", "a" * 5000, "\x00", "\x1b[2J", "<script>", "{{7*7}}", "${HOME}", "`id`",
    "\u00e9\u202e", "-",
    "--help", "1e999", "nan", "-1", "0", "99999999999999999999", "[", "[]", "[|]", '"', '"\\u0000"',
    "true", "none", "a:b:c", "power:p", "power:p=", "power:=2", "power:p=2,,", "power:p=2,p=3", "power:p=[1|2]",
    "window:w=-4", "linear:x=1", "power:p=2:q=3", "a+b", "+", "softmax+", "power:p=99999999999", "sys:Exit",
    "os.path:Join", "yaml:YAMLObject",
]  # fmt: skip
SPECS = ["power:p=2", "linear", "softmax:rope=true", "window:w=8", "gated-conv+softmax", "power:p=3,gate=true,heads=2"]
TASKS = ["assoc-recall:length=16,pairs=[2|4],vocab=64", "copy", "selective-copy", "flip-flop"]
STUDY = {
    "name": "s", "question": "Q?", "tasks": ["assoc-recall"], "archs": ["linear"], "lr": "1e-3,1e-2", "seeds": "0",
}  # fmt: skip
YAML = [
    "!!python/object/apply:os.system [touch made]", "&a [*a]", "a: &x 1\nb: *x", "a: 1\na: 2", "- 1", "{", "\t",
    "? [a]: b", "name: !!python/name:os.system", "x" * 70000, "--- a\n--- b", "%YAML 9.9\n---\n", "\ufeff", "1: 2",
    "null", "~", "a: !!binary x",
]  # fmt: skip
VALUES = [
    None, True, -1, 0, 1e308, -1e308, 10**30, "", "x", "\x00", "\ud800", "<b>", "|`*", [], {}, [[]], {"a": {"b": []}},
    "9" * 400,
]  # fmt: skip


@pytest.fixture
def command(command, monkeypatch, tmp_path):
    """Return a function that runs a command in a folder with nothing beside it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return command


def mangled(text: str, drawn: random.Random) -> str:
    """Return a text with a few characters changed, repeated, deleted or inserted."""
    letters = list(text)
    for _ in range(drawn.randint(1, 4)):
        place = drawn.randrange(len(letters) + 1)
        what = drawn.choice([string.printable[drawn.randrange(100)], drawn.choice(":=,|[]+\"'"), drawn.choice(HOSTILE)])
        kind = drawn.randrange(3)
        letters[place : place + (kind != 0)] = [] if kind == 1 else [what]
    return "".join(letters)


def bad_texts(good: list[str], count: int, seed: int) -> Iterator[str]:
    """Yield hostile texts, then mangled good ones."""
    drawn = random.Random(seed)
    for i in range(count):
        text = HOSTILE[i] if i < len(HOSTILE) else mangled(drawn.choice(good), drawn)
        yield text.replace("\x00", "\\0")  # no argument of a process holds a null


def assert_refused(outcome: Outcome, what: object) -> None:
    """Check that the command succeeded, or printed one line that says what to change."""
    assert outcome.status in (0, 2), (what, outcome)
    assert "Traceback" not in outcome.err + outcome.out, what
    if outcome.status == 2 and outcome.err.startswith("Error: "):
        assert outcome.err.count("\n") == 1, (what, outcome.err)


def assert_clean(folder: Path, allowed: set[str]) -> None:
    """Check that a folder contains no file that the command was not asked to write."""
    assert {path.name for path in folder.iterdir()} <= allowed


def fuzz_specs(command, tmp_path: Path, count: int) -> None:
    refused = 0
    for text in bad_texts(SPECS, count, 1):
        if not text.startswith("-"):
            outcome = command("state", text, "--length", "16")
            assert_refused(outcome, text)
            refused += outcome.status == 2
    assert refused > count / 2
    assert_clean(tmp_path / "work", set())


def fuzz_tasks(command, tmp_path: Path, count: int, monkeypatch) -> None:
    """Try tasks and settings with `run`, up to the point where training would begin."""
    monkeypatch.setattr("icl_bench.harness.engines.base.Executor.finish", lambda *arguments, **named: [])
    monkeypatch.setattr("icl_bench.commands.run.finish", lambda *arguments, **named: None)
    for text in bad_texts(TASKS, count, 2):
        if not text.startswith("-"):
            assert_refused(command("run", text, "--arch", "linear"), text)
    for text in bad_texts(["train.steps=20", "model.d_model=32", "train.clip=none"], count // 2, 3):
        assert_refused(command("run", "assoc-recall", "--arch", "linear", "--set", text), text)
    for option, good in (("--lr", ["1e-4..1e-1/7", "1e-3,1e-2"]), ("--seeds", ["0..4", "0,1"])):
        for text in bad_texts(good, count // 4, 4):
            assert_refused(command("run", "assoc-recall", "--arch", "linear", f"{option}={text}"), text)
    assert_clean(tmp_path / "work", {"icl-runs"})


def bad_studies(count: int) -> Iterator[bytes]:
    """Yield hostile YAML, fields of wrong types, and mangled files."""
    drawn = random.Random(5)
    good = json.dumps(STUDY)
    for i in range(count):
        if i < len(YAML):
            yield YAML[i].encode("utf-8", "surrogatepass")
        elif i % 3 == 0:
            field = drawn.choice([*STUDY, "sizes", "match", "preset", "settings", "precision", "extra", "__class__"])
            value = drawn.choice([*VALUES, *HOSTILE, [drawn.choice(HOSTILE)]])
            yield json.dumps({**STUDY, field: value}).encode()
        elif i % 3 == 1:
            yield mangled(good, drawn).encode("utf-8", "replace")
        else:
            data = bytearray(good.encode())
            for _ in range(drawn.randint(1, 8)):
                data[drawn.randrange(len(data))] = drawn.randrange(256)
            yield bytes(data)


def fuzz_studies(command, tmp_path: Path, count: int) -> None:
    path = tmp_path / "study.yaml"
    for data in bad_studies(count):
        path.write_bytes(data)
        assert_refused(command("sweep", str(path), "--dry-run"), data)
    assert_clean(tmp_path / "work", set())


def bad_records(store: Store, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged files of a run: changed bytes, or a changed field."""
    drawn = random.Random(6)
    folder = store.path(spec(1).id)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for _ in range(count):
        name = drawn.choice(list(files))
        if drawn.random() < 0.3:
            data = bytearray(files[name])
            for _ in range(drawn.randint(1, 6)):
                data[drawn.randrange(len(data))] = drawn.randrange(256)
            yield name, bytes(data[: drawn.choice([len(data), drawn.randrange(len(data))])])
        else:
            plain = json.loads(files[name].splitlines()[0])
            poison(plain, drawn)
            text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode() + b"\n"
            yield name, text


def poison(plain: Any, drawn: random.Random) -> None:
    """Change one field at a random depth."""
    keys = list(plain) if isinstance(plain, dict) else list(range(len(plain)))
    if not keys:
        return
    key = drawn.choice(keys)
    if isinstance(plain[key], dict | list) and drawn.random() < 0.7:
        poison(plain[key], drawn)
    elif drawn.random() < 0.2 and isinstance(plain, dict):
        del plain[key]
    else:
        plain[key] = drawn.choice([*VALUES, drawn.choice(HOSTILE)])


def put(folder: Path, name: str, data: bytes, files: dict[str, bytes]) -> None:
    """Write a changed file, together with the digests that an attacker would write."""
    (folder / name).write_bytes(data)
    try:
        result = json.loads((folder / "result.json").read_bytes())
        result["files"] = {**result["files"], **({name: sha256(data)} if name != "result.json" else {})}
        if name == "spec.json":
            result["digest"] = sha256(RUN_DOMAIN.encode() + b"\0" + data.rstrip(b"\n"))
        result["check"] = ""
        blank = json.dumps(result, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        made = blank.replace(check_field(""), check_field(sha256(blank)), 1)
    except (ValueError, TypeError, KeyError):
        return
    (folder / "result.json").write_bytes(made)


def fuzz_records(command, tmp_path: Path, count: int, report_every: int = 25) -> None:
    store = Store(tmp_path / "store")
    finished(store, spec(0))
    finished(store, spec(1))
    folder = store.path(spec(1).id)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for i, (name, data) in enumerate(bad_records(store, count)):
        for other, content in files.items():
            (folder / other).write_bytes(content)
        put(folder, name, data, files)
        outcome = command("runs", "list", "--store", str(store.root))
        assert outcome.status == 0 and spec(0).id in outcome.out, (name, data, outcome)
        assert spec(1).id in outcome.out or outcome.err.count(str(folder)) >= 1, (name, data, outcome)
        assert "\x1b" not in outcome.out + outcome.err and "\x00" not in outcome.out + outcome.err, (name, data)
        if i % report_every == 0:
            suffix = "html" if i % (2 * report_every) else "md"
            reported = command("report", str(store.root), "-o", f"report.{suffix}")
            assert reported.status in (0, 2) and "Traceback" not in reported.err, (name, data, reported)
    assert_clean(tmp_path / "work", {"report.md", "report.html", "report_files"})
    assert {path.name for path in tmp_path.iterdir()} == {"work", "store"}


def test_malformed_specs(command, tmp_path) -> None:
    fuzz_specs(command, tmp_path, 150)


def test_malformed_tasks_and_settings(command, tmp_path, monkeypatch) -> None:
    fuzz_tasks(command, tmp_path, 60, monkeypatch)


def test_malformed_studies(command, tmp_path) -> None:
    fuzz_studies(command, tmp_path, 50)


def test_malformed_records(command, tmp_path) -> None:
    fuzz_records(command, tmp_path, 100)


@pytest.mark.slow
def test_ten_thousand_malformed_inputs(command, tmp_path, monkeypatch) -> None:
    fuzz_specs(command, tmp_path, 3000)
    fuzz_studies(command, tmp_path, 3000)
    (tmp_path / "study.yaml").unlink()
    fuzz_records(command, tmp_path, 2000, report_every=100)
    for path in tmp_path.glob("work/report*"):
        path.rename(tmp_path.parent / f"{tmp_path.name}-{path.name}")
    fuzz_tasks(command, tmp_path, 1200, monkeypatch)
