"""Kernels that start while the one before them ends: trained parameters are those of kernels that start after it."""

import pytest
import torch

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine, Trainer

chained = pytest.importorskip("icl_bench.kernels.triton.chained")
CUDA = torch.device("cuda")
STEPS = 60
EARLY = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not EARLY, reason="needs a Hopper GPU")]


def parameters_after(runs, graphs: bool) -> torch.Tensor:
    trainer = Trainer(runs, Machine(CUDA, graphs=graphs))
    for _ in range(STEPS):
        trainer.step()
    assert trainer.diverged_at == [0] * len(runs)
    return trainer.optimiser.buffers.parameters.clone()


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("seeds", [(0,), range(5)])
@pytest.mark.parametrize("arch", ["gated-conv+softmax:conv=0,heads=2", "power:p=2"])
def test_kernels_that_start_early_train_the_same_numbers(monkeypatch: pytest.MonkeyPatch, arch, seeds, graphs) -> None:
    """Bit for bit, with kernels of torch and of libraries between them, and a new batch between steps."""
    settings = ["train.steps=400", "train.batch=64", "model.d_model=128"]
    task = "assoc-recall:variant=zoology,length=64,pairs=4"
    runs = expand_request(Request(task, [arch], "zoology", seeds=seeds, precision="bfloat16", settings=settings))
    assert chained.starts_early(torch.cuda.current_device())
    early = [parameters_after(runs, graphs) for _ in range(2)]
    monkeypatch.setattr(chained, "starts_early", lambda device: False)
    wanted = parameters_after(runs, graphs)
    for found in early:
        assert torch.equal(found, wanted)
