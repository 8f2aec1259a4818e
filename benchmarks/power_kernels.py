"""Time the Triton kernels of power attention on one GPU, with their launch configurations varied one at a time.

    python benchmarks/power_kernels.py tune OUT.json [--kernels forward,...]   time the candidates of each kernel
    python benchmarks/power_kernels.py compare OUT.json                        time whole operators beside their peers
    python benchmarks/power_kernels.py stages OUT.json                         time each kernel by itself
    python benchmarks/power_kernels.py turns OUT.json --shapes 65536           time chunks, without and with gates
    python benchmarks/power_kernels.py turns OUT.json --beside CHECKOUT        the same of two revisions

Times are medians in milliseconds of CUDA-event intervals around calls on random data, after warm-up; `turns` has them
of replayed graphs, each form after the other in every round, so that all meet the same clock.
"""

import argparse
import ast
import atexit
import contextlib
import importlib
import importlib.util
import itertools
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from spectrum import replay_ms
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from icl_bench.kernels.power.records import PowerInputs, PowerOptions
from icl_bench.kernels.power.triton import launch as launch
from icl_bench.kernels.power.triton import ops as own
from icl_bench.kernels.power.triton.ops import power_attention_triton
from icl_bench.kernels.power.triton.problem import TokenWeights, make_problem
from icl_bench.kernels.power.triton.table import LAUNCH_TABLES, Blocks

HEADS = 12
TOKENS = 65_536


