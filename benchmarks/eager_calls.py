"""Time eager calls of power attention in Triton: on the host with launches left out, on a GPU beside another package.

    python benchmarks/eager_calls.py [--p 1] [--tokens 4096]         needs no GPU
    python benchmarks/eager_calls.py --card [--tokens 65536] [--peer] [--json OUT.json]

The first prints the smallest of 60 means of 10 calls, in microseconds, and the number of launches.

The second takes turns between the calls: the median and the least milliseconds of a forward and backward pass between
two events of the device, after a write of 256 MB; the mean of calls that follow each other, of which the least of all
rounds; and the same of one replayed CUDA graph. With few tokens the device waits for the host, which the times of 2,048
tokens show, with autograd's thread and without. Its figures are of the host: it says how many cores were busy.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from compile_kernels import Hopper
from power_kernels import captured_ms, operators
from triton.runtime.jit import JITFunction

from icl_bench.kernels.power import api

HEADS, WIDTH, CHUNK = 12, 64, 256
FEW_TOKENS = 2048
"""Tokens for which the device waits for the host."""
EVENTS, CALLS = 20, 30
"""Timed calls of a round, by events and one after another."""

Call = Callable[[], Any]


def smallest_mean(call: Call, rounds: int = 60, calls: int = 10) -> float:
    """Return the smallest mean time of a call in seconds."""
    for _ in range(2 * calls):
        call()
    means = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        means.append((time.perf_counter() - began) / calls)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return min(means)


def without_launches(p: int, tokens: int) -> None:
    """Print the host's time of the forward pass, and of both passes."""
    launches = []

    class LeftOut:
        """A compiled kernel whose launches are counted."""

        function, packed_metadata = 0, ()

        def run(self, *arguments: Any) -> None:
            launches.append(self)

    def leave_out(kernel: Any, *arguments: Any, **options: Any) -> LeftOut:
        found = LeftOut()
        found.run()
        return found

    triton.runtime.driver.set_active(Hopper())
    JITFunction.run = leave_out
    vars(api)["check_triton"] = lambda x: None
    q, k, v = (torch.rand(1, tokens, HEADS, WIDTH).bfloat16().requires_grad_() for _ in range(3))
    dy = torch.rand_like(v)

    def forward() -> torch.Tensor:
        return api.power_attention(q, k, v, p=p, impl="triton", chunk=CHUNK)

    calls = {"forward": forward, "forward and backward": lambda: torch.autograd.grad(forward(), (q, k, v), dy)}
    for name, call in calls.items():
        seconds = smallest_mean(call)
        launches.clear()
        call()
        print(f"{name}: {1e6 * seconds:.0f} microseconds, {len(launches)} launches")


def both_passes(tokens: int, names: Sequence[str]) -> dict[str, Call]:
    """Return a forward and backward pass of each operator, which share their inputs."""
    q, k, v, dy = (torch.rand(1, tokens, HEADS, WIDTH, device="cuda").bfloat16() for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def both(call: Callable[..., torch.Tensor]) -> None:
        for x in leaves:
            x.grad = None
        call(*leaves, None).backward(dy)

    found = operators(1, tokens, HEADS, WIDTH)
    return {name: partial(both, found[name]) for name in names}


def event_times(call: Call, scratch: torch.Tensor) -> list[float]:
    """Return milliseconds of calls between events; nothing waits for the device between them."""
    events = []
    for _ in range(EVENTS):
        scratch.zero_()
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        call()
        pair[1].record()
        events.append(pair)
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def follow_ms(call: Call) -> float:
    """Return the mean milliseconds of calls that follow each other."""
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began) / CALLS


def on_card(tokens: int, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    """Time operators by turns, and the host's share of the first of them."""
    calls, scratch = both_passes(tokens, names), torch.empty(2**26, dtype=torch.int32, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    means: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    load = [os.getloadavg()[0]]
    for _ in range(rounds):
        for name, call in calls.items():
            means[name].append(follow_ms(call))
            times[name] += event_times(call, scratch)
    load.append(os.getloadavg()[0])
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "tokens": tokens, "rounds": rounds,
        "cores": len(os.sched_getaffinity(0)), "load": load,
    }  # fmt: skip
    for name, call in calls.items():
        found[name] = {
            "events_median": statistics.median(times[name]), "events_min": min(times[name]),
            "follow_median": statistics.median(means[name]), "follow_min": min(means[name]),
            "graph": captured_ms(call),
        }  # fmt: skip
    for name, few in both_passes(FEW_TOKENS, names).items():
        found[name]["host_us"] = 1e6 * smallest_mean(few)
        with torch.autograd.set_multithreading_enabled(False):
            found[name]["host_us_one_thread"] = 1e6 * smallest_mean(few)
    return found


def main() -> None:
    """Time what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--p", type=int, default=1)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--card", action="store_true", help="time linear attention on a GPU")
    parser.add_argument("--peer", action="store_true", help="beside that of flash-linear-attention")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.card:
        without_launches(options.p, options.tokens or 4096)
        return
    names = ["linear"] + ["fla chunk_linear_attn"] * options.peer
    found = on_card(options.tokens or 65_536, options.rounds, names)
    text = json.dumps({key: {k: v if isinstance(v, str) else round(v, 4) for k, v in value.items()}
                       if isinstance(value, dict) else value for key, value in found.items()}, indent=1)  # fmt: skip
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
