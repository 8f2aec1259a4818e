"""The tables of `icl-bench kernels check` and `icl-bench kernels bench`."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from icl_bench.commands.tables import make_table
from icl_bench.reports.crossover import TITLES, Direction, SpeedCurve, crossing
from icl_bench.reports.text import NONE

if TYPE_CHECKING:
    from icl_bench.kernels.measurement.check import Finding
    from icl_bench.kernels.measurement.measure import TimedRow
    from icl_bench.kernels.measurement.timing import Times


def check_table(findings: "Sequence[Finding]") -> Table:
    """Make a table of the largest error of each operator, form and type, beside its bound."""
    numbers = ["problems", "worst error", "bound"]
    table = make_table("\nrelative root-mean-square error", ["operator", "form", "type", "of"], numbers)
    for heading in ("", "worst at"):
        table.add_column(heading, overflow="fold")
    for x in findings:
        error = NONE if x.error is None else f"{x.error:.1e}"
        found = [str(x.problems), error, f"{x.bound:.0e}", "ok" if x.ok else "BROKEN", x.worst]
        style = "" if x.ok else "bold red"
        table.add_row(*(Text(cell) for cell in (x.op, x.impl, x.dtype, x.what, *found)), style=style)
    return table


def bench_tables(rows: "Sequence[TimedRow]", curves: Sequence[SpeedCurve]) -> RenderableType:
    """Make a table of times for each case, and a table of the lengths from which power attention is faster."""
    listed = [row for row in rows if row.part == "table"]
    tables = [case_table(list(group)) for _, group in itertools.groupby(listed, key=lambda row: row.case)]
    growth = memory_table(listed)
    return Group(*tables, *([growth] if growth.row_count else []), *([crossover_table(curves)] if curves else []))


def memory_table(rows: "Sequence[TimedRow]") -> Table:
    """Make a table of the growth of memory between a length and twice that length, where both were measured."""
    table = make_table("\nmemory of forward + backward", ["operator", "contender"], ["T", "MiB", "at 2 T", "ratio"])
    measured = {(row.op, row.contender, row.n, row.heads, row.t): row.peak_mib for row in rows if row.peak_mib}
    for (op, contender, n, heads, t), peak in measured.items():
        twice = measured.get((op, contender, n, heads, 2 * t))
        if twice is not None:
            table.add_row(op, contender, f"{t:,}", f"{peak:,.0f}", f"{twice:,.0f}", f"{twice / peak:.2f}")
    return table


def case_table(rows: "Sequence[TimedRow]") -> Table:
    """Make a table of the contenders of one case, with the speed of this library's forms relative to the best peer."""
    spread = ["p20-p80", "x best peer"]
    numbers = ["forward ms", *spread, "both ms", *spread, "peak MiB", "error y", "grad"]
    table = make_table(f"\n{rows[0].case}, {rows[0].dtype}", ["contender"], numbers)
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


def crossover_table(curves: Sequence[SpeedCurve]) -> Table:
    """Make a table of the lengths from which power attention is faster than softmax, by width and power."""
    table = make_table("\nlength from which power attention is faster than softmax", ["d", "p"], list(TITLES.values()))
    found = {(curve.width, curve.p, curve.direction): str(crossing(curve.points)) for curve in curves}
    for width, p in sorted({(curve.width, curve.p) for curve in curves}):
        table.add_row(str(width), str(p), *(found.get((width, p, direction), NONE) for direction in TITLES))
    return table


def speed_curves(rows: "Sequence[TimedRow]") -> list[SpeedCurve]:
    """Return a curve for each direction, width and power with a length at which both sides were timed."""
    swept = [row for row in rows if row.part == "crossover"]
    kinds = [(row.key, row.p) for row in swept if row.p is not None]
    made = []
    for direction, (width, p) in itertools.product(TITLES, sorted(set(kinds))):
        points = []
        for t in sorted({row.t for row in swept}):
            here = [row for row in swept if row.key == width and row.t == t]
            power = fastest([row for row in here if row.p == p], direction)
            softmax = fastest([row for row in here if row.p is None], direction)
            if power is not None and softmax is not None:
                points.append((t, softmax / power))
        made += [SpeedCurve(width, p, direction, tuple(points))] if points else []
    return made


def fastest(rows: "Sequence[TimedRow]", direction: Direction) -> float | None:
    """Return the least median time of the rows that have one; None where none has."""
    taken = [row.forward if direction == "forward" else row.both for row in rows]
    return min((times.median for times in taken if times is not None), default=None)


def _times(times: "Times | None", best: float | None, ours: bool) -> list[str]:
    if times is None:
        return [NONE, NONE, NONE]
    ratio = f"{best / times.median:.2f}" if ours and best is not None else NONE
    return [f"{times.median:.3f}", f"{times.p20:.3f}-{times.p80:.3f}", ratio]
