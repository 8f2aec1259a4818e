"""The page of the explorer: the template filled with the data document, the styles, the scripts and the libraries.

The page loads nothing, and its content security policy forbids it to: the two scripts that may run, a short one that
unpacks the page and the unpacked one, are named by their digests. Data are JSON, and stand compressed in an element of
their own, in characters that cannot end it; scripts write text, never markup; the template escapes every value.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from icl_bench.escapes import plain
from icl_bench.reports.blocks import Content, Name

SCRIPTS = ("core.js", "charts.js", "figures.js", "views.js", "main.js")
LIBRARIES = ("d3.js", "plot.js")
STRICT = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content security policy, without its part on scripts. Charts have styles of their own, which no digest can name."""


def render_page(document: Mapping[str, Any], blocks: Sequence[Content] = ()) -> str:
    """Return the text of the page on a data document; `blocks` are those of a report, shown as a view of its own."""
    script, unpacking = explorer_script(), unpacking_script()
    policy = f"{STRICT}; script-src 'sha256-{digest_of(unpacking)}' 'sha256-{digest_of(script)}'"
    if "stamp" in document:  # the page of a server, which asks it for runs that have finished since
        policy += "; connect-src 'self'"
    template = templates().get_template("page.html")
    return template.render(
        title=document["title"],
        policy=policy,
        style=Markup(packaged_text("page.css")),
        data=packed(embedded(document)),
        program=packed(script),
        unpacking=Markup(unpacking),
        blocks=blocks,
    )


@cache
def templates() -> Environment:
    """Return the templates of the page, which show every text on one line, of visible characters alone."""
    loader = PackageLoader("icl_bench.reports.explorer", "")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=printable)
    made.filters["kind"] = lambda block: type(block).__name__
    made.tests["name"] = lambda words: isinstance(words, Name)
    return made


def printable(value: Any) -> Any:
    """Return text as `plain` shows it; markup and other values unchanged."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def explorer_script() -> str:
    """Return the script of the page: the libraries of others, then the scripts of this package."""
    libraries = "\n".join(packaged_text("vendor", name) for name in LIBRARIES)
    own = "\n".join(packaged_text(name) for name in SCRIPTS)
    return f'{libraries}\n(() => {{\n"use strict";\n{own}}})();\n'


def unpacking_script() -> str:
    """Return the script that unpacks data and program, behind the licences of the libraries, which stay readable."""
    return f"/*\n{packaged_text('vendor', 'LICENSES.txt')}*/\n{packaged_text('unpack.js')}"


def packaged_text(*names: str) -> str:
    """Return the text of a file of this package."""
    return resources.files(__package__).joinpath(*names).read_text(encoding="utf-8")


def digest_of(script: str) -> str:
    """Return the SHA-256 of a script, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def packed(text: str) -> str:
    """Return a text compressed (zlib) and in base64: a page of some hundred runs is half as large as without."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def embedded(data: Any) -> str:
    """Return JSON that no element and no script can mistake for markup, and whose texts are visible."""
    written = json.dumps(shown(data), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def shown(data: Any) -> Any:
    """Return JSON data with every text on one line, of visible characters alone."""
    if isinstance(data, dict):
        return {shown(key): shown(value) for key, value in data.items()}
    if isinstance(data, list):
        return [shown(value) for value in data]
    return plain(data) if isinstance(data, str) else data
