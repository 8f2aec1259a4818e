"""Checks of every form of every operator against float64: outputs, final states and all gradients.

Gates and output gradients are random at every position, lengths are odd, and memory that nobody has written is NaN.
"""

import itertools
import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.measurement.operators import OPERATORS, exact_outputs, known_operators, operator_name, run_form
from icl_bench.kernels.measurement.problems import FEW_LENGTHS, LENGTHS, Inputs, Problem, make_inputs

# The allowed errors, in the root mean square and relative to the exact result. A rounding to a type errs in the mean
# square by about a quarter of its eps; outputs and gradients are sums of products of a few rounded factors. In float32,
# with IEEE products, the rounding of scores and sums dominates.
BOUNDS = {
    torch.bfloat16: {"outputs": 5e-3, "gradients": 1e-2},
    torch.float16: {"outputs": 2e-3, "gradients": 5e-3},
    torch.float32: {"outputs": 1e-5, "gradients": 1e-5},
    torch.float64: {"outputs": 1e-9, "gradients": 1e-9},
}
CHECKED_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in BOUNDS}
INTERPRETED = (torch.float32, torch.float16)
"""Types that Triton's interpreter multiplies right: its products of bfloat16 are wrong."""
GRADIENTS = ("dq", "dk", "dv", "dlog_g", "ds", "dz")
MEMORY_OF_A_PROCESS = 6 * 2**30
"""Bytes that a process may need on a GPU: scores in float64 of the longest sequence, and their gradients."""
INTERPRETED_LENGTH = 65
"""The longest sequence in the interpreter, which takes seconds for the work of microseconds on a GPU."""

FormRun = Callable[[Problem, str, Inputs], list[Tensor]]
"""An operator in a form by name: inputs to outputs."""


class ResultError(NamedTuple):
    """The error of one output or gradient."""

    name: str
    what: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        """The error is within its bound; NaN never is."""
        return self.error <= self.bound


class Finding(NamedTuple):
    """The largest error of an operator in one form and type, over all its problems."""

    op: str
    impl: str
    dtype: str
    what: str
    """outputs or gradients."""
    error: float | None
    """Relative root mean square; None where it is not finite or there is no result."""
    bound: float
    ok: bool
    worst: str
    """The output or gradient and the problem with that error; or the exception."""
    problems: int


class CheckJob(NamedTuple):
    """The problems of one operator in one form and type."""

    impl: str
    problems: tuple[Problem, ...]
    device: str

    def findings(self, kinds: "dict[str, tuple[float, str]]", problems: int) -> list[Finding]:
        """Return a finding for outputs and one for gradients, from the largest error of each and its place."""
        first, made = self.problems[0], []
        names = operator_name(first), self.impl, dtype_name(first.dtype)
        for what, bound in BOUNDS[first.dtype].items():
            error, worst = kinds[what]
            shown = error if math.isfinite(error) else None
            made.append(Finding(*names, what, shown, bound, error <= bound, worst, problems))
        return made

    def failed(self, reason: str, problems: int) -> list[Finding]:
        """Return findings without an error, which are no pass."""
        return self.findings(dict.fromkeys(("outputs", "gradients"), (math.inf, reason)), problems)


def check_operators(
    device: torch.device,
    op: str | None = None,
    impls: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    quick: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Finding]:
    """Return two findings for each operator, form and type: outputs and gradients.

    Without names these are all operators, all forms that can run on the device, and all types (in Triton's interpreter
    float32 and float16). `quick` checks few lengths, as a CPU always does. On CUDA the checks run in several processes,
    as most of the time goes into compiling kernels. `tell` is called with a line when a form of an operator is done.

    Raises:
        ArgumentError: There is no operator, form or type of that name, or the interpreter is asked for a wrong type.
        KernelUnavailableError: A form asked for by name cannot run there.
    """
    jobs = plan_checks(device, op, impls, dtypes, quick)
    findings: list[Finding] = []
    for job, found in zip(jobs, _run_jobs(jobs, device), strict=True):
        tell(f"{found[0].op}, {job.impl}, {found[0].dtype}: {len(job.problems)} problems")
        findings += found
    return findings


def plan_checks(
    device: torch.device, op: str | None, impls: Sequence[str], dtypes: Sequence[str], quick: bool
) -> list[CheckJob]:
    """Return the jobs of a check; arguments and errors as for `check_operators`."""
    operators = [OPERATORS[name] for name in known_operators(op)]
    _check_names("impl", impls, {impl for entry in operators for impl in entry.impls})
    _check_names("dtype", dtypes, set(CHECKED_DTYPES))
    if "triton" in impls:
        check_triton(torch.empty(0, device=device))
        wrong = [name for name in dtypes if device.type == "cpu" and CHECKED_DTYPES[name] not in INTERPRETED]
        if wrong:
            raise ArgumentError(
                f"Triton's interpreter is right in float32 and float16; got --dtype {wrong[0]}: choose one of these, "
                "or use --device cuda"
            )
    lengths = FEW_LENGTHS if quick or device.type == "cpu" else LENGTHS
    jobs: dict[tuple[torch.dtype, str, str], list[Problem]] = {}
    kinds = [CHECKED_DTYPES[name] for name in dtypes] or list(BOUNDS)
    for entry, dtype in itertools.product(operators, kinds):
        # "auto" is one of the other forms, and "reference" the definition itself.
        for impl in impls or [impl for impl in entry.impls if impl not in ("auto", "reference")]:
            for problem in entry.problems(dtype, lengths):
                if impl in entry.impls and _serves(impl, problem, device):
                    jobs.setdefault((dtype, impl, operator_name(problem)), []).append(problem)
    return [CheckJob(impl, tuple(problems), str(device)) for (_, impl, _), problems in jobs.items()]


