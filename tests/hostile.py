"""Hostile inputs, drawn with a seed: texts, study files, records whose digests fit, and things in wrong places."""

import json
import os
import random
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from icl_bench.runs.spec import ID_LENGTH, RUN_DOMAIN
from icl_bench.runs.store.attempt import COMPANIONS, check_field
from icl_bench.runs.store.checkpoint import digests_of
from icl_bench.runs.store.files import sha256

TEXTS = [
    "../../x", "/etc/passwd", "os:system", "a" * 5000, "\x00", "\x1b[2J", "<script>", "{{7*7}}", "${HOME}", "`id`",
    "\u00e9\u202e", "-", "--help", "1e999", "nan", "-1", "0", "99999999999999999999", "[", "[]", "[|]", '"',
    '"\\u0000"', "true", "none", "a:b:c", "power:p", "power:p=", "power:=2", "power:p=2,,", "power:p=2,p=3",
    "power:p=[1|2]", "window:w=-4", "linear:x=1", "power:p=2:q=3", "a+b", "+", "softmax+", "power:p=99999999999",
    "sys:Exit", "os.path:Join", "yaml:YAMLObject", "9" * 5000, "linear:heads=" + "9" * 5000, "\u00b2", "\uff11",
    "x\r=1+1", "x\n# Heading", "![x](http://x)", "\u200b=1", "\uff1d1", "\t=1", "\x1b]0;x\x07", "\u2028", "[red]x",
]  # fmt: skip
ARCHS = ["power:p=2", "linear", "softmax:rope=true", "window:w=8", "gated-conv+softmax", "power:p=3,gate=true,heads=2"]
TASK_TEXTS = ["assoc-recall:length=16,pairs=[2|4],vocab=64", "copy", "selective-copy", "flip-flop"]
STUDY = {
    "name": "s", "question": "Q?", "tasks": ["assoc-recall"], "archs": ["linear"], "lr": "1e-3,1e-2", "seeds": "0",
}  # fmt: skip
YAML = [
    "!!python/object/apply:os.system [touch made]", "&a [*a]", "a: &x 1\nb: *x", "a: 1\na: 2", "- 1", "{", "\t",
    "? [a]: b", "name: !!python/name:os.system", "x" * 70000, "--- a\n--- b", "%YAML 9.9\n---\n", "\ufeff", "1: 2",
    "null", "~", "a: !!binary x", "name: 0x" + "f" * 5000, "name: 0b" + "1" * 30000, "name: 1" + ":59" * 9000,
    "name: " + "9" * 5000, "name: 2026-13-45", "name: 9999-12-31T23:59:59+99:99", "name: .inf", "name: 1_0",
    "[" * 5000, "{a: " * 3000, "name: " + "- " * 3000, "? " * 3000, "!!set {x, y}", "!!omap [a: 1]", "<<: {a: 1}",
]  # fmt: skip
VALUES = [
    None, True, -1, 0, 1e308, -1e308, 10**30, 10**400, 2**63, float("nan"), float("inf"), "", "x", "\x00", "\ud800",
    "<b>", "|`*", [], {}, [[]], {"a": {"b": []}}, "9" * 400, -0.5, 1.5,
]  # fmt: skip
RECORD_FILES = (*COMPANIONS, "result.json")
Parts = Mapping[str, bytes]
"""The four files of a run, by name."""


def mangled(text: str, drawn: random.Random) -> str:
    """Return a text with a few characters changed, repeated, deleted or inserted."""
    letters = list(text)
    for _ in range(drawn.randint(1, 4)):
        place = drawn.randrange(len(letters) + 1)
        what = drawn.choice([string.printable[drawn.randrange(100)], drawn.choice(":=,|[]+\"'"), drawn.choice(TEXTS)])
        kind = drawn.randrange(3)
        letters[place : place + (kind != 0)] = [] if kind == 1 else [what]
    return "".join(letters)


def bad_texts(good: list[str], count: int, seed: int) -> Iterator[str]:
    """Yield arguments: hostile texts, then mangled good ones."""
    drawn = random.Random(seed)
    for i in range(count):
        text = TEXTS[i] if i < len(TEXTS) else mangled(drawn.choice(good), drawn)
        text = text.replace("\x00", "\\0")  # no argument of a process holds a null
        if not text.startswith("-"):
            yield text


