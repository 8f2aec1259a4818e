"""Time power attention with lower degrees beside the plain power on one GPU; training steps and probes of a fleet.

    PYTHONPATH=. python benchmarks/spectrum.py OUT.json operators     forward and backward, with errors
    PYTHONPATH=. python benchmarks/spectrum.py OUT.json blocks        the same under other launches of one kernel
    PYTHONPATH=. python benchmarks/spectrum.py OUT.json steps         whole training steps of a fleet, and probes

Times are medians in milliseconds of replays of one captured graph, those of a row by turns. `ratio` is that of the
spectrum to the plain power without a normaliser; `sum` is the plain power with the sum of scores, its default for even
p, and `sum forward` its forward pass alone. `errors` are distances of y and of the gradients of q, k, v, log gates and
weights from all scores in float64, relative to the norm, on few sequences and tokens. Rows are written as they come;
`--only TEXT` takes those whose names have it; `--prepare N` compiles all kernels in N processes and times nothing.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.probes import MARKS, Probe
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.kernels.power.api import power_attention
from icl_bench.kernels.power.records import Normalize, PowerInputs
from icl_bench.kernels.power.spectrum import spectrum_attention
from icl_bench.kernels.power.triton.problem import kernel_constants
from icl_bench.kernels.power.triton.table import LAUNCH_TABLES, Blocks, launch_blocks

BF16 = torch.bfloat16


class Shape(NamedTuple):
    """Sizes of a call, with weights of lower degrees for each member and head."""

    n: int
    t: int
    heads: int
    width: int
    members: int


SHAPES = {"fleet": Shape(1024, 128, 4, 16, 32), "long": Shape(1, 65_536, 12, 64, 1)}
CASES = tuple(itertools.product(SHAPES, (2, 3, 4), (False, True)))
STEPS = 2000
"""Training steps of a run over which the share of probes is stated."""


class Call(NamedTuple):
    """The tensors of a call and the gradient of its output."""

    leaves: list[Any]
    """q, k, v, log gates and the weights of lower degrees."""
    dy: Tensor

    def spectrum(self, p: int, impl: Any = "auto") -> tuple[Tensor, ...]:
        """Return y and all gradients with lower degrees."""
        y, _ = spectrum_attention(PowerInputs(*self.leaves[:4], None), self.leaves[4], p=p, keep_state=False, impl=impl)
        return y, *torch.autograd.grad(y, [x for x in self.leaves if x is not None], self.dy)

    def forward(self, p: int, normalize: Normalize) -> Tensor:
        """Return y of the plain power."""
        q, k, v, log_g, _ = self.leaves
        return power_attention(q, k, v, log_g, p=p, normalize=normalize)

    def plain(self, p: int, normalize: Normalize = "none") -> tuple[Tensor, ...]:
        """Return y and all gradients of the plain power."""
        q, k, v, log_g, _ = self.leaves
        y = self.forward(p, normalize)
        return y, *torch.autograd.grad(y, [x for x in (q, k, v, log_g) if x is not None], self.dy)


def make_call(shape: Shape, p: int, gated: bool) -> Call:
    """Draw a call in bfloat16."""
    torch.manual_seed(0)
    sizes = shape.n, shape.t, shape.heads, shape.width
    q, k, v, dy = (torch.randn(sizes, device="cuda").to(BF16) for _ in range(4))
    log_g = -0.01 * torch.rand(sizes[:3], device="cuda") if gated else None
    weights = 0.1 * torch.randn(shape.members, 1, shape.heads, p // 2, device="cuda")
    leaves = [0.6 * q, 0.6 * k, v, log_g, weights]
    return Call([None if x is None else x.requires_grad_() for x in leaves], dy)


def replay_ms(works: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Return the time of one replay of each captured work, the median of rounds of at least 2 ms.

    Each round times all works, one after the other, so that a clock that falls as the GPU heats up slows all alike.
    """
    graphs = {name: _captured(work) for name, work in works.items()}
    counts = {name: max(2, round(2 / _replayed(graph, 1))) for name, graph in graphs.items()}
    turns = [{name: _replayed(graph, counts[name]) for name, graph in graphs.items()} for _ in range(rounds)]
    return {name: round(statistics.median(turn[name] for turn in turns), 4) for name in graphs}


