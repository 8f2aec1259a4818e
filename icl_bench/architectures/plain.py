"""A user's own layer: any `torch.nn.Module` from [B, T, C] to [B, T, C], looped over the members of a fleet.

The layer is named `package.module:Class`, is built as `Class(d_model, **parameters)` under a seed of its own, and must
be causal: a run in which an output depends on a later token, or on another example, fails before its first step. It is
trained in its parallel form alone; its state is counted where it has a method `state_elements(length)`. Where it has
`initial_state(batch)` and `step(x, state, position)`, from [B, C] to [B, C] and the next state, a tensor or a tuple of
states, `icl-bench check-arch` holds both forms and the count against each other.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from icl_bench import random
from icl_bench.architectures.base import Architecture, FirstLayer, Flops, LayerContext, Mixer, StateSize
from icl_bench.architectures.causality import ROUNDING, example_influence, later_influence, nudge
from icl_bench.architectures.initialisation import Initialised
from icl_bench.architectures.layers import Kind, marked
from icl_bench.errors import SpecError
from icl_bench.registry import import_object
from icl_bench.runs.declarations import ArchitectureDeclaration, declaration_by_name
from icl_bench.schema import Value

KIND_BY_AXES: Mapping[int, Kind] = {0: "vector", 1: "vector", 2: "matrix"}
"""Kind of a parameter of such a layer by its number of axes; weights of more axes, as of a convolution, decay too."""


class LayerFaultError(Exception):
    """A layer from outside the package breaks the contract: the outcome of its runs, no error of a command."""


class Plain(Architecture):
    """A torch.nn.Module given by its import path."""

    path: str
    """`package.module:Class`."""
    params: Mapping[str, Value]
    """Arguments of the class besides the model width."""

    def resolved(self, d_model: int) -> Self:
        self.state_size(d_model, 1)  # what is wrong with the class shows before anything is trained
        return self

    def make(self, d_model: int, seed: int = 0) -> nn.Module:
        """Make one module on the CPU; its class draws the parameters under a global seed, restored afterwards.

        Raise UnknownNameError if the path names nothing, SpecError if it names no `torch.nn.Module` or the parameters
        do not fit.
        """
        cls = self.find_class()
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(seed)
                return self.instantiate(cls, d_model)
        except Exception as error:  # a class from outside may raise anything, and a wrong parameter is its likely cause
            text = first_line(error)
            raise SpecError(f"{self.path} is built as Class(d_model, parameters): {text}; check them") from error

    def find_class(self) -> type[nn.Module]:
        """Import the class; raise UnknownNameError if there is none, SpecError if it is no module."""
        cls = import_object(self.path)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise SpecError(f"a path names a class of torch.nn.Module; {self.path} is {cls!r}; name the class")
        return cls

    def instantiate(self, cls: type[nn.Module], d_model: int) -> nn.Module:
        """Call the class at this model width."""
        return cls(d_model, **self.params)

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return PlainMixer(members, d_model, self)

    def state_size(self, d_model: int, length: int) -> StateSize | None:
        count = getattr(self.make(d_model), "state_elements", None)
        if count is None:
            return None
        try:
            told = count(length)
            elements = int(told)
        except Exception as error:  # a method from outside may raise anything
            raise SpecError(
                f"{self.path} counts its state by state_elements({length}): {first_line(error)}; mend it"
            ) from error
        if elements != told or elements < 0:
            raise SpecError(
                f"state_elements(length) returns a whole number from 0 up; {self.path} returned {told!r}; mend it"
            )
        return StateSize(cache=elements)

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
            marked(
                nn.Parameter(torch.empty(members, *own.shape)), decay=True, kind=KIND_BY_AXES.get(own.dim(), "table")
            )
            for own in self.template["module"].parameters()
        )

    @torch.no_grad()
    def initialise(self, seeds: Sequence[int], path: str) -> None:
        """Let the class draw its own parameters, from the member's seed and the layer's qualified name."""
        for row, seed in enumerate(seeds):
            fresh = self.config.make(self.d_model, random.stream("init", seed, path) % 2**63)
            for stacked, own in zip(self.stacked, fresh.parameters(), strict=True):
                stacked[row].copy_(own)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        return torch.stack([self.call(x[m], [p[m] for p in self.stacked]) for m in range(x.shape[0])])

    def call(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Call the module with the parameters of one member, [B, T, C] -> [B, T, C].

        Raise LayerFaultError if the output has another shape.
        """
        module = self.template["module"].to(x.device)
        y = functional_call(module, dict(zip(self.names, parameters, strict=True)), (x,))
        if not isinstance(y, Tensor) or y.shape != x.shape:
            found = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise LayerFaultError(
                f"a layer maps [B, T, C] to [B, T, C]; {self.config.path} maps {list(x.shape)} to {found}; return one "
                "tensor of the shape of the input"
            )
        return y

    def check_influence(self, x: Tensor) -> None:
        """Check the first member on two inputs, [2, B, T, C], as it starts and with all parameters moved.

        Raise LayerFaultError if an output changes with a later token or with another example.
        """
        start = [p[0] for p in self.stacked]
        moved = [nudge(name, p) for name, p in zip(self.names, start, strict=True)]
        for parameters, largest in ((start, math.inf), (moved, sys.float_info.max)):  # moved, it may overflow
            layer = partial(self.call, parameters=parameters)
            for source, influence in (("later tokens", later_influence), ("other examples", example_influence)):
                change = influence(layer, x[0], x[1])
                if ROUNDING[x.dtype] < change <= largest:
                    raise LayerFaultError(
                        f"an output depends on its own example, and on no later token; {self.config.path} sees {source}"
                        f", which change its outputs by {change:.2g} of the largest; make it causal, with the help of "
                        f"`icl-bench check-arch {self.config.path}`"
                    )

    def initial_state(self, batch: int) -> Any:
        raise SpecError(f"{self.config.path} has no recurrent form here; evaluate it in parallel")

    def step(self, x: Tensor, state: Any, position: int, first: FirstLayer | None = None) -> tuple[Tensor, Any]:
        raise SpecError(f"{self.config.path} has no recurrent form here; evaluate it in parallel")


def first_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
