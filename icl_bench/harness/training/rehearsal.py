"""A test whose scores nobody reads, so that the first real one of a process finds everything loaded.

On a busy GPU a kernel of torch that was never launched waits until it is loaded between the work of all streams: the
first test of a process took 1.2 to 1.5 s beside other fleets on an H200, later ones .2 (docs/log.md), and fleets that
end together wait for it. Here it is done while they train.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress

import torch

from icl_bench.harness.training.outside_layers import calls_outside_code
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.spec import RunSpec

LEAST_SECONDS = 5.0
"""Seconds of training that a fleet must have left: a shorter one is tested before a rehearsal helps."""
MOST_EXAMPLES = 512
"""Most examples of a cell that are tested."""
ONCE = threading.Lock()
"""Taken by the first rehearsal of the process, and never given back."""


def rehearse_test(specs: Sequence[RunSpec], machine: Machine, seconds_left: float) -> None:
    """Test an untrained copy of a fleet on a GPU in a thread of its own, where this process has tested none."""
    due = machine.device.type == "cuda" and seconds_left > LEAST_SECONDS and not calls_outside_code(specs[0])
    if due and machine.ranks is None and ONCE.acquire(blocking=False):
        threading.Thread(target=rehearse, args=(specs, machine), name="rehearse_test", daemon=True).start()


def rehearse(specs: Sequence[RunSpec], machine: Machine) -> None:
    """Test an untrained copy of a fleet on a stream of its own; an error of the device is left to the fleet itself.

    Not where a test also goes through training examples, or through a step for each token.
    """
    examples = min(MOST_EXAMPLES, specs[0].evaluation.examples)
    shorter = specs[0].evaluation.model_copy(update={"examples": examples})
    with suppress(RuntimeError), torch.cuda.stream(torch.cuda.Stream(machine.device)):
        copies = [spec.model_copy(update={"evaluation": shorter}) for spec in specs]
        trainer = Trainer(copies, machine._replace(graphs=False))
        if not (trainer.task.repeats or trainer.task.generative):
            trainer.test([trainer.working_model])
