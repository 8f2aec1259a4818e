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
    from icl_bench.kernels.measurement.limits import LimitShare
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
    return Group(*tables, *([crossover_table(curves)] if curves else []))


def case_table(rows: "Sequence[TimedRow]") -> Table:
    """Make a table of the contenders of one case, with the speed of this library's forms relative to the best peer.

    The limit is the share of the machine's: of bytes, matrix products, other operations or exponentials, as named.
    Columns without an entry are left out.
    """
    spread = ["p20-p80", "x best peer", "limit"]
    numbers = ["forward ms", *spread, "both ms", *spread, "peak MiB", "at 2 T", "compile s", "error y", "grad"]
    peers = [row for row in rows if not row.ours]
    best = fastest(peers, "forward"), fastest(peers, "both")
    lines = []
    for row in rows:
        cells = [*_times(row.forward, best[0], row.ours), _limit(row.forward_limit)]
        cells += [*_times(row.both, best[1], row.ours), _limit(row.both_limit), *_costs(row)]
        lines.append([*cells, *(NONE if x is None else f"{x:.1e}" for x in (row.output_error, row.gradient_error))])
    kept = [place for place, column in enumerate(zip(*lines, strict=True)) if {*column} != {NONE}]
    table = make_table(f"\n{rows[0].case}, {rows[0].dtype}", ["contender"], [numbers[place] for place in kept])
    table.add_column("", overflow="fold")
    for row, line in zip(rows, lines, strict=True):
        style = "bold" if row.ours and row.forward else "red" if row.broken else ""
        table.add_row(
            *(Text(cell) for cell in (row.contender, *(line[place] for place in kept), row.note)), style=style
        )
    return table


def _limit(share: "LimitShare | None") -> str:
    return NONE if share is None else f"{share.share:.0%} {share.resource}"


def _costs(row: "TimedRow") -> list[str]:
    """Return the peak memory, its growth to twice the length, and the seconds of compilation."""
    peak = NONE if row.peak_mib is None else f"{row.peak_mib:,.0f}"
    growth = NONE if not row.peak_mib or row.longer_mib is None else f"x {row.longer_mib / row.peak_mib:.2f}"
    return [peak, growth, NONE if row.compile_seconds is None else f"{row.compile_seconds:.1f}"]


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
    kinds = {(row.curve[0], row.curve[1]) for row in swept if row.curve is not None and row.curve[1] is not None}
    made = []
    for direction, (width, p) in itertools.product(TITLES, sorted(kinds)):
        points = []
        for t in sorted({row.sizes["T"] for row in swept}):
            here = [row for row in swept if row.sizes["T"] == t]
            power = fastest([row for row in here if row.curve == (width, p)], direction)
            softmax = fastest([row for row in here if row.curve == (width, None)], direction)
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
