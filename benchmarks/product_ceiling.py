"""Measure the ceiling for reading a state on this GPU: TFLOP/s of products whose left operand is in registers.

    python benchmarks/product_ceiling.py OUT.json

The products are as large as those by which power attention reads a state of p = 2 at d = 64, and nothing is beside
them.
"""

import argparse
import json
from pathlib import Path

import torch
import triton
import triton.language as tl

from icl_bench.kernels.measurement.timing import time_call

BLOCK, DEPTH, WIDTH = 128, 256, 64
STEPS, PROGRAMS = 40, 2112


@triton.jit
def product_kernel(left, right, out, steps, N: tl.constexpr, LOAD: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr):
    """Products [BLOCK, D] [D, N], the left operand made from 16 channels as an expanded query is."""
    row, depth, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, D)[:, None], tl.arange(0, N)[None, :]
    factor = tl.load(left + row * 16 + tl.arange(0, 16)[None, :])
    phi = tl.reshape(factor[:, :, None] * factor[:, None, :], [BLOCK, D])
    acc = tl.zeros([BLOCK, N], tl.float32)
    tile = tl.load(right + depth * N + column)
    for i in tl.range(0, tl.maximum(steps, 1), num_stages=3):
        if LOAD:
            tile = tl.load(right + (i % 10) * D * N + depth * N + column)
        acc = tl.dot(phi, tile, acc)
    tl.store(out + row * N + column, acc)


def main() -> None:
    """Time products with the right operand loaded in each turn, and with it constant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    left, right = (torch.randn(n, device="cuda", dtype=torch.bfloat16) for n in (BLOCK * 16, 10 * DEPTH * WIDTH))
    sink = torch.empty(BLOCK, WIDTH, device="cuda")
    found: dict[str, str | float] = {"device": torch.cuda.get_device_name()}
    for load in (True, False):

        def call(load: bool = load) -> None:
            product_kernel[(PROGRAMS,)](left, right, sink, STEPS, WIDTH, load, BLOCK, DEPTH, num_warps=4)

        work = 2 * BLOCK * DEPTH * WIDTH * STEPS * PROGRAMS
        milliseconds = time_call(call, torch.device("cuda"), 0.2).median
        found["loaded" if load else "constant"] = round(work / milliseconds / 1e9)
    out.write_text(json.dumps(found, indent=1))
    print(found)


if __name__ == "__main__":
    main()
