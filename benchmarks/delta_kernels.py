"""Time the Triton kernels of the delta rule on one GPU under other launches than those of their table.

    PYTHONPATH=. python benchmarks/delta_kernels.py OUT.json

A row has a kind of layer, a shape and the launches of the forward and of the backward pass; times are medians in
milliseconds of CUDA-event intervals, forward without and with what the backward pass reads, and backward. `difference`
is the largest distance of a result from that of the first launches of its shape, relative to it: a launch that is
compiled wrong shows there. Processes compile first.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from icl_bench.kernels.delta.records import DeltaInputs, check_delta
from icl_bench.kernels.delta.triton import launch as launch
from icl_bench.kernels.delta.triton.table import DeltaLaunch
from tests.kernels.delta.delta_oracle import VARIANTS, make_problem

PROCESSES = 14
KINDS = ("delta-net", "gated-delta-net", "kda", "gla", "rwkv-7", "unbounded-kda")


class Case(NamedTuple):
    """A kind of layer, the sizes N, T, H, K and V, and launches."""

    kind: str
    sizes: tuple[int, int, int, int, int]
    forward: DeltaLaunch
    backward: DeltaLaunch


def cases() -> list[Case]:
    """Return all cases, those of one shape after one another."""
    found = []
    one, two = DeltaLaunch(32, 1, 1), DeltaLaunch(32, 2, 1)
    piped = [DeltaLaunch(32, 1, stages) for stages in (1, 2, 3)]
    singles = [DeltaLaunch(32, warps, 1, single=True) for warps in (1, 2)]
    wide = [DeltaLaunch(64, 2, 1), DeltaLaunch(64, 2, 1, single=True)]
    for kind in KINDS:
        shape = (8192, 256, 4, 32, 32)
        found += [Case(kind, shape, launch, one) for launch in piped]
        found += [Case(kind, shape, one, launch) for launch in (piped[2], two, *singles)]
    for kind in KINDS[:5]:
        for shape in ((1024, 512, 4, 64, 64), (1, 65_536, 12, 64, 64)):
            found += [Case(kind, shape, launch, two) for launch in (*piped, wide[0])]
            found += [Case(kind, shape, one, launch) for launch in (*singles, *wide)]
    double = [DeltaLaunch(64, 1, 2), DeltaLaunch(64, 1, 1), DeltaLaunch(64, 1, 3), DeltaLaunch(64, 2, 2), *piped]
    found += [Case("gated-delta-net", (8192, 256, 4, 32, 64), launch, launch) for launch in double]
    shape, half = (512, 512, 4, 128, 128), DeltaLaunch(16, 2, 1)
    return found + [Case("gated-delta-net", shape, half, last) for last in (half, half._replace(single=True), two)]


def make_call(kind: str, sizes: tuple[int, int, int, int, int]) -> launch.DeltaCall:
    """Draw the inputs of a call; sequences repeat after the sixteenth."""
    n, t, heads, key, value = sizes
    inputs, options = make_problem(
        VARIANTS[kind], n=min(n, 16), t=t, heads=heads, groups=heads, key=key, value=value, dtype=torch.bfloat16,
        initial=False, device="cuda",
    )  # fmt: skip
    many = DeltaInputs(*(None if x is None else x.repeat(max(1, n // 16), *(1,) * (x.ndim - 1)) for x in inputs))
    options = check_delta(many, options)
    assert options.scale is not None
    least = -math.inf if options.least_log_decay is None else options.least_log_decay
    return launch.DeltaCall(
        *many[:8],
        many.state,
        options.rule,
        options.reads == "undecayed",
        many.bonus is not None,
        options.scale,
        least,
    )


def run(case: Case, call: launch.DeltaCall, dy: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs and all gradients of a call."""
    y, last, kept = launch.launch_delta_forward(call, True, case.forward)
    return [y, last, *launch.launch_delta_gradient(call, dy, None, kept, case.backward, case.forward)]


def compile_case(case: Case) -> None:
    """Run a case at a small size, so that its kernels are in the cache; one sequence still has segments."""
    n, _, *rest = case.sizes
    call = make_call(case.kind, (min(n, 16), 16 if n > 1 else 1024, *rest))
    launch.launch_delta_forward(call, False, case.forward)
    run(case, call, torch.ones_like(call.v))


def median_ms(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the median time of a call, after one that warms up."""
    call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in itertools.pairwise(marks))


def measure(case: Case, call: launch.DeltaCall, dy: torch.Tensor, exact: list[torch.Tensor]) -> dict[str, Any]:
    """Return the row of a case."""
    pairs = [(a.double(), b.double()) for a, b in zip(run(case, call, dy), exact, strict=True) if a.numel()]
    row: dict[str, Any] = {"kind": case.kind, "sizes": case.sizes}
    row |= {"forward": case.forward._asdict(), "backward": case.backward._asdict()}
    row["difference"] = max(((a - b).norm() / b.norm().clamp(min=1e-9)).item() for a, b in pairs)
    row["forward_ms"] = median_ms(lambda: launch.launch_delta_forward(call, False, case.forward))
    row["saving_ms"] = median_ms(lambda: launch.launch_delta_forward(call, True, case.forward))
    kept = launch.launch_delta_forward(call, True, case.forward)[2]
    row["backward_ms"] = median_ms(
        lambda: launch.launch_delta_gradient(call, dy, None, kept, case.backward, case.forward)
    )
    return row


def main() -> None:
    """Time all cases and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_case, cases()))
    rows, shape = [], None
    for case in cases():
        if shape != case[:2]:
            shape, call = case[:2], make_call(*case[:2])
            dy = torch.randn_like(call.v)
            exact = run(case, call, dy)
        rows.append(measure(case, call, dy, exact))
        print(rows[-1], flush=True)
    versions = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    out.write_text(json.dumps({**versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
