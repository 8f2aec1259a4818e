"""Every command on a store, a study and a plug-in whose every text is hostile: each medium shows it as text."""

import csv
import html.parser
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from icl_bench.escapes import FORMULA, INVISIBLE
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.registry import PLUGIN_MODULES
from icl_bench.runs.record import GroupScore, Manifest, RunResult
from icl_bench.runs.store import Store
from tests.browser import unpacked
from tests.conftest import Outcome
from tests.runs.records import BASE, POINT, finished, kept_files, result, spec

EVIL = (
    "=1+1\x1b]0;t\x07\x1b[2J\x9b\u202e\u200b\u2028\x00\x7f\r\n# h\n\n![i](http://e/i.png)[l](javascript:l)"
    "<script>s</script><img src=x onerror=a>|c|`q`**b**[red]r[/red]:key:&amp;\uff1d"
)
"""Text that acts in every medium which does not take it as text."""
LAYER = f"""
from torch import nn


class Evil(nn.Linear):
    def __init__(self, d_model):
        super().__init__(d_model, d_model)

    def forward(self, x):
        raise ValueError({EVIL!r})
"""
TINY = [
    word
    for size in ("train.steps=2", "train.batch=2", "evaluation.examples=2", "evaluation.validation=2", "model.layers=1")
    for word in ("--set", size)
]


def hostile_result(seed: int, status: str = "ok") -> RunResult:
    """Return a result in which every text that its record leaves free is hostile."""
    given = result(spec(seed))
    groups = {EVIL: GroupScore(accuracy=0.5, count=2)}
    cell = given.cells[0].model_copy(
        update={"floor_solver": EVIL, "groups": groups, "controls": {EVIL: 0.5}, "references": {EVIL: 0.5}}
    )
    changes: dict[str, Any] = {"load_name": EVIL, "cells": (cell,)}
    if status != "ok":
        changes |= {"status": status, "detail": f"{EVIL}\nline\n{EVIL}", "cells": ()}
    return given.model_copy(update=changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a store of hostile records: readable ones, failed ones, damaged ones, and names of files."""
    store = Store(tmp_path / "store")
    manifest = Manifest(
        versions={EVIL: EVIL, "torch": EVIL}, device=EVIL, threads=1, host=EVIL, revision=EVIL, impl=EVIL, fleet_size=1,
        command=EVIL, started="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    for seed, status in enumerate(("ok", "ok", "error", "crashed")):
        writer = store.begin(spec(seed), manifest)
        writer.log(POINT)
        if not seed:
            samples = kept_files(spec(seed))["samples.json"]
            for word in (b"k1", b"v1", b"v2", b"gap 1", b"pairs=2"):
                samples = samples.replace(b'"' + word, json.dumps(EVIL).encode()[:-1])
            writer.keep("samples.json", samples)
        writer.commit(hostile_result(seed, status))
    (finished(store, spec(9)) / "result.json").write_text(json.dumps({EVIL: EVIL}))
    folder = store.root / "runs"
    for name in (EVIL.replace("/", "").replace("\0", ""), "\x1b]0;x\x07"):
        (folder / name.encode()[:200].decode(errors="ignore")).mkdir()
        (folder / "00").mkdir(exist_ok=True)
        (folder / "00" / name.encode()[:200].decode(errors="ignore")).write_text("x")
    return store


def assert_printed_as_text(outcome: Outcome, arguments: object) -> None:
    """Check that nothing on a terminal is anything but visible characters and line ends."""
    assert outcome.status in (0, 2, 3), (arguments, outcome)
    for text in (outcome.out, outcome.err):
        assert not [c for c in text if c != "\n" and unicodedata.category(c) in INVISIBLE], (arguments, text)
        assert "Traceback (most recent" not in text, (arguments, text)
    assert "\n# h" not in outcome.out + outcome.err and "\n\n![i]" not in outcome.out + outcome.err


def assert_markdown_shows_text(text: str) -> None:
    """Check that a report has no markup but its own: headings, lists, tables, and figures and links beside it."""
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        assert token.type != "html_block", token.content
        for child in token.children or ():
            assert child.type != "html_inline", token.content
            place = str(child.attrs.get("src") or child.attrs.get("href") or "report_files/")
            assert place.startswith("report_files/"), token.content
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert "# h" not in headings and "\n\n![i](http" not in text


class Page(html.parser.HTMLParser):
    """Collects elements that a report page must not have."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.found: list[object] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep foreign elements, and attributes that run code or load something."""
        self.scripts += tag == "script"
        loads = [value for name, value in attributes if name in ("src", "href") and not str(value).startswith("data:")]
        acts = [name for name, _ in attributes if name.startswith("on")]
        self.found += [(tag, *loads, *acts)] if loads or acts else []


def assert_rows_are_whole(text: str) -> None:
    """Check that every row of a table file is one line with every column, and no cell a formula."""
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == len(text.splitlines()) == text.count("\n") and len({len(row) for row in rows}) == 1
    for cell in (cell for row in rows for cell in row):
        number = re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", cell)
        assert number or not unicodedata.normalize("NFKC", cell.strip()).startswith(FORMULA), cell


def test_commands_on_a_store(command, store: Store, tmp_path) -> None:
    first = spec(0).id
    for arguments in (
        ["runs", "list"], ["runs", "list", "--task", EVIL], ["runs", "show", first], ["runs", "show", spec(2).id],
        ["runs", "verify"], ["runs", "floors"], ["runs", "export", "out.csv"], ["runs", "show", EVIL.replace("\0", "")],
        ["samples", first], ["samples", first, "--cell", EVIL.replace("\0", "")],
        ["doctor"], ["run", "assoc-recall", "--arch", "linear", "--seeds", "0..3"], ["runs", "rm", spec(1).id],
    ):  # fmt: skip
        outcome = command(*arguments, "--store", "store")
        assert_printed_as_text(outcome, arguments)
        if arguments[:2] not in (["runs", "rm"], ["runs", "export"], ["runs", "floors"]):
            as_json = command(*arguments, "--store", "store", "--json")
            assert_printed_as_text(as_json, arguments)
            assert not as_json.out or json.loads(as_json.out)["schema"] == 1
    assert_rows_are_whole((tmp_path / "out.csv").read_text())
    for arguments in (["merge", "store", "--store", "other"], ["merge", "other", "--store", "store"]):
        assert_printed_as_text(command(*arguments), arguments)


def test_reports_of_a_store(command, store: Store, tmp_path) -> None:
    for name in ("report.md", "report.html"):
        outcome = command("report", "store", "-o", name)
        assert outcome.status == 0
        assert_printed_as_text(outcome, name)
    assert_markdown_shows_text((tmp_path / "report.md").read_text())
    assert_rows_are_whole((tmp_path / "report_files" / "runs.csv").read_text())
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.found == [] and page.scripts == text.count("<script") == 3
    page_text = text.partition("<script>")[0] + unpacked(text, "data")  # not the scripts of others
    for written in (page_text, (tmp_path / "report.md").read_text()):
        assert not [c for c in written if c not in "\n\t" and unicodedata.category(c) in INVISIBLE - {"Zs"}]
    for figure in (tmp_path / "report_files").glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(figure).iter()}
        assert not tags & {"script", "image", "a", "foreignObject"}


