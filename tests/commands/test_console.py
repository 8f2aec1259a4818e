"""Text on the console cannot control the terminal, and is not read as markup or emoji codes."""

import io
import re

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from icl_bench.commands.console import TextConsole, terminal

HOSTILE = "a\x1b]0;title\x07b\x9b2Jc\u202ed\re\x00f [red]g[/red] :key: :wave:k=3"
SHOWN = "a]0;titleb2Jcdef[red]g[/red]:key::wave:k=3"
"""The text without its white space and controls."""


@pytest.fixture
def console(monkeypatch) -> TextConsole:
    """Return a console that writes as to a terminal without colours, into memory."""
    monkeypatch.setenv("TERM", "xterm")
    plain = {"markup": False, "emoji": False, "highlight": False}
    return TextConsole(file=io.StringIO(), width=200, force_terminal=True, no_color=True, **plain)


def as_table() -> Table:
    table = Table("head", title=HOSTILE, box=None)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    return table


@pytest.mark.parametrize("printed", [HOSTILE, Text(HOSTILE), as_table()], ids=["string", "text", "table"])
def test_what_is_printed_is_shown_and_controls_nothing(console: TextConsole, printed: object) -> None:
    console.print(printed)
    written = console.file.getvalue()
    assert SHOWN in written.replace(" ", "")
    assert re.sub(r"\x1b\[\d+m|\n", "", written).isprintable()


def test_a_live_bar_shows_text_and_controls_nothing(console: TextConsole) -> None:
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(HOSTILE)
        bar.refresh()
    written = console.file.getvalue()
    assert SHOWN.removesuffix(":k=3") in written.replace(" ", "")  # rich counts controls, and cuts the end
    assert not [mark for mark in ("\x1b]", "\x9b", "\u202e", "\x07") if mark in written]


def test_the_consoles_of_commands_read_no_codes(capsys) -> None:
    terminal().print(HOSTILE)
    terminal(err=True).print(HOSTILE, soft_wrap=True)
    assert [text.strip().replace(" ", "") for text in capsys.readouterr()] == [SHOWN, SHOWN]