def _captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def _replayed(graph: torch.cuda.CUDAGraph, count: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / count


def errors(shape: Shape, p: int, gated: bool) -> list[float]:
    """Return the errors of the first sequences and heads, over tokens that all scores in float64 have memory for."""
    whole = make_call(shape, p, gated)
    t = shape.t if shape.t < 4096 else 6144 if p == 2 else 2048
    cut = [None if x is None else x.detach()[:2, :t, :2].contiguous() for x in whole.leaves[:4]]
    cut.append(whole.leaves[4].detach()[:1, :, :2].contiguous())
    dy = whole.dy[:2, :t, :2].contiguous()
    own = Call([None if x is None else x.clone().requires_grad_() for x in cut], dy)
    exact = Call([None if x is None else x.double().requires_grad_() for x in cut], dy.double())
    pairs = zip(own.spectrum(p), exact.spectrum(p, "quadratic"), strict=True)
    return [float(f"{float((found.double() - wanted).norm() / wanted.norm()):.3g}") for found, wanted in pairs]


def operator_row(name: str, p: int, gated: bool) -> dict[str, Any]:
    """Time one case."""
    call = make_call(SHAPES[name], p, gated)
    works: dict[str, Callable[[], object]] = {"plain": lambda: call.plain(p), "spectrum": lambda: call.spectrum(p)}
    if p % 2 == 0:
        works["sum"] = lambda: call.plain(p, "sum")
        works["sum forward"] = lambda: torch.no_grad()(call.forward)(p, "sum")
    row: dict[str, Any] = replay_ms(works)
    return row | {"ratio": round(row["spectrum"] / row["plain"], 3), "errors": errors(SHAPES[name], p, gated)}


class Candidate(NamedTuple):
    """Another launch of one kernel, and the case to try it on."""

    kernel: str
    form: str
    blocks: Blocks
    case: tuple[str, int, bool]


def candidates() -> Iterator[Candidate]:
    """Yield other launches for each shape."""
    sizes = {"forward": (64, 32), "query_gradient": (64, 32), "key_gradient": (32, 64)}
    for (kernel, size), (p, gated) in itertools.product(sizes.items(), ((2, False), (3, False), (4, True))):
        variant = ("gated_" if gated else "") + ("lowers" if p > 3 else "lower")
        for (m, n), most in itertools.product((size, (64, 64)), (None, 168, 128, 96)):
            yield Candidate(
                f"{variant}_short_{kernel}", "rows", Blocks(m, n, 4, 1, registers=most), ("fleet", p, gated)
            )
    for kernel, p in itertools.product(("forward", "query_gradient", "key_gradient"), (2, 3, 4)):
        for m, n, warps in ((64, 64, 4), (128, 32, 4), (128, 64, 8)):
            name, form = (kernel, "tiles") if p == 2 else (f"lower_{kernel}", "long")
            yield Candidate(name, form, Blocks(m, n, warps, 3, 3, 128), ("long", p, False))


@contextlib.contextmanager
def launched(candidate: Candidate) -> Iterator[None]:
    """Use the launch inside."""
    rows, width = LAUNCH_TABLES["bf16"], SHAPES[candidate.case[0]].width
    key = (candidate.kernel, candidate.form, width)
    former = rows.get(key)
    rows[key] = candidate.blocks
    launch_blocks.cache_clear()
    kernel_constants.cache_clear()
    try:
        yield
    finally:
        rows.pop(key)
        if former is not None:
            rows[key] = former
        launch_blocks.cache_clear()
        kernel_constants.cache_clear()


def block_row(candidate: Candidate) -> dict[str, Any]:
    """Time one candidate, with its errors: a kernel that is compiled wrong shows there."""
    name, p, gated = candidate.case
    with launched(candidate):
        call = make_call(SHAPES[name], p, gated)
        return replay_ms({"spectrum": lambda: call.spectrum(p)}) | {"errors": errors(SHAPES[name], p, gated)}


def make_trainer(arch: str) -> Trainer:
    """Make a fleet of 32 members with four heads of 16 channels, on sequences of 128 tokens."""
    settings = ["train.steps=100000", "evaluation.examples=100", "model.d_model=64", "train.batch=32"]
    request = Request(
        "assoc-recall:variant=zoology,length=128,pairs=4", [f"{arch},heads=4,d_key=16,d_value=16"], "zoology",
        seeds=range(32), precision="bfloat16", settings=settings,
    )  # fmt: skip
    return Trainer(expand_request(request), Machine(torch.device("cuda")))


def host_ms(work: Callable[[], object], count: int, rounds: int = 5) -> float:
    """Return the time of a call from the host, until the device is done: the median of rounds of `count` calls."""
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            work()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / count * 1e3)
    return round(statistics.median(found), 3)


