"""Number of members that fit the memory of a device: an estimate from shapes, and a measured step if that is close."""

import gc
import os
from collections.abc import Sequence
from itertools import pairwise

import torch

from icl_bench.errors import SpecError
from icl_bench.harness.resolve import make_task
from icl_bench.harness.training.batches import TOKENS_PER_REFILL
from icl_bench.harness.training.graphs import CAPTURING
from icl_bench.harness.training.trainer import Machine, Trainer, recompute_error
from icl_bench.runs.spec import RunSpec

USABLE_FRACTION = 0.9
"""Fraction of the free memory that a fleet may take."""
TRUSTED_FRACTION = 0.5
"""Fraction of the free memory up to which the estimate is trusted; above it, a step is measured."""
ESTIMATE_MARGIN = 3
"""Factor by which the estimate may exceed the memory before a run is refused: it has room to spare."""
ACTIVATIONS = 24
"""Numbers kept for each token, layer and channel, with room to spare; 8 were measured for two layers without an MLP."""
LAYER_INPUTS = 2
"""Numbers for each token, layer and channel that are kept where activations are computed again."""
BATCH_NUMBERS = 16
"""Numbers of 8 bytes for each token of the batches that are made at once."""


def estimate_bytes(spec: RunSpec, members: int = 1, parts: int = 1, recompute: bool = False) -> float:
    """Estimate the bytes of a fleet from shapes: parameters, their moments and gradients, activations, batches.

    One of `parts` of a batch goes through the model at once; with `recompute`, the inputs of layers alone are kept, and
    the activations of one layer.
    """
    task, model = make_task(spec.task), spec.model
    tokens = spec.train.batch * max(cell.length for cell in task.train_cells)
    layers = 8 * model.layers * round((1 + model.mlp) * model.d_model) * model.d_model
    words = (1 if model.tied else 2) * task.vocabulary * model.d_model
    inside = ACTIVATIONS * (1 + model.mlp)
    kept = inside + LAYER_INPUTS * model.layers if recompute else inside * model.layers
    activations = kept * model.d_model * tokens / parts
    member = 24.0 * (layers + words) + 4.0 * activations
    return members * member + 8.0 * BATCH_NUMBERS * max(members * tokens, TOKENS_PER_REFILL)


def check_memory(specs: Sequence[RunSpec], machine: Machine) -> None:
    """Refuse runs that by their shapes cannot fit into memory, or cannot save it as asked; raises SpecError."""
    total = total_memory(machine.device)
    parts = machine.accumulate * (machine.ranks.size if machine.ranks else 1)
    for spec in {spec.fleet_key(): spec for spec in specs}.values():
        if machine.recompute and spec.from_outside:
            raise recompute_error(spec)
        needed = estimate_bytes(spec, 1, parts, machine.recompute)
        if needed > ESTIMATE_MARGIN * total:
            raise SpecError(
                f"a run must fit into memory; {spec.task.label} {spec.arch_label} takes about {needed / 1e9:,.0f} GB "
                f"by its shapes, of {total / 1e9:,.0f} GB here; shorten the task, lower train.batch or the model, or "
                "add --accumulate 8"
            )


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory of a device, those of the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def unused_memory(device: torch.device) -> int:
    """Return the bytes of a device that no tensor takes, with those that torch holds; all of the machine for a CPU."""
    if device.type != "cuda":
        return total_memory(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


def measure_bytes(spec: RunSpec, machine: Machine) -> int:
    """Return the most bytes that one member takes in two steps on the longest cell; makes these steps."""
    device = machine.device
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer([spec], machine._replace(graphs=False))
    lengths = [cell.length for cell in trainer.cells]
    longest = lengths.index(max(lengths))
    trainer.queues[longest].refill()
    for _ in range(2):
        trainer.update(longest)
    peak = torch.cuda.max_memory_allocated(device) - before
    del trainer
    release_memory(device)
    return max(1, peak)


def release_memory(device: torch.device) -> None:
    """Free all memory that nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        with CAPTURING:
            torch.cuda.empty_cache()


def cut_evenly(specs: Sequence[RunSpec], most: int) -> list[Sequence[RunSpec]]:
    """Cut a fleet into the fewest fleets of at most `most` members, as even as possible."""
    count = -(-len(specs) // max(1, most))
    ends = [len(specs) * i // count for i in range(count + 1)]
    return [specs[begin:end] for begin, end in pairwise(ends)]


def fit_memory(specs: Sequence[RunSpec], machine: Machine) -> list[Sequence[RunSpec]]:
    """Cut a fleet on a GPU into fleets that its memory holds; raise RuntimeError if the measured step fails."""
    if machine.device.type != "cuda" or len(specs) == 1:
        return [specs]
    free = unused_memory(machine.device)
    if estimate_bytes(specs[0], len(specs)) <= TRUSTED_FRACTION * free:
        return [specs]
    with CAPTURING:  # which waits for the whole device
        needed = measure_bytes(specs[0], machine)
    return cut_evenly(specs, int(USABLE_FRACTION * free / needed))
