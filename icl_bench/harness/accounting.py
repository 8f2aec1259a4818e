"""State, work and parameters of a stack of layers, counted once for commands, results and matching."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from icl_bench.architectures import Architecture
from icl_bench.architectures.base import Flops, LayerContext, StateSize
from icl_bench.architectures.heads import HeadsArchitecture
from icl_bench.architectures.layers import CANON_TAPS
from icl_bench.errors import SpecError
from icl_bench.harness.resolve import arch_components, make_arch
from icl_bench.runs.spec import Canon, ModelSpec
from icl_bench.schema import LARGEST_PARAMETER, build

BFLOAT16_BYTES = 2


@dataclass(frozen=True, eq=False)
class Footprint:
    """The size and cost of a stack of mixers and its canon layers; embedding, MLP and head are left out.

    Each is counted when it is read. Raise SpecError where a mixer cannot have the canon layers.
    """

    layers: Sequence[Architecture]
    """Architecture of each layer."""
    d_model: int
    """Model width, C."""
    length: int
    """Tokens after which the state is counted, and over which the work of a token is averaged."""
    canon: Canon = "none"
    """Places of canon layers."""
    mlp_width: int = 0
    """Hidden width of the MLP, for a canon layer inside it."""

    @cached_property
    def canon_channels(self) -> int:
        """Channels of all canon layers."""
        around = {"a": self.d_model, "c": self.d_model, "d": 2 * self.mlp_width}
        total = len(self.layers) * sum(width for place, width in around.items() if place in self.canon)
        return total + sum(layer.canon_width(self.d_model) for layer in self.layers if "b" in self.canon)

    @cached_property
    def state(self) -> StateSize | None:
        """Recurrent state of one sequence over all layers; None where the state of a layer is unknown."""
        total = StateSize(cache=(CANON_TAPS - 1) * self.canon_channels)
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
        canon = 2.0 * CANON_TAPS * self.canon_channels
        known = [one.state for one in flops if one.state is not None]
        return Flops(sum(one.weights for one in flops) + canon, sum(known) if len(known) == len(flops) else None)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the mixers and the canon layers."""
        places = [LayerContext(i, len(self.layers)) for i in range(len(self.layers))]
        counts = [layer.count_parameters(self.d_model, at) for layer, at in zip(self.layers, places, strict=True)]
        return CANON_TAPS * self.canon_channels + sum(counts)


def quadratic_work(layers: Sequence[Architecture], d_model: int, length: int) -> float | None:
    """Return the operations of a token, averaged over a row, if each layer compares it with all earlier ones.

    These are 2 H (K + V) for each token seen, of attention, a window and power attention; None for other layers.
    """
    total = 0.0
    for layer in layers:
        if not isinstance(layer, HeadsArchitecture) or layer.operator not in ("attention", "power"):
            return None
        work = layer.flops(d_model, length).state
        compared = 2.0 * layer.heads * (layer.key_width + layer.value_width) * (length + 1) / 2
        total += compared if layer.operator == "power" else work or 0.0
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
    state_flops: float | None
    """Forward operations per token between activations and the state; none if a layer from outside does not tell."""
    ratio: float | None
    """Weight-state FLOP ratio; none if the layers do no work on a state, or do not tell."""


def account(text: str, d_model: int, layers: int, length: int) -> Account:
    """Count an architecture as typed; raise IclBenchError if there is none, or its state is unknown."""
    build(ModelSpec, {"d_model": d_model, "layers": layers}, "model")
    if length > LARGEST_PARAMETER:
        raise SpecError(f"a state is counted after at most {LARGEST_PARAMETER} tokens; got more; lower --length")
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