def bad_studies(count: int, seed: int) -> Iterator[bytes]:
    """Yield hostile YAML, fields of wrong types, and mangled files."""
    drawn = random.Random(seed)
    good = json.dumps(STUDY)
    for i in range(count):
        if i < len(YAML):
            yield YAML[i].encode("utf-8", "surrogatepass")
        elif i % 3 == 0:
            field = drawn.choice([*STUDY, "sizes", "match", "preset", "settings", "precision", "extra", "__class__"])
            value = drawn.choice([*VALUES, *TEXTS, [drawn.choice(TEXTS)]])
            yield json.dumps({**STUDY, field: value}).encode()
        elif i % 3 == 1:
            yield mangled(good, drawn).encode("utf-8", "replace")
        else:
            data = bytearray(good.encode())
            for _ in range(drawn.randint(1, 8)):
                data[drawn.randrange(len(data))] = drawn.randrange(256)
            yield bytes(data)


def read_parts(folder: Path) -> dict[str, bytes]:
    """Return the files of a run."""
    return {name: (folder / name).read_bytes() for name in RECORD_FILES}


def forge(root: Path, parts: Parts) -> Path:
    """Write a run into a store, with the id and the digests that fit its files; return its folder.

    A result that cannot be parsed is written as it is.
    """
    digest = sha256(RUN_DOMAIN.encode() + b"\0" + parts["spec.json"].removesuffix(b"\n"))
    result = parts["result.json"]
    try:
        plain = json.loads(result)
        plain |= {"files": {name: sha256(parts[name]) for name in COMPANIONS}, "check": ""}
        plain |= {"id": digest[:ID_LENGTH], "digest": digest}
        blank = line_of(plain)
        result = blank.replace(check_field(""), check_field(sha256(blank)), 1)
    except (ValueError, TypeError):
        pass
    folder = root / "runs" / digest[:2] / digest[:ID_LENGTH]
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**parts, "result.json": result}.items():
        (folder / name).write_bytes(data)
    return folder


