"""Time tiles of the Triton attention kernels on the GPU at hand, or time the kernels against those of PyTorch.

    python benchmarks/attention_kernels.py tune OUT.json
    python benchmarks/attention_kernels.py compare OUT.json

`tune` times candidate tiles one kernel at a time; `compare` checks and times whole passes at more shapes than
`icl-bench kernels bench --op attention`, beside scaled_dot_product_attention by backend and FlexAttention. Both time
replays of CUDA graphs on inputs that are not in the cache, print a table and write JSON.
"""

import argparse
import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from icl_bench.kernels.attention.triton import launch
from icl_bench.kernels.attention.triton.table import Pass, Tile, tile_of
from icl_bench.kernels.measurement.bench import measure_in_processes
from icl_bench.kernels.measurement.measure import TimedRow
from icl_bench.kernels.measurement.problem import Case, table_case
from icl_bench.kernels.measurement.scores import BACKENDS, MeasuredAttention
from icl_bench.kernels.measurement.timing import time_call

DEVICE = torch.device("cuda")
PROCESSES = 15
SECONDS = 0.05
"""Time of a candidate."""


class Shape(NamedTuple):
    """The sequences, length, heads, width, window and type of a measurement."""

    n: int
    t: int
    h: int
    d: int
    window: int | None = None
    gated: bool = False
    dtype: str = "bfloat16"

    def inputs(self) -> list[Tensor]:
        """Draw q, k, v and the output's gradient [N, T, H, D]."""
        torch.manual_seed(0)
        return [
            torch.randn(self.n, self.t, self.h, self.d, device="cuda", dtype=getattr(torch, self.dtype))
            for _ in range(4)
        ]

    def gates(self) -> Tensor | None:
        """Draw log_g [N, T, H], different at every position."""
        if not self.gated:
            return None
        return torch.nn.functional.logsigmoid(torch.randn(self.n, self.t, self.h, device="cuda") + 4)


LONG = Shape(4, 16384, 12, 64)
WINDOW = Shape(1, 65536, 12, 64, window=1056)
SHORT = [Shape(2048, 256, 2, 64), Shape(4096, 128, 4, 32), Shape(8192, 64, 4, 16), Shape(1024, 512, 4, 32)]
TUNED = [LONG, WINDOW, *SHORT, Shape(16, 4096, 12, 32), Shape(4, 4096, 6, 128)]
SINGLE = [Shape(512, 256, 2, 32, dtype="float32"), Shape(8, 2048, 2, 64, dtype="float32")]
COMPARED = [
    *SHORT,
    Shape(2048, 64, 2, 64),
    Shape(64, 1024, 12, 64),
    LONG,
    LONG._replace(gated=True),
    WINDOW._replace(gated=True),
    WINDOW,
    Shape(1, 65536, 12, 64, window=512),
    Shape(2048, 256, 2, 64, window=64),
    Shape(1, 65536, 12, 64),
]


def candidates(direction: Pass, shape: Shape) -> Iterator[Tile]:
    """Yield the tiles worth timing."""
    if shape.dtype == "float32":
        for queries, keys, stages in itertools.product((32, 64), (32, 64), (1, 2)):
            yield Tile(queries, keys, 4, stages)
        return
    if direction == "forward":
        choices = [(64, 64, 4), (64, 128, 4), (64, 32, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8), (128, 32, 4)]
    elif direction == "query":
        choices = [(64, 64, 4), (64, 32, 4), (64, 128, 4), (128, 32, 4), (128, 64, 8), (128, 32, 8)]
    else:
        choices = [(64, 64, 4), (32, 64, 4), (32, 128, 4), (32, 128, 8), (64, 128, 8), (64, 64, 8)]
    for (queries, keys, warps), stages in itertools.product(choices, (2, 3)):
        yield Tile(queries, keys, warps, stages)
        if warps == 4 and shape == LONG:
            yield Tile(queries, keys, warps, stages, 168)
            yield Tile(queries, keys, warps, stages, 128)


def kernel(direction: str, shape: Shape, tile: Tile) -> Callable[[], object]:
    """Return one kernel as a call without arguments."""
    q, k, v, do = shape.inputs()
    log_g = shape.gates()
    gates = None if log_g is None else launch.cumulate(log_g, q.dtype)
    call = launch.AttentionCall(q, k, v, gates, shape.window, shape.d**-0.5)
    if direction == "forward":
        return lambda: launch.launch_forward(call, tile)
    o, lse = launch.launch_forward(call, tile_of("forward", q.element_size(), shape.d, shape.d, call.reach))
    if direction == "query":
        return lambda: launch.launch_query_gradient(call, o, lse, do, tile, call.empty_parts()[0])
    if direction == "key_value":
        return lambda: launch.launch_key_value_gradient(call, lse, lse, do, tile, *call.empty_parts()[1:])
    return lambda: launch.launch_short_backward(call, o, lse, do, tile)


