"""The sources of the documentation site: every page, with its links and the files that they lead to; code unchanged."""

from pathlib import Path

from docs import site
from icl_bench.reports.explorer.glossary import GLOSSARY


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


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="here">x</h1><a href="b.html#there">b</a><a href="#here">a</a>')
    (tmp_path / "b.html").write_text('<a href="a.html#here">a</a><a href="gone.html">c</a><img src="gone.svg">')
    assert list(site.broken_links(tmp_path)) == ["a.html: b.html#there", "b.html: gone.html", "b.html: gone.svg"]
