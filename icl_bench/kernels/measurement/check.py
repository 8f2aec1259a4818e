"""Every form of every operator against its definition in float64: outputs, final states and all gradients.

Gates and output gradients are random at every position, lengths are odd, and memory that nobody has written is NaN.
"""

import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.attention import api as attention_api
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.measurement.oracle import (
    BOUNDS,
    EPS,
    exact_outputs,
    gradients,
    leaves_of,
    natural_size,
    relative_error,
)
from icl_bench.kernels.measurement.problems import (
    FEW_LENGTHS,
    LENGTHS,
    Inputs,
    Op,
    Problem,
    attention_problems,
    make_inputs,
    power_problems,
)
from icl_bench.kernels.power import api as power_api
from icl_bench.kernels.power.state import PowerState

IMPLS: dict[Op, tuple[str, ...]] = {"power": get_args(power_api.Impl), "attention": get_args(attention_api.Impl)}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in BOUNDS}
INTERPRETED = (torch.float32, torch.float16)
"""Types that Triton's interpreter multiplies right: its products of bfloat16 are wrong."""
GRADIENTS = ("dq", "dk", "dv", "dlog_g", "ds", "dz")
MEMORY_OF_A_PROCESS = 6 * 2**30
"""What a process may need on a GPU: scores in float64 of the longest sequence, and their gradients."""
INTERPRETED_LENGTH = 65
"""The longest sequence in the interpreter, which takes seconds for what a GPU does in microseconds."""

Run = Callable[[Problem, str, Inputs], list[Tensor]]
"""An operator in a form by name: inputs to outputs."""


