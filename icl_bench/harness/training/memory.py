"""How many members fit the memory of a device: an estimate from shapes, and a measured step where that is close."""

import gc
from collections.abc import Sequence
from itertools import pairwise

import torch

from icl_bench.harness.resolve import make_task
from icl_bench.harness.training.supply import TOKENS_AT_ONCE
from icl_bench.harness.training.trainer import Trainer
from icl_bench.runs.spec import RunSpec

USED = 0.9
"""Share of the free memory that a fleet may take."""
TRUSTED = 0.5
"""Share of it under which the estimate is trusted; above it, a step is measured."""
ACTIVATIONS = 24
"""Numbers kept for each token, layer and channel, with room to spare; 8 were measured for two layers without an MLP."""
STOCKS = 16
"""Numbers of 8 bytes for each token of the batches that are made at once."""


def estimate(spec: RunSpec, members: int = 1) -> float:
    """Bytes that a fleet needs, from shapes: parameters, their moments and gradients, activations, batches."""
    task, model = make_task(spec.task), spec.model
    tokens = spec.train.batch * max(cell.length for cell in task.train_cells)
    layers = 8 * model.layers * round((1 + model.mlp) * model.d_model) * model.d_model
    words = (1 if model.tied else 2) * task.vocabulary * model.d_model
    activations = ACTIVATIONS * model.layers * (1 + model.mlp) * model.d_model * tokens
    own = 24.0 * (layers + words) + 4.0 * activations
    return members * own + 8.0 * STOCKS * max(members * tokens, TOKENS_AT_ONCE)


def measure(spec: RunSpec, device: torch.device, impl: str) -> int:
    """Bytes that a member took at most in two steps on the longest cell; runs it."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer([spec], device, impl, graphs=False)
    lengths = [cell.length for cell in trainer.cells]
    longest = lengths.index(max(lengths))
    trainer.refill(longest)
    for _ in range(2):
        trainer.update(longest)
    peak = torch.cuda.max_memory_allocated(device) - before
    del trainer
    release(device)
    return max(1, peak)


def release(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Memory that the device has left, and what torch keeps of it without use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def parts(specs: Sequence[RunSpec], fitting: int) -> list[Sequence[RunSpec]]:
    """Cut a fleet into as few parts as there must be for `fitting` members at most, as even as they can be."""
    count = -(-len(specs) // max(1, fitting))
    ends = [len(specs) * i // count for i in range(count + 1)]
    return [specs[begin:end] for begin, end in pairwise(ends)]


def fit(specs: Sequence[RunSpec], device: torch.device, impl: str) -> list[Sequence[RunSpec]]:
    """Cut a fleet into parts that the device has memory for; a fleet on the CPU, or a lone run, stays as it is.

    Raises:
        RuntimeError: where the step that is measured fails.
    """
    if device.type != "cuda" or len(specs) == 1:
        return [specs]
    free = free_bytes(device)
    if estimate(specs[0], len(specs)) <= TRUSTED * free:
        return [specs]
    return parts(specs, int(USED * free / measure(specs[0], device, impl)))
