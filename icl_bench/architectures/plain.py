"""A user's own layer: any `torch.nn.Module` from [B, T, C] to [B, T, C], looped over the members of a fleet.

The layer is named `package.module:Class`, is built as `Class(d_model, **parameters)` under a seed of its own, and must
be causal. It has no recurrent form here; its state is counted where it has a method `state_elements(length)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from icl_bench import random
from icl_bench.architectures.base import Architecture, FirstLayer, Flops, LayerContext, Mixer, StateSize
from icl_bench.architectures.initialisation import Initialised
from icl_bench.errors import SpecError
from icl_bench.registry import import_object
from icl_bench.runs.declarations import ArchitectureDeclaration, declaration_by_name
from icl_bench.schema import Value


class Plain(Architecture):
    """A torch.nn.Module given by its import path."""

    path: str
    """`package.module:Class`."""
    params: Mapping[str, Value]
    """Arguments of the class besides the model width."""

    def resolved(self, d_model: int) -> Self:
        self.make(d_model)
        return self

    def make(self, d_model: int, seed: int = 0) -> nn.Module:
        """Make one module on the CPU; its class draws the parameters under a global seed, restored afterwards.

        Raise UnknownNameError if the path names nothing, SpecError if it names no `torch.nn.Module` or the parameters
        do not fit.
        """
        cls = import_object(self.path)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise SpecError(f"a path names a class of torch.nn.Module; {self.path} is {cls!r}; name the class")
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(seed)
                return cls(d_model, **self.params)
        except TypeError as error:
            raise SpecError(f"{self.path} is built as Class(d_model, parameters): {error}; check them") from None

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return PlainMixer(members, d_model, self)

    def state_size(self, d_model: int, length: int) -> StateSize | None:
        count = getattr(self.make(d_model), "state_elements", None)
        return None if count is None else StateSize(cache=int(count(length)))

    def flops(self, d_model: int, length: int) -> Flops:
        weights = sum(p.numel() for p in self.make(d_model).parameters() if p.dim() > 1)
        return Flops(2.0 * weights, 0.0)

    def declaration(self) -> ArchitectureDeclaration:
        return declaration_by_name({"name": self.path, "params": self.params})


class PlainMixer(Mixer, Initialised):
    """One template, called with the parameters of each member in turn; the parameters are stacked like all others."""

    recurrent = False

    def __init__(self, members: int, d_model: int, config: Plain) -> None:
        super().__init__()
        self.config, self.d_model = config, d_model
        self.template: dict[str, nn.Module] = {"module": config.make(d_model).requires_grad_(False)}
        self.names = [name for name, _ in self.template["module"].named_parameters()]
        self.stacked = nn.ParameterList(
            nn.Parameter(torch.empty(members, *p.shape)) for p in self.template["module"].parameters()
        )

    @torch.no_grad()
    def initialise(self, seeds: Sequence[int], path: str) -> None:
        """Let the class draw its own parameters, from the member's seed and the layer's qualified name."""
        for row, seed in enumerate(seeds):
            fresh = self.config.make(self.d_model, random.stream("init", seed, path) % 2**63)
            for stacked, own in zip(self.stacked, fresh.parameters(), strict=True):
                stacked[row].copy_(own)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        module = self.template["module"].to(x.device)
        rows = [
            functional_call(module, {n: p[m] for n, p in zip(self.names, self.stacked, strict=True)}, (x[m],))
            for m in range(x.shape[0])
        ]
        return torch.stack(rows)

    def initial_state(self, batch: int) -> Any:
        raise SpecError(f"{self.config.path} has no recurrent form here; evaluate it in parallel")

    def step(self, x: Tensor, state: Any, position: int, first: FirstLayer | None = None) -> tuple[Tensor, Any]:
        raise SpecError(f"{self.config.path} has no recurrent form here; evaluate it in parallel")
