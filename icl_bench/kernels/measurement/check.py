"""Checks of every form of every operator against float64: outputs, final states and all gradients.

Gates and output gradients are random at every position, lengths are odd, and memory that nobody has written is NaN.
"""

import itertools
import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.measurement.operators import OPERATORS, known_operators
from icl_bench.kernels.measurement.problem import FEW_LENGTHS, LENGTHS, Problem, Tensors

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
MEMORY_OF_A_PROCESS = 6 * 2**30
"""Bytes that a process may need on a GPU: scores in float64 of the longest sequence, and their gradients."""
INTERPRETED_LENGTH = 65
"""The longest sequence in the interpreter, which takes seconds for the work of microseconds on a GPU."""

FormRun = Callable[[Problem, str, Tensors], Tensors]
"""A problem in a form by name: inputs to outputs."""


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


def bounds_of(problem: Problem) -> Mapping[str, float]:
    """Return the allowed errors of outputs and of gradients."""
    return problem.bounds.get(problem.dtype, BOUNDS[problem.dtype])


class CheckJob(NamedTuple):
    """The problems of one operator in one form and type."""

    impl: str
    problems: tuple[Problem, ...]
    device: str

    def findings(self, kinds: "dict[str, tuple[float, str]]") -> list[Finding]:
        """Return findings of one problem, outputs and gradients, from the largest error of each and its place."""
        first, made = self.problems[0], []
        names = first.name, self.impl, dtype_name(first.dtype)
        for what, bound in bounds_of(first).items():
            error, worst = kinds[what]
            shown = error if math.isfinite(error) else None
            made.append(Finding(*names, what, shown, bound, error <= bound, worst, problems=1))
        return made

    def failed(self, reason: str) -> list[Finding]:
        """Return findings of a problem without an error, which are no pass."""
        return self.findings(dict.fromkeys(("outputs", "gradients"), (math.inf, reason)))


def check_operators(
    device: torch.device,
    ops: Sequence[str] = (),
    impls: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    quick: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Finding]:
    """Return two findings for each operator, form and type: outputs and gradients.

    Without names these are all operators, all forms that can run on the device, and all types (in Triton's interpreter
    float32 and float16). `quick` checks few lengths, as a CPU always does. On CUDA the checks run in several processes,
    as most of the time goes into compiling kernels. `tell` is called with the errors of a form as soon as it is done.

    Raises:
        ArgumentError: There is no operator, form or type of that name, or the interpreter is asked for a wrong type.
        KernelUnavailableError: A form asked for by name cannot run there.
    """
    jobs = plan_checks(device, ops, impls, dtypes, quick)
    findings: dict[CheckJob, list[Finding]] = {}
    for job, found in _run_jobs(jobs, device):
        findings[job] = found
        errors = [f"{x.what} {'none' if x.error is None else f'{x.error:.2e}'} of {x.bound:g}" for x in found]
        broken = "".join(f"; FAILED: {x.worst}" for x in found if not x.ok)
        tell(f"{found[0].op}, {job.impl}, {found[0].dtype}: {len(job.problems)} problems, {', '.join(errors)}{broken}")
    return [finding for job in jobs for finding in findings[job]]


def plan_checks(
    device: torch.device, ops: Sequence[str], impls: Sequence[str], dtypes: Sequence[str], quick: bool
) -> list[CheckJob]:
    """Return the jobs of a check; arguments and errors as for `check_operators`."""
    operators = [OPERATORS[name] for name in known_operators(tuple(ops))]
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
                if problem.takes(impl) and _serves(impl, problem, device):
                    jobs.setdefault((dtype, impl, problem.name), []).append(problem)
    return [CheckJob(impl, tuple(problems), str(device)) for (_, impl, _), problems in jobs.items()]


def check_job(job: CheckJob, run: FormRun | None = None) -> list[Finding]:
    """Check the problems of a job and keep the largest errors; `run` replaces the operator of the job."""
    return _worst([_check_problem(job, problem, run) for problem in job.problems])


def _check_problem(job: CheckJob, problem: Problem, run: FormRun | None = None) -> list[Finding]:
    """Return the findings of one problem of a job."""
    try:
        errors = form_errors(problem, job.impl, torch.device(job.device), run or run_form)
    except Exception as error:  # whatever a kernel raises is a finding, and the others are still checked
        line = (str(error).strip().splitlines() or [""])[0]
        return job.failed(f"{type(error).__name__} at {problem.place}: {line}"[:200])
    found: dict[str, list[tuple[float, str]]] = {"outputs": [], "gradients": []}
    for one in errors:
        size = math.inf if math.isnan(one.error) else one.error
        found[one.what].append((size, f"{one.name} at {problem.place}"))
    return job.findings({what: max(sizes, key=lambda x: x[0]) for what, sizes in found.items()})


def _worst(found: Sequence[list[Finding]]) -> list[Finding]:
    """Return the findings of all problems of a job: the largest error of each kind."""
    largest = [max(kind, key=lambda x: math.inf if x.error is None else x.error) for kind in zip(*found, strict=True)]
    return [finding._replace(problems=len(found)) for finding in largest]


