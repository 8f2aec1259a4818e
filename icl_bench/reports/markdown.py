"""A report as Markdown, as GitHub shows it."""

from collections.abc import Sequence
from urllib.parse import quote

from icl_bench.reports.document import Block, Chart, Commands, Drawing, Heading, Link, Notes, Prose
from icl_bench.reports.tables import Name, Table
from icl_bench.reports.text import code, escaped


def render(blocks: Sequence[Block]) -> str:
    """The text of a report."""
    return "\n\n".join(set_block(block) for block in blocks if not isinstance(block, Chart)) + "\n"


def set_block(block: Heading | Prose | Notes | Table | Drawing | Link | Commands) -> str:
    """One block; whatever names it holds, they show as they are."""
    match block:
        case Heading(level, text):
            return f"{'#' * level} {escaped(text)}"
        case Prose(text, warning):
            return f"**Warning:** {escaped(text)}" if warning else escaped(text)
        case Notes(items):
            return "\n".join(f"* {escaped(item)}" for item in items)
        case Drawing(_, caption, link):
            return f"![{escaped(caption)}]({quote(link)})\n\n*{escaped(caption)}*"
        case Link(text, path):
            return f"[{escaped(text)}]({quote(path)})"
        case Commands(lines):
            return set_commands(lines)
        case Table():
            return set_table(block)


def set_commands(lines: Sequence[str]) -> str:
    """A fenced block, with a fence longer than any inside."""
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    return "\n".join([f"{fence}sh", *lines, fence])


def set_table(table: Table) -> str:
    """A table."""
    rule = [":--" if i < table.left else "--:" for i in range(len(table.header))]
    header = [cell if not isinstance(cell, Name) else cell_text(cell) for cell in table.header]
    rows = [header, *([cell_text(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def cell_text(cell: str) -> str:
    """A cell: names in the type of code; own words and numbers as they are, on one line."""
    return code(cell, in_table=True) if isinstance(cell, Name) else cell.replace(" ", "\u00a0")
