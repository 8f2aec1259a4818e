"""The page: it needs nothing else, names cannot act in it, and every interaction works in a browser."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from icl_bench.errors import RecordError
from icl_bench.reports.context import NO_STUDY, PublishedResult
from icl_bench.reports.explorer.document import ViewedStore, explorer_document
from icl_bench.reports.explorer.page import LIBRARIES, render_page
from icl_bench.reports.report import write_report
from icl_bench.runs.kept import AnsweredExample, CellSamples, Samples
from icl_bench.runs.outline import FinishedRuns
from tests import browser
from tests.browser import unpacked
from tests.reports.factory import comparison, make_record, sections_of

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> " onclick="alert(3)\u2028'
EXAMPLE = AnsweredExample(
    inputs=("k1", HOSTILE, "k1", "k2"), positions=(2, 3), targets=("v1", "v2"), answers=("v1", "v9"), hits=(1.0, 0.0),
    groups=("gap 1", "gap 2"), answer_probabilities=(0.9, 0.8), target_probabilities=(0.9, 0.0625),
)  # fmt: skip


class Elements(HTMLParser):
    """Collects elements and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page() -> str:
    """A page on two stores: a comparison of sizes with kept examples, a hostile task, and a second store."""
    sized = [
        make_record(f"{arch}:w={w}", seed, task="sizes", accuracies=(1.0, w / 64, w / 128), state=w, lr=lr)
        for arch in ("window", "other") for w in (16, 32, 64) for seed in range(4)
        for lr in ((1e-3, 3e-3) if seed > 1 else (3e-3,))
    ]  # fmt: skip
    hostile = make_record(HOSTILE, task=HOSTILE, command=HOSTILE, device=HOSTILE)
    failed = make_record("linear", 9, status="diverged", detail=HOSTILE, state=2_048)
    first = [*comparison(3), *sized, hostile, failed]
    kept = Samples(id=sized[0].result.id, task="sizes", arch="window:w=16",
                   cells=(CellSamples(label="pairs=4", load=4, examples=(EXAMPLE,) * 2),))  # fmt: skip
    stores = [
        ViewedStore("first", sections_of(first), [RecordError(HOSTILE)], [kept]),
        ViewedStore(HOSTILE, sections_of(comparison(3))),
    ]
    return render_page(explorer_document(stores, f"runs {HOSTILE}", "icl-bench view"))


def test_the_page_needs_nothing_else(page: str) -> None:
    links = [value for _, found in Elements(page).found for name, value in found.items() if name in ("src", "href")]
    assert links == []
    assert "default-src &#39;none&#39;" in page and "connect-src" not in page


def test_names_are_text(page: str) -> None:
    elements = Elements(page).found
    assert [tag for tag, _ in elements].count("script") == 3
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert not [attributes for tag, attributes in elements if tag == "img"]


