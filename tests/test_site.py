"""The sources of the documentation site: every page, with its links and the files that they lead to; code unchanged."""

import json
import re
from collections import Counter
from pathlib import Path

from docs import galleries, site
from icl_bench.architectures import ARCHITECTURES
from icl_bench.harness.study.file import parse_study
from icl_bench.reports.explorer.document import DOCUMENT_SCHEMA
from icl_bench.reports.explorer.glossary import GLOSSARY
from icl_bench.tasks import TASKS

MARKED = {"text", "sh", "yaml"}
"""Languages of code blocks that are no tests."""


def test_links_lead_to_pages_and_files_of_the_site() -> None:
    text = "[a](docs/cli.md#run) ![b](docs/figures/a.svg) [`c`](LICENSE) [d](#here) [e](https://x.org/docs/cli.md)"
    assert site.linked(text, "README.md") == (
        "[a](cli.md#run) ![b](figures/a.svg) [`c`](files/LICENSE) [d](#here) [e](https://x.org/docs/cli.md)"
    )
    assert list(site.link_targets(text, "README.md")) == ["docs/cli.md", "docs/figures/a.svg", "LICENSE"]
    text = "[up](../cli.md) [home](../../README.md) [file](../../icl_bench/studies/depth.yaml)"
    assert site.linked(text, "docs/studies/README.md") == (
        "[up](../cli.md) [home](../index.md) [file](../files/icl_bench/studies/depth.yaml)"
    )


def test_code_is_no_link() -> None:
    code = "`[a](docs/cli.md)` and\n```python\nx = [a](docs/cli.md)\n```\n"
    assert site.linked(code, "README.md") == code


def test_every_page_of_the_repository_is_in_the_site(tmp_path: Path) -> None:
    site.stage(tmp_path / "sources")
    content = tmp_path / "sources" / "docs"
    listed = {path for paths in site.CHAPTERS.values() for path in paths}
    assert all((content / site.staged_name(path)).is_file() for path in listed)
    pages = {path.relative_to(site.ROOT).as_posix() for path in (site.ROOT / "docs").glob("*.md")}
    assert pages <= listed
    assert (content / "files" / "LICENSE").is_file()
    assert all(f"## {term}\n" in (content / "glossary.md").read_text() for term in GLOSSARY)


def test_galleries_have_every_task_architecture_and_published_study() -> None:
    assert all(f"(docs/figures/tasks/{name}.svg)" in galleries.tasks() for name in TASKS)
    pages = galleries.architectures()
    assert all(f"(docs/architectures.md#{name})" in pages for name in ARCHITECTURES)
    assert "`S_t = g_t S_(t-1) + phi(k_t) v_t^T`" in pages
    document = galleries.explorer_data((site.ROOT / galleries.EXPLORER).read_text())
    assert len(document["stores"]) == 6 and document["schema"] == DOCUMENT_SCHEMA
    assert all(f"**{store['name']}**" in galleries.studies() for store in document["stores"])
    assert not re.search(r"/(?:work|tmp|home|root)/", json.dumps(document))  # no path of the machine that made it


def test_the_published_explorer_is_under_three_megabytes() -> None:
    assert (site.ROOT / galleries.EXPLORER).stat().st_size < 3_000_000


def test_every_code_block_of_the_site_is_run_or_marked(tmp_path: Path) -> None:
    """Blocks of Python and of console commands run as tests, on the pages that `docs/examples.py` reads.

    All others name a language that says that they are no test: output and formulas (text), commands that need a network
    or another machine (sh), and a study file (yaml), which the next test reads.
    """
    site.stage(tmp_path)
    run = {"index.md", *(path.name for path in (site.ROOT / "docs").glob("*.md"))}
    found = Counter()
    for path in (tmp_path / "docs").rglob("*.md"):
        name = path.relative_to(tmp_path / "docs").as_posix()
        opening = re.findall(r"^ *```(.*)$", path.read_text(), re.MULTILINE)[::2]
        for language in opening:
            found[language] += 1
            assert language in ({"python", "console", *MARKED} if name in run else MARKED), f"{name}: {language!r}"
    assert found["python"] > 5 and found["console"] > 30


def test_the_study_file_of_its_page_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (site.ROOT / "docs" / "study-files.md").read_text(), re.DOTALL)
    assert parse_study(block, "study-files.md").name == "widths"


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="here">x</h1><a href="b.html#there">b</a><a href="#here">a</a>')
    (tmp_path / "b.html").write_text('<a href="a.html#here">a</a><a href="gone.html">c</a><img src="gone.svg">')
    assert list(site.broken_links(tmp_path)) == ["a.html: b.html#there", "b.html: gone.html", "b.html: gone.svg"]
