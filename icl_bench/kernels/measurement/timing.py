"""The time of a call: on CUDA by events around graph replays, elsewhere by the clock."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

Call = Callable[[], object]

FEWEST_REPEATS, MOST_REPEATS = 5, 50
CACHE_ELEMENTS = 2**26
"""Elements of int32 that are written before each call on CUDA, so that no input stays in the cache: 256 MiB."""


class Times(NamedTuple):
    """Milliseconds of a call over some repeats."""

    median: float
    p20: float
    p80: float
    repeats: int
    method: str
    """graph (events around replays of a captured graph), events (around the call itself) or clock."""


def time_call(call: Call, device: torch.device, seconds: float) -> Times:
    """Time a call for about `seconds` seconds, after a call that warms up.

    A call that cannot be captured is timed by its launches, on a device kept busy so that launches run ahead.
    """
    return _on_cuda(call, seconds) if device.type == "cuda" else _by_clock(call, seconds)


def summarise_times(milliseconds: list[float], method: str) -> Times:
    """Return the median and the 20th and 80th percentile, by the nearest rank."""
    ranked = sorted(milliseconds)
    last = len(ranked) - 1
    return Times(statistics.median(ranked), ranked[round(0.2 * last)], ranked[round(0.8 * last)], len(ranked), method)


def peak_mebibytes(call: Call) -> float:
    """Return the largest device memory that a call holds beyond the memory held before it, in MiB."""
    gc.collect()  # memory that the collector frees during the call would count for the call
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _by_clock(call: Call, seconds: float) -> Times:
    call()
    taken: list[float] = []
    while len(taken) < FEWEST_REPEATS or (sum(taken) < seconds * 1000 and len(taken) < MOST_REPEATS):
        begin = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begin) * 1000)
    return summarise_times(taken, "clock")


def _on_cuda(call: Call, seconds: float) -> Times:
    replay, method = _captured(call)
    scratch = torch.empty(CACHE_ELEMENTS, dtype=torch.int32, device="cuda")
    first = _intervals(replay, scratch, 2)[-1]
    repeats = int(min(MOST_REPEATS, max(FEWEST_REPEATS, seconds * 1000 / max(first, 1e-3))))
    return summarise_times(_intervals(replay, scratch, repeats), method)


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
    """Return the replay of a graph of the call; the call itself where it cannot be captured."""
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
    except RuntimeError:  # a call that synchronises or copies to the host cannot be captured
        torch.cuda.synchronize()
        return call, "events"
    return graph.replay, "graph"
