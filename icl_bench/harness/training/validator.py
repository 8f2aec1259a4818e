"""Validations of a fleet, and the models for its test; on a CPU with a second core, copies of models in a thread."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import torch

from icl_bench.harness.training.outside_layers import calls_outside_code
from icl_bench.harness.training.precision import WorkingModel
from icl_bench.harness.training.trainer import Trainer
from icl_bench.isolation import usable_cores

Validation = Mapping[str, list[float]]
"""Validation accuracy of each member by label of cell."""


class Validator:
    """Validate a trainer's models as they are in one moment; the numbers are the same with and without the thread.

    Each of the two threads computes alone, so that nothing waits where other work runs. Code from outside the package
    runs in one thread: nothing says that it can be copied, or that it changes nothing of the process.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.copy: WorkingModel | None = None
        self.beside = trainer.device.type == "cpu" and usable_cores() > 1 and not calls_outside_code(trainer.spec)
        self.pool = ThreadPoolExecutor(1) if self.beside else None

    def start(self) -> Callable[[], Validation]:
        """Begin a validation; return a function that waits for it and returns or raises what came of it."""
        if self.pool is None:
            found = self.trainer.validate(self.trainer.working_model)
            return lambda: found
        return self.pool.submit(self.trainer.validate, self.copied_model()).result

    def models(self) -> list[WorkingModel]:
        """Return the models that may test at the same time: the trainer's, and a copy where there is a second core."""
        models = [self.trainer.working_model]
        return [*models, self.copied_model()] if self.beside else models

    @torch.no_grad()
    def copied_model(self) -> WorkingModel:
        """Return a copy of the models, made once and given the present numbers; no validation may be under way."""
        model = self.trainer.working_model
        if self.copy is None:
            parameters = [tensor.clone() for tensor in model.parameters.values()]
            self.copy = WorkingModel(deepcopy(model.model), parameters, model.precision)
        pairs = [*zip(self.copy.parameters.values(), model.parameters.values(), strict=True)]
        pairs += zip(self.copy.model.buffers(), model.model.buffers(), strict=True)
        for ours, theirs in pairs:
            ours.copy_(theirs)
        return self.copy

    def close(self) -> None:
        """End the thread after what it does."""
        if self.pool is not None:
            self.pool.shutdown(wait=False)
