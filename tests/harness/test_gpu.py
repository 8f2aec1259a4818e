"""Fleets and data on a CUDA device."""

import pytest
import torch

from icl_bench.harness.data import Feed
from icl_bench.harness.resolve import Request, expand, make_task, task_component
from icl_bench.harness.trainer import Trainer
from icl_bench.tasks import TASKS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
ARCHS = [
    "power:p=2",
    "power:p=3,gate=true",
    "linear",
    "softmax:rope=true",
    "window:w=8,gate=true",
    "gated-conv+softmax",
]
SETTINGS = ("train.steps=50", "train.batch=16", "model.d_model=32")


@pytest.mark.parametrize("name", list(TASKS))
def test_the_same_key_gives_the_same_batch(name: str) -> None:
    task = make_task(task_component(name))
    for cell in (*task.train_cells, *task.eval_cells):
        index = torch.arange(256)
        here = Feed(task, cell, "train", [0, 1], torch.device("cpu")).batch(index)
        there = Feed(task, cell, "train", [0, 1], torch.device("cuda")).batch(index.cuda())
        for ours, theirs in zip(here, there, strict=True):
            assert torch.equal(ours, theirs.cpu()), cell.label


@pytest.mark.parametrize("arch", ARCHS)
def test_captured_steps_equal_eager_steps(arch: str) -> None:
    runs = expand(Request("assoc-recall", [arch], settings=SETTINGS, seeds=(0, 1)))
    losses = []
    for graphs in (True, False):
        trainer = Trainer(runs, torch.device("cuda"), "auto", graphs=graphs)
        for _ in range(20):
            trainer.step()
        losses.append(torch.tensor(trainer.take_means(20)[0]))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_member_of_a_fleet_equals_the_run_alone(arch: str) -> None:
    runs = [expand(Request("assoc-recall", [arch], settings=SETTINGS, seeds=[seed]))[0] for seed in range(8)]
    fleet = Trainer(runs, torch.device("cuda"), "auto")
    alone = Trainer([runs[5]], torch.device("cuda"), "auto")
    for both, own in zip(fleet.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(both[5:6], own)
    for _ in range(50):
        fleet.step()
        alone.step()
    assert fleet.take_means(50)[0][5] == pytest.approx(alone.take_means(50)[0][0], rel=1e-3)
