"""A layer of one's own: any `torch.nn.Module` from [B, T, C] to [B, T, C], looped over the members of a fleet.

It is named `package.module:Class`, is built as `Class(d_model, **parameters)` under a seed of its own, and must be
causal. It has no recurrent form here; its state is counted where it has a method `state_elements(length)`.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from icl_bench import random
from icl_bench.architectures.base import Architecture, Flops, Mixer, StateSize
from icl_bench.errors import SpecError
from icl_bench.registry import import_object
from icl_bench.schema import Value


class Plain(Architecture):
    """A torch.nn.Module given by its import path."""

    path: str
    """`package.module:Class`."""
    params: Mapping[str, Value]
    """What it is built with besides the model width."""

    def resolved(self, d_model: int) -> Self:
        self.make(d_model)
        return self

    def make(self, d_model: int, seed: int = 0) -> nn.Module:
        """One module, its parameters drawn by its class under a global seed of its own; the global state is restored.

        Raises:
            UnknownNameError: where the path names nothing.
            SpecError: where it names no `torch.nn.Module`, or one that cannot be built with these parameters.
        """
        cls = import_object(self.path)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise SpecError(
                f"a layer of one's own is a class of torch.nn.Module; {self.path} is {cls!r}; name the class"
            )
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return cls(d_model, **self.params)
        except TypeError as error:
            raise SpecError(
                f"{self.path} is built as Class(d_model, parameters); it said: {error}; check them"
            ) from None

    def build(self, members: int, d_model: int, gain: float, impl: str) -> Mixer:
        return PlainMixer(members, d_model, self)

    def counts_state(self, d_model: int) -> bool:
        """Whether the class tells its state."""
        return hasattr(self.make(d_model), "state_elements")

    def state_size(self, d_model: int, length: int) -> StateSize:
        module = self.make(d_model)
        count = getattr(module, "state_elements", None)
        if count is None:
            raise SpecError(
                f"the state of {self.path} is unknown: it has no method state_elements(length); add one to count it"
            )
        return StateSize(cache=int(count(length)))

    def flops(self, d_model: int, length: int) -> Flops:
        weights = sum(p.numel() for p in self.make(d_model).parameters() if p.dim() > 1)
        return Flops(2.0 * weights, 0.0)


class PlainMixer(Mixer):
    """One template, called with the parameters of each member in turn; the parameters are stacked like all others."""

    def __init__(self, members: int, d_model: int, config: Plain) -> None:
        super().__init__()
        self.config, self.d_model = config, d_model
        self.template: dict[str, nn.Module] = {"module": config.make(d_model).requires_grad_(False)}
        self.names = [name for name, _ in self.template["module"].named_parameters()]
        self.stacked = nn.ParameterList(
            nn.Parameter(torch.empty(members, *p.shape)) for p in self.template["module"].parameters()
        )

    @torch.no_grad()
    def initialise(self, seeds: list[int], name: str) -> None:
        """Let the class draw its own parameters, from the member's seed and the layer's name."""
        for row, seed in enumerate(seeds):
            fresh = self.config.make(self.d_model, random.stream("init", seed, name) % 2**63)
            for stacked, own in zip(self.stacked, fresh.parameters(), strict=True):
                stacked[row].copy_(own)

    def forward(self, x: Tensor) -> Tensor:
        module = self.template["module"].to(x.device)
        rows = [
            functional_call(module, {n: p[m] for n, p in zip(self.names, self.stacked, strict=True)}, (x[m],))
            for m in range(x.shape[0])
        ]
        return torch.stack(rows)

    def initial_state(self, batch: int) -> Any:
        raise SpecError(f"{self.config.path} has no recurrent form here; evaluate it in parallel")

    def step(self, x: Tensor, state: Any, position: int) -> tuple[Tensor, Any]:
        raise SpecError(f"{self.config.path} has no recurrent form here; evaluate it in parallel")
