"""The table of `icl-bench state`."""

from collections.abc import Sequence

from rich.table import Table

from icl_bench.runs.record import Account


def state_table(rows: Sequence[Account]) -> Table:
    """A line for each architecture."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("architecture", overflow="fold")
    for heading in (
        "state elements",
        "bytes (bf16)",
        "at length",
        "mixer params",
        "weight FLOPs",
        "state FLOPs",
        "ratio",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        counts = (row.elements, row.bytes, row.length, row.params, row.weight_flops, row.state_flops)
        table.add_row(row.arch, *(f"{count:,.0f}" for count in counts), ratio)
    return table