def run_form(problem: Problem, impl: str, inputs: Tensors) -> Tensors:
    """Return the outputs of a problem by a form."""
    return problem.run(impl, inputs)


def form_errors(
    problem: Problem, impl: str, device: torch.device, run: FormRun, index: Tensor | None = None, *,
    poison: bool = True, gradients: bool = True,
) -> list[ResultError]:  # fmt: skip
    """Return the error of every output and gradient of a form, with NaN in fresh memory where `poison` is set.

    Where an `index` along the checked axis is given, y counts there alone, and nothing else does. Without `gradients`
    only outputs are compared.
    """
    inputs = problem.inputs(device)
    whole = index is None
    if index is None:
        index = torch.arange((problem.n, problem.t)[problem.checked_axis], device=device)
    # Small steps wait for their launches on a GPU, and for other work there.
    home = torch.device("cpu") if whole and problem.stepwise else device
    exact_leaves = leaves_of({name: x.to(home) for name, x in problem.part(inputs, index).items()}, torch.float64)
    exact = problem.exact(exact_leaves, index.to(home))
    exact = exact if whole else {"y": exact["y"]}
    generator = torch.Generator(device).manual_seed(1)
    along = {name: torch.randn(y.shape, generator=generator, device=device) for name, y in exact.items()}
    along["y"] = along["y"].to(problem.dtype)
    wanted = _with_gradients(exact, input_gradients(exact, exact_leaves, along) if gradients else {})
    leaves = leaves_of(inputs) if gradients else inputs
    with poisoned_memory() if poison else nullcontext():
        found = run(problem, impl, leaves)
        if not whole:
            found = {"y": found["y"].index_select(problem.checked_axis, index)}
        if gradients:
            made = input_gradients(found, leaves, along)
            found = _with_gradients(found, problem.part(made, index))
    errors = []
    for name, target in wanted.items():
        what = "outputs" if name in exact else "gradients"
        natural = 0.0 if name in exact else problem.natural_size(name.removeprefix("d"))
        error = relative_error(found[name], target.to(device), natural)
        errors.append(ResultError(name, what, error, bounds_of(problem)[what]))
    return errors


def _with_gradients(outputs: Tensors, gradients: Tensors) -> Tensors:
    return {**outputs, **{f"d{name}": x for name, x in gradients.items()}}


def leaves_of(inputs: Tensors, dtype: torch.dtype | None = None) -> Tensors:
    """Return copies of the inputs that gradients can be taken of, converted to `dtype` where one is given."""
    return {name: x.detach().to(dtype or x.dtype).clone().requires_grad_() for name, x in inputs.items()}


def input_gradients(outputs: Tensors, leaves: Tensors, along: Tensors) -> Tensors:
    """Return the gradient of every input for output gradients `along`; zeros where nothing depends on an input."""
    converted = [along[name].to(y) for name, y in outputs.items()]
    made = torch.autograd.grad(list(outputs.values()), list(leaves.values()), converted, materialize_grads=True)
    return dict(zip(leaves, made, strict=True))


def relative_error(found: Tensor, exact: Tensor, natural: float) -> float:
    """Return the root-mean-square error relative to that of the exact result, or to `natural` where that is larger.

    The error is NaN, which is within no bound, where `found` holds NaN or has another shape.
    """
    if found.shape != exact.shape:
        return math.nan
    size, error = max(root_mean_square(exact), natural), root_mean_square(found.double() - exact)
    return error / size if size > 0 else error


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


def _run_jobs(jobs: list[CheckJob], device: torch.device) -> Iterator[tuple[CheckJob, list[Finding]]]:
    """Yield the findings of each job as it ends."""
    if device.type == "cpu":
        yield from ((job, check_job(job)) for job in jobs)
        return
    free, _ = torch.cuda.mem_get_info(device)
    processes = max(1, min(12, len(os.sched_getaffinity(0)) * 3 // 4, free // MEMORY_OF_A_PROCESS))
    found: dict[CheckJob, list[list[Finding]]] = {job: [] for job in jobs}
    # By turns: problems of one job have many kernels in common, which all processes would compile at once.
    turns = itertools.zip_longest(*([(job, problem) for problem in job.problems] for job in jobs))
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = {
            pool.submit(_check_problem, job, problem): job for turn in turns for job, problem in filter(None, turn)
        }
        for future in as_completed(started):
            job = started[future]
            try:
                found[job].append(future.result())
            except BrokenProcessPool:
                found[job].append(job.failed("its process died"))
            if len(found[job]) == len(job.problems):
                yield job, _worst(found[job])


def _check_names(option: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ArgumentError(f"--{option} is one of {', '.join(sorted(known))}; got {name!r}: choose one of them")


def _serves(impl: str, problem: Problem, device: torch.device) -> bool:
    if impl != "triton":
        return True
    if device.type != "cpu":
        return has_triton(torch.empty(0, device=device)) and problem.dtype != torch.float64
    interpreter = os.environ.get("TRITON_INTERPRET") == "1"
    return interpreter and problem.dtype in INTERPRETED and problem.t <= INTERPRETED_LENGTH
