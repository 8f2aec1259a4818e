"""Tables and text on the terminal: results, a bar chart, sizes of architectures, an example of a task."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from icl_bench.escapes import plain
from icl_bench.reports.analysis import Section, analyse
from icl_bench.reports.entry import Entry, known_median
from icl_bench.reports.statistics import median
from icl_bench.reports.text import NONE, format_bytes, format_integer, format_share
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.probes import Probes
from icl_bench.runs.record import RunRecord

if TYPE_CHECKING:  # all of them load torch
    from icl_bench.harness.accounting import Account
    from icl_bench.harness.conformance import ConformanceCheck
    from icl_bench.harness.training.batches import Example
    from icl_bench.harness.validation.gate import CellVerdict

FIRST = ("lr", "state", "params", "accuracy")
BAR_LENGTH = 40
LAST = ("exact", "solved")
LEAST_TELLING = ("params", "exact", "lr", "own answers", "state")
"""Columns of results that a narrow terminal can do without, the least telling first."""
GAP = 2
"""Characters between two columns."""
TOKENS_PER_ROW = 16
LONGEST_ROW = 112
"""Largest number of characters in a row of several tokens."""


def make_table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return an empty table without lines: columns of words, then columns of numbers at the right edge."""
    table = Table(
        box=None, title=Text(plain(title)) if title else None, title_justify="left", header_style="bold",
        pad_edge=False, padding=(0, GAP, 0, 0),
    )  # fmt: skip
    for word in words:
        table.add_column(Text(plain(word)), overflow="fold")
    for number in numbers:
        table.add_column(Text(plain(number)), justify="right", overflow="fold")
    return table


def results_table(records: Sequence[RunRecord]) -> RenderableType:
    """Return a table for each task; names are shown as plain text, without markup."""
    return Group(*(section_table(section) for section in analyse(FinishedRuns.of(records))))


def accuracy_bars(records: Sequence[RunRecord]) -> RenderableType:
    """Return a bar of median accuracy for each architecture, for each task with at least two architectures."""
    return Group(*(section_bars(section) for section in analyse(FinishedRuns.of(records)) if len(section.entries) > 1))


def section_bars(section: Section) -> Table:
    """Return the bars of a task, best architecture first, and the floor last."""
    rows = [(entry.accuracy or 0.0, plain(entry.label)) for entry in section.entries]
    rows = [*sorted(rows, key=lambda row: -row[0]), (section.mean_floor or 0.0, "floor")]
    title = Text(plain(f"{section.task}: test accuracy"))
    table = Table(box=None, title=title, title_justify="left", show_header=False)
    for accuracy, label in rows:
        table.add_row(Text(label), Text(bar(accuracy)), Text(format_share(accuracy)))
    return table


def bar(part: float) -> str:
    """Draw a bar of at most 40 characters, with a resolution of an eighth of a character.

    >>> bar(0.0625)
    '██▌'
    """
    eighths = round(part * 8 * BAR_LENGTH)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


class ResultsTable:
    """The table of a task; where a terminal is too narrow, the least telling columns are left out and named below."""

    def __init__(self, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.title, self.heads, self.rows = title, heads, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, whose last row is the floor, and the names of the columns that are left out."""
        widths = [GAP + max(map(cell_len, column)) for column in zip(self.heads, *self.rows, strict=True)]
        kept = list(range(len(self.heads)))
        for name in LEAST_TELLING:
            if sum(widths[i] for i in kept) - GAP <= options.max_width:
                break
            kept = [i for i in kept if self.heads[i] != name]
        table = make_table(self.title, self.heads[:1], [self.heads[i] for i in kept[1:]])
        for row in self.rows:
            table.add_row(*(Text(plain(row[i])) for i in kept), style="dim" if row is self.rows[-1] else "")
        yield table
        left_out = dict.fromkeys(name for i, name in enumerate(self.heads) if i not in kept)
        if left_out:
            yield Text(f"without {', '.join(left_out)}, which a wider terminal has", style="dim")


def section_table(section: Section) -> ResultsTable:
    """Return the table of a task."""
    title = f"{plain(section.task)}: test accuracy" + (f", then by {section.load_name}" if section.cells else "")
    headings = (*FIRST, *cell_headings(section), *LAST, *further_headings(section))
    rows = [entry_cells(entry, section) for entry in section.entries]
    floors = [format_share(section.floors[cell.label].accuracy) for cell in section.cells]
    row = ["floor", *[NONE] * 3, format_share(section.mean_floor), *floors]
    row += [NONE] * (1 + len(headings) - len(row))
    return ResultsTable(title, ["architecture", *headings], [*rows, row])


def cell_headings(section: Section) -> list[str]:
    """Return the loads as column heads if they are distinct, else the labels of the cells."""
    loads = [cell.load for cell in section.cells]
    return [str(load) for load in loads] if len(set(loads)) == len(loads) else [plain(c.label) for c in section.cells]


def further_headings(section: Section) -> list[str]:
    """Return the heads of further columns: error of vector tasks, divergence, accuracy on own answers."""
    reads_own = any(entry.reads_own_answers for entry in section.entries)
    diverges = any(run.result.divergence is not None for entry in section.entries for run in entry.scored)
    return [
        *(["error"] if section.has_errors else []),
        *(["divergence"] if diverges else []),
        *(["own answers", "exact"] if reads_own else []),
    ]


def entry_cells(entry: Entry, section: Section) -> list[str]:
    """Return the cells of an entry's row."""
    seeds = len(entry.accuracies)
    failed = f" ({len(entry.failed)} failed)" if entry.failed else ""
    further = {
        "error": entry.error,
        "divergence": known_median([run.result.divergence for run in entry.scored]),
        "own answers": known_median([run.result.free_running for run in entry.scored]),
        "exact": known_median([run.result.free_running_exact for run in entry.scored]),
    }
    return [
        plain(entry.label) + failed,
        f"{entry.rate:.3g}",
        format_bytes(entry.state_bytes),
        format_integer(entry.example.result.params or None),
        format_share(entry.accuracy),
        *(format_share(entry.median_in(cell.label)) for cell in section.cells),
        format_share(entry.exact_match),
        f"{entry.solved_seeds}/{seeds}" if seeds else NONE,
        *(format_share(further[heading]) for heading in further_headings(section)),
    ]


def state_table(rows: "Sequence[Account]") -> Table:
    """Return the table of `icl-bench state`, one row for each architecture."""
    headings = ("state elements", "bytes (bf16)", "at length", "mixer params", "weight FLOPs", "state FLOPs", "ratio")
    table = make_table("", ["architecture"], headings)
    for row in rows:
        counts = (row.elements, row.bytes, row.length, row.params, row.weight_flops, row.state_flops)
        ratio = NONE if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.arch, *(NONE if count is None else f"{count:,.0f}" for count in counts), ratio)
    return table