def test_the_policy_names_the_two_scripts_by_their_digests(page: str) -> None:
    (unpacking,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    scripts = (unpacking, unpacked(page, "program"))
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert html.unescape(policy).endswith(f"script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}'")
    assert unpacking.count("THE SOFTWARE IS PROVIDED") == 5  # the licences stay readable


def test_the_data_are_in_the_page(page: str) -> None:
    document = json.loads(unpacked(page, "data"))
    assert HOSTILE.removesuffix("\u2028") in {section["task"] for section in document["sections"]}
    assert "\u2028" not in page


def test_libraries_are_those_whose_digests_and_licences_stand_beside_them() -> None:
    folder = resources.files("icl_bench.reports.explorer") / "vendor"
    licences = folder.joinpath("LICENSES.txt").read_text()
    for name in LIBRARIES:
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() in licences
    assert licences.count("THE SOFTWARE IS PROVIDED") == 5 and "*/" not in licences


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    write_report(FinishedRuns.of(comparison(1)), [], pages[0], "icl-bench report")
    write_report(FinishedRuns.of(comparison(1)[::-1]), [], pages[1], "icl-bench report")
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_report_as_page_has_its_tables_and_the_published_results(tmp_path: Path) -> None:
    point = PublishedResult("theirs", 40_000, 0.5, "a paper, table 1")
    context = NO_STUDY._replace(name="s", question="Which?", published=(point,))
    text = write_report(
        FinishedRuns.of(comparison(3)), [], tmp_path / "r.html", "icl-bench sweep s", context
    ).read_text()
    assert "<h2>icl-bench study: s</h2>" in text and "<h4>Accuracy by load</h4>" in text
    assert json.loads(unpacked(text, "data"))["sections"][0]["published"] == [point._asdict()]


DRIVER = (Path(__file__).parent / "driver.js").read_text()


@pytest.fixture(scope="module")
def seen(page: str, tmp_path_factory: pytest.TempPathFactory):
    """Return a function that opens the page in a window of this width, drives it, and returns what was seen."""
    if not browser.FOUND:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("driven")
    (folder / "page.html").write_text(page)
    with browser.Browser(folder / "profile") as opened:

        def drive(width: int):
            opened.open(folder / "page.html", width)
            return opened.run(f"(async () => {{ {DRIVER}\nreturn drive(); }})()")

        yield drive


@pytest.mark.browser
def test_every_interaction_works_in_a_browser(seen) -> None:
    found = seen(1280)
    assert found["errors"] == []
    assert found["scripts"] == 3  # data, program and the one that unpacks them: no name has become one
    assert found["cards"] == 4 and found["titles"] >= 4
    assert found["dots"] == 3 * 2 * 2 and found["fewer"] == 3 * 2  # seeds 0 and 1 measure
    assert found["hidden"] == '["other"]'
    assert "other:w=16, seed" in found["picked"] or "window:w=16, seed" in found["picked"]
    assert len(found["tip"]) == 1 and found["picked"].startswith(found["tip"][0])
    assert found["keys"] != "" and found["run"] and found["dialog"].startswith("Run ")
    assert "icl-bench run assoc-recall" in found["dialog"]
    assert found["oneSeed"] == found["dots"] / 2 and found["linesOfOneSeed"] == 0
    assert found["searched"] == 3 * 2
    assert found["brushed"]["low"] and float(found["brushed"]["high"]) < 64
    assert "bottom" not in found["brushed"]  # a drag along one axis keeps the whole of the other
    low, top, smallest, largest, tick = found["zoomed"]
    assert 0.5 < low < tick < top <= 1.05 and smallest < largest < 64
    assert found["whole"] == [None, None, 0] and found["typed"] == ["0.5", None, 0.5, 0.9]
    assert found["over"] == [13, 25, True, True] and found["overRows"] == 8
    assert found["dashed"] == 4 + 1  # with the floor
    title, csv = found["loss"]
    assert "lowest training loss, 1 (median of 3 seeds, 1 to 1)" in title
    assert csv.startswith("id,arch,seed,step,training_loss\n") and ",500,1\n" in csv
    assert found["columns"] == [8, 7, False, '{"entries":["parameters"]}', True, 8]
    assert found["lifted"] == [1, 3, True, 0]  # the line of a seed through its three loads
    assert found["slider"][0] != found["slider"][1]
    assert found["sorted"] == ["descending", "ascending"]
    assert found["csv"].startswith("id,task,arch,seed,lr") and "sizes" in found["csv"]
    assert found["svg"].startswith("<svg") and "state elements" in found["svg"]
    assert found["png"] == "image/png"
    assert found["term"].startswith("state") and "token to token" in found["term"]
    assert found["themes"] == ["dark", "light"]
    assert found["back"] == "state"
    assert found["samples"] == {"right": 2, "wrong": 2, "faded": 2}
    assert found["differences"] == 4
    assert found["failures"] == 1 and found["problems"] == 1
    assert found["matrix"] > 8
    assert found["unnamed"] == []


@pytest.mark.browser
def test_a_phone_shows_every_view_without_scrolling_sideways(seen) -> None:
    found = seen(390)
    assert found["errors"] == []
    assert found["width"] == 390 and found["wide"] == []
