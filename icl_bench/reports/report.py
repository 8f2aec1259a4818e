"""`write_report`: run records to one Markdown file and a folder of figures, the same bytes every time."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from icl_bench.errors import RecordError, StoreError
from icl_bench.reports.analysis import Section, analyse
from icl_bench.reports.document import Drawing, compose
from icl_bench.reports.framing import NO_FRAME, Frame, Published
from icl_bench.reports.markdown import render
from icl_bench.reports.rows import run_rows
from icl_bench.runs.outline import Outline
from icl_bench.runs.record import RunRecord

ROWS = "runs.csv"

MOST_ROWS = 20_000
"""Runs up to which a report brings a file of all; of more, `icl-bench runs export` makes one when it is wanted."""


def write_report(
    records: Sequence[RunRecord | Outline],
    problems: Sequence[RecordError],
    path: Path,
    command: str,
    frame: Frame = NO_FRAME,
) -> Path:
    """Write a report and, in a folder named after it, its figures.

    Equal records give equal files, in whatever order they come. Each file appears whole or not at all, the report last.

    Args:
        records: finished runs, whole or in outline, failed ones included.
        problems: what could not be read; the report names it.
        path: the Markdown file; figures go to `<stem>_files` beside it.
        command: the command line that makes this report again.
        frame: what a study says of itself.

    Returns:
        The path of the report.

    Raises:
        StoreError: where the report cannot be written.
    """
    folder = path.with_name(f"{path.stem}_files")
    sections = analyse(records)
    with refuse_unwritable():
        path.parent.mkdir(parents=True, exist_ok=True)
        drawings = [draw(section, i, folder, frame.published) for i, section in enumerate(sections)]
        rows = write_rows(sections, folder) if 0 < len(records) <= MOST_ROWS else None
        write_whole(path, render(compose(sections, drawings, problems, command, frame, rows)).encode())
    return path


@contextmanager
def refuse_unwritable() -> Iterator[None]:
    """Turn what the system says on writing into one line.

    Raises:
        StoreError: where a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"a report must be written where there is room and permission; {error.filename}: {error.strerror}; "
            "choose another file with -o"
        ) from None


def draw(section: Section, index: int, folder: Path, published: Sequence[Published]) -> list[Drawing]:
    """Write the figures of a section; those that would show nothing are left out."""
    from icl_bench.reports.figures import draw_all  # loads matplotlib

    drawings = []
    for name, caption, image in draw_all(section, published):
        folder.mkdir(exist_ok=True)
        target = folder / f"{index + 1}-{name}.svg"
        write_whole(target, image)
        drawings.append(Drawing(name, caption, f"{folder.name}/{target.name}"))
    return drawings


def write_rows(sections: Sequence[Section], folder: Path) -> str:
    """Write every run as a row; returns the path relative to the report."""
    folder.mkdir(exist_ok=True)
    write_whole(folder / ROWS, run_rows(sections))
    return f"{folder.name}/{ROWS}"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, over an older one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
