"""The content of a report, block by block, for Markdown and HTML alike."""

from collections.abc import Callable, Iterator, Sequence

from icl_bench.errors import RecordError
from icl_bench.escapes import plain
from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Commands, Content, Drawing, Heading, Link, Name, Notes, Prose, Table, titled
from icl_bench.reports.context import StudyContext
from icl_bench.reports.parts import (
    accuracy,
    capacity,
    causes,
    comparisons,
    controls,
    gains,
    half_rates,
    ladder,
    learning,
    paired,
    positions,
    rates,
    reach,
    shares,
    solved,
    state,
    summary,
)
from icl_bench.reports.parts.across import across_blocks
from icl_bench.reports.parts.base import SectionFigure
from icl_bench.reports.parts.findings import findings
from icl_bench.reports.parts.published import published_blocks
from icl_bench.reports.parts.runs import FAILED_PART, MISSING_PART, environment_blocks
from icl_bench.reports.text import enumerate_words, format_count, format_failures
from icl_bench.runs.outline import Outline

PARTS = (
    *(solved.PART, summary.PART, state.PART, capacity.PART, accuracy.DIVERGENCE_PART, accuracy.ERROR_PART),
    *(accuracy.LOAD_PART, reach.PART, controls.OWN_ANSWERS_PART, comparisons.PART, ladder.PART, accuracy.GROUP_PART),
    *(positions.POSITION_PART, positions.WORK_PART, paired.PART, rates.PART),
    *(gains.PART, half_rates.PART, causes.PART, learning.PART, shares.PART, controls.CONTROLS_PART, FAILED_PART),
    MISSING_PART,
)
"""Topics of a section, in order."""


def figures_of_parts() -> list[SectionFigure]:
    """Return the figures that a section may have, in the order in which `compose` asks for them."""
    return [part.figure for part in PARTS if part.figure]


def compose(
    sections: Sequence[Section],
    place: Callable[[int, SectionFigure], Drawing | None],
    problems: Sequence[RecordError],
    command: str,
    context: StudyContext,
    rows: str | None = None,
) -> list[Content]:
    """Compose a whole report.

    `place` draws a figure of the section at a position and puts it where the report can show it, if it does. `rows` is
    the path, relative to the report, of a file with every run.
    """
    runs = [run for section in sections for run in section.runs]
    blocks: list[Content] = [Heading(1, title_of(sections, context)), *opening(context)]
    blocks.append(Prose(totals(runs, problems, context.interrupted)))
    blocks += [Link("Results of every run and cell, failed runs included", rows)] if rows else []
    blocks += [*published_blocks(sections, context), *across_blocks(sections)]
    for i, section in enumerate(sections):
        blocks += [Heading(2, section.task), *map(Prose, findings(section))]
        for part in PARTS:
            blocks += part.blocks(section, place(i, part.figure) if part.figure else None)
    unreadable = tuple((Name(text),) for text in sorted(map(str, problems)))
    blocks += titled(2, "Unreadable records", Table(("error",), unreadable))
    blocks += environment_blocks(runs)
    made = () if context.name else sorted({plain(run.environment.command) for run in runs})  # of a store, its runs
    return [*blocks, Heading(2, "Reproduce"), Commands(tuple(dict.fromkeys((*made, plain(command)))))]


def title_of(sections: Sequence[Section], context: StudyContext) -> str:
    """Return the title: the study, or the tasks of a store."""
    tasks = [section.task for section in sections]
    if context.name:
        return f"icl-bench study: {context.name}"
    about = "no runs" if not tasks else enumerate_words(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks"
    return f"icl-bench report: {about}"


def opening(context: StudyContext) -> Iterator[Content]:
    """Yield the question of a study, the conclusions and expectations of its author, and the models left out."""
    if context.question:
        yield Prose(context.question)
    lists = (
        ("Corrections, written down later:", context.corrections),
        ("Conclusions of its author, when it first ran:", context.conclusions),
        ("Hypotheses, written down before the study ran:", context.hypotheses),
        ("Left out:", context.left_out),
    )
    for introduction, items in lists:
        if items:
            yield from (Prose(introduction), Notes(items))


def totals(runs: Sequence[Outline], problems: Sequence[RecordError], interrupted: int) -> str:
    """Return the number of runs, of failed ones by status, of interrupted ones, and of unreadable records."""
    parts = [format_count(len(runs), "run"), format_failures(run.status for run in runs)]
    parts += [f"{format_count(interrupted, 'run')} interrupted"] if interrupted else []
    parts += [f"{format_count(len(problems), 'record')} unreadable"] if problems else []
    return f"{', '.join(parts)}."
