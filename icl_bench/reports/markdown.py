"""The Markdown of a report, as GitHub shows it."""

import re
from collections.abc import Sequence
from urllib.parse import quote

from icl_bench.escapes import markdown_code, markdown_text, plain
from icl_bench.reports.blocks import Commands, Content, Drawing, Folded, Heading, Link, Name, Notes, Prose, Table

NUMBERS = re.compile(r"(?:[\w.,%\u2013=()+/-]|[<>] (?=\d)|\[(?=-?\d)|(?<=\d)\](?!\()| )*")
"""Cells of own words, numbers and intervals, which are easier to read without escapes."""


def render_markdown(blocks: Sequence[Content]) -> str:
    """Return the text of a report."""
    return "\n\n".join(map(markdown_of, blocks)) + "\n"


def markdown_of(block: Content) -> str:
    """Return the Markdown of a block; names in it are shown unchanged, whatever they contain."""
    match block:
        case Heading(level, text):
            return f"{'#' * level} {markdown_text(text)}"
        case Prose(text, warning):
            return f"**Warning:** {markdown_text(text)}" if warning else markdown_text(text)
        case Notes(items):
            return "\n".join(f"* {markdown_text(item)}" for item in items)
        case Drawing(caption, link, title):
            words = f"{title}. {caption}" if title else caption
            return f"![{markdown_text(words)}]({quote(link)})\n\n*{markdown_text(caption)}*"
        case Link(text, path):
            return f"[{markdown_text(text)}]({quote(path)})"
        case Commands(lines):
            return fenced(lines)
        case Table():
            return markdown_table(block)
        case Folded(summary, table):
            return f"<details><summary>{markdown_text(summary)}</summary>\n\n{markdown_table(table)}\n\n</details>"


def fenced(lines: Sequence[str]) -> str:
    """Return a fenced block, with a fence longer than any inside it."""
    lines, fence = [plain(line) for line in lines], "```"
    while any(fence in line for line in lines):
        fence += "`"
    return "\n".join([f"{fence}sh", *lines, fence])


def markdown_table(table: Table) -> str:
    """Return the Markdown of a table."""
    rule = [":--" if i < table.left else "--:" for i in range(len(table.header))]
    rows = [[cell_text(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def cell_text(cell: str) -> str:
    """Return the text of a cell: a name as code, other text without line breaks between its words."""
    if isinstance(cell, Name):
        return markdown_code(cell, in_table=True)
    return (cell if NUMBERS.fullmatch(cell) else markdown_text(cell, in_table=True)).replace(" ", "\u00a0")
