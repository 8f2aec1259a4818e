"""Time the forms of an operator near the lengths at which both cost the same, by which `auto` chooses.

    python benchmarks/forms.py power OUT.json          one chunk and several of power attention, in Triton, on a GPU
    python benchmarks/forms.py convolution OUT.json    products and transforms of a long convolution, on a GPU
    python benchmarks/forms.py window OUT.json         a mask and blocks of a window, in torch, on a CPU

Rows are forward milliseconds, and those of a forward and a backward pass.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from icl_bench.kernels.measurement.convolution import MeasuredConvolution
from icl_bench.kernels.measurement.measure import timed_passes
from icl_bench.kernels.measurement.peers import contender_run
from icl_bench.kernels.measurement.problem import Problem
from icl_bench.kernels.measurement.scores import MeasuredAttention, MeasuredPower
from icl_bench.kernels.measurement.timing import time_call

SECONDS = 0.1
HEADS = 12
TOKENS = 65_536
CHUNKS = {
    (16, 2): ((1024, 1536, 2048, 3072), (256,)),
    (32, 2): ((1536, 2048, 2560, 3072, 4096), (512, 256)),
    (64, 2): ((3072, 4096, 5120, 6144, 7168), (1024, 512)),
    (128, 2): ((12_288, 16_384, 20_480, 24_576), (2048,)),
    (16, 1): ((256, 512, 768, 1024), (256, 128)),
    (32, 1): ((512, 768, 1024, 1536), (256, 128)),
    (64, 1): ((512, 768, 1024, 1536, 2048), (256, 128)),
    (128, 1): ((512, 1024, 1536, 2048), (256,)),
}
"""Lengths and chunks, by the width of keys and p."""
CONVOLVED_TOKENS, CONVOLVED = 262_144, (1024, 2048, 4096, 8192, 16_384)
"""Tokens in all, and lengths."""
CPU_TOKENS = 4096
WIDTHS = ((2, 32), (4, 16))
"""Heads and their width."""
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
WINDOWS = (16, 64, 256)


def power(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield rows by width, p, T and chunk (T itself is the quadratic form); about 65,536 tokens in all, in bfloat16."""
    plain = MeasuredPower(t=1, dtype=torch.bfloat16, heads=HEADS, groups=HEADS, key_heads=HEADS, states=False)
    for (width, p), (lengths, chunks) in CHUNKS.items():
        for t, chunk in itertools.product(lengths, (None, *chunks)):
            sizes = {"n": max(1, TOKENS // t), "t": t, "key": width, "value": width}
            problem = dataclasses.replace(plain.varied(sizes), p=p, chunk=chunk or t)
            yield {"width": width, "p": p, "t": t, "chunk": problem.chunk, **times(problem, "triton", device)}


def convolution(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield rows by T and form; 262,144 tokens of 128 channels in all, in bfloat16."""
    for t, form in itertools.product(CONVOLVED, ("triton", "fft")):
        problem = MeasuredConvolution(t=t, dtype=torch.bfloat16, n=CONVOLVED_TOKENS // t, channels=128)
        yield {"t": t, "form": form, **times(problem, form, device)}


def window(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield rows by heads, width, T, window and form; 4,096 tokens in all, in float32."""
    for (heads, width), t in itertools.product(WIDTHS, LENGTHS):
        for reach in [*(w for w in WINDOWS if w < t), t]:
            sizes = {"n": CPU_TOKENS // t, "heads": heads, "groups": heads, "key_heads": heads}
            widths = {"key": width, "value": width, "window": reach}
            problem = MeasuredAttention(t=t, dtype=torch.float32).varied({**sizes, **widths})
            for form in ("sdpa", "torch"):
                row = {"heads": heads, "width": width, "t": t, "window": reach, "form": form}
                yield row | times(problem, form, device)


def times(problem: Problem, form: str, device: torch.device) -> dict[str, float]:
    """Return median milliseconds of the forward pass, and of both passes."""
    forward, both = timed_passes(contender_run(problem, form, device), problem.inputs(device))
    return {
        "forward": time_call(forward, device, SECONDS).median,
        "both": time_call(both, device, SECONDS).median,
    }


PARTS = {"power": power, "convolution": convolution, "window": window}


def main() -> None:
    """Write the rows, and print each when it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("out", type=Path)
    options, rows = parser.parse_args(), []
    device = torch.device("cpu" if options.part == "window" else "cuda")
    for row in PARTS[options.part](device):
        rows.append(row)
        print(row, flush=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    out = {"device": name, "torch": torch.__version__, "rows": rows}
    options.out.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
