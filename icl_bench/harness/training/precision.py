"""Arithmetic of the forward and backward pass; parameters, optimiser and scores stay in float32."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from icl_bench.architectures.backbone import Backbone, Scores
from icl_bench.kernels.fleet.places import Places
from icl_bench.runs.spec import Precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Run matrix products in this precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def working_dtype(precision: Precision) -> torch.dtype | None:
    """The type that parameters are rounded to once a step; None where they are used as they are."""
    return None if precision == "float32" else torch.bfloat16


class Scorer(nn.Module):
    """A model with its scores as the forward pass."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, positions: Tensor, targets: Tensor, places: Places | None) -> Scores:
        """See `Backbone.scores`."""
        return self.model.scores(inputs, positions, targets, places)


class Stepper(nn.Module):
    """A model with one token of its recurrent form as the forward pass."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, state: list[Any] | None, position: int) -> tuple[Tensor, list[Any]]:
        """See `Backbone.step`; begins with no state, which then has the type of the parameters in use."""
        return self.model.step(inputs, self.model.initial_state(inputs.shape[1]) if state is None else state, position)


class WorkingModel:
    """A model that computes in a precision with the working copies of its parameters.

    Args:
        model: The model.
        working: A tensor for each of its parameters, in their order.
        precision: Of products.
    """

    def __init__(self, model: Backbone, working: Sequence[Tensor], precision: Precision) -> None:
        self.scorer, self.stepper, self.precision = Scorer(model), Stepper(model), precision
        names = [name for name, _ in self.scorer.named_parameters()]
        self.working = dict(zip(names, working, strict=True))

    def scores(self, inputs: Tensor, positions: Tensor, targets: Tensor, places: Places | None = None) -> Scores:
        """Losses and hits, [M, B, S] each; see `Backbone.scores`."""
        with autocast(inputs.device, self.precision):
            scores: Scores = functional_call(self.scorer, self.working, (inputs, positions, targets, places))
        return scores

    def answers(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """The likeliest token at each scored position, [M, B, S]."""
        own = {name.removeprefix("model."): parameter for name, parameter in self.working.items()}
        with autocast(inputs.device, self.precision):
            logits: Tensor = functional_call(self.scorer.model, own, (inputs, positions))
        return logits.argmax(-1)

    def step(self, inputs: Tensor, state: list[Any] | None, position: int) -> tuple[Tensor, list[Any]]:
        """One token, inputs [M, B] -> logits [M, B, W] and the next state; None before the first."""
        with autocast(inputs.device, self.precision):
            out: tuple[Tensor, list[Any]] = functional_call(self.stepper, self.working, (inputs, state, position))
        return out
