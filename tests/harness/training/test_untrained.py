"""A model that has learned nothing knows nothing: in every task it is at or under the floor."""

import math
from itertools import chain

import pytest
import torch

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.tasks import TASKS

EXAMPLES = 512
FEWER = {"brevo": 128, "grammar": 256, "text": 64}
"""Examples of tasks with long ones, which have hundreds of scored positions each, and where judging takes long."""


@pytest.mark.parametrize("name", list(TASKS))
def test_an_untrained_model_is_at_or_under_the_floor(name: str) -> None:
    """Within five standard errors of a share over as many examples, which those of scored positions are below."""
    examples = FEWER.get(name, EXAMPLES)
    settings = ("model.d_model=16", "train.batch=2", f"evaluation.examples={examples}")
    runs = expand_request(Request(name, ["softmax"], settings=settings, seeds=(0, 1)))
    trainer = Trainer(runs, Machine(torch.device("cpu")))
    for cell in chain(*trainer.test([trainer.working_model])):
        error = math.sqrt(max(cell.floor * (1 - cell.floor), 1 / examples) / examples)
        assert cell.accuracy <= cell.floor + 5 * error, cell.label
