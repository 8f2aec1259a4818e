"""The measurement of a contender on a case: checked at a part of it, at the very size that is then timed."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.measurement.check import ResultError, dtype_name, form_errors, leaves_of
from icl_bench.kernels.measurement.limits import LimitShare, limit_share
from icl_bench.kernels.measurement.peers import contender_run, installed, stored_inputs, subject_of
from icl_bench.kernels.measurement.problem import Case, CasePart, ContenderRun, Problem, Tensors
from icl_bench.kernels.measurement.timing import Times, peak_mebibytes, time_call

TimingTask = tuple[Case, str]
"""A case and the name of a contender."""

FAILED = "check failed"
SAMPLES = 8
"""Queries or sequences at which a form is checked before it is timed."""


class TimedRow(NamedTuple):
    """One contender on one case."""

    case: str
    part: CasePart
    op: str
    contender: str
    ours: bool
    sizes: dict[str, int]
    """Sizes by their letters."""
    curve: tuple[int, int | None] | None
    """Width and power of a point of the crossover; the power is None for softmax."""
    dtype: str
    forward: Times | None = None
    both: Times | None = None
    """Forward and backward; like `forward` None where there is no time, and `note` gives the reason."""
    forward_limit: LimitShare | None = None
    both_limit: LimitShare | None = None
    """The share of the machine's limit, for the operations that the operator counts and the bytes of its tensors."""
    peak_mib: float | None = None
    """Device memory that forward and backward hold beside their inputs."""
    longer_mib: float | None = None
    """The same at twice the length, for forms of this library with kernels."""
    compile_seconds: float | None = None
    """Time of the first calls, where nothing of this case was compiled before, less that of a second one."""
    output_error: float | None = None
    gradient_error: float | None = None
    """Relative to float64 at a part; None where the contender computes another function."""
    note: str = ""

    @property
    def broken(self) -> bool:
        """A form of this library failed its check."""
        return self.note.startswith(FAILED)

    def document(self) -> dict[str, Any]:
        """Return the row as plain data for JSON."""
        records = ("forward", "both", "forward_limit", "both_limit")
        plain = {name: None if (x := getattr(self, name)) is None else x._asdict() for name in records}
        return {**self._asdict(), **plain}


def blank_row(case: Case, name: str, note: str = "") -> TimedRow:
    """Return the row of a contender without a measurement."""
    problem: Problem = case.problem
    ours = subject_of(problem, name) in ("ours", "plain")
    shown = f"{problem.op} {name}" if ours else name
    kind = dtype_name(problem.dtype)
    return TimedRow(case.title, case.part, problem.name, shown, ours, problem.sizes, case.curve, kind, note=note)


def measure_contender(case: Case, name: str, device: torch.device, seconds: float) -> TimedRow:
    """Check a contender and time it, `seconds` for each of forward and forward + backward.

    A form of this library that fails its check, and a contender that raises, gets a row without times that says so. A
    contender that raises in its backward pass alone has the times of its forward pass.
    """
    row, problem = blank_row(case, name), case.problem
    if not installed(problem, name):
        return row._replace(note="not installed")
    try:
        run = contender_run(problem, name, device)
        if name not in problem.peers or problem.peers[name].same:
            errors, refusal = _errors(row, problem, name, run, device)
            broken = [f"{e.name} {e.error:.2g} over {e.bound:g}" for e in errors if not e.ok]
            if broken and row.ours:
                return row._replace(note=f"{FAILED}: {', '.join(broken)}")
            outputs, gradients = ([e.error for e in errors if e.what == what] for what in ("outputs", "gradients"))
            row = row._replace(output_error=_largest(outputs), gradient_error=_largest(gradients), note=refusal)
        row = _timed(row, problem, run, stored_inputs(problem, name, problem.inputs(device)), seconds)
        growing = device.type == "cuda" and case.part == "table" and subject_of(problem, name) == "ours"
        return row._replace(longer_mib=_longer_mebibytes(problem, name, device)) if growing else row
    except KernelUnavailableError as error:
        return row._replace(note=str(error))
    except Exception as error:  # a contender that refuses or breaks is a result, and the others are still timed
        return row._replace(note=_first_line(error))
    finally:
        free_memory(device)


