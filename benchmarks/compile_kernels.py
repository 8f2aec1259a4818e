"""Compile the kernels of power attention for Hopper, on a machine that needs no GPU.

    TRITON_CACHE_DIR=compiled python benchmarks/compile_kernels.py --share 0/2
    python benchmarks/miscompiled_kernels.py compiled

Compiled are: every pair of padded widths in bfloat16 and equal widths in float16 and float32, p = 1 and 2, with and
without gates, with one and two query heads to a key-value head, in chunks, as short and as long sequences, of whole
blocks and of others; p = 3 and 4 at widths of 16 and 32. Faults of compilers differ by version: use the Triton of the
machine that will run them.
"""

import argparse
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from icl_bench.kernels.power.triton import launch as launch
from icl_bench.kernels.power.triton import table
from icl_bench.kernels.power.triton.problem import TokenWeights, make_problem
from icl_bench.kernels.power.triton.walk import walk_states

WIDTHS = (16, 32, 64, 128)
GROUPS = 2
CALLS = ((1, 512, 128), (2, 512, 128), (2, 256, 256), (2, 1024, 1024))
"""Power, tokens and chunk."""
REPEATS = (2, 1)
"""Query heads to a key-value head: the loop over them is another one where it has a single turn."""


class Hopper:
    """The part of a driver that Triton needs to compile."""

    def get_current_target(self) -> GPUTarget:
        """Return compute capability 9.0."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        """Return the default stream."""
        return 0


class Case(NamedTuple):
    """The sizes of a call of all kernels."""

    key: int
    value: int
    p: int
    t: int
    chunk: int
    gated: bool
    dtype: torch.dtype
    repeat: int = 2


def cases() -> Iterator[Case]:
    """Yield all calls to compile."""
    for key, value, gated, missing in itertools.product(WIDTHS, WIDTHS, (False, True), (0, 5)):
        kinds = (torch.bfloat16,) if key != value else (torch.bfloat16, torch.float16, torch.float32)
        for kind in kinds:
            for (p, t, chunk), repeat in itertools.product(CALLS, REPEATS):
                yield Case(key, value, p, t - missing, chunk, gated, kind, repeat)
    for p, width, kind in itertools.product((3, 4), (16, 32), table.ARITHMETIC):
        yield Case(width, 32, p, 300, 128, True, kind)


def compile_case(case: Case) -> None:
    """Launch the kernels of a forward and a backward pass, which only compiles them."""
    query_heads = GROUPS * case.repeat
    q, k = (torch.empty(1, case.t, heads, case.key, dtype=case.dtype) for heads in (query_heads, GROUPS))
    v, y = (torch.empty(1, case.t, heads, case.value, dtype=case.dtype) for heads in (GROUPS, query_heads))
    edge = case.chunk < case.t
    problem = make_problem(q, k, v, case.p, 1.0, case.p != 3, 1e-6, case.chunk, edge)
    den = torch.empty(1, query_heads, case.t)
    gates, decay, states, stats, ready = None, None, None, None, None
    if case.gated:
        gates, decay = launch.cumulative_gates(torch.empty(1, case.t, GROUPS), case.chunk)
    low = torch.empty(1, 0 if case.p == 1 else case.t if case.gated else min(case.t, 64), query_heads, case.value).to(v)
    if edge:
        weights = None if decay is None else TokenWeights(decay, decay)
        states = launch.chunk_states(
            problem, *launch.factor_vectors(problem, k), v, weights, gates, None, reverse=False, want_final=True
        ).before
        stats, of_queries, values = launch.query_statistics(problem, y, low, y, den, gates)
        ready = None if values is y else values
        if problem.walkable:
            walk_states(problem, k, v, weights, gates, states, None, reverse=False)
            walk_states(problem, q, values, of_queries, gates, states, states if case.gated else None, reverse=True)
    launch.power_outputs(problem, q, k, v, gates, states, edge, low.shape[1])
    _, _, stats = launch.query_gradient(problem, q, k, v, y, low, y, den, stats, gates, states, edge)
    launch.key_gradient(problem, q, k, v, y, stats, gates, states, edge, ready=ready)


def main() -> None:
    """Compile a share of the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", default="0/1", help="which share of how many, so that processes share the work")
    place, shares = (int(part) for part in parser.parse_args().share.split("/"))
    triton.runtime.driver.set_active(Hopper())
    run = JITFunction.run

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return run(kernel, *arguments, grid=grid, warmup=True, **options)

    JITFunction.run = compile_only
    for case in itertools.islice(cases(), place, None, shares):
        compile_case(case)
        print(case, flush=True)


if __name__ == "__main__":
    main()
