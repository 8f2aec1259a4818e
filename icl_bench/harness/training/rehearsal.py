"""A test whose scores nobody reads, so that the first real one of a process finds everything loaded.

A kernel of torch is loaded when it is first launched. Between the work of other streams of a GPU each one takes some
30 ms, so that the first test of a process took 1.2 to 3 s beside other fleets, later ones .2 (docs/log.md). Fleets
that end with it, and those that are built in their places, then wait for the driver too. So one fleet is tested while
all of them train.
"""

import threading

from icl_bench.harness.training.outside_layers import calls_outside_code
from icl_bench.harness.training.trainer import Trainer

LEAST_SECONDS = 5.0
"""Seconds of training that a fleet must have left: others beside a shorter one may be at their end too."""
MOST_EXAMPLES = 512
"""Most examples of a cell that are tested."""
ONCE = threading.Lock()
"""Taken by the first rehearsal of the process, and never given back."""


def rehearse_test(trainer: Trainer, seconds_left: float) -> None:
    """Test a fleet on a GPU as it is, where this process has rehearsed no test; nothing of the fleet changes.

    Not where a test also goes through training examples, or through a step for each token.
    """
    task, spec = trainer.task, trainer.spec
    long_test = task.repeats or task.generative or calls_outside_code(spec)
    if trainer.machine.device.type != "cuda" or long_test or seconds_left < LEAST_SECONDS:
        return
    if ONCE.acquire(blocking=False):
        for cell in task.eval_cells:
            trainer.test_cell(cell, (), trainer.working_model, min(MOST_EXAMPLES, spec.evaluation.examples))