class Error(NamedTuple):
    """The error of one output or gradient."""

    name: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether it is within its bound; NaN never is."""
        return self.error <= self.bound


class Finding(NamedTuple):
    """The worst of an operator in one form and type, over all its problems."""

    op: str
    impl: str
    dtype: str
    what: str
    """outputs or gradients."""
    error: float | None
    """Relative root mean square; None where it is not finite or nothing came."""
    bound: float
    ok: bool
    worst: str
    """Which output or gradient, on which problem; or what was raised."""
    problems: int


class Job(NamedTuple):
    """The problems of one operator in one form and type."""

    impl: str
    problems: tuple[Problem, ...]
    device: str


def check(
    device: torch.device,
    op: str | None = None,
    impls: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    quick: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Finding]:
    """Check operators on a device; on CUDA in several processes, as most of the time goes into compiling kernels.

    Args:
        device: Where.
        op: "power" or "attention"; None for both.
        impls: Forms by name; all that can run there by default.
        dtypes: Types by name; all by default (in Triton's interpreter float32 and float16).
        quick: Few lengths; a CPU always has few.
        tell: Called with a line when a form of an operator is done.

    Returns:
        Two findings for each operator, form and type: outputs and gradients.

    Raises:
        ArgumentError: There is no operator, form or type of that name, or the interpreter is asked for a wrong type.
        KernelUnavailableError: A form asked for by name cannot run there.
    """
    jobs = plan(device, op, impls, dtypes, quick)
    findings: list[Finding] = []
    for job, found in zip(jobs, _carry_out(jobs, device), strict=True):
        tell(f"{found[0].op}, {job.impl}, {found[0].dtype}: {len(job.problems)} problems")
        findings += found
    return findings


def plan(device: torch.device, op: str | None, impls: Sequence[str], dtypes: Sequence[str], quick: bool) -> list[Job]:
    """What is to be checked; arguments and errors as for `check`."""
    ops: tuple[Op, ...] = get_args(Op) if op is None else (_known_op(op),)
    for name, known, option in [(i, {i for o in ops for i in IMPLS[o]}, "impl") for i in impls] + [
        (d, set(DTYPES), "dtype") for d in dtypes
    ]:
        if name not in known:
            raise ArgumentError(f"--{option} is one of {', '.join(sorted(known))}; got {name!r}: choose one of them")
    if "triton" in impls:
        check_triton(torch.empty(0, device=device))
        wrong = [name for name in dtypes if device.type == "cpu" and DTYPES[name] not in INTERPRETED]
        if wrong:
            raise ArgumentError(
                f"Triton's interpreter is right in float32 and float16; got --dtype {wrong[0]}: choose one of these, "
                "or use --device cuda"
            )
    lengths = FEW_LENGTHS if quick or device.type == "cpu" else LENGTHS
    jobs: list[Job] = []
    for one in ops:
        for dtype in [DTYPES[name] for name in dtypes] or list(BOUNDS):
            made = power_problems(dtype, lengths) if one == "power" else attention_problems(dtype, lengths)
            groups: dict[str, list[Problem]] = {}
            for problem in made:
                groups.setdefault(problem.name, []).append(problem)
            for impl in [impl for impl in impls or _able(one, device) if impl in IMPLS[one]]:
                kept = [[x for x in group if _serves(impl, x, device)] for group in groups.values()]
                jobs += [Job(impl, tuple(group), str(device)) for group in kept if group]
    return jobs


def check_job(job: Job, run: Run | None = None) -> list[Finding]:
    """Check the problems of a job and keep the worst; `run` is another operator than that of the job's name."""
    device = torch.device(job.device)
    worst: dict[str, tuple[float, str]] = {}
    first = job.problems[0]
    bound = BOUNDS[first.dtype]
    for problem in job.problems:
        try:
            errors = examine(problem, job.impl, device, run or run_form)
        except Exception as error:  # whatever a kernel raises is a finding, and the others are still checked
            line = (str(error).strip().splitlines() or [""])[0]
            return [
                Finding(problem.name, job.impl, _name(problem.dtype), what, None, limit, False,
                        f"{type(error).__name__} at {problem.sizes}: {line}"[:200], len(job.problems))
                for what, limit in zip(bound._fields, bound, strict=True)
            ]  # fmt: skip
        for one in errors:
            what = "gradients" if one.name in GRADIENTS else "outputs"
            size = math.inf if math.isnan(one.error) else one.error
            if what not in worst or size > worst[what][0]:
                worst[what] = (size, f"{one.name} at {problem.sizes}")
    return [
        Finding(first.name, job.impl, _name(first.dtype), what, *_judge(*worst[what], limit), len(job.problems))
        for what, limit in zip(bound._fields, bound, strict=True)
    ]


def examine(
    problem: Problem, impl: str, device: torch.device, run: Run, rows: Tensor | None = None, poison: bool = True
) -> list[Error]:
    """The error of every output and gradient of a form, with NaN in fresh memory where `poison` is set.

    Where `rows` are given, outputs count at those queries alone, and output gradients are zero elsewhere.

    Raises:
        KernelUnavailableError: The form cannot run the problem.
    """
    inputs = make_inputs(problem, device)
    rows_or_all = torch.arange(problem.t, device=device) if rows is None else rows
    exact_leaves = leaves_of(inputs, torch.float64)
    exact = exact_outputs(problem, exact_leaves, rows_or_all)
    generator = torch.Generator(device).manual_seed(1)
    along = [torch.randn(y.shape, generator=generator, device=device) for y in exact]
    along[0] = along[0].to(problem.dtype)
    wanted = [*exact, *gradients(exact, exact_leaves, along)]
    if rows is not None:
        along[0] = _spread(along[0], rows, problem.t)
    leaves = leaves_of(inputs)
    with poisoned_memory() if poison else nullcontext():
        outputs = run(problem, impl, leaves)
        pulled = gradients(outputs, leaves, along)
    found = [outputs[0][:, rows_or_all], *outputs[1:], *pulled]
    names = ["y", "s", "z"][: len(exact)]
    names += [name for name, x in zip(GRADIENTS, inputs, strict=True) if x is not None]
    bound = BOUNDS[problem.dtype]
    return [
        Error(
            name, relative_error(a, b, natural_size(problem, name)),
            bound.gradients if name in GRADIENTS else bound.outputs,
        )
        for name, a, b in zip(names, found, wanted, strict=True)
    ]  # fmt: skip


def run_form(problem: Problem, impl: str, inputs: Inputs) -> list[Tensor]:
    """This library's operator in a form by name."""
    q, k, v, log_g, s, z = inputs
    if problem.op == "attention":
        return [attention_api.attention(q, k, v, log_g, window=problem.window, impl=impl)]  # type: ignore[arg-type]
    start = None if s is None else PowerState(s, z)
    options = {"p": problem.p, "normalize": problem.normalize, "eps": EPS, "chunk": problem.chunk, "impl": impl}
    if not problem.states:
        return [power_api.power_attention(q, k, v, log_g, initial_state=start, **options)]  # type: ignore[arg-type]
    y, state = power_api.power_attention_with_state(q, k, v, log_g, initial_state=start, **options)  # type: ignore[arg-type]
    return [y, state.s] if state.z is None else [y, state.s, state.z]


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` and its kin return with NaN, so that what is read before it is written is seen."""
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


def _carry_out(jobs: list[Job], device: torch.device) -> Iterator[list[Finding]]:
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
                yield _lost(job)


def _lost(job: Job) -> list[Finding]:
    """What is known of a job whose process died: nothing, which is no pass."""
    first = job.problems[0]
    bound = BOUNDS[first.dtype]
    return [
        Finding(first.name, job.impl, _name(first.dtype), what, None, limit, False, "its process died", 0)
        for what, limit in zip(bound._fields, bound, strict=True)
    ]


def _able(op: Op, device: torch.device) -> list[str]:
    """The forms that can run on a device by themselves; `auto` is one of these, `reference` the definition itself."""
    triton = has_triton(torch.empty(0, device=device)) or os.environ.get("TRITON_INTERPRET") == "1"
    return [impl for impl in IMPLS[op] if impl not in ("auto", "reference") and (impl != "triton" or triton)]


def _serves(impl: str, problem: Problem, device: torch.device) -> bool:
    """Whether a form has that problem at all."""
    if impl == "sdpa":
        return not problem.gated
    if impl != "triton":
        return True
    if device.type == "cpu":
        return problem.dtype in INTERPRETED and problem.t <= INTERPRETED_LENGTH
    return problem.dtype != torch.float64


def _judge(error: float, where: str, bound: float) -> tuple[float | None, float, bool, str]:
    return (error if math.isfinite(error) else None), bound, error <= bound, where


def _spread(x: Tensor, rows: Tensor, t: int) -> Tensor:
    """[N, R, H, V] -> [N, T, H, V], zero but at the rows."""
    out = x.new_zeros(x.shape[0], t, *x.shape[2:])
    out[:, rows] = x
    return out


def _known_op(name: str) -> Op:
    for op in get_args(Op):
        if op == name:
            return op  # type: ignore[no-any-return]
    raise ArgumentError(f"--op is one of {', '.join(get_args(Op))}; got {name!r}: choose one of them")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
