"""A model that has learned nothing knows nothing: in every task it is at or under the floor."""

import math

import pytest
import torch

from icl_bench.harness.resolve import Request, expand
from icl_bench.harness.training.trainer import Trainer
from icl_bench.tasks import TASKS

EXAMPLES = 512
SETTINGS = ("model.d_model=16", "train.batch=2", f"evaluation.examples={EXAMPLES}", f"evaluation.validation={EXAMPLES}")


@pytest.mark.parametrize("name", list(TASKS))
def test_an_untrained_model_is_at_or_under_the_floor(name: str) -> None:
    """Within five standard errors of a share over as many examples, which those of scored positions are below."""
    runs = expand(Request(name, ["softmax"], settings=SETTINGS, seeds=(0, 1)))
    cells, floors = Trainer(runs, torch.device("cpu"), "auto").test()
    for label, outcome in cells.items():
        for accuracy, (_, floor) in zip(outcome.accuracy, floors[label], strict=True):
            error = math.sqrt(max(floor * (1 - floor), 1 / EXAMPLES) / EXAMPLES)
            assert accuracy <= floor + 5 * error, label
