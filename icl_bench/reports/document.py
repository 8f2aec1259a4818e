"""What a report holds, block by block; Markdown and HTML set the same blocks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from icl_bench.errors import RecordError
from icl_bench.reports.across import aggregate_table, task_table
from icl_bench.reports.analysis import SOLVED, Section
from icl_bench.reports.capacities import recalls
from icl_bench.reports.controls import controls_table
from icl_bench.reports.efficiency import efficiency_table
from icl_bench.reports.findings import findings
from icl_bench.reports.framing import NO_FRAME, Frame, published_table
from icl_bench.reports.notes import (
    AGGREGATE_NOTE,
    CAPACITY_NOTE,
    COMPARISON_NOTE,
    CONTROLS_NOTE,
    EFFICIENCY_NOTE,
    ERROR_NOTE,
    OWN_ANSWERS_NOTE,
    PUBLISHED_NOTE,
    RATE_NOTE,
)
from icl_bench.reports.ranking import Ranking, judge_cells, rankings
from icl_bench.reports.squared_error import error_table, measure_table
from icl_bench.reports.tables import (
    Table,
    capacity_table,
    cell_table,
    comparison_table,
    environment_counts,
    environment_table,
    failure_table,
    group_table,
    missing_table,
    own_answers_table,
    problem_table,
    rate_table,
)
from icl_bench.reports.text import count, failures, listed, plain
from icl_bench.runs.outline import Outline, Setting
from icl_bench.schema import canonical_json

MIXING = ("icl-bench", "torch", "triton", "device", "threads", "revision", "kernels")
"""Properties of the environment that may change numbers, so that a mix is warned of."""


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    level: int
    text: str


class Prose(NamedTuple):
    """A paragraph."""

    text: str
    warning: bool = False


class Notes(NamedTuple):
    """Remarks, one a line."""

    items: tuple[str, ...]


class Drawing(NamedTuple):
    """A figure that was drawn."""

    name: str
    caption: str
    link: str
    """Where it is: a path relative to the report, or a data URI."""


class Chart(NamedTuple):
    """Where a page has its chart of a section; Markdown has none."""

    section: int
    """Place of the section."""


class Link(NamedTuple):
    """A file beside the report."""

    text: str
    path: str
    """Relative to the report."""


class Commands(NamedTuple):
    """Command lines."""

    lines: tuple[str, ...]


Block = Heading | Prose | Notes | Table | Drawing | Chart | Link | Commands


def compose(
    sections: Sequence[Section],
    drawings: Sequence[Sequence[Drawing]],
    problems: Sequence[RecordError],
    command: str,
    frame: Frame = NO_FRAME,
    rows: str | None = None,
) -> list[Block]:
    """A whole report; `drawings` are those of each section, `rows` the path of a file that holds every run."""
    runs = [run for section in sections for run in section.runs]
    told = summary(runs, problems, frame.interrupted)
    blocks: list[Block] = [Heading(1, title(sections, frame)), *opening(frame), Prose(told)]
    blocks += [Link("Every run and cell, failed runs too", rows)] if rows else []
    blocks += tabled("Published results", published_table(sections, frame.published), after=PUBLISHED_NOTE, level=2)
    blocks += tabled("Across tasks", aggregate_table(sections), task_table(sections), after=AGGREGATE_NOTE, level=2)
    for i, section in enumerate(sections):
        blocks += section_blocks(section, i, {drawing.name: drawing for drawing in drawings[i]})
    blocks += tabled("Unreadable records", problem_table(problems), level=2)
    blocks += environment_blocks(runs)
    return [*blocks, Heading(2, "Reproduce"), Commands(reproduction(runs, command, frame))]


def reproduction(runs: Sequence[Outline], command: str, frame: Frame) -> tuple[str, ...]:
    """Commands that make the report anew: a study's own, which makes its runs too; of a store those of its runs."""
    made = () if frame.name else sorted({plain(run.environment.command) for run in runs})
    return tuple(dict.fromkeys((*made, plain(command))))


