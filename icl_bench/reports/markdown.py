"""The report as Markdown, as GitHub shows it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from icl_bench.errors import RecordError
from icl_bench.harness.record import RunRecord
from icl_bench.reports.analysis import Entry, Section
from icl_bench.reports.capacities import recalls
from icl_bench.reports.findings import findings
from icl_bench.reports.ranking import SIGNIFICANT, Ranking, rank, rankings
from icl_bench.reports.tables import (
    Name,
    Table,
    aggregate_table,
    capacity_table,
    cell_table,
    comparison_table,
    environment_counts,
    environment_table,
    failure_table,
    group_table,
    main_table,
    rate_table,
)
from icl_bench.reports.text import code, count, escaped, listed, plain

MIXING = ("icl-bench", "torch", "triton", "device", "threads", "revision", "kernels")
"""Properties of the environment that may change numbers, so that a mix is warned of."""


AGGREGATE_NOTE = (
    "Interquartile mean over seeds and tasks of (accuracy - floor) / (1 - floor), with a bootstrap stratified by task."
)
COMPARISON_NOTE = (
    "Differences of accuracy, mean over the cells that rank among the architectures compared: those of equal state "
    "(within 5 %) where there are several such groups. Paired t over common seeds, adjusted by Holm's method for all "
    f"pairs, claimed below p = {SIGNIFICANT}. Rate decides: the median over the sweep of learning rates disagrees. "
    "Fisher's exact test on seeds solved is not adjusted."
)
CAPACITY_NOTE = (
    "K50 and K90: loads at which (accuracy - floor) / (1 - floor) falls to 50 and 90 %, from a logistic in log2 load "
    "fitted to medians over seeds; intervals resample seeds; nothing is extrapolated beyond the loads measured. "
    "Predicted: pairs that Hebbian sums over random keys recall, (H d_v / (2 ln V) - 1) d (d + 2) ... / (2p - 1)!!, "
    "one layer; a reference, not a bound. Recalled bits: Fano's inequality at the median accuracy, in the best cell."
)
RATE_NOTE = (
    "Validation: median over the seeds that chose. Window: decades of learning rate within 90 % of the best, between "
    "the points of the sweep by interpolation; ≥ where it reaches an end of the sweep."
)


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
    blocks += tabled("## Across tasks", aggregate_table(sections), after=AGGREGATE_NOTE)
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
    ranked, recalled = rankings(section), recalls(section)
    figures = {drawing.name: picture(drawing, section) for drawing in drawings}
    sentences = " ".join(escaped(sentence) for sentence in findings(section, ranked, recalled))
    blocks = [f"## {escaped(section.task)}", sentences, markdown_table(main_table(section)), main_notes(section)]
    blocks += load_blocks(section, ranked, figures)
    blocks += under("### Recall against state", pick(figures, "recall-by-state"))
    blocks += capacity_blocks(capacity_table(recalled), figures)
    blocks += tabled("### Learning rates", rate_table(section), *pick(figures, "learning-rates"), after=RATE_NOTE)
    if len(section.groups) > 1:
        blocks += tabled("### Accuracy by group of scored positions", group_table(section))
    blocks += under("### Learning curves", pick(figures, "learning-curves"))
    blocks += tabled("### Failed runs", failure_table(section))
    return blocks + missing_blocks(section)


def load_blocks(section: Section, ranked: Sequence[Ranking], figures: Mapping[str, str]) -> list[str]:
    """Accuracy by load, what ranks, and the comparisons."""
    if not section.cells:
        return []
    verdicts = rank(section, section.entries).verdicts
    blocks = ["### Accuracy by load", *pick(figures, "accuracy-by-load"), markdown_table(cell_table(section, verdicts))]
    blocks += [escaped(ranking_note(section))]
    return blocks + tabled("### Comparisons", comparison_table(ranked), after=COMPARISON_NOTE)


def capacity_blocks(table: Table, figures: Mapping[str, str]) -> list[str]:
    """K50, K90 and recalled bits."""
    return tabled("### Capacity", table, *pick(figures, "capacity"), after=CAPACITY_NOTE)


def tabled(heading: str, table: Table, *before: str, after: str = "") -> list[str]:
    """A heading over a table, where it has rows."""
    return [heading, *before, markdown_table(table), *([after] if after else [])] if table.rows else []


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


def ranking_note(section: Section) -> str:
    """What does not rank and why."""
    return (
        "A cell does not rank where every architecture's median is at least 0.99 (saturated) or none is above the "
        f"floor by more than its sampling error over {section.examples:,} examples (at the floor)."
    )


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
