"""`write_report`: finished runs to one Markdown file with a folder of figures and a CSV file, or to one HTML page."""

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from icl_bench.errors import RecordError, StoreError
from icl_bench.reports.analysis import Section, analyse, run_order
from icl_bench.reports.blocks import Drawing
from icl_bench.reports.context import NO_STUDY, StudyContext
from icl_bench.reports.document import compose, figures_of_parts, title_of
from icl_bench.reports.drawing import drawn_ahead
from icl_bench.reports.explorer.answers import figure_title
from icl_bench.reports.explorer.document import ViewedStore, explorer_document
from icl_bench.reports.explorer.page import render_page
from icl_bench.reports.markdown import render_markdown
from icl_bench.reports.parts.base import SectionFigure
from icl_bench.runs.columns import csv_values, score_rows
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.store.files import replace_file

PAGE_SUFFIXES = (".html", ".htm")
CSV_NAME = "runs.csv"
MOST_CSV_RUNS = 20_000
"""Largest number of runs of which a report writes a CSV file; `icl-bench runs export` writes one of any number."""


def write_report(
    runs: FinishedRuns, problems: Sequence[RecordError], path: Path, command: str, context: StudyContext = NO_STUDY
) -> Path:
    """Write a report: an HTML page where the file's name ends in .html, else Markdown with a folder of figures.

    Equal runs give equal bytes, in whatever order they come. Each file appears whole or not at all, the report last.

    Args:
        runs: finished runs, failed ones included.
        problems: errors of records that could not be read, which the report lists.
        path: the file to write, which is returned; figures of Markdown go to the folder `<stem>_files` beside it.
        command: the command line that makes this report again.
        context: the study that the report is part of.

    Raises:
        StoreError: where the report cannot be written.
    """
    sections = analyse(runs, context)
    write = write_page if path.suffix in PAGE_SUFFIXES else write_markdown
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write(sections, problems, path, command, context).encode())
    except OSError as error:
        raise StoreError(
            f"a report must be written where there is room and permission; {error.filename}: {error.strerror}; "
            "choose another file with -o"
        ) from None
    return path


def write_markdown(
    sections: Sequence[Section], problems: Sequence[RecordError], path: Path, command: str, context: StudyContext
) -> str:
    """Write the figures and rows of a Markdown report; return its text."""
    folder = path.with_name(f"{path.stem}_files")
    kinds = figures_of_parts()
    titles = {(i, one.name): figure_title(one.name, section) for i, section in enumerate(sections) for one in kinds}
    draws = [
        partial(one.render, sections[i], context, titles[i, one.name]) for i in range(len(sections)) for one in kinds
    ]

    def place(i: int, figure: SectionFigure) -> Drawing | None:
        image = images[i, figure.name]()
        if image is None:
            return None
        folder.mkdir(exist_ok=True)
        target = folder / f"{i + 1}-{figure.name}.svg"
        replace_file(target, image)
        return Drawing(figure.full_caption(sections[i]), f"{folder.name}/{target.name}", titles[i, figure.name])

    rows = None
    with drawn_ahead(draws) as waits:
        images = dict(zip(titles, waits, strict=True))
        if 0 < sum(len(section.runs) for section in sections) <= MOST_CSV_RUNS:
            folder.mkdir(exist_ok=True)
            replace_file(folder / CSV_NAME, csv_of(sections))
            rows = f"{folder.name}/{CSV_NAME}"
        return render_markdown(compose(sections, place, problems, command, context, rows))


def write_page(
    sections: Sequence[Section], problems: Sequence[RecordError], path: Path, command: str, context: StudyContext
) -> str:
    """Return the text of an HTML page: the explorer, with the report without its figures as one of its views."""
    store = ViewedStore(context.name or "store", sections, problems)
    document = explorer_document([store], title_of(sections, context), command)
    return render_page(document, compose(sections, lambda i, figure: None, problems, command, context))


CSV_COLUMNS = (
    *("id", "task", "arch", "p", "seed", "data_seed", "lr", "status", "state_elements", "state_bytes", "params"),
    *("steps", "validation", "cell", "load", "length", "accuracy", "exact_match", "floor"),
)
"""Columns of the CSV file of a report, by their names in `runs/columns.py`; none depends on the machine."""


def csv_of(sections: Sequence[Section]) -> bytes:
    """Write a row for each run and cell, in the order of the report; a run without cells has one row."""
    runs = [(outline, entry) for section in sections for entry in section.entries for outline in entry.runs]
    ordered = sorted(runs, key=lambda pair: run_order(pair[0]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for outline, entry in ordered:
        for row in score_rows(entry.load(outline.id)):
            writer.writerow(csv_values(row[name] for name in CSV_COLUMNS))
    return out.getvalue().encode()