def conformance_table(checks: "Sequence[ConformanceCheck]") -> Table:
    """Return the table of `icl-bench check-arch`, one row for each check."""
    table = make_table("", ["check", "outcome", "found"], [])
    for check in checks:
        style = "bold red" if check.outcome == "failed" else ""
        table.add_row(*(Text(plain(cell)) for cell in check), style=style)
    return table


def verdict_table(found: "Mapping[str, Sequence[CellVerdict]]") -> RenderableType:
    """Return the tables of `icl-bench validate`: a row for each cell, then one for each solver above a floor."""
    trained = list(next(iter(found.values()))[0].trained)
    table = make_table("", ["cell", "floor by", "best shallow by", "outcome"], ["floor", "best", *trained])
    above = make_table("above the stated floor:", ["cell", "group", "solver", "stated by"], ["accuracy", "stated", "z"])
    for task, cells in found.items():
        for cell in cells:
            place = f"{plain(task)} {plain(cell.cell)}"
            outcome = f"{len(cell.above)} above" if cell.above else "by rule" if cell.by_rule else "below"
            numbers = (cell.floor, cell.best, *(cell.trained[name] for name in trained))
            row = [place, plain(cell.floor_by), plain(cell.best_by), outcome, *map(format_share, numbers)]
            table.add_row(*row, style="bold red" if cell.above else "")
            for one in cell.above:
                row = [place, plain(one.group) or "all", one.solver, plain(one.stated_by)]
                above.add_row(*row, format_share(one.accuracy), format_share(one.stated), f"{one.statistic:.1f}")
    return Group(table, above) if above.rows else table


def example_text(shown: "Example") -> Text:
    """Write tokens in rows; an arrow and the target follow each scored position."""
    width = max(len(token) for token in shown.tokens)
    pieces = [
        (f"{token}→{shown.targets[t]} ", "bold reverse") if t in shown.targets else (f"{token:<{width}} ", "")
        for t, token in enumerate(shown.tokens)
    ]
    text = Text(f"{shown.task}  {shown.cell}  {len(shown.tokens)} tokens, {len(shown.targets)} scored, ")
    text.append(f"{shown.state_bits:.0f} bits to carry\n")
    append_rows(text, pieces)
    return text


def append_rows(text: Text, pieces: Sequence[tuple[str, str]]) -> None:
    """Append tokens with their styles to a text, in numbered rows."""
    row = row_length([len(piece) for piece, _ in pieces])
    for t, (piece, style) in enumerate(pieces):
        if t % row == 0:
            text.append(f"\n{t:>5}  ", style="dim")
        text.append(piece, style=style)


def row_length(lengths: Sequence[int]) -> int:
    """Return the number of tokens in a row: the largest power of two up to 16 that keeps every row short enough."""
    row = TOKENS_PER_ROW
    while row > 1 and max(sum(lengths[i : i + row]) for i in range(0, len(lengths), row)) > LONGEST_ROW:
        row //= 2
    return row


def probes_table(probes: Probes, title: str) -> Table:
    """Return a table of the probes of a run: the first, the median and the last known value of each."""
    table = make_table(title, ["probe"], ["first", "median", "last"])
    for place, name in enumerate(probes.names):
        values = [value for point in probes.points if (value := point.values[place]) is not None]
        shown = [f"{value:.3g}" for value in (values[0], median(values), values[-1])] if values else [NONE] * 3
        table.add_row(Text(plain(name)), *shown)
    return table
