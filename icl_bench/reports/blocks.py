"""The content of a report as blocks, which Markdown and HTML set each in its own way."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from icl_bench.reports.text import NONE


class Name(str):
    """Text from outside: a name, an id, an error. It is shown unchanged, in the type of code."""


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    level: int
    text: str


class Prose(NamedTuple):
    """A paragraph."""

    text: str
    warning: bool = False


class Notes(NamedTuple):
    """A list of remarks."""

    items: tuple[str, ...]


class Table(NamedTuple):
    """A table of text; the first `left` columns are aligned left, the others right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


class Folded(NamedTuple):
    """A table that a reader opens, under a line that says what it has."""

    summary: str
    table: Table


class Drawing(NamedTuple):
    """A figure that was drawn."""

    caption: str
    link: str
    """A path relative to the report."""
    title: str = ""
    """The answer that the figure gives, which stands over it, inside of the figure."""


class Link(NamedTuple):
    """A link to a file beside the report."""

    text: str
    path: str
    """Path relative to the report."""


class Commands(NamedTuple):
    """Command lines."""

    lines: tuple[str, ...]


Content = Heading | Prose | Notes | Table | Folded | Drawing | Link | Commands


def table_of(rows: Sequence[Mapping[str, str]], left: int = 1) -> Table:
    """Make a table of rows by column; the first row has every column, and others may lack some."""
    header = tuple(rows[0]) if rows else ()
    return Table(header, tuple(tuple(row.get(column, NONE) for column in header) for row in rows), left)


def titled(level: int, heading: str, *content: Content) -> list[Content]:
    """Put a heading over content; return nothing where a table among it has no rows, or where there is no content."""
    empty = any(isinstance(block, Table) and not block.rows for block in content)
    return [] if empty or not content else [Heading(level, heading), *content]
