"""The report as Markdown, as GitHub shows it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from icl_bench.errors import RecordError
from icl_bench.harness.record import RunRecord
from icl_bench.reports.analysis import Entry, Section
from icl_bench.reports.findings import findings, significance_note
from icl_bench.reports.ranking import Ranking, rank
from icl_bench.reports.tables import (
    Name,
    Table,
    cell_table,
    environment_counts,
    environment_table,
    failure_table,
    group_table,
    main_table,
)
from icl_bench.reports.text import code, count, escaped, listed, plain

MIXING = ("icl-bench", "torch", "triton", "device", "threads", "revision", "kernels")
"""Properties of the environment that may change numbers, so that a mix is warned of."""


class Drawing(NamedTuple):
    """A figure that was written."""

    name: str
    caption: str
    link: str
    """Its path, relative to the report."""


def render(
    sections: Sequence[Section],
    drawings: Mapping[str, Sequence[Drawing]],
    problems: Sequence[RecordError],
    command: str,
) -> str:
    """The text of a report; `drawings` by task."""
    runs = [run for section in sections for run in section.runs]
    blocks = [f"# icl-bench report: {escaped(title(sections))}", summary(runs, problems)]
    for section in sections:
        blocks += section_blocks(section, drawings.get(section.task, ()))
    blocks += problem_blocks(problems) + environment_blocks(runs) + command_blocks(runs, command)
    return "\n\n".join(blocks) + "\n"


def title(sections: Sequence[Section]) -> str:
    """What the report is about."""
    tasks = [section.task for section in sections]
    return "no runs" if not tasks else listed(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks"


def summary(runs: Sequence[RunRecord], problems: Sequence[RecordError]) -> str:
    """How many runs there are, and how many are missing or failed."""
    failed = sum(run.result.status != "ok" for run in runs)
    parts = [count(len(runs), "run"), f"{failed} failed"]
    if problems:
        parts.append(f"{count(len(problems), 'record')} unreadable")
    return f"{', '.join(parts)}."


def section_blocks(section: Section, drawings: Sequence[Drawing]) -> list[str]:
    """All there is to say on a task."""
    ranking = rank(section)
    figures = {drawing.name: picture(drawing, section) for drawing in drawings}
    blocks = [f"## {escaped(section.task)}", " ".join(escaped(sentence) for sentence in findings(section, ranking))]
    blocks += [markdown_table(main_table(section)), main_notes(section)]
    if section.cells:
        blocks += [
            "### Accuracy by load",
            *pick(figures, "accuracy-by-load"),
            markdown_table(cell_table(section, ranking)),
        ]
        blocks += [escaped(ranking_note(section, ranking))]
    blocks += under("### Recall against state", pick(figures, "recall-by-state"))
    if len(section.groups) > 1:
        blocks += ["### Accuracy by group of scored positions", markdown_table(group_table(section))]
    blocks += under("### Learning curves", pick(figures, "learning-curves"))
    failures = failure_table(section)
    if failures.rows:
        blocks += ["### Failed runs", markdown_table(failures)]
    return blocks + missing_blocks(section)


def under(heading: str, blocks: Sequence[str]) -> list[str]:
    """A heading over blocks, where there are any."""
    return [heading, *blocks] if blocks else []


def pick(figures: Mapping[str, str], name: str) -> list[str]:
    """The figure of that name, where it was drawn."""
    return [figures[name]] if name in figures else []


def picture(drawing: Drawing, section: Section) -> str:
    """An image with its caption."""
    return f"![{escaped(f'{section.task}: {drawing.caption}')}]({quote(drawing.link)})\n\n*{drawing.caption}*"


def main_notes(section: Section) -> str:
    """How to read the main table."""
    notes = [
        "Accuracy and exact match: median over seeds of the mean over cells, on test examples used once.",
        "95 % interval: of the mean over seeds; Student's t below 15 seeds, bootstrap (BCa) from there.",
        "Solved: seeds with an accuracy of at least 0.99, with Wilson's interval.",
        "Learning rate: the best median validation accuracy; the test set is not asked.",
        f"State: after {longest(section)} tokens, over all layers, everything carried.",
        "A diverged run counts as 0; runs that ended out of memory or in an error are left out of the scores.",
        "Floor: the best trivial solver on the same examples. Oracle: solves every scored position by construction.",
    ]
    return "\n".join(f"* {note}" for note in notes)


def longest(section: Section) -> str:
    """Tokens after which the state is counted."""
    lengths = sorted({run.result.state.length for run in section.runs if run.result.state})
    return listed([f"{length:,}" for length in lengths], "or") if lengths else "the last"


def ranking_note(section: Section, ranking: Ranking) -> str:
    """What does not rank and why."""
    rules = (
        "A cell does not rank where every architecture's median is at least 0.99 (saturated) or none is above the "
        f"floor by more than its sampling error over {section.examples:,} examples (at the floor)."
    )
    return f"{rules} Differences: {significance_note()}."


def missing_blocks(section: Section) -> list[str]:
    """Runs that a sweep lacks."""
    rows = [missing_line(entry) for entry in section.entries if entry.missing]
    return under("### Missing runs", ["\n".join(rows)] if rows else [])


def missing_line(entry: Entry) -> str:
    """The gaps in the sweep of an entry."""
    named = [f"seed {seed} at {rate:.3g}" for seed, rate in entry.missing[:10]]
    more = f" and {len(entry.missing) - 10} more" if len(entry.missing) > 10 else ""
    return f"* {code(entry.label)}: {', '.join(named)}{more}"


def problem_blocks(problems: Sequence[RecordError]) -> list[str]:
    """Records that could not be read."""
    lines = sorted(f"* {code(str(problem))}" for problem in problems)
    return under("## Unreadable records", ["\n".join(lines)] if lines else [])


def environment_blocks(runs: Sequence[RunRecord]) -> list[str]:
    """With what and where the runs were made."""
    if not runs:
        return []
    manifests = [run.manifest for run in runs]
    mixed = [key for key, values in environment_counts(manifests).items() if key in MIXING and len(values) > 1]
    warning = (
        [f"**Warning:** runs differ in {listed(mixed)}; numbers are equal bit for bit only where these are."]
        if mixed
        else []
    )
    return ["## Environment", *warning, markdown_table(environment_table(manifests))]


def command_blocks(runs: Sequence[RunRecord], command: str) -> list[str]:
    """What reproduces the runs and the report."""
    lines = [*sorted({plain(run.manifest.command) for run in runs}), plain(command)]
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    return ["## Reproduce", "\n".join([f"{fence}sh", *lines, fence])]


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown."""
    rule = [":--" if i < table.left else "--:" for i in range(len(table.header))]
    rows = [[cell_text(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def cell_text(cell: str) -> str:
    """A cell: names in the type of code, own words and numbers as they are."""
    return code(cell, in_table=True) if isinstance(cell, Name) else cell