def median_ms(call: Callable[[], object], repeats: int = 10) -> float:
    """Return the median time of a call, after two that warm up; a write of 256 MB before each empties the cache.

    Nothing waits for the device between the calls, so that launching runs ahead of it.
    """
    scratch = torch.empty(2**26, dtype=torch.int32, device="cuda")
    call()
    call()
    events = []
    for _ in range(repeats):
        scratch.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def inputs(n: int, t: int, heads: int, width: int, gated: bool) -> list[torch.Tensor | None]:
    """Draw q, k, v in bfloat16, float32 log gates or None, and the gradient of y."""
    torch.manual_seed(0)
    q, k, v, dy = (torch.randn(n, t, heads, width, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    return [q, k, v, -torch.rand(n, t, heads, device="cuda") * 0.02 if gated else None, dy]


def stages(n: int, t: int, heads: int, width: int, p: int, chunk: int, gated: bool) -> dict[str, Callable[[], object]]:
    """Return each kernel of a forward and a backward pass as a call of its own, on data that the others have made."""
    q, k, v, log_g, dy = inputs(n, t, heads, width, gated)
    if p == 1:
        q, k = q.abs(), k.abs()
    problem = make_problem(q, k, v, p, width**-0.5, True, 1e-6, min(chunk, t), False)
    gates, decay = (None, None) if log_g is None else launch.cumulative_gates(log_g, problem.chunk)
    states = after = None
    decays = None if decay is None else TokenWeights(decay, decay)

    def states_of_keys() -> torch.Tensor:
        return launch.chunk_states(problem, k, k, v, decays, gates, None, reverse=False, want_final=False).before

    if problem.chunks > 1:
        states = states_of_keys()
    low = 0 if p == 1 else (t if gated else min(t, 64))
    y, y_low, den = launch.power_outputs(problem, q, k, v, gates, states, False, low)
    stats, weights, values = launch.query_statistics(problem, y, y_low, dy, den, gates)

    def states_of_queries() -> torch.Tensor:
        return launch.chunk_states(
            problem, q, q, values, weights, gates, None,
            reverse=True, want_final=False, prefix=states if gated else None,
        ).before  # fmt: skip

    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: launch.power_outputs(problem, q, k, v, gates, states, False, low),
        "query_statistics": lambda: launch.query_statistics(problem, y, y_low, dy, den, gates),
        "query_gradient": lambda: launch.query_gradient(
            problem, q, k, v, y, y_low, dy, den, stats if states is not None else None, gates, states, False
        ),
    }
    if states is not None:
        after = states_of_queries()
        calls |= {"states": states_of_keys, "states_of_queries": states_of_queries}
    ready = None if states is None or values is dy else values
    calls["key_gradient"] = lambda: launch.key_gradient(problem, q, k, v, dy, stats, gates, after, False, ready=ready)
    return calls


SHAPES = {
    "p2": (1, TOKENS, HEADS, 64, 2, 1024, False),
    "p2_gated": (1, TOKENS, HEADS, 64, 2, 1024, True),
    "p2_512": (1, TOKENS, HEADS, 64, 2, 512, False),
    "p2_2048": (1, TOKENS, HEADS, 64, 2, 2048, False),
    "p1": (1, TOKENS, HEADS, 64, 1, 128, False),
    "p1_256": (1, TOKENS, HEADS, 64, 1, 256, False),
    "p1_512": (1, TOKENS, HEADS, 64, 1, 512, False),
    "short": (2048, 256, 2, 64, 2, 256, False),
    "short_gated": (2048, 256, 2, 64, 2, 256, True),
    "long": (16, 4096, HEADS, 64, 2, 4096, False),
}


def candidates(kernel: str, shape: str) -> list[Blocks]:
    """Return the candidates for a kernel: block sizes, warps and pipeline depths, with blocks that fit into a chunk."""
    chunk = SHAPES[shape][5]
    return [b for b in _all_candidates(kernel, shape) if max(b.m, b.n) <= chunk or kernel.startswith("states")]


def _all_candidates(kernel: str, shape: str) -> list[Blocks]:
    if kernel.startswith("states"):
        return [Blocks(0, n, 4, s) for n, s in ((64, 3), (64, 4), (128, 3), (32, 4))]
    if kernel == "key_gradient":
        sizes = [(64, 128, 8), (32, 128, 8), (64, 64, 4), (32, 64, 4)]
    elif kernel == "query_gradient":
        sizes = [(64, 64, 4), (64, 32, 4), (128, 64, 8), (128, 32, 4)]
    else:
        sizes = [(128, 64, 4), (128, 32, 4), (64, 64, 4)]
    if shape not in ("p2", "p2_gated"):
        return [Blocks(*size, s) for size in sizes for s in (2, 3)]
    return [Blocks(*size, 3, d, e) for size in sizes for d, e in ((2, 256), (3, 256), (3, 128), (4, 128))]


def compile_share(shape: str, kernel: str, share: int, shares: int) -> None:
    """Launch every `shares`-th candidate once, so that the compilation of all is spread over processes."""
    table, key = LAUNCH_TABLES["bf16"], (_table_name(kernel, shape), _form(shape), 64)
    call = stages(*SHAPES[shape])[kernel]
    for blocks in candidates(kernel, shape)[share::shares]:
        table[key] = blocks
        with contextlib.suppress(Exception):  # what cannot launch is reported by `tune`
            call()


def _form(shape: str) -> str:
    return "tiles" if shape.startswith("p2") else "long" if shape == "long" else "rows"


def _table_name(kernel: str, shape: str) -> str:
    if kernel == "forward" and shape == "p2_gated":
        return "gated_forward"
    return "chunk_sums" if kernel.startswith("states") else kernel


def tune(shape: str, kernel: str) -> dict[str, float | str]:
    """Return times of one kernel by configuration; the text of the error where one does not launch."""
    table, key = LAUNCH_TABLES["bf16"], (_table_name(kernel, shape), _form(shape), 64)
    call = stages(*SHAPES[shape])[kernel]
    times: dict[str, float | str] = {"table": median_ms(call)}
    kept = table[key]
    for blocks in candidates(kernel, shape):
        table[key] = blocks
        try:
            times[str(tuple(blocks))] = median_ms(call, 5)
        except Exception as error:  # a candidate that cannot launch is a result
            times[str(tuple(blocks))] = f"{type(error).__name__}: {error}"[:120]
    table[key] = kept
    return times


def operators(n: int, t: int, heads: int, width: int) -> dict[str, Callable[..., torch.Tensor]]:
    """Return operators on q, k, v [N, T, H, K] and log gates: this library's, PyTorch's, and the peers installed."""

    def ours(p: int, gated: bool, chunk: int | None = None) -> Callable[..., torch.Tensor]:
        def call(q, k, v, log_g):
            inputs = PowerInputs(q, k, v, log_g if gated else None, None)
            return power_attention_triton(inputs, PowerOptions(p, width**-0.5, "sum", 1e-6, chunk), keep_state=False)[0]

        return call

    def sdpa(backend: SDPBackend) -> Callable[..., torch.Tensor]:
        def call(q, k, v, log_g):
            with sdpa_kernel(backend):
                heads_first = (x.transpose(1, 2) for x in (q, k, v))
                return functional.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)

        return call

    found = {"power p=2": ours(2, False), "power p=2 gated": ours(2, True), "linear": ours(1, False)}
    found |= {"linear gated": ours(1, True)}
    if t in (4096, 8192):
        found |= {"power p=2 quadratic": ours(2, False, t), "power p=2 chunk 1024": ours(2, False, 1024)}
        found |= {"power p=2 chunk 512": ours(2, False, 512)}
    if t <= 16_384:
        found["sdpa flash"] = sdpa(SDPBackend.FLASH_ATTENTION)
    found["sdpa cudnn"] = sdpa(SDPBackend.CUDNN_ATTENTION)
    if importlib.util.find_spec("retention") and t > 1024:
        retention = importlib.import_module("retention").power_retention
        found["retention p=2"] = lambda q, k, v, g: retention(q, k, v, None, deg=2, chunk_size=1024)
        found["retention p=2 gated"] = lambda q, k, v, g: retention(q, k, v, g, deg=2, chunk_size=1024)
    if importlib.util.find_spec("fla") and t > 1024:
        linear = importlib.import_module("fla.ops.linear_attn").chunk_linear_attn
        found["fla chunk_linear_attn"] = lambda q, k, v, g: linear(q, k, v)[0]
    return found


