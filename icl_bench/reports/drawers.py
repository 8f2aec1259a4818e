"""Processes that draw the figures of a report side by side, started while runs train."""

import pickle
import signal
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from functools import cache
from importlib import import_module
from pathlib import Path

from icl_bench.isolation import start_method, start_server
from icl_bench.reports.analysis import Section, analyse
from icl_bench.reports.context import StudyContext
from icl_bench.reports.document import FIGURES
from icl_bench.reports.explorer.answers import figure_title
from icl_bench.reports.parts.base import SectionFigure
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.record import RunRecord

Render = Callable[[int, Section, SectionFigure], bytes | None]
"""Return the SVG of a figure of the section at a position; None where it would show nothing."""
MODULES = ("icl_bench.reports.report", "scipy.stats")
"""Modules that a report loads, the second for exact tests of some studies alone."""


class Drawers:
    """Processes that have loaded what draws figures."""

    def __init__(self, count: int) -> None:
        start_server()
        self.folder = tempfile.TemporaryDirectory(prefix="icl-bench-", ignore_cleanup_errors=True)
        self.pool = ProcessPoolExecutor(count, start_method(), prepare)
        self.pool.submit(int)  # which starts them

    def begin(self, records: Sequence[RunRecord], context: StudyContext) -> Render:
        """Begin to draw every figure of a report; return a function that waits for one, or draws it if that failed."""
        file = Path(self.folder.name) / "records"
        file.write_bytes(pickle.dumps((records, context)))
        pairs = [(i, name) for i in range(len(analyse(FinishedRuns.of(records), context))) for name in FIGURES]
        drawn: dict[tuple[int, str], Future[bytes | None]] = {
            pair: self.pool.submit(draw, file, *pair) for pair in pairs
        }

        def render(i: int, section: Section, figure: SectionFigure) -> bytes | None:
            try:
                return drawn[i, figure.name].result()
            except BrokenExecutor:  # a process was ended from outside
                return figure.render(section, context, figure_title(figure.name, section))

        return render

    def close(self) -> None:
        """End the processes."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.folder.cleanup()


def prepare() -> None:
    """Leave interrupts to the process that waits, and load what draws."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in MODULES:
        import_module(name)


@cache
def sections_of(file: Path) -> tuple[Section, ...]:
    """Return the sections of the records in a file."""
    records, context = pickle.loads(file.read_bytes())
    return analyse(FinishedRuns.of(records), context)


def draw(file: Path, i: int, name: str) -> bytes | None:
    """Draw the figure of this name of the section at a position, from the records in a file."""
    section = sections_of(file)[i]
    return FIGURES[name].render(section, section.context, figure_title(name, section))
