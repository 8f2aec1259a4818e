"""The report as one page: it needs nothing else, names cannot act in it, and its chart works in a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from icl_bench.errors import RecordError, StoreError
from icl_bench.reports.report import write_report
from icl_bench.runs.outline import FinishedRuns
from tests.reports.factory import comparison, make_record

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> " onclick="alert(3)\u2028'
COMMAND = "icl-bench report --html report.html"
DRIVER = """<script>
const [, chart] = document.querySelectorAll(".chart");
const seen = {points: document.querySelectorAll(".point").length, scripts: document.scripts.length};
const choose = (name, value) => {
  const field = chart.querySelector(`select[name=${name}]`);
  field.value = value;
  field.dispatchEvent(new Event("change"));
};
const ticks = () => [...chart.querySelectorAll("svg text")].map((node) => node.textContent);
seen.loads = ticks();
const dot = chart.querySelector(".point").getBoundingClientRect();
const place = {clientX: dot.x + 4, clientY: dot.y + 4};
chart.querySelector("svg").dispatchEvent(new MouseEvent("mousemove", place));
seen.tip = chart.querySelector(".tip").textContent;
const tip = chart.querySelector(".tip").getBoundingClientRect();
seen.tipAway = Math.hypot(tip.x - place.clientX, tip.y - place.clientY);
seen.tipShown = getComputedStyle(chart.querySelector(".tip")).display;
choose("x", "elements");
seen.states = ticks();
seen.means = chart.querySelectorAll(".point").length;
chart.querySelector(".legend button").click();
seen.fewer = chart.querySelectorAll(".point").length;
choose("show", "curve");
seen.curve = ticks();
seen.options = [...chart.querySelectorAll("select[name=x] option")].map((node) => node.value);
document.title = JSON.stringify(seen);
</script>"""


class Elements(HTMLParser):
    """Collects elements and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on a comparison and a task with a hostile name."""
    hostile = make_record(HOSTILE, task=HOSTILE, command=HOSTILE, device=HOSTILE)
    sizes = [make_record(f"window:w={w}", task="sizes", accuracies=(1.0, w / 64, 0.1), state=w) for w in (16, 32)]
    records = [*comparison(2), *sizes, make_record("power:p=2", 7, status="diverged", detail=HOSTILE), hostile]
    return write_report(
        FinishedRuns.of(records), [RecordError(HOSTILE)], tmp_path_factory.mktemp("page") / "report.html", COMMAND
    )


def test_the_page_needs_nothing_else(page: Path) -> None:
    elements = Elements(page.read_text()).found
    sources = [value for _, attributes in elements for name, value in attributes.items() if name in ("src", "href")]
    assert len(sources) == 4  # K50 of a task, and the groups of all three
    assert all(value and value.startswith("data:") for value in sources)
    assert "default-src 'none'" in page.read_text()


def test_names_are_text(page: Path) -> None:
    elements = Elements(page.read_text()).found
    assert [tag for tag, _ in elements].count("script") == 2
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert not [attributes for tag, attributes in elements if tag == "img" and attributes.get("src") == "x"]


def test_the_data_are_the_runs(page: Path) -> None:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    sections = {section["task"]: section for section in json.loads(found[1])}
    power = sections["assoc-recall"]["entries"][1]
    assert (power["label"], power["elements"]) == ("power:p=2", 17_408)
    assert sorted({row["seed"] for row in power["scores"]}) == [0, 1, 7]
    assert {row["accuracy"] for row in power["scores"] if row["seed"] == 7} == {0.0}
    assert HOSTILE.removesuffix("\u2028") in sections


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    write_report(FinishedRuns.of(comparison(1)), [], pages[0], COMMAND)
    write_report(FinishedRuns.of(comparison(1)[::-1]), [], pages[1], COMMAND)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="a report must be written where there is room and permission"):
        write_report(FinishedRuns.of([make_record()]), [], tmp_path / "file" / "report.html", COMMAND)


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_the_chart_works_in_a_browser(page: Path, tmp_path: Path) -> None:
    driven = tmp_path / "driven.html"
    driven.write_text(page.read_text().replace("</html>", DRIVER + "</html>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *flags, driven.as_uri()], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    title = re.search(r"<title>(.*?)</title>", done, re.DOTALL)
    assert title
    seen = json.loads(html.unescape(title[1]))
    assert seen["scripts"] == 3  # data, page and driver: no name has become one
    assert seen["points"] == (8 + 1 + 1 + 2) * 3  # every seed in every cell, of all tasks
    assert {"4", "8", "16", "pairs"} <= set(seen["loads"])
    assert seen["tip"].splitlines() == ["linear", "seed 0", "pairs: 4", "test accuracy: 0.984"]
    assert seen["tipShown"] == "block"
    assert seen["tipAway"] < 30  # pixels from the pointer
    assert "state elements" in seen["states"]
    assert seen["means"] - seen["fewer"] == 2  # the two seeds of the first architecture
    assert seen["options"] == ["step"]
    assert "updates" in seen["curve"]
