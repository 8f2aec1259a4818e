"""How long a call takes: on CUDA by events around graph replays, elsewhere by the clock."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

Call = Callable[[], object]

FEWEST, MOST = 5, 50
"""Repeats of a timed call."""
CACHE = 2**26
"""Elements of int32 that are written before each call on CUDA, so that no input is left in the cache: 256 MiB."""


class Times(NamedTuple):
    """Milliseconds of a call over some repeats."""

    median: float
    p20: float
    p80: float
    repeats: int
    method: str
    """graph (events around replays of a captured graph), events (around the call itself) or clock."""


def time_call(
    call: Call, device: torch.device, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Time a call for about that many seconds, after it has run to warm up.

    A call that cannot be captured is timed as it is, on a device kept busy so that launches run ahead.
    """
    return _on_cuda(call, seconds) if device.type == "cuda" else _by_clock(call, seconds, clock)


def summarise(milliseconds: list[float], method: str) -> Times:
    """Median and the 20th and 80th percentile, by the nearest rank."""
    ranked = sorted(milliseconds)
    last = len(ranked) - 1
    return Times(statistics.median(ranked), ranked[round(0.2 * last)], ranked[round(0.8 * last)], len(ranked), method)


def peak_mebibytes(call: Call) -> float:
    """The most device memory that a call holds beyond what was there before it, in MiB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _by_clock(call: Call, seconds: float, clock: Callable[[], float]) -> Times:
    call()
    taken: list[float] = []
    while len(taken) < FEWEST or (sum(taken) < seconds * 1000 and len(taken) < MOST):
        begin = clock()
        call()
        taken.append((clock() - begin) * 1000)
    return summarise(taken, "clock")


def _on_cuda(call: Call, seconds: float) -> Times:
    replay, method = _captured(call)
    scratch = torch.empty(CACHE, dtype=torch.int32, device="cuda")
    first = _intervals(replay, scratch, 2)[-1]
    repeats = int(min(MOST, max(FEWEST, seconds * 1000 / max(first, 1e-3))))
    return summarise(_intervals(replay, scratch, repeats), method)


def _intervals(call: Call, scratch: torch.Tensor, repeats: int) -> list[float]:
    events = []
    for _ in range(repeats):
        scratch.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def _captured(call: Call) -> tuple[Call, str]:
    """The replay of a graph of the call; the call itself where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        # The outer context gives the stream back where a failed capture does not.
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
            call()
    except RuntimeError:  # what synchronises or copies to the host cannot be captured
        torch.cuda.synchronize()
        return call, "events"
    return graph.replay, "graph"
