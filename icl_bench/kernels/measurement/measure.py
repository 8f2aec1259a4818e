"""One contender on one case: checked at a few queries, then timed.

A form of this library is timed only after it has passed the check, at the very size that is timed.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.measurement.cases import Case, Part
from icl_bench.kernels.measurement.check import Error, examine
from icl_bench.kernels.measurement.contenders import Operator, installed, operator, same_function, subject_of
from icl_bench.kernels.measurement.oracle import leaves_of
from icl_bench.kernels.measurement.problems import Inputs, Problem, make_inputs
from icl_bench.kernels.measurement.timing import Times, peak_mebibytes, time_call

Timer = Callable[[Callable[[], object], torch.device, float], Times]

FAILED = "check failed"
SAMPLED = 8
"""Queries at which a form is checked before it is timed."""


class Row(NamedTuple):
    """One contender on one case."""

    case: str
    part: Part
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
    """Forward and backward; like `forward` None where there is no time, and `note` says why."""
    peak_mib: float | None = None
    """Device memory that forward and backward hold beside their inputs."""
    output_error: float | None = None
    gradient_error: float | None = None
    """Relative to float64 at a few queries; None where the contender computes another function."""
    note: str = ""

    @property
    def broken(self) -> bool:
        """Whether a form of this library failed its check."""
        return self.note.startswith(FAILED)

    def document(self) -> dict[str, Any]:
        """As plain data for JSON."""
        times = {
            name: None if x is None else x._asdict() for name, x in (("forward", self.forward), ("both", self.both))
        }
        return {**self._asdict(), **times}


def blank(case: Case, name: str, note: str = "") -> Row:
    """The row of a contender without a measurement."""
    x = case.problem
    ours = subject_of(name) in ("ours", "plain")
    shown = f"{x.op} {name}" if ours else name
    p = x.p if x.op == "power" else None
    dtype = str(x.dtype).removeprefix("torch.")
    return Row(case.title, case.part, x.name, shown, ours, x.n, x.t, x.heads, x.key, p, dtype, note=note)


def measure(case: Case, name: str, device: torch.device, seconds: float, timer: Timer = time_call) -> Row:
    """Check a contender and time it, `seconds` for each of forward and forward + backward.

    A form of this library that fails its check, and whatever raises, gets a row without times that says so.
    """
    row = blank(case, name)
    if not installed(name):
        return row._replace(note="not installed")
    try:
        run = operator(name, case.problem, device)
        if same_function(name, case.problem):
            errors = _errors(case.problem, name, run, device, row.ours)
            broken = [f"{e.name} {e.error:.2g} over {e.bound:g}" for e in errors if not e.ok]
            if broken and row.ours:
                return row._replace(note=f"{FAILED}: {', '.join(broken)}")
            row = row._replace(output_error=_finite(errors[0].error), gradient_error=_worst(errors[1:]))
        return _timed(row, case.problem, run, device, seconds, timer)
    except KernelUnavailableError as error:
        return row._replace(note=str(error))
    except Exception as error:  # a contender that refuses or breaks is a result, and the others are still timed
        line = (str(error).strip().splitlines() or [""])[0]
        return row._replace(note=f"{type(error).__name__}: {line}"[:200])
    finally:
        release(device)


def release(device: torch.device) -> None:
    """Give memory back, so that contenders do not meet each other's."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def carry_out(
    tasks: Sequence[tuple[Case, str]], device: torch.device, deadline: float, timer: Timer = time_call
) -> Iterator[Row]:
    """Measure one contender after another until the deadline of `time.monotonic`; the rest have run out of time."""
    for case, name in tasks:
        if time.monotonic() > deadline:
            yield blank(case, name, "out of time")
        else:
            yield measure(case, name, device, seconds=0.25 if case.part == "table" else 0.06, timer=timer)


def passes(run: Operator, inputs: Inputs) -> tuple[Callable[[], object], Callable[[], object]]:
    """A forward pass alone, and a forward and a backward pass with random output gradients."""
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


def _timed(row: Row, problem: Problem, run: Operator, device: torch.device, seconds: float, timer: Timer) -> Row:
    forward, both = passes(run, make_inputs(problem, device))
    peak = None
    if device.type == "cuda":
        both()
        peak = peak_mebibytes(both)
    times = timer(forward, device, seconds), timer(both, device, seconds)
    launched = [part for part, x in zip(("forward", "both"), times, strict=True) if x.method == "events"]
    note = f"not captured in a graph: {', '.join(launched)}" if launched else ""
    return row._replace(forward=times[0], both=times[1], peak_mib=peak, note=note)


def _errors(problem: Problem, name: str, run: Operator, device: torch.device, poison: bool) -> list[Error]:
    rows = torch.linspace(problem.t // SAMPLED, problem.t - 1, SAMPLED, device=device).long().unique()
    return examine(problem, name, device, lambda _problem, _name, inputs: [run(inputs)], rows, poison)


def _worst(errors: Sequence[Error]) -> float | None:
    known = [e.error for e in errors]
    return max(known) if all(map(math.isfinite, known)) else None


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