def jobs() -> Iterator[tuple[str, Shape, tuple[Any, ...]]]:
    """Yield every measurement of `tune`."""
    for shape in [*TUNED, *SINGLE]:
        for direction in ("forward", "query", "key_value"):
            for configuration in candidates(direction, shape):
                yield direction, shape, tuple(configuration)
    for shape in SHORT[1:3]:
        for block, warps in itertools.product((64, 128), (4, 8)):
            if block >= shape.t:
                yield "short", shape, (block, block, warps, 1)


def call_of(job: tuple[str, Shape, tuple[Any, ...]]) -> Callable[[], object]:
    """Return the call that a job times."""
    direction, shape, tile = job
    return kernel(direction, shape, Tile(*tile))


def compile_share(share: list[tuple[str, Shape, tuple[Any, ...]]]) -> None:
    """Compile a share of the jobs into the cache on disk, by running each once at a small size."""
    for direction, shape, configuration in share:
        small = shape._replace(n=1, t=min(shape.t, 128 if shape.window is None else 2048))
        try:
            call_of((direction, small, configuration))()
        except Exception as error:
            print("cannot build", direction, shape, configuration, repr(error)[:120], flush=True)


def in_parallel(work: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
    """Fork a process for each; this process must not have touched the GPU yet."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=each) for each in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def tune(out: Path, seconds: float) -> None:
    """Time every candidate; write rows of {pass, shape, tile, ms}."""
    todo = list({(d, s._replace(n=1, h=s.h), c): (d, s, c) for d, s, c in jobs()}.values())
    began = time.monotonic()
    in_parallel(compile_share, [(todo[i::PROCESSES],) for i in range(PROCESSES)])
    print(f"compiled {len(todo)} in {time.monotonic() - began:.1f} s", flush=True)
    rows: list[dict[str, Any]] = []
    for job in todo:
        direction, shape, configuration = job
        row = {"pass": direction, "shape": shape._asdict(), "tile": configuration}
        try:
            row["ms"] = time_call(call_of(job), DEVICE, SECONDS).median
        except Exception as error:
            row["error"] = repr(error)[:200]
        rows.append(row)
        if time.monotonic() - began > seconds:
            print(f"stopped after {len(rows)} of {len(todo)}")
            break
    out.write_text(json.dumps({"environment": environment(), "rows": rows}))
    for (direction, shape), group in itertools.groupby(rows, key=lambda r: (r["pass"], tuple(r["shape"].values()))):
        best = sorted((r for r in group if "ms" in r), key=lambda r: r["ms"])[:4]
        print(direction, shape, *(f"{r['ms']:.3f}:{','.join(map(str, r['tile']))}" for r in best))


def environment() -> dict[str, str]:
    """Return the device and versions that the numbers depend on."""
    return {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}


def case_of(shape: Shape) -> Case:
    """Return a shape as a case with the backends that serve it: none has gates, and FlexAttention the window."""
    heads = dict.fromkeys(("heads", "groups", "key_heads"), shape.h)
    problem = MeasuredAttention(
        n=shape.n, t=shape.t, key=shape.d, value=shape.d, window=shape.window, gated=shape.gated,
        dtype=getattr(torch, shape.dtype), **heads,
    )  # fmt: skip
    peers = () if shape.gated else BACKENDS if shape.window is None else ("flex",)
    return table_case(problem, "triton", *peers)


def compare(out: Path, seconds: float) -> None:
    """Check and time whole passes; write a row of `TimedRow` for each contender."""

    def show(row: TimedRow) -> None:
        times = (f"{part.median:.3f}" if part else "-" for part in (row.forward, row.both))
        print(f"{row.case}: {row.contender}", *times, row.note, flush=True)

    tasks = [(case, name) for case in map(case_of, COMPARED) for name in case.contenders]
    rows = measure_in_processes(tasks, DEVICE, seconds, print, show)
    out.write_text(json.dumps({"environment": environment(), "rows": [row.document() for row in rows]}, indent=1))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "compare"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=240, help="about how long it may take")
    given = parser.parse_args()
    {"tune": tune, "compare": compare}[given.what](given.out, given.seconds)


if __name__ == "__main__":
    main()
