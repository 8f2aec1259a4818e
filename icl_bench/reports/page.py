"""A report as one HTML page that needs nothing else: no network, no other file.

The page holds the blocks of the Markdown report and, for each task, a chart with hover values and axes to switch. Its
data are JSON in a script element that cannot be left early; its scripts write text, never markup; its own policy lets
it load nothing.
"""

import base64
import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from icl_bench.errors import RecordError
from icl_bench.reports.analysis import Entry, Section, analyse, curve_of
from icl_bench.reports.document import Block, Chart, Commands, Drawing, Heading, Link, Notes, Prose, compose
from icl_bench.reports.framing import NO_FRAME, Frame, Published
from icl_bench.reports.report import refuse_unwritable, write_whole
from icl_bench.reports.statistics import chance_corrected
from icl_bench.reports.tables import Name, Table
from icl_bench.reports.text import plain
from icl_bench.runs.outline import Outline
from icl_bench.runs.record import RunRecord

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STATIC = frozenset({"capacity", "accuracy-by-group"})
"""Figures shown as they are; the chart shows what the others do."""


def write_page(
    records: Sequence[RunRecord | Outline],
    problems: Sequence[RecordError],
    path: Path,
    command: str,
    frame: Frame = NO_FRAME,
) -> Path:
    """Write a report as one HTML page, the same bytes for the same records.

    Args:
        records: finished runs, whole or in outline, failed ones included.
        problems: what could not be read; the page names it.
        path: the HTML file.
        command: the command line that makes this page again.
        frame: what a study says of itself.

    Returns:
        The path of the page.

    Raises:
        StoreError: where the page cannot be written.
    """
    sections = analyse(records)
    blocks = compose(sections, [draw(section, frame.published) for section in sections], problems, command, frame)
    with refuse_unwritable():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, render(blocks, sections).encode())
    return path


def draw(section: Section, published: Sequence[Published]) -> list[Drawing]:
    """The figures that are shown as they are, as data URIs."""
    from icl_bench.reports.figures import draw_all  # loads matplotlib

    names = STATIC | {"recall-by-state"} if published else STATIC
    drawn = draw_all(section, published, names)
    found = [(name, caption, base64.b64encode(image).decode()) for name, caption, image in drawn]
    return [Drawing(name, caption, f"data:image/svg+xml;base64,{image}") for name, caption, image in found]


def render(blocks: Sequence[Block], sections: Sequence[Section]) -> str:
    """The page."""
    style, script = (resources.files(__package__).joinpath(name).read_text() for name in ("page.css", "page.js"))
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>\n<style>\n{style}</style>\n<main>",
            *(set_block(block) for block in blocks),
            f'</main>\n<script type="application/json" id="data">{embedded([plot(s) for s in sections])}</script>',
            f"<script>\n{script}</script>\n</html>\n",
        ]
    )


def embedded(data: Any) -> str:
    """JSON that stays inside its script element, whatever text it holds."""
    written = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def text(words: str) -> str:
    """Text that shows as it is, also inside a quoted attribute."""
    return html.escape(plain(words))


def set_block(block: Block) -> str:
    """One block."""
    match block:
        case Heading(level, words):
            return f"<h{level}>{text(words)}</h{level}>"
        case Prose(words, warning):
            return f'<p class="warning">{text(words)}</p>' if warning else f"<p>{text(words)}</p>"
        case Notes(items):
            return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"
        case Drawing(_, caption, link):
            return f'<figure><img src="{link}" alt="{text(caption)}"><figcaption>{text(caption)}</figcaption></figure>'
        case Chart(section):
            return f'<div class="chart" data-section="{section}"><noscript>The chart needs scripts.</noscript></div>'
        case Link(words, path):
            return f'<p><a href="{text(path)}">{text(words)}</a></p>'
        case Commands(lines):
            return "<pre>" + "\n".join(text(line) for line in lines) + "</pre>"
        case Table():
            return set_table(block)


def set_table(table: Table) -> str:
    """A table."""
    head = "".join(cell("th", words, i < table.left) for i, words in enumerate(table.header))
    rows = ("".join(cell("td", words, i < table.left) for i, words in enumerate(row)) for row in table.rows)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def cell(tag: str, words: str, left: bool) -> str:
    """A cell; names in the type of code."""
    inside = f"<code>{text(words)}</code>" if isinstance(words, Name) else text(words)
    return f'<{tag} class="left">{inside}</{tag}>' if left else f"<{tag}>{inside}</{tag}>"


def plot(section: Section) -> dict[str, Any]:
    """What the chart of a section draws."""
    return {
        "task": section.task,
        "load": section.load_name,
        "cells": [{"label": c.label, "floor": round(section.floors[c.label].accuracy, 6)} for c in section.cells],
        "entries": [describe(entry, i, section) for i, entry in enumerate(section.entries)],
    }


def describe(entry: Entry, index: int, section: Section) -> dict[str, Any]:
    """An entry: its sizes and its points."""
    state = entry.example.result.state
    return {
        "label": plain(entry.label),
        "family": plain(entry.family),
        "colour": section.families.index(entry.family) if len(section.entries) > len(section.families) else index,
        "elements": state.elements if state else None,
        "bytes": state.bytes if state else None,
        "params": entry.example.result.params,
        "scores": [point for run in entry.scored for point in scores(run, section)],
        "sweep": [
            {"seed": seeds[0], "rate": rate.rate, "validation": round(value, 6)}
            for rate in entry.rates
            for seeds, value in sorted(rate.by_seed.items())
        ],
        "curve": [
            {"seed": run.result.seed, "step": step, "validation": round(accuracy, 6)}
            for run in entry.scored
            for step, accuracy in curve_of(run)
        ],
    }


def scores(run: RunRecord, section: Section) -> list[dict[str, Any]]:
    """The scores of a run by cell; zeros for a diverged run."""
    found = {one.label: (one.accuracy, one.exact_match) for one in run.result.cells}
    rows = []
    for i, info in enumerate(section.cells):
        if info.label not in found and run.result.status != "diverged":
            continue
        accuracy, exact = found.get(info.label, (0.0, 0.0))
        corrected = chance_corrected(accuracy, section.floors[info.label].accuracy)
        place = {"seed": run.result.seed, "cell": i, "load": info.load}
        values = {"accuracy": accuracy, "exact": exact, "corrected": corrected}
        rows.append(place | {name: round(value, 6) for name, value in values.items()})
    return rows