def test_reports_of_a_study(command, store: Store, tmp_path) -> None:
    fields = {name: [EVIL] for name in ("hypotheses", "conclusions", "corrections")}
    published = [{"label": EVIL, "bytes": 1, "accuracy": 0.5, "source": EVIL}]
    study = {
        "name": EVIL,
        "question": EVIL,
        "tasks": "assoc-recall",
        "archs": "linear",
        "published": published,
        **fields,
    }
    text = json.dumps({**study, "lr": f"{BASE.train.lr}", "seeds": "0..1", "tune_seeds": "2..3", "protocol": 1})
    (tmp_path / "s.yaml").write_text(text)
    for arguments in (["sweep", "s.yaml", "--dry-run"], ["sweep", "s.yaml", "--dry-run", "--json"]):
        assert_printed_as_text(command(*arguments, "--store", "store"), arguments)
    assert_printed_as_text(command("sweep", "s.yaml", "--store", "store", "--report", "report.md"), "sweep")
    assert_markdown_shows_text((tmp_path / "report.md").read_text())
    for field in ("tasks", "archs", "preset", "settings", "lr", "seeds", "axes", EVIL):
        (tmp_path / "s.yaml").write_text(json.dumps({**study, field: EVIL}))
        outcome = command("sweep", "s.yaml", "--dry-run")
        assert_printed_as_text(outcome, field)
        assert outcome.status == 2 and outcome.err.count("\n") == 1


def test_code_of_ones_own_and_typed_text(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(PLUGIN_MODULES, "")
    (tmp_path / "evil.py").write_text(LAYER)
    typed = EVIL.replace("\0", "")
    for arguments in (
        ["run", "copy:symbols=4", "--arch", "evil:Evil", *TINY], ["check-arch", "evil:Evil"], ["state", "evil:Evil"],
        ["run", typed, "--arch", "linear"], ["run", "copy", "--arch", typed], ["show", "copy", "--cell", typed],
        ["run", "copy", "--arch", "linear", "--set", typed], ["run", "copy", "--arch", f"linear:{typed}"],
        ["compare", "copy", "--arch", "linear", "--state", typed], ["sweep", typed], ["sweep", f"{typed}.yaml"],
        ["report", typed], ["runs", "list", "--store", typed], [typed], ["run", f"--{typed}"], ["studies"], ["plugins"],
        ["--plugin", typed, "tasks"],
    ):  # fmt: skip
        outcome = command(*arguments)
        assert_printed_as_text(outcome, arguments)
        assert outcome.status != 2 or outcome.err.splitlines()[-1].startswith("Error: ")


def test_a_hostile_fleet_in_progress(capsys, monkeypatch) -> None:
    from icl_bench.commands.console import terminal
    from icl_bench.commands.progress import make_reporter
    from icl_bench.harness.estimate import Forecast

    monkeypatch.setenv("COLUMNS", "4000")
    (run,) = expand_request(Request("assoc-recall", ["linear"]))
    arch = (run.arch[0].model_copy(update={"label": EVIL}),)
    hostile = run.model_copy(update={"arch": arch, "task": run.task.model_copy(update={"label": EVIL})})
    reporter = make_reporter(terminal(err=True), Forecast("cpu"))
    reporter.started([hostile])
    reporter.lost([hostile], EVIL)
    reporter.finished([hostile_result(0, "error")])
    printed = Outcome(0, *capsys.readouterr())
    assert_printed_as_text(printed, "progress")
    assert ":key:" in printed.err and "[red]" in printed.err
