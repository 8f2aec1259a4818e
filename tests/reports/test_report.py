"""The report as a file: what it says, that it always says it in the same bytes, and that names cannot act in it."""

import csv
import random
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from icl_bench.errors import RecordError, StoreError
from icl_bench.reports.report import write_report
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.store import Store
from icl_bench.runs.store.index import Index
from tests.reports.factory import comparison, make_record
from tests.runs.records import MANIFEST, finished, result, spec

COMMAND = "icl-bench report -o report.md"
HOSTILE = "x`|<script>alert(1)</script>\n# $\\frac{1$ ![a](http://e/x.png) _$"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good, diverged, failed and unreadable runs from two machines, and a task of one cell and one seed."""
    records = [
        *comparison(3),
        make_record("power:p=2", 7, status="diverged", detail="loss or gradient not finite at step 12"),
        make_record("linear", 8, status="error", detail="Traceback (most recent call last):\n  file\nValueError: a|b"),
        make_record("linear", 9, status="oom", detail="out of memory\nmore", state=None, device="Other GPU"),
        make_record(HOSTILE, task=f"task {HOSTILE}", loads=(4,), accuracies=(0.9,), command="run '```'", state=None),
    ]
    folder = tmp_path_factory.mktemp("report")
    problems = [RecordError("a record must be JSON; runs/ab: <b>bad</b>")]
    return write_report(FinishedRuns.of(records), problems, folder / "report.md", COMMAND)


def test_equal_records_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    records = comparison(2)
    write_report(FinishedRuns.of(records), [], tmp_path / "a" / "report.md", COMMAND)
    random.Random(0).shuffle(records)
    write_report(FinishedRuns.of(records), [], tmp_path / "b" / "report.md", COMMAND)
    write_report(FinishedRuns.of(records), [], tmp_path / "b" / "report.md", COMMAND)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert sorted(files_of(tmp_path / "a")) == [
        "report.md",
        "report_files/1-accuracy-by-group.svg",
        "report_files/1-accuracy-by-load.svg",
        "report_files/1-learning-curves.svg",
        "report_files/1-recall-by-state.svg",
        "report_files/runs.csv",
    ]


def test_an_index_gives_the_report_that_the_folders_give(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for seed in range(3):
        finished(store, spec(seed), accuracy=seed / 4)
    failed = store.begin(spec(7), MANIFEST.model_copy(update={"started": "2026-01-02T00:00:00+00:00"}))
    failed.commit(result(spec(7)).model_copy(update={"status": "error", "detail": "x", "cells": ()}))
    folders = FinishedRuns.of(store.load(run_id) for run_id in store.ids())
    for name, runs in (("folders", folders), ("index", Index(store).runs()[0])):
        write_report(runs, [], tmp_path / name / "report.md", COMMAND)
        write_report(runs, [], tmp_path / name / "report.html", COMMAND)
    assert files_of(tmp_path / "folders") == files_of(tmp_path / "index")
    assert len({id(run.environment) for run in Index(store).runs()[0].outlines}) == 1


def test_figures_are_xml_opaque_and_linked(troubled: Path) -> None:
    figures = sorted(troubled.with_name("report_files").glob("*.svg"))
    for figure in figures:
        root = ElementTree.parse(figure).getroot()
        assert root.get("width") == "660pt"  # 880 pixels
        assert "fill: #ffffff" in figure.read_text()
        assert "alert(1)" not in "".join(element.tag for element in root.iter())
        assert f"(report_files/{figure.name})" in troubled.read_text()
    assert len(figures) == 7


def test_no_text_of_a_figure_is_below_ten_pixels(troubled: Path) -> None:
    for figure in troubled.with_name("report_files").glob("*.svg"):
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", figure.read_text())]
        assert sizes
        assert min(sizes) * 96 / 72 >= 10  # one unit of the view box is a point


def test_failures_are_named_with_class_id_and_line(troubled: Path) -> None:
    text = troubled.read_text()
    diverged = make_record("power:p=2", 7, status="diverged", detail="loss or gradient not finite at step 12")
    assert (
        f"| diverged | `{diverged.result.id}` | `power:p=2` | 7 | 0.003 | `loss or gradient not finite at step 12` |"
        in text
    )
    assert "| `ValueError: a\\|b` |" in text
    assert "| `out of memory` |" in text
    assert "1 record unreadable" in text
    assert "| `a record must be JSON; runs/ab: <b>bad</b>` |" in text


def test_mixed_devices_are_warned_of(troubled: Path) -> None:
    text = troubled.read_text()
    assert "**Warning:** the runs differ in device" in text
    assert "| device | `Other GPU (1); Test CPU (15)` |" in text


def test_different_data_of_one_seed_are_warned_of(tmp_path: Path) -> None:
    runs = [make_record("linear"), make_record("softmax")]
    told = [one.model_copy(update={"result": one.result.model_copy(update={"first_batch": "a"})}) for one in runs]
    same = write_report(FinishedRuns.of(told), [], tmp_path / "same.md", COMMAND).read_text()
    other = told[1].result.model_copy(update={"first_batch": "b"})
    unequal = FinishedRuns.of([told[0], told[1].model_copy(update={"result": other})])
    mixed = write_report(unequal, [], tmp_path / "m.md", COMMAND)
    assert "began training on different examples" not in same
    assert "**Warning:** runs of the same task and data seed began training on different examples." in mixed.read_text()


def test_mixed_versions_of_data_are_warned_of(tmp_path: Path) -> None:
    one, other = make_record("linear"), make_record("softmax")
    later = {**other.spec, "task": {**other.spec["task"], "version": 2}}
    runs = FinishedRuns.of([one, other.model_copy(update={"spec": later})])
    text = write_report(runs, [], tmp_path / "m.md", COMMAND).read_text()
    assert "the runs of assoc-recall are on versions 1 and 2 of its data; they do not compare." in text
    assert "of its data" not in write_report(FinishedRuns.of([one]), [], tmp_path / "o.md", COMMAND).read_text()


def test_hostile_names_do_not_act(troubled: Path) -> None:
    tokens = parse(troubled)
    fold = ["<details><summary>Solved seeds by group of scored positions</summary>\n", "</details>\n"]
    html = [token.content for token in tokens if token.type.startswith("html")]
    assert html == fold * (len(html) // 2)
    sources = [str(token.attrs["src"]) for token in tokens if token.type == "image"]
    assert len(sources) == 7
    assert all(source.startswith("report_files/") for source in sources)
    assert [token.attrs["href"] for token in tokens if token.type == "link_open"] == ["report_files/runs.csv"]
    assert len([token for token in tokens if token.type == "heading_open" and token.tag == "h1"]) == 1
    assert "run '```'" in next(token.content for token in tokens if token.type == "fence")


def test_names_show_as_they_are(troubled: Path) -> None:
    shown = {token.content for token in parse(troubled) if token.type == "code_inline"}
    assert HOSTILE.replace("\n", " ") in shown
    assert "ValueError: a|b" in shown


def parse(report: Path) -> list[Token]:
    """The tokens that a Markdown reader sees, inline ones included."""
    tokens = MarkdownIt("commonmark").enable("table").parse(report.read_text())
    return [one for token in tokens for one in (token, *(token.children or ()))]


def test_the_rows_of_a_table_have_as_many_columns_as_its_head(troubled: Path) -> None:
    width = 0
    for line in troubled.read_text().splitlines():
        columns = len(line.replace("\\|", "").split("|")) if line.startswith("|") else 0
        assert columns in (0, width or columns)
        width = columns


def test_an_empty_store_still_reports(tmp_path: Path) -> None:
    problems = [RecordError("a record must be readable; runs/ab")]
    text = write_report(FinishedRuns.of([]), problems, tmp_path / "r.md", COMMAND).read_text()
    assert "0 runs, 0 failed, 1 record unreadable." in text
    assert not (tmp_path / "r_files").exists()


def test_only_failed_runs_still_report(tmp_path: Path) -> None:
    records = [make_record(status="diverged"), make_record("linear", status="error")]
    text = write_report(FinishedRuns.of(records), [], tmp_path / "r.md", COMMAND).read_text()
    assert "Result: none; no run ended with a score." in text
    assert [path.name for path in (tmp_path / "r_files").iterdir()] == ["runs.csv"]


def test_every_run_has_its_rows(troubled: Path) -> None:
    rows = list(csv.DictReader((troubled.parent / "report_files" / "runs.csv").read_text().splitlines()))
    scored = [row for row in rows if row["status"] == "ok"]
    assert len(scored) == 4 * 3 * 3 + 1  # architectures, seeds and cells; a task of one cell
    assert sorted(row["status"] for row in rows if row["accuracy"] == "") == ["diverged", "error", "oom"]
    linear = next(row for row in scored if (row["arch"], row["seed"], row["load"]) == ("linear", "0", "8"))
    assert linear["accuracy"] == str(comparison(1)[1].result.cells[1].accuracy)
    assert {row["task"] for row in rows} == {"assoc-recall", f"task {HOSTILE}".replace("\n", " ")}


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"a report must be written .* choose another file with -o"):
        write_report(FinishedRuns.of([make_record()]), [], tmp_path / "file" / "report.md", COMMAND)


def test_the_terminal_needs_neither_matplotlib_nor_torch() -> None:
    assert {"torch", "matplotlib"} & loaded_by("icl_bench.commands.tables") == set()
    assert {"torch", "matplotlib"} & loaded_by("icl_bench.reports.report") == {"matplotlib"}


def loaded_by(module: str) -> set[str]:
    """The modules that are loaded once this one is."""
    script = f"import sys, {module}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
