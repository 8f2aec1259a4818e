"""Time power attention in one chunk and in several near the lengths at which both cost the same.

    python benchmarks/power_forms.py OUT.json

`triton_api.default_chunk` goes by these lengths. bfloat16, 12 heads, about 65,536 tokens in all.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from icl_bench.kernels.measurement.contenders import operator
from icl_bench.kernels.measurement.measure import passes
from icl_bench.kernels.measurement.problems import Problem, make_inputs
from icl_bench.kernels.measurement.timing import time_call

HEADS = 12
TOKENS = 65_536
SECONDS = 0.1
FORMS = {
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


def measure(device: torch.device) -> Iterator[tuple[int | float, ...]]:
    """Width, p, T, chunk and the milliseconds of a forward pass, and of a forward and a backward pass."""
    plain = Problem("power", 1, torch.bfloat16, heads=HEADS, groups=HEADS, states=False)
    for (width, p), (lengths, chunks) in FORMS.items():
        for t, chunk in itertools.product(lengths, (None, *chunks)):
            problem = plain._replace(n=max(1, TOKENS // t), t=t, key=width, value=width, p=p, chunk=chunk or t)
            calls = passes(operator("triton", problem, device), make_inputs(problem, device))
            yield width, p, t, chunk or t, *(time_call(call, device, SECONDS).median for call in calls)


def main() -> None:
    """Write the rows, and print each when it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out, rows = parser.parse_args().out, []
    for row in measure(torch.device("cuda")):
        rows.append(row)
        print(*row, flush=True)
    out.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}))


if __name__ == "__main__":
    main()
