"""Trained shallow solvers: small models that cannot do what a task asks for, trained on it on a small budget."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from icl_bench.harness.resolve import Request, expand_request, make_task, task_component
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.harness.validation.shallow import Rule
from icl_bench.tasks import ContinuousTask

STEPS = 600
"""Training steps of a solver."""


class BagOfTokens(nn.Module):
    """The mean of the vectors so far, projected: [B, T, C] -> [B, T, C]. It knows no order and no pairs."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected mean of the vectors up to each position."""
        counts = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        mean: Tensor = self.project(x.cumsum(dim=1) / counts[:, None])
        return mean


TRAINED: Mapping[str, tuple[str, int]] = {
    "window of 1": ("window:w=1,conv=0", 2),
    "bag of tokens": (f"{__name__}:BagOfTokens", 1),
}
"""Architecture and number of layers of each trained solver, by name."""


def train_solvers(task: str, steps: int = STEPS) -> dict[str, Rule]:
    """Train all trained solvers on a task as typed, on a CPU; return their rules by name."""
    return {name: train_solver(task, arch, layers, steps) for name, (arch, layers) in TRAINED.items()}


def train_solver(task: str, arch: str, layers: int, steps: int) -> Rule:
    """Train one model on the cells of a task; its rule answers by the likeliest token, or by its vector.

    A task that asks for a number of training examples is shown so many.
    """
    own = make_task(task_component(task)).training_examples is not None
    count = () if own else (f"train.steps={steps}",)
    settings = (*count, "train.batch=64", "train.lr=0.005", f"model.layers={layers}")
    (run,) = expand_request(Request(task=task, archs=(arch,), preset="default", settings=settings))
    trainer = Trainer([run], Machine(torch.device("cpu")))
    for _ in range(run.train.steps):
        trainer.step()
    model = trainer.working_model

    @torch.no_grad()
    def rule(inputs: Tensor, positions: Tensor) -> Tensor:
        with model.evaluating():
            if not isinstance(trainer.task, ContinuousTask):
                return model.answers(inputs[None], positions[None])[0]
            outputs: Tensor = model.call(model.model, inputs[None], positions[None])
            return outputs[0]

    return rule