def check_job(job: CheckJob, run: FormRun | None = None) -> list[Finding]:
    """Check the problems of a job and keep the largest errors; `run` replaces the operator of the job."""
    found: dict[str, list[tuple[float, str]]] = {"outputs": [], "gradients": []}
    for problem in job.problems:
        try:
            errors = form_errors(problem, job.impl, torch.device(job.device), run or run_form)
        except Exception as error:  # whatever a kernel raises is a finding, and the others are still checked
            line = (str(error).strip().splitlines() or [""])[0]
            return job.failed(f"{type(error).__name__} at {problem.sizes}: {line}"[:200], len(job.problems))
        for one in errors:
            size = math.inf if math.isnan(one.error) else one.error
            found[one.what].append((size, f"{one.name} at {problem.sizes}"))
    return job.findings({what: max(errors, key=lambda x: x[0]) for what, errors in found.items()}, len(job.problems))


def form_errors(
    problem: Problem, impl: str, device: torch.device, run: FormRun, rows: Tensor | None = None, poison: bool = True
) -> list[ResultError]:
    """Return the error of every output and gradient of a form, with NaN in fresh memory where `poison` is set.

    Where `rows` are given, outputs count at those queries alone, and output gradients are zero elsewhere.
    """
    inputs = make_inputs(problem, device)
    rows = torch.arange(problem.t, device=device) if rows is None else rows
    exact_leaves = leaves_of(inputs, torch.float64)
    exact = exact_outputs(problem, exact_leaves, rows)
    generator = torch.Generator(device).manual_seed(1)
    along = [torch.randn(y.shape, generator=generator, device=device) for y in exact]
    along[0] = along[0].to(problem.dtype)
    wanted = [*exact, *input_gradients(exact, exact_leaves, along)]
    along[0] = along[0].new_zeros(problem.n, problem.t, *along[0].shape[2:]).index_copy(1, rows, along[0])
    leaves = leaves_of(inputs)
    with poisoned_memory() if poison else nullcontext():
        outputs = run(problem, impl, leaves)
        gradients = input_gradients(outputs, leaves, along)
    found = [outputs[0][:, rows], *outputs[1:], *gradients]
    names = ["y", "s", "z"][: len(exact)]
    names += [name for name, x in zip(GRADIENTS, inputs, strict=True) if x is not None]
    errors = []
    for name, result, target in zip(names, found, wanted, strict=True):
        what = "gradients" if name in GRADIENTS else "outputs"
        error = relative_error(result, target, natural_size(problem, name))
        errors.append(ResultError(name, what, error, BOUNDS[problem.dtype][what]))
    return errors


def leaves_of(inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Return copies of the inputs that gradients can be taken of, converted to `dtype` where one is given."""
    return Inputs._make(None if x is None else x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in inputs)


def input_gradients(outputs: list[Tensor], leaves: Inputs, along: list[Tensor]) -> list[Tensor]:
    """Return the gradient of every input for output gradients `along`; zeros where nothing depends on an input."""
    converted = [a.to(y.dtype) for a, y in zip(along, outputs, strict=True)]
    return list(torch.autograd.grad(outputs, [x for x in leaves if x is not None], converted, materialize_grads=True))


def relative_error(found: Tensor, exact: Tensor, natural: float) -> float:
    """Return the root-mean-square error relative to that of the exact result, or to `natural` where that is larger.

    The error is NaN, which is within no bound, where `found` holds NaN or has another shape.
    """
    if found.shape != exact.shape:
        return math.nan
    size, error = max(root_mean_square(exact), natural), root_mean_square(found.double() - exact)
    return error / size if size > 0 else error


def natural_size(problem: Problem, name: str) -> float:
    """Return the size of the terms that cancel in a gradient where every query sees one key; else 0.

    Inputs are standard normal: the terms of dq and dk are of order 1, those of a gate sums of V products over T.
    """
    one_key = min(problem.t, problem.window or problem.t) == 1 and not problem.initial
    if not one_key or name not in ("dq", "dk", "dlog_g"):
        return 0.0
    return math.sqrt(problem.value * problem.t) if name == "dlog_g" else 1.0


def root_mean_square(x: Tensor) -> float:
    """Return the root mean square of all entries."""
    return x.detach().double().square().mean().sqrt().item()


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill new memory of `torch.empty` and its kin with NaN, so that a read before a write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operators without a deterministic form say so, and determinism is not the aim
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
            yield
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type without its module."""
    return str(dtype).removeprefix("torch.")


def _run_jobs(jobs: list[CheckJob], device: torch.device) -> Iterator[list[Finding]]:
    if device.type == "cpu":
        yield from map(check_job, jobs)
        return
    memory = torch.cuda.get_device_properties(device).total_memory
    processes = max(1, min(12, (os.cpu_count() or 1) * 3 // 4, memory // MEMORY_OF_A_PROCESS))
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job, future in [(job, pool.submit(check_job, job)) for job in jobs]:
            try:
                yield future.result()
            except BrokenProcessPool:
                yield job.failed("its process died", 0)


def _check_names(option: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ArgumentError(f"--{option} is one of {', '.join(sorted(known))}; got {name!r}: choose one of them")


def _serves(impl: str, problem: Problem, device: torch.device) -> bool:
    if impl != "triton":
        return impl != "sdpa" or not problem.gated
    if device.type != "cpu":
        return has_triton(torch.empty(0, device=device)) and problem.dtype != torch.float64
    interpreter = os.environ.get("TRITON_INTERPRET") == "1"
    return interpreter and problem.dtype in INTERPRETED and problem.t <= INTERPRETED_LENGTH
