"""The documentation site: README and pages of `docs/`, galleries, glossary and the Python face, built by Zensical.

    python -m docs.site build/site

Sources are written to a folder of their own, because links between them are those of a repository: a link to a page
leads to that page of the site, and any other file that is linked comes along. The site loads nothing from a network.
Its links and anchors are checked; the exit status is 1 where one leads nowhere.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docs import galleries
from icl_bench.reports.explorer.glossary import GLOSSARY

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS: Mapping[str, tuple[str, ...]] = {
    "Start": ("README.md", "docs/your_layer.md", "docs/python.md", "glossary.md"),
    "Gallery": ("gallery-tasks.md", "gallery-architectures.md", "gallery-studies.md"),
    "Use": ("docs/cli.md", "docs/tasks.md", "docs/architectures.md", "docs/study-files.md", "docs/engines.md"),
    "Results": (
        *("docs/studies/README.md", "docs/studies/degrees.md", "docs/records.md", "docs/statistics.md"),
        *("docs/validation.md", "docs/log.md"),
    ),
    "Inside": (
        "docs/design.md",
        "docs/kernels.md",
        "docs/security.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "reference.md",
    ),
    "Releases": ("CHANGELOG.md",),
}
"""Pages by chapter, as paths in the repository; the glossary, the reference and the galleries are written here."""
WRITTEN: Mapping[str, Callable[[], str]] = {
    "glossary.md": lambda: glossary(),
    "reference.md": lambda: "# Python reference\n\n" + "\n".join(f"::: {name}\n" for name in FACE),
    "gallery-tasks.md": galleries.tasks,
    "gallery-architectures.md": galleries.architectures,
    "gallery-studies.md": galleries.studies,
}
"""Pages that the site has beside those of the repository, with links as a page at its root has them."""
FACE = ("icl_bench.api.functions", "icl_bench.api.results", "icl_bench.harness.session")
"""Modules of the Python face, whose docstrings are the reference."""
LINK = re.compile(r"(\]\(|src=\")([^)\s\"]+)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
CONFIGURATION = """
[project]
site_name = "icl-bench"
extra_css = ["{style_name}"]
site_description = "Recall from context against state size, for sequence-mixing layers"
use_directory_urls = false
nav = [{nav}]

[project.theme]
font = false
features = ["navigation.sections", "navigation.footer", "search.highlight", "content.code.copy"]

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
toggle = {{ icon = "lucide/sun", name = "Dark" }}

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
toggle = {{ icon = "lucide/moon", name = "Light" }}

[project.plugins.mkdocstrings.handlers.python]
paths = ["{root}"]

[project.plugins.mkdocstrings.handlers.python.options]
docstring_style = "google"
show_source = false
show_root_heading = true
show_root_full_path = false
heading_level = 2
filters = ["!^_"]

[project.markdown_extensions.attr_list]
[project.markdown_extensions.tables]
[project.markdown_extensions.md_in_html]
[project.markdown_extensions.pymdownx.superfences]
[project.markdown_extensions.pymdownx.highlight]
[project.markdown_extensions.toc]
permalink = true
slugify = {{ object = "pymdownx.slugs.slugify", kwds = {{ case = "lower" }} }}
"""


STYLE_NAME = "contrast.css"
STYLE = """
.md-nav__link--active, .md-nav__link--active .md-ellipsis, .doc-labels code, .doc-label code {
  color: var(--md-default-fg-color);
  opacity: 1;
}
"""
"""Colours of Zensical that lie below the contrast that WCAG asks for, in its light scheme."""


def staged_name(path: str) -> str:
    """Return the path in the site of a page, a picture or another file of the repository."""
    if path.startswith("docs/") or path.endswith(".md"):
        return "index.md" if path == "README.md" else path.removeprefix("docs/").replace("README.md", "index.md")
    return f"files/{path}"


def stage(folder: Path) -> None:
    """Write the sources of the site to a folder: pages, pictures, linked files, and the configuration."""
    content = folder / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    sources = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*") if path.is_file()]
    pages = [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        *(path for path in sources if path.endswith(".md")),
    ]
    pictures = [path for path in sources if path.endswith((".svg", ".png"))]
    texts = {path: (ROOT / path).read_text() for path in pages} | {path: write() for path, write in WRITTEN.items()}
    for path in {*pictures, *(linked for page, text in texts.items() for linked in link_targets(text, page))} - {
        *pages
    }:
        (content / staged_name(path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, content / staged_name(path))
    for path, text in texts.items():
        (content / staged_name(path)).parent.mkdir(parents=True, exist_ok=True)
        (content / staged_name(path)).write_text(linked(text, path))
    nav = ", ".join(f'{{"{chapter}" = [{", ".join(map(quoted, paths))}]}}' for chapter, paths in CHAPTERS.items())
    (folder / "zensical.toml").write_text(CONFIGURATION.format(nav=nav, root=ROOT.as_posix(), style_name=STYLE_NAME))
    (content / STYLE_NAME).write_text(STYLE)


def glossary() -> str:
    """Return the page of the terms that the explorer explains."""
    terms = sorted(GLOSSARY.items(), key=lambda one: one[0].lower())
    return "# Glossary\n\n" + "\n\n".join(f"## {term}\n\n{words}" for term, words in terms) + "\n"


def quoted(path: str) -> str:
    """Return the page of a path in the repository as a string of TOML."""
    return f'"{staged_name(path)}"'


def linked(text: str, path: str) -> str:
    """Return the text of a page with its links, outside of code, as they are in the site."""

    def moved(found: re.Match[str]) -> str:
        target, mark, anchor = found[2].partition("#")
        if not target or urlsplit(target).scheme:
            return found[0]
        name = relative(Path(staged_name(in_repository(target, path))), Path(staged_name(path)).parent)
        return f"{found[1]}{name}{mark}{anchor}"

    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(CODE.split(text)))


def link_targets(text: str, path: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to, outside of code."""
    for part in CODE.split(text)[::2]:
        for found in LINK.finditer(part):
            target = found[2].partition("#")[0]
            if target and not urlsplit(target).scheme:
                yield in_repository(target, path)


def in_repository(target: str, path: str) -> str:
    """Return the path in the repository of what a page there links to."""
    return (ROOT / path).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()


def relative(path: Path, folder: Path) -> str:
    """Return a path of the site relative to a folder of it."""
    up = len(folder.parts)
    return "../" * up + path.as_posix()


class Anchors(HTMLParser):
    """Collect the anchors of a page, and the places that it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep ids, links and sources."""
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.names.add(value)
            elif value and (name == "href" or name == "src"):
                self.links.append(value)


def broken_links(site: Path) -> Iterator[str]:
    """Yield each link of a built site that leads to no file or to no anchor of it."""
    pages = {path: Anchors(path.read_text()) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages.get(target)
            anchor = "" if "=" in parts.fragment else unquote(parts.fragment)  # of an explorer, the state of the page
            if not target.is_file() or (anchor and known and anchor not in known.names):
                yield f"{path.relative_to(site)}: {link}"


def main() -> None:
    """Build the site and check its links."""
    target = Path(sys.argv[1]).resolve()
    sources = target.with_name(f"{target.name}-sources")
    stage(sources)
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean"], cwd=sources, check=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(sources / "site", target)
    broken = list(dict.fromkeys(broken_links(target)))
    sys.stdout.write("".join(f"leads nowhere: {line}\n" for line in broken) + f"{target}\n")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