def step_row(p: int) -> dict[str, Any]:
    """Time training steps of both architectures, and the probes of the second."""
    row = {}
    for name, text in (("plain", "normalizer=rms"), ("spectrum", "spectrum=learned")):
        trainer = make_trainer(f"power:p={p},{text}")
        for _ in range(3):
            trainer.step()
        row[name] = host_ms(trainer.step, 20)
    probe = Probe(trainer)
    start = time.perf_counter()
    for _ in range(3):  # the first two run eagerly, the third captures the graph
        probe.record()
    torch.cuda.synchronize()
    first = (time.perf_counter() - start) * 1e3

    def record() -> None:
        probe.record()
        probe.steps.clear()

    row["probe"] = host_ms(record, 5)
    total = first + (MARKS - 3) * row["probe"]
    return row | {
        "ratio": round(row["spectrum"] / row["plain"], 3),
        "first three probes": round(first, 2),
        f"share of probes in {STEPS} steps": round(total / (STEPS * row["spectrum"]), 4),
    }


Job = tuple[str, Callable[[], dict[str, Any]]]


def jobs(kind: str, part: str = "") -> list[Job]:
    """Return the rows of a kind by name, those whose names have `part`."""
    if kind == "operators":
        rows = [(f"{name} p={p} gated={gated}", partial(operator_row, name, p, gated)) for name, p, gated in CASES]
    elif kind == "blocks":
        rows = [(f"{one.kernel} {tuple(one.blocks)} {one.case}", partial(block_row, one)) for one in candidates()]
    else:
        rows = [(f"p={p}", partial(step_row, p)) for p in (2, 3, 4)]
    return [row for row in rows if part in row[0]]


def prepare(kind: str, name: str) -> None:
    """Run the calls of a row once, to compile them."""
    dict(jobs(kind))[name]()


def main() -> None:
    """Time the rows of one kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", choices=("operators", "blocks", "steps"))
    parser.add_argument("--only", default="", help="time the rows whose names have this text")
    parser.add_argument("--prepare", type=int, help="compile in so many processes, and time nothing")
    options = parser.parse_args()
    work = jobs(options.kind, options.only)
    if options.prepare:
        with get_context("spawn").Pool(options.prepare) as pool:
            pool.starmap(prepare, [(options.kind, name) for name, _ in work], chunksize=1)
        return
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    rows: dict[str, Any] = {
        "about": about | {"dtype": "bfloat16", "shapes": {n: s._asdict() for n, s in SHAPES.items()}}
    }
    for name, run in work:
        rows[name] = run()
        print(name, rows[name], flush=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