SIZES = {
    "65536": (1, 65_536, 12, 64),
    "131072": (1, 131_072, 12, 64),
    "16384": (4, 16_384, 12, 64),
    "8192": (8, 8_192, 12, 64),
    "4096": (16, 4_096, 12, 64),
    "short": (2048, 256, 2, 64),
    "wide": (4, 16_384, 12, 128),
}


def _use_best(tuned: dict[str, dict[str, float]], operator: str) -> None:
    """Put the fastest configurations of a tuning run into the table, by the shape nearest to an operator."""
    nearest = {"short": "short", "power p=2 gated": "p2_gated"}
    shape = nearest.get(operator, "p1_256" if operator.startswith("linear") else "p2")
    for name, times in tuned.items():
        kernel = name.split()[1]
        if name == f"{shape} {kernel}" and kernel != "states_of_queries":
            found = {key: ms for key, ms in times.items() if key != "table" and isinstance(ms, float)}
            LAUNCH_TABLES["bf16"][_table_name(kernel, shape), _form(shape), 64] = Blocks(
                *ast.literal_eval(min(found, key=found.__getitem__))
            )


def compare(out: Path, sizes: list[str], tuned: Path | None, chosen: str) -> None:
    """Write forward time, forward and backward time, and peak memory of operators, timed one after another."""
    best = json.loads(tuned.read_text()) if tuned else {}
    found: dict[str, object] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in sizes:
        shape = SIZES[name]
        q, k, v, log_g, dy = inputs(*shape, True)
        q, k = q.abs(), k.abs()
        for x in (q, k, v, log_g):
            x.requires_grad_()
        for operator, call in operators(*shape).items():
            if not any(operator.startswith(part) for part in chosen.split(",")):
                continue
            _use_best(best, "short" if name == "short" else operator)
            found[f"{name} {operator}"] = row = time_operator(call, q, k, v, log_g, dy)
            print(name, operator, row, flush=True)
            out.write_text(json.dumps(found, indent=1))


def other_revision(checkout: Path) -> Any:
    """Import the operators of another checkout beside this one's, from a copy of it under another name."""
    home = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, home)  # sources of kernels are read when they are compiled
    for source in (checkout / "icl_bench").rglob("*.py"):
        copy = home / "other_bench" / source.relative_to(checkout / "icl_bench")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source.read_text().replace("icl_bench", "other_bench"))
    sys.path.append(str(home))
    return importlib.import_module("other_bench.kernels.power.triton.ops")


