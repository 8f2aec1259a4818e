"""The HTML of a report: one page that needs no network and no other file.

The page shows the blocks of the Markdown report and, for each task, a chart with hover values and selectable axes. Its
data are JSON in a script element, with every `<` escaped so that no name can end the element; its scripts write text,
never markup; its content security policy forbids it to load anything.
"""

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from icl_bench.escapes import html_text, plain
from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Chart, Commands, Content, Drawing, Heading, Link, Name, Notes, Prose, Table
from icl_bench.reports.entry import Entry
from icl_bench.reports.statistics import chance_corrected
from icl_bench.runs.outline import MeasuredRun

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy: the page loads nothing."""


def render_page(blocks: Sequence[Content], sections: Sequence[Section]) -> str:
    """Return the text of a page."""
    data = embedded([section_data(section) for section in sections])
    style, script = (resources.files(__package__).joinpath(name).read_text() for name in ("page.css", "page.js"))
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html_text(title)}</title>\n<style>\n{style}</style>\n<main>",
            *(html_of(block) for block in blocks),
            f'</main>\n<script type="application/json" id="data">{data}</script>',
            f"<script>\n{script}</script>\n</html>\n",
        ]
    )


def embedded(data: Any) -> str:
    """Return JSON that stays inside its script element, whatever text it contains, and whose texts are visible."""
    written = json.dumps(shown(data), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def shown(data: Any) -> Any:
    """Return JSON data with every text on one line, of visible characters alone."""
    if isinstance(data, dict):
        return {key: shown(value) for key, value in data.items()}
    if isinstance(data, list):
        return [shown(value) for value in data]
    return plain(data) if isinstance(data, str) else data


def html_of(block: Content) -> str:
    """Return the HTML of a block."""
    match block:
        case Heading(level, words):
            return f"<h{level}>{html_text(words)}</h{level}>"
        case Prose(words, warning):
            return f'<p class="warning">{html_text(words)}</p>' if warning else f"<p>{html_text(words)}</p>"
        case Notes(items):
            return "<ul>" + "".join(f"<li>{html_text(item)}</li>" for item in items) + "</ul>"
        case Drawing(caption, link):
            words = html_text(caption)
            return f'<figure><img src="{html_text(link)}" alt="{words}"><figcaption>{words}</figcaption></figure>'
        case Chart(section):
            return f'<div class="chart" data-section="{section}"><noscript>The chart needs scripts.</noscript></div>'
        case Link(words, path):
            return f'<p><a href="{html_text(path)}">{html_text(words)}</a></p>'
        case Commands(lines):
            return "<pre>" + "\n".join(html_text(line) for line in lines) + "</pre>"
        case Table():
            return html_table(block)


def html_table(table: Table) -> str:
    """Return the HTML of a table."""
    head = "".join(html_cell("th", words, i < table.left) for i, words in enumerate(table.header))
    rows = ("".join(html_cell("td", words, i < table.left) for i, words in enumerate(row)) for row in table.rows)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def html_cell(tag: str, words: str, left: bool) -> str:
    """Return the HTML of a cell; a name is set as code."""
    inside = f"<code>{html_text(words)}</code>" if isinstance(words, Name) else html_text(words)
    return f'<{tag} class="left">{inside}</{tag}>' if left else f"<{tag}>{inside}</{tag}>"


def section_data(section: Section) -> dict[str, Any]:
    """Return the data of a section's chart."""
    return {
        "task": section.task,
        "load": section.load_name,
        "cells": [{"label": c.label, "floor": round(section.floors[c.label].accuracy, 6)} for c in section.cells],
        "entries": [entry_data(entry, i, section) for i, entry in enumerate(section.entries)],
    }


def entry_data(entry: Entry, index: int, section: Section) -> dict[str, Any]:
    """Return the sizes and points of an entry."""
    return {
        "label": entry.label,
        "family": entry.family,
        "colour": section.families.index(entry.family) if len(section.entries) > len(section.families) else index,
        "elements": entry.state_elements,
        "bytes": entry.state_bytes,
        "params": entry.example.result.params,
        "scores": [point for run in entry.scored for point in score_data(run, section)],
        "sweep": [
            {"seed": seeds[0], "rate": rate.rate, "validation": round(value, 6)}
            for rate in entry.rates
            for seeds, value in sorted(rate.by_seed.items())
        ],
        "curve": [
            {"seed": run.result.seed, "step": step, "validation": round(accuracy, 6)}
            for run in entry.scored
            for step, accuracy in run.curve
        ],
    }


def score_data(run: MeasuredRun, section: Section) -> list[dict[str, Any]]:
    """Return the scores of a run by cell; zeros for a diverged run."""
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
