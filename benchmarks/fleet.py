"""Training speed of fleets on this machine: examples a second and milliseconds a step for each member.

    python benchmarks/fleet.py [--device cuda] [--precision bfloat16] [--members 1,8,32] [--seconds 1.5] [--d-model 128]
        [--arch delta-net --arch gla] [--every] [--profile 20] [--json FILE]

For comparison, zoology d88d6f5 on one H200 (d_model 128, two layers, vocabulary 8192, batch 256, float32, its own
loop): softmax 34,166 examples/s at 64 tokens and 4 pairs, 11,695 at 256 and 64; window 64 9,641; Based 9,199.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from icl_bench.architectures import ARCHITECTURES
from icl_bench.harness.environment import device_name, git_revision, pick_device, versions
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.graphs import Pace
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.spec import RunSpec

CASES = [
    ("softmax", "gated-conv+softmax:conv=0,heads=2", 64, 4),
    ("softmax", "gated-conv+softmax:conv=0,heads=2", 256, 64),
    ("window 64", "gated-conv+window:w=64,conv=0,heads=2", 256, 64),
    ("power p=2", "gated-conv+power:p=2,conv=0,heads=8,d_key=16,d_value=16", 256, 64),
    ("linear", "gated-conv+linear:conv=0,heads=8,d_key=16,d_value=16", 256, 64),
]
WARM_STEPS, FEWEST_STEPS = 5, 4
PARTS = {
    "data": ("bits_kernel", "cipher_kernel", "order_kernel", "radixSort", "RadixSort", "searchsorted", "sort"),
    "cross-entropy": ("others_kernel", "finish_kernel", "weight_gradient_kernel", "scale_kernel", "means_kernel"),
    "memory": ("sdpa", "cudnn", "flash", "key_value_gradient", "query_gradient", "key_gradient", "one_tile", "forward_",
               "sums_kernel", "scan_kernel", "state"),
    "norms": ("norm_gradient_kernel", "norm_kernel"),
    "convolution": ("convolution",),
    "matrix products": ("nvjet", "gemm", "cutlass", "cublas"),
    "optimiser": ("update_kernel", "multi_tensor_apply"),
    "rows and words": ("gather_kernel", "table_gradient_kernel", "take_kernel", "spread_kernel", "parts_kernel"),
}  # fmt: skip
"""Kernels of each part of a step, by a piece of their names; the first part that fits counts."""


def specs(arch: str, length: int, pairs: int, members: int, precision: str, width: int) -> list[RunSpec]:
    """Return `members` runs that differ in seed."""
    task = f"assoc-recall:variant=zoology,length={length},pairs={pairs}"
    settings = ["train.steps=100000", "evaluation.examples=100", f"model.d_model={width}"]
    request = Request(task, [arch], "zoology", seeds=range(members), precision=precision, settings=settings)
    return expand_request(request)


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(runs: list[RunSpec], machine: Machine, seconds: float) -> dict[str, Any]:
    """Time steps for about `seconds`, by the time of one, launched ahead of the device as training launches them."""
    device = machine.device
    trainer = Trainer(runs, machine)
    for _ in range(WARM_STEPS):
        trainer.step()
    wait(device)
    started = time.perf_counter()
    trainer.step()
    wait(device)
    steps, pace = max(FEWEST_STEPS, round(seconds / (time.perf_counter() - started))), Pace(device)
    started = time.perf_counter()
    for _ in range(steps):
        trainer.step()
        pace.count_step()
    wait(device)
    per_step = (time.perf_counter() - started) / steps
    data = data_seconds(trainer, device)
    examples = len(runs) * runs[0].train.batch
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return {
        "examples_per_second": round(examples / per_step),
        "ms_per_member_step": round(1e3 * per_step / len(runs), 4),
        "data_share": round(data / per_step, 4),
        "peak_gib": round(peak, 2),
    }


def data_seconds(trainer: Trainer, device: torch.device) -> float:
    """Measure the seconds that the batch of a step takes to make."""
    queue, rounds = trainer.queues[0], 5
    for _ in range(WARM_STEPS):
        trainer.run_refill(0)
    wait(device)
    started = time.perf_counter()
    for _ in range(rounds):
        trainer.run_refill(0)
    wait(device)
    return (time.perf_counter() - started) / rounds / queue.steps


def profile(runs: list[RunSpec], machine: Machine, rows: int) -> tuple[list[tuple[str, float, int]], dict[str, float]]:
    """Return the kernels that take most of a step, with milliseconds and launches a step; fractions of the parts."""
    device = machine.device
    trainer = Trainer(runs, machine._replace(graphs=False))
    for _ in range(WARM_STEPS):
        trainer.step()
    wait(device)
    steps = min(trainer.queues[0].steps, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as recorded:
        for _ in range(steps):
            trainer.step()
        wait(device)
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_device_time_total)
    parts = [(event.key[:110], event.self_device_time_total / steps / 1e3, event.count // steps) for event in events]
    total = ("all", sum(part[1] for part in parts), sum(part[2] for part in parts))
    listed = [(key, round(milliseconds, 4), calls) for key, milliseconds, calls in [total, *parts[:rows]]]
    return listed, shares([(key, milliseconds) for key, milliseconds, _ in parts])


def shares(kernels: list[tuple[str, float]]) -> dict[str, float]:
    """Return the fraction of each part in the time of all kernels; `other` for kernels that no part names."""
    found = dict.fromkeys([*PARTS, "other"], 0.0)
    for key, milliseconds in kernels:
        found[next((part for part, names in PARTS.items() if any(name in key for name in names)), "other")] += (
            milliseconds
        )
    whole = sum(found.values()) or 1.0
    return {part: round(milliseconds / whole, 4) for part, milliseconds in found.items()}


def main() -> None:
    """Measure every case and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--impl", default="auto", help="implementation of the memories")
    parser.add_argument("--members", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--cases", default="", help="their numbers, such as 0,2; all by default")
    parser.add_argument(
        "--arch", action="append", help="in place of the cases; 256 tokens, 64 pairs; one that fails has a row"
    )
    parser.add_argument("--every", action="store_true", help="all architectures, those of --arch first")
    parser.add_argument("--profile", type=int, default=0, help="kernels to list for each case and fleet")
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    machine = Machine(device, options.impl, not options.no_graphs)
    rows: list[dict[str, Any]] = []
    chosen = [CASES[int(part)] for part in options.cases.split(",") if part] or CASES
    archs = list(dict.fromkeys([*(options.arch or []), *(ARCHITECTURES if options.every else [])]))
    chosen = [(arch, arch, 256, 64) for arch in archs] if archs else chosen
    head: dict[str, Any] = {"device": device_name(device), "versions": versions(), "revision": git_revision()}
    head |= {"date": time.strftime("%Y-%m-%d"), "rows": rows}
    for name, arch, length, pairs in chosen:
        for members in (int(part) for part in options.members.split(",")):
            runs = specs(arch, length, pairs, members, options.precision, options.d_model)
            case = {"arch": name, "length": length, "pairs": pairs, "members": members, "precision": options.precision}
            case |= {"d_model": options.d_model, "impl": options.impl}
            row = {**case, **measured(runs, machine, options)}
            rows.append(row)
            print(*row.values(), sep="\t", flush=True)
            if options.json:
                options.json.write_text(json.dumps(head, indent=1))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.empty_cache()
            if options.profile and "failed" not in row:
                row["profile"], row["shares"] = profile(runs, machine, options.profile)
                print("    " + ", ".join(f"{part} {100 * share:.1f} %" for part, share in row["shares"].items()))
                for kernel, milliseconds, calls in row["profile"]:
                    print(f"    {milliseconds:8.4f} ms {calls:4} x  {kernel}", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(head, indent=1))


def measured(runs: list[RunSpec], machine: Machine, options: argparse.Namespace) -> dict[str, Any]:
    """Measure; with `--arch` or `--every`, return the reason why an architecture cannot be."""
    try:
        return measure(runs, machine, options.seconds)
    except Exception as error:
        if not (options.arch or options.every):
            raise
        return {"failed": f"{type(error).__name__}: {error}"[:200]}


if __name__ == "__main__":
    main()
