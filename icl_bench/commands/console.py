"""The console through which tables, bars and progress reach a terminal."""

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from icl_bench.escapes import visible_text


class TextConsole(Console):
    """A console on which text cannot control the terminal: the control codes of the console itself alone reach it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable; characters that are not visible become spaces."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(visible_text, text.split("\n"))), style)


def terminal(err: bool = False) -> Console:
    """Return a console on standard error, or on standard output, 160 columns wide if that is no terminal.

    Markup and emoji codes in text are shown as they are, and control characters are not shown.
    """
    if err or sys.stdout.isatty():
        return TextConsole(stderr=err, markup=False, emoji=False, highlight=False)
    return TextConsole(width=160, color_system=None, markup=False, emoji=False, highlight=False)
