"""Time power attention with one key and one query for all heads, and with copies for each head; on a CUDA device.

    python benchmarks/shared_heads.py

A line for each case: sizes, milliseconds forward and forward and backward, and the peak of memory.
"""

import argparse
import json

import torch
from torch import Tensor

from icl_bench.kernels.measurement.timing import peak_mebibytes, time_call
from icl_bench.kernels.power.api import power_attention

CASES = ((2048, 256, 8, 64, 32), (8192, 256, 8, 16, 32), (1024, 1024, 4, 128, 32))
"""N, T, heads, key width and value width."""


def measure(n: int, t: int, heads: int, key: int, value: int, shared: bool) -> dict[str, float]:
    """Time p = 1 with gates, bfloat16."""
    device = torch.device("cuda")
    sizes = ((n, t, 1, key), (n, t, 1, key), (n, t, heads, value))
    q, k, v = (torch.randn(*size, device=device, dtype=torch.bfloat16).requires_grad_() for size in sizes)
    log_g = (-0.2 * torch.rand(n, t, heads, device=device)).requires_grad_()
    along = torch.randn_like(v)

    def forward() -> Tensor:
        queries, keys = (q, k) if shared else (x.repeat_interleave(heads, 2) for x in (q, k))
        return power_attention(queries, keys, v, log_g, p=1, normalize="none", scale=1.0, impl="triton")

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), (q, k, v, log_g), along)

    with torch.no_grad():
        once = time_call(forward, device, 0.2)
    return {"forward": once.median, "both": time_call(both, device, 0.3).median, "mib": peak_mebibytes(both)}


def main() -> None:
    """Measure every case, shared and copied."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for case in CASES:
        for shared in (True, False):
            sizes = dict(zip(("n", "t", "heads", "key", "value"), case, strict=True))
            print(json.dumps({**sizes, "shared": shared, **measure(*case, shared)}), flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