def _errors(
    row: TimedRow, problem: Problem, name: str, run: ContenderRun, device: torch.device
) -> tuple[list[ResultError], str]:
    """Return the errors of y and of all gradients at a part; of y alone, and the reason, where a peer refuses them."""
    size = (problem.n, problem.t)[problem.checked_axis]
    index = torch.linspace(size // SAMPLES, size - 1, SAMPLES, device=device).long().unique()

    def run_form(_problem: Problem, _name: str, inputs: Tensors) -> Tensors:
        return {"y": run(inputs)}

    try:
        return form_errors(problem, name, device, run_form, index, poison=row.ours), ""
    except Exception as error:
        if row.ours:
            raise
        errors = form_errors(problem, name, device, run_form, index, poison=False, gradients=False)
        return errors, f"backward refused: {_first_line(error)}"


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


def timed_passes(run: ContenderRun, inputs: Tensors) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a forward pass alone, and a forward and a backward pass with random output gradients."""
    leaves = leaves_of(inputs)
    with torch.no_grad():
        along = torch.randn_like(run(inputs))

    def forward() -> object:
        with torch.no_grad():
            return run(inputs)

    def both() -> object:
        return torch.autograd.grad(run(leaves), list(leaves.values()), along, allow_unused=True)

    return forward, both


def moved_bytes(inputs: Tensors, y: torch.Tensor) -> tuple[int, int]:
    """Return the bytes that a forward pass, and a forward and a backward pass, must at least move.

    Forward reads the inputs and writes y; backward reads the inputs and the gradient of y, and writes all gradients.
    """
    read, written = sum(x.nbytes for x in inputs.values()), y.nbytes
    return read + written, 3 * read + 2 * written


def _timed(row: TimedRow, problem: Problem, run: ContenderRun, inputs: Tensors, seconds: float) -> TimedRow:
    device = next(iter(inputs.values())).device
    forward, both = timed_passes(run, inputs)
    times: list[Times] = [time_call(forward, device, seconds)]
    if not row.note:
        if device.type == "cuda":
            both()
            row = row._replace(peak_mib=peak_mebibytes(both))
        times.append(time_call(both, device, seconds))
    launched = [part for part, x in zip(("forward", "both"), times, strict=False) if x.method == "events"]
    note = [row.note] * bool(row.note) + [f"not captured in a graph: {', '.join(launched)}"] * bool(launched)
    row = row._replace(forward=times[0], both=times[1] if len(times) > 1 else None, note="; ".join(note))
    if device.type == "cuda":
        with torch.no_grad():
            moved = moved_bytes(inputs, run(inputs))
        row = _with_limits(row, problem, moved, torch.cuda.get_device_name(device))
    return row


def _with_limits(row: TimedRow, problem: Problem, moved: tuple[int, int], name: str) -> TimedRow:
    work, shares = problem.work(), []
    for times, count, size in ((row.forward, work, moved[0]), (row.both, work.with_backward(), moved[1])):
        shares.append(None if times is None else limit_share(name, times.median, count, size))
    return row._replace(forward_limit=shares[0], both_limit=shares[1])


def _longer_mebibytes(problem: Problem, name: str, device: torch.device) -> float | None:
    """Return the memory of forward and backward at twice the length; None where it is more than there is."""
    free_memory(device)
    longer = problem.longer()
    try:
        _, both = timed_passes(contender_run(longer, name, device), longer.inputs(device))
        both()
        return peak_mebibytes(both)
    except torch.cuda.OutOfMemoryError:
        return None


def _largest(errors: Sequence[float]) -> float | None:
    return max(errors) if errors and all(map(math.isfinite, errors)) else None


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:200]