def line_of(plain: object) -> bytes:
    """Return a value as a line of JSON, in the order and spacing of records."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def poisoned(parts: Parts, drawn: random.Random) -> dict[str, bytes]:
    """Return files of which one has other bytes or another value somewhere."""
    name = drawn.choice(RECORD_FILES)
    if drawn.random() < 0.2:
        data = bytearray(parts[name])
        for _ in range(drawn.randint(1, 6)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        return {**parts, name: bytes(data[: drawn.choice([len(data), drawn.randrange(len(data))])])}
    plain = json.loads(parts[name].splitlines()[0])
    poison(plain, drawn)
    return {**parts, name: line_of(plain)}


def poison(plain: Any, drawn: random.Random) -> None:
    """Change one value at a random depth."""
    keys = list(plain) if isinstance(plain, dict) else list(range(len(plain)))
    if not keys:
        return
    key = drawn.choice(keys)
    if isinstance(plain[key], dict | list) and drawn.random() < 0.7:
        poison(plain[key], drawn)
    elif drawn.random() < 0.1 and isinstance(plain, dict):
        del plain[key]
    elif drawn.random() < 0.1 and isinstance(plain, dict):
        plain[drawn.choice(TEXTS)] = plain[key]
    else:
        plain[key] = drawn.choice([*VALUES, drawn.choice(TEXTS)])


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Parts], dict[str, bytes]]:
    """Return a function that changes the parsed value of one file."""
    return lambda parts: {**parts, name: line_of(change(json.loads(parts[name].splitlines()[0])))}


def with_first_cell(**fields: Any) -> Callable[[Any], Any]:
    """Return a function that changes fields of the first cell of a result."""
    return lambda plain: {**plain, "cells": [{**plain["cells"][0], **fields}, *plain["cells"][1:]]}


REFUSED: Mapping[str, Callable[[Parts], dict[str, bytes]]] = {
    "a number as text": changed("result.json", with_first_cell(accuracy="0.5")),
    "a truth value as a number": changed("metrics.jsonl", lambda plain: {**plain, "step": True}),
    "another architecture": changed("result.json", lambda plain: {**plain, "arch": "softmax"}),
    "another task": changed("result.json", lambda plain: {**plain, "task": "copy"}),
    "a negative floor": changed("result.json", with_first_cell(floor=-0.5)),
    "an accuracy of 1e308": changed("result.json", with_first_cell(accuracy=1e308)),
    "a load beyond all numbers": changed("result.json", with_first_cell(load=10**400)),
    "a step beyond all numbers": changed("metrics.jsonl", lambda plain: {**plain, "step": 10**400}),
    "a step twice": lambda parts: {**parts, "metrics.jsonl": 2 * parts["metrics.jsonl"]},
    "a key twice": lambda parts: {**parts, "manifest.json": b'{"threads":9,' + parts["manifest.json"][1:]},
    "white space in a specification": lambda parts: {**parts, "spec.json": parts["spec.json"].replace(b":", b": ", 1)},
    "another spelling of a number": lambda parts: {**parts, "spec.json": parts["spec.json"].replace(b"0.01", b"0.010")},
    "a width beyond all tensors": lambda parts: {
        **parts,
        "spec.json": parts["spec.json"].replace(b'"d_key":16', b'"d_key":9223372036854775808'),
    },
    "a default left out": changed("spec.json", lambda plain: {k: v for k, v in plain.items() if k != "precision"}),
}
"""Changes of a record, digests and id fitting, after which `icl-bench runs verify` must refuse it."""


def poison_checkpoint(folder: Path, drawn: random.Random) -> str:
    """Change the state or the tensors of a checkpoint, write digests that fit, and return a description."""
    name = drawn.choice(["state.json", "tensors.safetensors"])
    data = (folder / name).read_bytes()
    if name == "state.json":
        plain = json.loads(data)
        poison(plain, drawn)
        data, what = line_of(plain), f"{plain}"[-300:]
    else:
        size = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        kind = drawn.choice(["header", "body", "nan", "length", "empty"])
        if kind == "header":
            poison(header, drawn)
        text = line_of(header)
        body = {"body": body[: len(body) // 2], "nan": b"\xff" * len(body), "empty": b""}.get(kind, body)
        length = drawn.choice([0, 1 << 40, (1 << 64) - 1]) if kind == "length" else len(text)
        data, what = length.to_bytes(8, "little") + text + body, f"{kind} {header}"[:300]
    (folder / name).write_bytes(data)
    contents = {part: (folder / part).read_bytes() for part in ("tensors.safetensors", "state.json")}
    (folder / "sha256").write_bytes(digests_of(contents))
    return f"{name}: {what}"


def place_thing(path: Path, outside: Path, drawn: random.Random) -> str:
    """Put something that does not belong there at a path, in place of what is there, and return its description."""
    kind = "link to a folder" if drawn.random() < 0.3 else drawn.choice(list(THINGS))
    aside = path.with_name(f"{path.name}.aside")
    if path.is_symlink() or path.exists():
        path.rename(aside)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    THINGS[kind](path, outside)
    return f"{kind} at {path.name}"


def write_giant(path: Path, _: Path) -> None:
    """Make a file of 8 GiB that takes no room."""
    path.touch()
    os.truncate(path, 1 << 33)


THINGS: Mapping[str, Callable[[Path, Path], object]] = {
    "link to a folder": lambda path, outside: path.symlink_to(outside / "home"),
    "link to a file": lambda path, outside: path.symlink_to(outside / "home" / "letter"),
    "link to nothing": lambda path, outside: path.symlink_to(outside / "nothing"),
    "link to zeros": lambda path, _: path.symlink_to("/dev/zero"),
    "hard link": lambda path, outside: path.hardlink_to(outside / "home" / "letter"),
    "pipe": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: path.mkdir(),
    "full folder": lambda path, _: (path / "a" / "b").mkdir(parents=True),
    "giant": write_giant,
    "null": lambda path, _: path.write_text("null"),
    "list of nothing": lambda path, _: path.write_text('{"attempts":null,"runs":5}'),
    "deep": lambda path, _: path.write_text("[" * 100_000),
    "noise": lambda path, _: path.write_bytes(bytes(range(256))),
}
"""Things that do not belong into a store, by name; each function takes its path and a folder outside."""
