"""Speed of language models in tokens a second, executed share of the matrix peak, and a plain loop on the same machine.

    python benchmarks/text.py [--case softmax-1k] [--seconds 4] [--peak 989e12] [--json FILE]
    torchrun --nproc-per-node 2 benchmarks/text.py --case power-16k
    python benchmarks/text.py --case softmax-1k --profile profile.txt

The model S has 6 layers of width 512, heads of 64, bytes. A step has 270,336 tokens at most: 264 rows of 1,024, whose
tiles of 128 rows by 256 columns fill the 132 multiprocessors of an H100 or H200 a whole number of times, or 16 of
16,384. `plain` is the same model without convolution, gate and rotation, as a loop of PyTorch in the manner of nanoGPT:
torch's own attention, fused AdamW, autocast to bfloat16, gradients clipped; `compiled` is that under torch.compile. The
peak is by default that of an H100 or H200 in bfloat16 without sparsity. Operations are those that kernels execute
(`training/executed.py`). With `--profile` a file has the milliseconds of each kernel in a step of each case.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from icl_bench.harness.environment import device_name, git_revision, pick_device, versions
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.executed import executed_operations
from icl_bench.harness.training.memory import release_memory
from icl_bench.harness.training.ranks import joined_ranks
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.spec import RunSpec

WIDTH, LAYERS, HEADS, MLP, TOKENS = 512, 6, 8, 1280, 264 << 10
BODY = f"heads={HEADS},gate=true,rope=true"
CASES = {
    "softmax-1k": (f"softmax:heads={HEADS},conv=0", 1024),
    "power-16k": (f"power:p=2,{BODY}", 16384),
    "power-16k-bare": (f"power:p=2,heads={HEADS},conv=0", 16384),
    "softmax-16k": (f"softmax:{BODY}", 16384),
    "window-16k": (f"window:w=1056,{BODY}", 16384),
    "linear-16k": (f"power:p=1,{BODY}", 16384),
}
WARM_STEPS, PROFILED_STEPS = 6, 3


def spec_of(arch: str, length: int, width: int, tokens: int) -> RunSpec:
    """Return the run of a case."""
    settings = (
        *(f"model.d_model={width}", f"model.layers={LAYERS}", f"model.mlp={MLP / WIDTH}", "model.init=gpt-2"),
        *(f"train.batch={tokens // length}", "train.steps=100000"),
    )
    task = f"text:length={length},extrapolate=[]"
    (run,) = expand_request(Request(task, [arch], precision="bfloat16", settings=settings))
    return run


def whole_rows(tokens: int, length: int) -> int:
    """Return the tokens of as many whole rows as fit into a number of tokens."""
    return tokens // length * length


def seconds_of(step: Callable[[], Any], machine: Machine, seconds: float) -> float:
    """Return the time of a step, measured over about `seconds` after some steps that do not count.

    All ranks take as many steps as the first one asks for, since they take each of them together.
    """
    device = machine.device

    def timed(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / steps

    timed(WARM_STEPS)
    steps = max(3, round(seconds / timed(3)))
    if machine.ranks:
        steps = int(machine.ranks.share(str(steps).encode()))
    return timed(steps)


def kernel_times(step: Callable[[], Any]) -> str:
    """Return a table of the kernels of a step: milliseconds, number of launches, name; the longest first."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
        torch.cuda.synchronize()
    found = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    return "".join(
        f"{event.self_device_time_total / 1e3 / PROFILED_STEPS:9.3f} {event.count / PROFILED_STEPS:7.1f}  {event.key}\n"
        for event in found
    )


class PlainBlock(nn.Module):
    """A block of pre-norm attention and a gated MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = MLP * width // WIDTH
        self.before, self.between = nn.RMSNorm(width, 1e-6), nn.RMSNorm(width, 1e-6)
        self.project, self.output = nn.Linear(width, 3 * width, False), nn.Linear(width, width, False)
        self.up, self.down = nn.Linear(width, 2 * hidden, False), nn.Linear(hidden, width, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to [B, T, C]."""
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.project(self.before(x)).chunk(3, dim=-1)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).flatten(2))
        gate, up = self.up(self.between(x)).chunk(2, dim=-1)
        out: torch.Tensor = x + self.down(functional.silu(gate) * up)
        return out


class PlainModel(nn.Module):
    """A plain language model with tied embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(256, width), nn.RMSNorm(width, 1e-6)
        self.blocks = nn.Sequential(*(PlainBlock(width) for _ in range(LAYERS)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of the next tokens, [B, T]."""
        logits = self.norm(self.blocks(self.embedding(tokens[:, :-1]))) @ self.embedding.weight.T
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def plain_step(length: int, width: int, tokens: int, device: torch.device, compiled: bool) -> Callable[[], Any]:
    """Return a step of the plain loop, on rows that a queue of the task makes."""
    model = PlainModel(width).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95), fused=device.type == "cuda")
    loss_of = torch.compile(model) if compiled else model
    rows = torch.randint(256, (8, tokens // length, length + 1), device=device)
    done = [0]

    def step() -> None:
        done[0] += 1
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(rows[done[0] % len(rows)])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def measure(case: str, machine: Machine, options: argparse.Namespace) -> dict[str, Any]:
    """Return the speed of a case."""
    device, ranks = machine.device, machine.ranks
    kind, _, length = case.rpartition("-")
    positions = int(length.split("k")[0]) << 10
    tokens = whole_rows(options.tokens, positions)
    if kind in ("plain", "compiled"):
        step = plain_step(positions, options.width, tokens, device, kind == "compiled")
        run = spec_of(CASES["softmax-1k"][0], positions, options.width, tokens)
    else:
        run = spec_of(*CASES[case], options.width, tokens)
        step = Trainer([run], machine).step
    taken = seconds_of(step, machine, options.seconds)
    if options.profile:
        with options.profile.open("a") as file:
            file.write(f"{case}\n{kernel_times(step)}\n")
    executed = executed_operations(run, machine) or 0.0
    rate = tokens / taken
    cards = ranks.size if ranks else 1
    row = {
        "case": case,
        "ranks": cards,
        "tokens": tokens,
        "tokens_per_second": round(rate),
        "ms": round(1e3 * taken, 2),
        "executed_per_token": round(executed),
        "share_of_peak": round(rate * executed / (cards * options.peak), 4),
    }
    if device.type == "cuda":
        row["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 1)
        torch.cuda.reset_peak_memory_stats(device)
    return row


def main() -> None:
    """Measure the cases that were asked for and print a line for each."""
    parser = argparse.ArgumentParser(description="Measure the speed of language models.")
    parser.add_argument("--case", action="append", help="names of CASES, plain-1k, compiled-1k; repeatable")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--peak", type=float, default=989e12, help="operations a second of one device")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="most tokens of a step, in whole rows")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, one after the other")
    parser.add_argument("--profile", type=Path, help="file to which kernels' times are added, on a GPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    ranks = joined_ranks(device)
    place = ranks.device if ranks else device
    machine = Machine(place, graphs=not options.no_graphs, accumulate=options.accumulate, ranks=ranks)
    rows = []
    for case in options.case or ["softmax-1k", "plain-1k", "power-16k"]:
        row = measure(case, machine, options)
        release_memory(machine.device)
        if not ranks or not ranks.rank:
            rows.append(row)
            print(json.dumps(row), flush=True)
    if ranks:
        ranks.leave()
    if options.json and rows:
        about = {"device": device_name(machine.device), "revision": git_revision(), "versions": dict(versions())}
        options.json.write_text(json.dumps({**about, "peak": options.peak, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