def turns(
    n: int, t: int, heads: int, width: int, chunks: list[int | None], revisions: dict[str, Any]
) -> dict[str, float]:
    """Return the times of the forward pass and of both passes in chunks of several lengths, None for the usual one.

    `revisions` are modules of operators, by what their names begin with.
    """

    def forward(ops: Any, given: list[torch.Tensor | None], chunk: int | None) -> torch.Tensor:
        options = ops.PowerOptions(2, width**-0.5, "sum", 1e-6, chunk)
        return ops.power_attention_triton(ops.PowerInputs(*given, None), options, keep_state=False)[0]

    def both(ops: Any, given: list[torch.Tensor | None], chunk: int | None, dy: torch.Tensor) -> tuple[Any, ...]:
        leaves = [x for x in given if x is not None]
        return torch.autograd.grad(forward(ops, given, chunk), leaves, dy)

    works: dict[str, Callable[[], object]] = {}
    for gated in (False, True):
        *given, dy = inputs(n, t, heads, width, gated)
        given = [None if x is None else x.requires_grad_() for x in given]
        for chunk, (revision, ops) in itertools.product(chunks, revisions.items()):
            name = f"{revision}{'gated' if gated else 'plain'} {chunk or 'usual chunk'}"
            works[f"{name} forward"] = partial(torch.no_grad()(forward), ops, given, chunk)
            works[f"{name} both"] = partial(both, ops, given, chunk, dy)
    return replay_ms(works)


def captured_ms(both: Callable[[], None]) -> float | str:
    """Time forward and backward as one replayed CUDA graph, without the time that launching takes."""
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            both()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            both()
        return round(median_ms(graph.replay), 4)
    except RuntimeError as error:  # what cannot be captured is a result
        return str(error)[:100]


def time_operator(call: Callable[..., torch.Tensor], q, k, v, log_g, dy) -> dict[str, float] | str:
    """Return milliseconds, and peak megabytes beside the inputs; or the text of the error."""

    def both() -> None:
        for x in (q, k, v, log_g):
            x.grad = None
        call(q, k, v, log_g).backward(dy)

    try:
        with torch.no_grad():
            forward = median_ms(lambda: call(q, k, v, log_g))
        total = median_ms(both)
        graph = captured_ms(both)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    except Exception as error:  # a peer that refuses is a result
        return f"{type(error).__name__}: {error}"[:200]
    return {"forward": round(forward, 4), "forward_backward": round(total, 4), "graph": graph, "peak_mb": round(peak)}


def main() -> None:
    """Run the chosen part in this process, or all tuning parts with their compilation in parallel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["tune", "compare", "stages", "turns", "compile"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", help="names of SIZES for compare and turns, of SHAPES for the other parts")
    parser.add_argument("--kernels", default="forward,query_gradient,key_gradient,states,states_of_queries")
    parser.add_argument(
        "--operators", default="power,linear,sdpa", help="what the names of those to compare begin with"
    )
    parser.add_argument("--chunks", default="256,512,1024", help="chunks to time by turns beside the usual one")
    parser.add_argument(
        "--beside", type=Path, help="a checkout of another revision, to be timed by turns with this one"
    )
    parser.add_argument("--tuned", type=Path, help="use the fastest configurations of this tuning run")
    parser.add_argument("--share", type=int, default=0)
    parser.add_argument("--shares", type=int, default=1)
    options = parser.parse_args()
    known, usual = (SIZES, "65536") if options.part in ("compare", "turns") else (SHAPES, "p2,p2_gated,p1,short")
    shapes = (options.shapes or usual).split(",")
    if unknown := [shape for shape in shapes if shape not in known]:
        parser.error(f"{options.part} has no shape {', '.join(unknown)}; it has {', '.join(known)}")
    if options.part == "compare":
        compare(options.out, shapes, options.tuned, options.operators)
        return
    found: dict[str, object] = {}
    revisions = {"": own} | ({"beside ": other_revision(options.beside)} if options.beside else {})
    for shape in shapes:
        if options.part == "turns":
            chunks = [None, *map(int, options.chunks.split(","))]
            found[shape] = turns(*SIZES[shape], chunks, revisions)
            print(shape, found[shape], flush=True)
        elif options.part == "stages":
            found[shape] = {name: median_ms(call) for name, call in stages(*SHAPES[shape]).items()}
            print(shape, {name: round(ms, 3) for name, ms in found[shape].items()}, flush=True)
        else:
            for kernel in options.kernels.split(","):
                if not shape.startswith("p2") and kernel.startswith("states"):
                    continue
                if options.part == "compile":
                    compile_share(shape, kernel, options.share, options.shares)
                    continue
                found[f"{shape} {kernel}"] = times = tune(shape, kernel)
                best = sorted((ms, name) for name, ms in times.items() if isinstance(ms, float))[:4]
                print(
                    shape,
                    kernel,
                    "table",
                    round(times["table"], 3),
                    [(round(ms, 3), name) for ms, name in best],
                    flush=True,
                )
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
