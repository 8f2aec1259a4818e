"""State, work and parameters of a stack of layers, counted once for commands, results and matching."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from icl_bench.architectures import Architecture
from icl_bench.architectures.base import Flops, LayerContext, StateSize
from icl_bench.errors import SpecError
from icl_bench.harness.resolve import arch_components, make_arch

BFLOAT16_BYTES = 2


@dataclass(frozen=True, eq=False)
class Footprint:
    """The size and cost of a stack of mixers; embedding, MLP and head are left out. Each is counted when it is read."""

    layers: Sequence[Architecture]
    """Architecture of each layer."""
    d_model: int
    """Model width, C."""
    length: int
    """Tokens after which the state is counted, and over which the work of a token is averaged."""

    @cached_property
    def state(self) -> StateSize | None:
        """Recurrent state of one sequence over all layers; None where the state of a layer is unknown."""
        total = StateSize()
        for layer in self.layers:
            size = layer.state_size(self.d_model, self.length)
            if size is None:
                return None
            total = total.plus(size)
        return total

    @cached_property
    def flops(self) -> Flops:
        """Forward floating-point operations of a token over all layers."""
        flops = [layer.flops(self.d_model, self.length) for layer in self.layers]
        return Flops(sum(one.weights for one in flops), sum(one.state for one in flops))

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the mixers."""
        count, total = len(self.layers), 0
        with torch.device("meta"):
            for i, layer in enumerate(self.layers):
                mixer = layer.build(1, self.d_model, LayerContext(i, count))
                total += sum(parameter.numel() for parameter in mixer.parameters())
        return total


class Account(NamedTuple):
    """The counts of an architecture that `icl-bench state` prints, summed over all layers."""

    arch: str
    elements: int
    """Number of state elements after `length` tokens."""
    bytes: int
    """Size of the state in bytes: sums in float32, cached activations in bfloat16."""
    length: int
    params: int
    """Number of parameters of the mixers."""
    weight_flops: float
    """Forward operations per token between activations and parameters."""
    state_flops: float
    """Forward operations per token between activations and the state."""
    ratio: float | None
    """Weight-state FLOP ratio; none if the layers do no work on a state."""


def account(text: str, d_model: int, layers: int, length: int) -> Account:
    """Count an architecture as typed; raise IclBenchError if there is none, or its state is unknown."""
    components = arch_components(text, d_model)
    pattern = [make_arch(component) for component in components]
    size = Footprint([pattern[i % len(pattern)] for i in range(layers)], d_model, length)
    if size.state is None:
        unknown = next(c.name for c, layer in zip(components, pattern, strict=True) if not layer.state_size(d_model, 1))
        raise SpecError(
            f"the state of {unknown} is unknown: it has no method state_elements(length); add one to count it"
        )
    label, work = "+".join(component.label for component in components), size.flops
    counts = (size.state.elements, size.state.bytes(BFLOAT16_BYTES), length, size.parameters)
    return Account(label, *counts, work.weights, work.state, work.weights / work.state if work.state else None)
