"""The tables of `icl-bench kernels check` and `icl-bench kernels bench`."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from icl_bench.reports.crossover import TITLES, Curve, crossing, fastest
from icl_bench.reports.text import NONE

if TYPE_CHECKING:
    from icl_bench.kernels.measurement.check import Finding
    from icl_bench.kernels.measurement.measure import Row
    from icl_bench.kernels.measurement.timing import Times


def check_table(findings: "Sequence[Finding]") -> Table:
    """The worst error of each operator, form and type against its bound."""
    table = _table(
        ["operator", "form", "type", "of"], ["problems", "worst error", "bound"], "relative root-mean-square error"
    )
    for headings in ("", "worst at"):
        table.add_column(headings, overflow="fold")
    for x in findings:
        error = NONE if x.error is None else f"{x.error:.1e}"
        cells = [x.op, x.impl, x.dtype, x.what, str(x.problems), error, f"{x.bound:.0e}", verdict(x.ok), x.worst]
        table.add_row(*(Text(cell) for cell in cells), style="" if x.ok else "bold red")
    return table


def verdict(ok: bool) -> str:
    """In a word."""
    return "ok" if ok else "BROKEN"


def bench_tables(rows: "Sequence[Row]", curves: Sequence[Curve]) -> RenderableType:
    """A table of times for each case, and one of the lengths where power attention overtakes softmax."""
    listed = [row for row in rows if row.part == "table"]
    tables = [case_table(list(group)) for _, group in itertools.groupby(listed, key=lambda row: row.case)]
    growth = memory_table(listed)
    return Group(*tables, *([growth] if growth.row_count else []), *([crossover_table(curves)] if curves else []))


def memory_table(rows: "Sequence[Row]") -> Table:
    """How the memory of a contender grows where it was measured at a length and at twice that length."""
    table = _table(["operator", "contender"], ["T", "MiB", "at 2 T", "ratio"], "memory of forward + backward")
    measured = {(row.op, row.contender, row.n, row.heads, row.t): row.peak_mib for row in rows if row.peak_mib}
    for (op, contender, n, heads, t), peak in measured.items():
        twice = measured.get((op, contender, n, heads, 2 * t))
        if twice is not None:
            table.add_row(op, contender, f"{t:,}", f"{peak:,.0f}", f"{twice:,.0f}", f"{twice / peak:.2f}")
    return table


def case_table(rows: "Sequence[Row]") -> Table:
    """The contenders of one case; how much faster than the best peer each of this library's forms is."""
    numbers = [
        "forward ms",
        "p20-p80",
        "x best peer",
        "both ms",
        "p20-p80",
        "x best peer",
        "peak MiB",
        "error y",
        "grad",
    ]
    table = _table(["contender"], numbers, f"{rows[0].case}, {rows[0].dtype}")
    table.add_column("", overflow="fold")
    peers = [row for row in rows if not row.ours]
    best = fastest(peers, "forward"), fastest(peers, "both")
    for row in rows:
        cells = [*_times(row.forward, best[0], row.ours), *_times(row.both, best[1], row.ours)]
        peak = NONE if row.peak_mib is None else f"{row.peak_mib:,.0f}"
        errors = [NONE if x is None else f"{x:.1e}" for x in (row.output_error, row.gradient_error)]
        style = "bold" if row.ours and row.forward else "red" if row.broken else ""
        table.add_row(*(Text(cell) for cell in (row.contender, *cells, peak, *errors, row.note)), style=style)
    return table


def crossover_table(curves: Sequence[Curve]) -> Table:
    """For each width and power, the length from which power attention is faster than softmax."""
    table = _table(["d", "p"], list(TITLES.values()), "length from which power attention is faster than softmax")
    for width, p in sorted({(curve.width, curve.p) for curve in curves}):
        cells = []
        for direction in TITLES:
            found = [c for c in curves if (c.width, c.p, c.direction) == (width, p, direction)]
            cells.append(str(crossing(found[0].points)) if found else NONE)
        table.add_row(str(width), str(p), *cells)
    return table


def _times(times: "Times | None", best: float | None, ours: bool) -> list[str]:
    if times is None:
        return [NONE, NONE, NONE]
    ratio = f"{best / times.median:.2f}" if ours and best is not None else NONE
    return [f"{times.median:.3f}", f"{times.p20:.3f}-{times.p80:.3f}", ratio]


def _table(words: Sequence[str], numbers: Sequence[str], title: str) -> Table:
    table = Table(
        box=None, title=Text(f"\n{title}"), title_justify="left", header_style="bold", pad_edge=False,
        padding=(0, 2, 0, 0),
    )  # fmt: skip
    for word in words:
        table.add_column(word, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", overflow="fold")
    return table
