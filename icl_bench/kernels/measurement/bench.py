"""Operators timed beside their peers, all in one run."""

import time
from collections.abc import Callable

import torch

from icl_bench.kernels.measurement.cases import cases
from icl_bench.kernels.measurement.measure import Row, carry_out
from icl_bench.kernels.measurement.processes import measure_in_processes


def bench(
    device: torch.device,
    op: str | None = None,
    quick: bool = False,
    seconds: float = 360.0,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Time everything of `cases.cases` within about that many seconds; what comes later is out of time.

    Args:
        device: Where. On CUDA the subjects (this library, PyTorch, each package) run in processes of their own, one at
            a time, after their kernels were compiled in parallel.
        op: "power" or "attention"; None for both.
        quick: Smaller sizes and fewer lengths.
        seconds: The time for all, but for the few after which a process that does not answer is ended.
        tell: Called with a line when a contender is done.

    Returns:
        A row for each contender of each case, with times or with a note why there are none.

    Raises:
        ArgumentError: There is no operator of that name.
    """
    made = cases(device, op, quick)
    if device.type == "cuda":
        return measure_in_processes(made, device, seconds, tell)
    rows: list[Row] = []
    for row in carry_out([(c, name) for c in made for name in c.contenders], device, time.monotonic() + seconds):
        tell(f"{row.case}: {row.contender} {row.note}".rstrip())
        rows.append(row)
    return rows
