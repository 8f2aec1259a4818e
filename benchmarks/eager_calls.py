"""Host time of an eager call of power attention in Triton with its launches left out; needs no GPU.

    python benchmarks/eager_calls.py [--p 1] [--tokens 4096]

The smallest of 60 means of 10 calls, in microseconds, and the number of launches.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from icl_bench.kernels.power import api

HEADS, WIDTH, CHUNK = 12, 64, 256


def smallest_mean(call: Callable[[], Any], rounds: int = 60, calls: int = 10) -> float:
    """Return the smallest mean time of a call in seconds."""
    for _ in range(2 * calls):
        call()
    means = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        means.append((time.perf_counter() - began) / calls)
    return min(means)


def main() -> None:
    """Time the forward pass, and both passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--p", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    launches = []

    def leave_out(kernel: Any, *arguments: Any, **options: Any) -> None:
        launches.append(kernel)

    JITFunction.run = leave_out
    vars(api)["check_triton"] = lambda x: None
    q, k, v = (torch.rand(1, options.tokens, HEADS, WIDTH).bfloat16().requires_grad_() for _ in range(3))
    dy = torch.rand_like(v)

    def forward() -> torch.Tensor:
        return api.power_attention(q, k, v, p=options.p, impl="triton", chunk=CHUNK)

    calls = {"forward": forward, "forward and backward": lambda: torch.autograd.grad(forward(), (q, k, v), dy)}
    for name, call in calls.items():
        seconds = smallest_mean(call)
        launches.clear()
        call()
        print(f"{name}: {1e6 * seconds:.0f} microseconds, {len(launches)} launches")


if __name__ == "__main__":
    main()
