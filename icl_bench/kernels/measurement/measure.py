"""The measurement of a contender on a case: checked at a few queries, at the very size that is then timed."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.measurement.cases import Case, CasePart
from icl_bench.kernels.measurement.check import dtype_name, form_errors, leaves_of
from icl_bench.kernels.measurement.contenders import ContenderRun, contender_run, installed, same_function, subject_of
from icl_bench.kernels.measurement.operators import operator_name
from icl_bench.kernels.measurement.problems import Inputs, Problem, make_inputs
from icl_bench.kernels.measurement.timing import Times, peak_mebibytes, time_call

TimingTask = tuple[Case, str]
"""A case and the name of a contender."""

FAILED = "check failed"
SAMPLED_QUERIES = 8
"""Queries at which a form is checked before it is timed."""


class TimedRow(NamedTuple):
    """One contender on one case."""

    case: str
    part: CasePart
    op: str
    contender: str
    ours: bool
    n: int
    t: int
    heads: int
    key: int
    p: int | None
    dtype: str
    forward: Times | None = None
    both: Times | None = None
    """Forward and backward; like `forward` None where there is no time, and `note` gives the reason."""
    peak_mib: float | None = None
    """Device memory that forward and backward hold beside their inputs."""
    output_error: float | None = None
    gradient_error: float | None = None
    """Relative to float64 at a few queries; None where the contender computes another function."""
    note: str = ""

    @property
    def broken(self) -> bool:
        """A form of this library failed its check."""
        return self.note.startswith(FAILED)

    def document(self) -> dict[str, Any]:
        """Return the row as plain data for JSON."""
        forward, both = (None if x is None else x._asdict() for x in (self.forward, self.both))
        return {**self._asdict(), "forward": forward, "both": both}


def blank_row(case: Case, name: str, note: str = "") -> TimedRow:
    """Return the row of a contender without a measurement."""
    x = case.problem
    ours = subject_of(name) in ("ours", "plain")
    shown, p, kind = f"{x.op} {name}" if ours else name, x.p if x.op == "power" else None, dtype_name(x.dtype)
    return TimedRow(case.title, case.part, operator_name(x), shown, ours, x.n, x.t, x.heads, x.key, p, kind, note=note)


def measure_contender(case: Case, name: str, device: torch.device, seconds: float) -> TimedRow:
    """Check a contender and time it, `seconds` for each of forward and forward + backward.

    A form of this library that fails its check, and a contender that raises, gets a row without times that says so.
    """
    row = blank_row(case, name)
    if not installed(name):
        return row._replace(note="not installed")
    problem = case.problem
    try:
        run = contender_run(name, problem, device)
        if same_function(name, problem):
            rows = torch.linspace(problem.t // SAMPLED_QUERIES, problem.t - 1, SAMPLED_QUERIES, device=device)
            queries = rows.long().unique()
            errors = form_errors(problem, name, device, lambda _p, _n, inputs: [run(inputs)], queries, poison=row.ours)
            broken = [f"{e.name} {e.error:.2g} over {e.bound:g}" for e in errors if not e.ok]
            if broken and row.ours:
                return row._replace(note=f"{FAILED}: {', '.join(broken)}")
            output, *gradients = (e.error for e in errors)
            row = row._replace(output_error=_largest([output]), gradient_error=_largest(gradients))
        return _timed(row, problem, run, device, seconds)
    except KernelUnavailableError as error:
        return row._replace(note=str(error))
    except Exception as error:  # a contender that refuses or breaks is a result, and the others are still timed
        line = (str(error).strip().splitlines() or [""])[0]
        return row._replace(note=f"{type(error).__name__}: {line}"[:200])
    finally:
        free_memory(device)


def free_memory(device: torch.device) -> None:
    """Free memory, so that a contender does not meet that of another."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_tasks(tasks: Sequence[TimingTask], device: torch.device, deadline: float) -> Iterator[TimedRow]:
    """Measure one contender after another until the deadline of `time.monotonic`; the rest are out of time."""
    for case, name in tasks:
        if time.monotonic() > deadline:
            yield blank_row(case, name, "out of time")
        else:
            yield measure_contender(case, name, device, seconds=0.25 if case.part == "table" else 0.06)


def timed_passes(run: ContenderRun, inputs: Inputs) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a forward pass alone, and a forward and a backward pass with random output gradients."""
    leaves = leaves_of(inputs)
    asked = [x for x in leaves if x is not None]
    with torch.no_grad():
        along = torch.randn_like(run(inputs))

    def forward() -> object:
        with torch.no_grad():
            return run(inputs)

    def both() -> object:
        return torch.autograd.grad(run(leaves), asked, along, allow_unused=True)

    return forward, both


def _timed(row: TimedRow, problem: Problem, run: ContenderRun, device: torch.device, seconds: float) -> TimedRow:
    forward, both = timed_passes(run, make_inputs(problem, device))
    peak = None
    if device.type == "cuda":
        both()
        peak = peak_mebibytes(both)
    times = time_call(forward, device, seconds), time_call(both, device, seconds)
    launched = [part for part, x in zip(("forward", "both"), times, strict=True) if x.method == "events"]
    note = f"not captured in a graph: {', '.join(launched)}" if launched else ""
    return row._replace(forward=times[0], both=times[1], peak_mib=peak, note=note)


def _largest(errors: Sequence[float]) -> float | None:
    return max(errors) if all(map(math.isfinite, errors)) else None