def title(sections: Sequence[Section], frame: Frame) -> str:
    """What the report is about."""
    tasks = [section.task for section in sections]
    if frame.name:
        return f"icl-bench study: {frame.name}"
    about = "no runs" if not tasks else listed(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks"
    return f"icl-bench report: {about}"


def opening(frame: Frame) -> list[Block]:
    """What a study asks, what was expected of it and what its author concluded."""
    blocks: list[Block] = [Prose(frame.question)] if frame.question else []
    if frame.hypotheses:
        blocks += [Prose("Expected, written down before the study ran:"), Notes(frame.hypotheses)]
    if frame.conclusions:
        blocks += [Prose("Concluded by its author, when it first ran:"), Notes(frame.conclusions)]
    if frame.left_out:
        blocks += [Prose("Left out, as it cannot be matched:"), Notes(frame.left_out)]
    return blocks


def summary(runs: Sequence[Outline], problems: Sequence[RecordError], interrupted: int) -> str:
    """How many runs there are, how many failed, by class, and how many are interrupted or unreadable."""
    parts = [count(len(runs), "run"), failures(run.status for run in runs)]
    if interrupted:
        parts.append(f"{count(interrupted, 'run')} interrupted")
    if problems:
        parts.append(f"{count(len(problems), 'record')} unreadable")
    return f"{', '.join(parts)}."


def section_blocks(section: Section, index: int, figures: Mapping[str, Drawing]) -> list[Block]:
    """All there is to say on a task."""
    ranked, recalled = rankings(section), recalls(section)
    blocks: list[Block] = [Heading(2, section.task), *map(Prose, findings(section, ranked, recalled))]
    blocks += [Chart(index), measure_table(section), main_notes(section)]
    blocks += drawn("Recall against state", figures, "recall-by-state")
    blocks += tabled("Capacity", capacity_table(recalled), *pick(figures, "capacity"), after=CAPACITY_NOTE)
    blocks += load_blocks(section, ranked, figures)
    if len(section.groups) > 1:
        drawing = pick(figures, "accuracy-by-group")
        blocks += tabled("Accuracy by group of scored positions", group_table(section), *drawing)
    blocks += tabled("Learning rates", rate_table(section), *pick(figures, "learning-rates"), after=RATE_NOTE)
    efficiency = efficiency_table(section)
    blocks += tabled("Learning", efficiency, *pick(figures, "learning-curves"), after=EFFICIENCY_NOTE)
    if not efficiency.rows:
        blocks += drawn("Learning curves", figures, "learning-curves")
    blocks += tabled("Controls", controls_table(section), after=CONTROLS_NOTE)
    blocks += tabled("Failed runs", failure_table(section))
    return blocks + tabled("Missing runs", missing_table(section))


def load_blocks(section: Section, ranked: Sequence[Ranking], figures: Mapping[str, Drawing]) -> list[Block]:
    """Accuracy by load, what ranks, and the comparisons."""
    if not section.cells:
        return []
    table = cell_table(section, judge_cells(section, section.entries))
    blocks = tabled("Error by load", error_table(section), after=ERROR_NOTE)
    blocks += tabled("Accuracy by load", table, *pick(figures, "accuracy-by-load"), after=ranking_note(section))
    blocks += tabled("Reading its own answers", own_answers_table(section), after=OWN_ANSWERS_NOTE)
    return blocks + tabled("Comparisons", comparison_table(ranked), after=COMPARISON_NOTE)


def tabled(heading: str, table: Table, *before: Block, after: str = "", level: int = 3) -> list[Block]:
    """A heading over a table, where it has rows."""
    return [Heading(level, heading), *before, table, *([Prose(after)] if after else [])] if table.rows else []


def drawn(heading: str, figures: Mapping[str, Drawing], name: str) -> list[Block]:
    """A heading over a figure, where it was drawn."""
    return [Heading(3, heading), figures[name]] if name in figures else []


def pick(figures: Mapping[str, Drawing], name: str) -> list[Drawing]:
    """The figure of that name, where it was drawn."""
    return [figures[name]] if name in figures else []


def main_notes(section: Section) -> Notes:
    """How to read the main table."""
    lengths = sorted({found.length for found in section.evaluations if found.length is not None})
    longest = listed([f"{length:,}" for length in lengths], "or") if lengths else "the last"
    return Notes(
        (
            f"{'Error' if section.has_errors else 'Accuracy'} and exact match: median over seeds of the mean over "
            "cells, on test examples used once.",
            "95 % interval: of the mean over seeds; Student's t below 15 seeds, bootstrap (BCa) from there.",
            f"Solved: seeds with an accuracy of at least {SOLVED}, with Wilson's interval.",
            "Learning rate: the best median validation accuracy; the test set is not asked.",
            f"State: after {longest} tokens, over all layers, everything carried.",
            "FLOPs: forward, of a token, of the mixers; weight-state: those on parameters over those on the state.",
            "Corrected: (accuracy - floor) / (1 - floor), mean over cells, median over seeds.",
            *([f"All architectures: {listed(section.common)}."] if section.common else []),
            "A diverged run counts as 0; runs that ended out of memory or in an error are left out of the scores.",
            "Floor: the best trivial solver, same examples. Oracle: "
            + ("the best that its context allows." if section.has_errors else "right on every scored position."),
        )
    )


def ranking_note(section: Section) -> str:
    """What does not rank and why."""
    return (
        f"A cell does not rank where every architecture's median is at least {SOLVED} (saturated) or none is above the "
        f"floor by more than its sampling error over {section.examples:,} examples (at the floor)."
    )


def environment_blocks(runs: Sequence[Outline]) -> list[Block]:
    """With what and where the runs were made."""
    if not runs:
        return []
    counts = environment_counts([run.environment for run in runs])
    mixed = [key for key, values in counts.items() if key in MIXING and len(values) > 1]
    text = f"runs differ in {listed(mixed)}; numbers are equal bit for bit only where these are." if mixed else ""
    warnings = [Prose(text, warning=True)] if mixed else []
    if differing_data(runs):
        warnings.append(Prose("runs of one task and data seed did not see the same first batch.", warning=True))
    return tabled("Environment", environment_table(counts), *warnings, level=2)


def differing_data(runs: Sequence[Outline]) -> bool:
    """Whether runs of one task, batch size and data seed began with different examples."""
    told = [(run.first_batch, run.setting, run.seeds[1]) for run in runs if run.first_batch is not None]
    asked = {setting: data_of(setting) for _, setting, _ in told}
    seen: dict[tuple[str, int], str] = {}
    return any(seen.setdefault((asked[setting], seed), digest) != digest for digest, setting, seed in told)


def data_of(setting: Setting) -> str:
    """Equal for settings that see the same examples from the same data seed."""
    return canonical_json([setting.spec["task"], setting.spec["train"]["batch"]])
