"""The command that shows stores as a page: files that anyone can open, and a live page that only its reader gets."""

import json
import urllib.request
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError

import pytest

from icl_bench.commands import view
from icl_bench.reports.context import NO_STUDY
from icl_bench.runs.kept import AnsweredExample, CellSamples, Samples
from icl_bench.runs.store import Store
from tests.browser import unpacked
from tests.runs.records import MANIFEST, result, spec

EXAMPLE = AnsweredExample(
    inputs=("k1", "v1", "k1"), positions=(2,), targets=("v1",), answers=("v2",), hits=(0.0,), groups=("gap 2",),
    answer_probabilities=(0.75,), target_probabilities=(0.125,),
)  # fmt: skip


def add_run(store: Store, seed: int, keep: bool = False) -> None:
    writer = store.begin(spec(seed), MANIFEST)
    if keep:
        cells = (CellSamples(label="pairs=2", load=2, examples=(EXAMPLE,)),)
        kept = Samples(id=spec(seed).id, task="assoc-recall", arch="linear", cells=cells)
        writer.keep("samples.json", kept.model_dump_json().encode())
    writer.commit(result(spec(seed)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "icl-runs")
    add_run(made, 0)
    add_run(made, 1, keep=True)
    return made


def document_in(path: Path) -> dict:
    return json.loads(unpacked(path.read_text(), "data"))


def test_a_folder_has_one_page_with_the_runs_of_the_default_store(command, store, tmp_path) -> None:
    outcome = command("view", "-o", "site/page")
    assert (outcome.status, outcome.out, outcome.err) == (0, "site/page/index.html\n", "")
    assert [path.name for path in (tmp_path / "site" / "page").iterdir()] == ["index.html"]
    document = document_in(tmp_path / "site" / "page" / "index.html")
    assert document["title"] == "icl-bench: icl-runs" and len(document["runs"]["id"]) == 2
    assert [one["run"] for one in document["samples"]] == [spec(1).id]
    assert "stamp" not in document


def test_the_same_command_writes_equal_bytes(command, store, tmp_path) -> None:
    written = []
    for _ in range(2):
        assert command("view", "icl-runs", "-o", "page").status == 0
        written.append((tmp_path / "page" / "index.html").read_bytes())
        (tmp_path / "icl-runs" / "index.sqlite").unlink()
    assert written[0] == written[1]


def test_two_stores_are_compared_and_told_apart(command, store, tmp_path) -> None:
    other = Store(tmp_path / "other" / "icl-runs")
    add_run(other, 2)
    assert command("view", "icl-runs", "other/icl-runs", "-o", "page").status == 0
    document = document_in(tmp_path / "page" / "index.html")
    assert [one["name"] for one in document["stores"]] == ["icl-runs", "other/icl-runs"]
    assert document["differences"]["rows"]


def test_a_study_lends_its_texts_and_the_results_that_others_published(command, store, tmp_path) -> None:
    assert command("view", "-o", "page", "--study", "zoology-figure").status == 0
    document = document_in(tmp_path / "page" / "index.html")
    assert document["stores"][0]["study"]["name"] == "zoology-figure" and document["stores"][0]["study"]["question"]
    assert {point["label"] for point in document["sections"][0]["published"]}
    assert command("view", "-o", "page", "--study", "nothing").status == 2


def test_several_stores_have_a_study_each_or_one_for_all(command, store, tmp_path) -> None:
    add_run(Store(tmp_path / "other"), 2)
    stores, studies = ("view", "icl-runs", "other", "-o", "page"), ("--study", "depth", "--study", "suite")
    assert command(*stores, *studies).status == 0
    document = document_in(tmp_path / "page" / "index.html")
    assert document["title"] == "icl-bench: depth, suite"
    assert [(one["name"], one["study"]["name"]) for one in document["stores"]] == [("depth",) * 2, ("suite",) * 2]
    assert command(*stores, *studies[:2]).status == 0
    named = document_in(tmp_path / "page" / "index.html")["stores"]
    assert [(one["name"], one["study"]["name"]) for one in named] == [("icl-runs", "depth"), ("other", "depth")]
    outcome = command(*stores, *studies, "--study", "depth")
    assert outcome.status == 2 and "3 studies for 2 stores; give --study once or 2 times" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "a store is a folder of runs; nothing is none"),
        (("empty", "-o", "page"), "a page needs finished runs; empty has none"),
        (("icl-runs", "-o", "page.html"), "got 'page.html'; give a folder, or write one file with `icl-bench report"),
        (("icl-runs", "-o", "file/page"), "a page needs a folder with room and permission; file/page"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_line(command, store, tmp_path, arguments, message) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    outcome = command("view", *arguments)
    assert outcome.status == 2 and outcome.err.count("\n") == 1 and message in outcome.err


def fetch(address: str, host: str | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def test_a_live_page_is_only_for_who_has_its_address(store) -> None:
    with view.LivePage(0) as page:
        page.publish({**view.document_of([store], [NO_STUDY]), "stamp": "first"})
        status, body = fetch(page.address)
        assert status == HTTPStatus.OK and b"connect-src &#39;self&#39;" in body
        root = page.address.removesuffix(f"{page.token}/")
        assert root.startswith("http://127.0.0.1:")
        for address in (root, f"{root}wrong/", f"{root}{page.token[:-1]}/", f"{root}data", f"{page.address}other"):
            assert fetch(address) == (HTTPStatus.NOT_FOUND, b"")
        assert fetch(page.address, host="rebound.example") == (HTTPStatus.NOT_FOUND, b"")


def test_a_live_page_follows_runs_as_they_finish(store) -> None:
    before = view.stamp_of([store])
    assert view.stamp_of([store]) == before
    with view.LivePage(0) as page:
        page.publish({**view.document_of([store], [NO_STUDY]), "stamp": before})
        assert fetch(f"{page.address}data?after={before}") == (HTTPStatus.NO_CONTENT, b"")
        add_run(store, 2)
        after = view.stamp_of([store])
        assert after != before
        page.publish({**view.document_of([store], [NO_STUDY]), "stamp": after})
        status, body = fetch(f"{page.address}data?after={before}")
        assert status == HTTPStatus.OK and len(json.loads(body)["runs"]["id"]) == 3


def test_a_port_that_is_taken_is_refused_in_a_line(store) -> None:
    with view.LivePage(0) as page, pytest.raises(view.StoreError, match="a live page needs a free port"):
        view.LivePage(page.server.server_port)
