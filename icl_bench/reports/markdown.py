"""The Markdown of a report, as GitHub shows it."""

from collections.abc import Sequence
from urllib.parse import quote

from icl_bench.reports.blocks import Chart, Commands, Content, Drawing, Heading, Link, Name, Notes, Prose, Table
from icl_bench.reports.text import code, escaped


def render_markdown(blocks: Sequence[Content]) -> str:
    """Return the text of a report."""
    return "\n\n".join(markdown_of(block) for block in blocks if not isinstance(block, Chart)) + "\n"


def markdown_of(block: Heading | Prose | Notes | Table | Drawing | Link | Commands) -> str:
    """Return the Markdown of a block; names in it are shown unchanged, whatever they contain."""
    match block:
        case Heading(level, text):
            return f"{'#' * level} {escaped(text)}"
        case Prose(text, warning):
            return f"**Warning:** {escaped(text)}" if warning else escaped(text)
        case Notes(items):
            return "\n".join(f"* {escaped(item)}" for item in items)
        case Drawing(caption, link):
            return f"![{escaped(caption)}]({quote(link)})\n\n*{escaped(caption)}*"
        case Link(text, path):
            return f"[{escaped(text)}]({quote(path)})"
        case Commands(lines):
            return fenced(lines)
        case Table():
            return markdown_table(block)


def fenced(lines: Sequence[str]) -> str:
    """Return a fenced block, with a fence longer than any inside it."""
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    return "\n".join([f"{fence}sh", *lines, fence])


def markdown_table(table: Table) -> str:
    """Return the Markdown of a table."""
    rule = [":--" if i < table.left else "--:" for i in range(len(table.header))]
    header = [cell if not isinstance(cell, Name) else cell_text(cell) for cell in table.header]
    rows = [header, *([cell_text(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def cell_text(cell: str) -> str:
    """Return the text of a cell: a name as code, other text without line breaks."""
    return code(cell, in_table=True) if isinstance(cell, Name) else cell.replace(" ", "\u00a0")
