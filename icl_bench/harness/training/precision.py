"""Arithmetic of the forward and backward pass; parameters, optimiser and scores stay in float32."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.interface import Scores
from icl_bench.kernels.fleet.embedding import TokenOccurrences
from icl_bench.runs.spec import Precision

WORKING_TYPES: Mapping[Precision, torch.dtype | None] = {
    "float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16
}  # fmt: skip
"""Type of a run's precision that matrices are rounded to; None where all is float32."""


class MethodModule(nn.Module):
    """A model whose methods are called as the forward pass, so that `functional_call` can give it other parameters."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Call a method of the model."""
        return method(*arguments)


class WorkingModel:
    """A model that computes in a precision with working copies of its parameters, given in their order."""

    def __init__(self, model: Backbone, working: Sequence[Tensor], precision: Precision) -> None:
        self.model, self.module, self.precision = model, MethodModule(model), precision
        names = [name for name, _ in self.module.named_parameters()]
        self.parameters = dict(zip(names, working, strict=True))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode inside the block, in which dropout and batch norms stand still."""
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method of the model in the precision, with the working copies; the first argument is a tensor."""
        device, lower = arguments[0].device.type, WORKING_TYPES[self.precision]
        kind = lower or torch.bfloat16
        with torch.autocast(device, dtype=kind, enabled=lower is not None, cache_enabled=False):
            return functional_call(self.module, self.parameters, (method, arguments))

    def scores(
        self,
        inputs: Tensor,
        positions: Tensor,
        targets: Tensor,
        occurrences: TokenOccurrences | None = None,
        leading: bool = False,
    ) -> Scores:
        """Return losses and hits at the scored positions, [M, B, S] each; see `Backbone.scores`."""
        scores: Scores = self.call(self.model.scores, inputs, positions, targets, occurrences, leading)
        return scores

    def answers(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return the likeliest token at each scored position, [M, B, S]."""
        logits: Tensor = self.call(self.model, inputs, positions)
        return logits.argmax(-1)

    def step(self, inputs: Tensor, state: list[Any] | None, position: int) -> tuple[Tensor, list[Any]]:
        """Run one token: inputs [M, B] and the state, None before the first -> outputs [M, B, O] and the state."""
        out: tuple[Tensor, list[Any]] = self.call(self.step_from, inputs, state, position)
        return out

    def step_from(self, inputs: Tensor, state: list[Any] | None, position: int) -> tuple[Tensor, list[Any]]:
        """Run one token with the parameters in use; without a state, begin with one of their type."""
        state = self.model.initial_state(inputs.shape[1]) if state is None else state
        return self.model.step(inputs, state, position)
