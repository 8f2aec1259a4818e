"""The multi-head mixer that power, linear, window and softmax attention share; they differ in their core alone.

q, k, v = conv(x W_qkv)         short causal convolution of width `conv`, none where 0
q, k = rope(q), rope(k)         rotation by position (Su et al., arXiv 2104.09864), where `rope`
log g = log sigmoid(x W_g + b)  one gate for each token and key-value head, where `gate`
y = core(q, k, v, log g)        the recurrence of the architecture
out = norm(y) W_o               norm: per-head RMS, where the core asks for it
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from icl_bench.architectures.base import Architecture, FirstLayer, Flops, Knob, LayerContext, Mixer, StateSize
from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import RMSNorm, ShortConv, StackedLinear
from icl_bench.errors import SpecError
from icl_bench.kernels.fleet.rows import take_rows

INITIAL_GATE_BIAS = 6.0
"""Bias of a gate at the start: sigmoid(6) = 0.9975, a horizon of about 400 tokens."""
ROPE_BASE = 10_000.0
WIDEST_MATCHED_KEY = 2048


class DecayGate(StackedLinear):
    """log sigmoid(x W + b): one scalar decay for each token and key-value head."""

    def __init__(self, members: int, d_model: int, heads: int) -> None:
        super().__init__(members, d_model, heads, bias=constant(INITIAL_GATE_BIAS))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the gate, float32, at most 0: [M, ..., C] -> [M, ..., G]."""
        return functional.logsigmoid(super().forward(x).float())


class Core(nn.Module, ABC):
    """The recurrence of a multi-head mixer: it owns its parameters, reads its gates from x, and carries its state.

    Queries are [M, B, T, H, K], keys [M, B, T, G, K], values [M, B, T, G, V], and x, the input of the layer,
    [M, B, T, C]. The decay gate, None where `gate` is off, is registered by the layer and read by the core.
    """

    __call__: Callable[..., Tensor]
    normalise_output: bool = False
    """Apply an RMS norm to the output of each head."""
    asks_first_layer: bool = False
    """Let `blend` combine the values of each later layer with those of the first layer."""

    def __init__(self, gate: DecayGate | None = None) -> None:
        super().__init__()
        self.gates = (gate,)  # a tuple, so that it is not registered twice, which `functional_call` cannot undo

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """Compute the parallel form, causal in T: [M, B, T, H, V]."""

    @abstractmethod
    def initial_state(self, batch: int, like: Tensor) -> Any:
        """Return the state before the first token, for `like` [M, ...] and its device and dtype."""

    @abstractmethod
    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Compute one token: arguments without the axis T -> [M, B, H, V] and the next state."""

    def blend(self, v: Tensor, first: Tensor, x: Tensor) -> Tensor:
        """Combine values with those of the first layer, both [M, B, (T,) G, V], in a later layer that asks for them."""
        raise NotImplementedError

    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return q, k, v and the log decays of the gate, None without a gate, with members and batch in one axis."""
        (gate,) = self.gates
        return fold(q), fold(k), fold(v), None if gate is None else fold(gate(x))


def value_widths(config: "HeadsArchitecture", d_model: int, length: int) -> list[int]:
    """Return value widths from half to twice model width / heads, nearest to it first."""
    width = max(1, d_model // config.heads)
    return sorted(range(max(1, width // 2), 2 * width + 1), key=lambda value: abs(value - width))


KEY_WIDTH = Knob("d_key", lambda config, d_model, length: range(1, WIDEST_MATCHED_KEY + 1))
VALUE_WIDTH = Knob("d_value", value_widths)


class HeadsArchitecture(Architecture):
    """Base of the architectures whose mixer is `HeadsMixer`: the factors that all of them share."""

    size_parameters: ClassVar[tuple[str, ...]] = ("heads", "kv_heads", "d_key", "d_value")
    knobs: ClassVar = {"width": (KEY_WIDTH, VALUE_WIDTH)}

    heads: int = Field(default=4, ge=1)
    """Query heads, H."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Key-value heads, G, of which H is a multiple; H by default."""
    d_key: int | None = Field(default=None, ge=1)
    """Key width of a head, K; model width / heads by default."""
    d_value: int | None = Field(default=None, ge=1)
    """Value width of a head, V; model width / heads by default."""
    conv: int = Field(default=4, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""
    rope: bool = False
    """Rotate queries and keys by position; needs an even key width."""
    gate: bool = False
    """Let scores decay by a learned gate for each token and key-value head."""

    @abstractmethod
    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        """Make the core of a resolved architecture, parameters not yet drawn."""

    @abstractmethod
    def core_size(self, length: int) -> StateSize:
        """Count the state of the core after `length` tokens, of a resolved architecture."""

    @abstractmethod
    def core_flops(self, d_model: int, length: int) -> Flops:
        """Count the work of the core on one token, its own parameters included, of a resolved architecture."""

    def resolved(self, d_model: int) -> Self:
        width = d_model // self.heads
        if width < 1 and (self.d_key is None or self.d_value is None):
            raise SpecError(f"heads must be at most the model width {d_model}; got {self.heads}; set d_key and d_value")
        given = {"kv_heads": self.heads, "d_key": width, "d_value": width}
        missing = {name: value for name, value in given.items() if getattr(self, name) is None}
        full = self.model_copy(update=missing)
        if full.heads % full.key_value_heads:
            raise SpecError(f"heads must be a multiple of kv_heads = {full.kv_heads}; got {full.heads}; change either")
        if full.rope and full.key_width % 2:
            raise SpecError(f"rope needs an even d_key; got {full.d_key}; change d_key or set rope=false")
        return full

    @property
    def key_value_heads(self) -> int:
        """Number of key-value heads, G, of a resolved architecture."""
        return self.kv_heads or self.heads

    @property
    def key_width(self) -> int:
        """Key width of a head, K, of a resolved architecture."""
        assert self.d_key is not None
        return self.d_key

    @property
    def value_width(self) -> int:
        """Value width of a head, V, of a resolved architecture."""
        assert self.d_value is not None
        return self.d_value

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Key-value heads, key width and value width, of a resolved architecture."""
        return self.key_value_heads, self.key_width, self.value_width

    @property
    def channels(self) -> int:
        """Width of queries, keys and values together."""
        return (self.heads + self.key_value_heads) * self.key_width + self.key_value_heads * self.value_width

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return HeadsMixer(members, d_model, self.resolved(d_model), layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        full = self.resolved(d_model)
        tail = StateSize(cache=max(0, full.conv - 1) * full.channels)
        return full.core_size(length).plus(tail)

    def flops(self, d_model: int, length: int) -> Flops:
        full = self.resolved(d_model)
        gates = full.key_value_heads if full.gate else 0
        projections = d_model * (full.channels + gates + full.heads * full.value_width)
        core = full.core_flops(d_model, length)
        return Flops(2.0 * (projections + full.conv * full.channels) + core.weights, core.state)


class HeadsState(NamedTuple):
    """State of a `HeadsMixer`."""

    core: Any
    tail: Tensor | None
    """Last inputs of the convolution, [M, B, conv - 1, channels]."""


class HeadsMixer(Mixer):
    """Projections, convolution, rotation and gate around a core; see the module."""

    offers_values = True

    def __init__(self, members: int, d_model: int, config: HeadsArchitecture, layer: LayerContext) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.project = StackedLinear(members, d_model, config.channels)
        self.conv = ShortConv(members, config.channels, config.conv) if config.conv else None
        self.gate = DecayGate(members, d_model, config.key_value_heads) if config.gate else None
        self.core = config.core(members, d_model, self.gate, layer)
        self.norm = RMSNorm(members, config.value_width) if self.core.normalise_output else None
        self.output = StackedLinear(members, config.heads * config.value_width, d_model, layer.output_gain)

    @property
    def asks_first_layer(self) -> bool:
        return self.core.asks_first_layer

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        return self.project_out(self.mix(x, first))

    def forward_at(self, x: Tensor, positions: Tensor, first: FirstLayer | None = None) -> Tensor:
        y = self.mix(x, first)
        return self.project_out(take_rows(y.flatten(-2), positions).unflatten(-1, y.shape[-2:]))

    def mix(self, x: Tensor, first: FirstLayer | None) -> Tensor:
        """Compute the output of the core: [M, B, T, C] -> [M, B, T, H, V]."""
        qkv = self.project(x)
        if self.conv is not None:
            qkv = self.conv(qkv)
        q, k, v = self.split(qkv)
        if self.config.rope:
            q, k = rotate(q, k, torch.arange(x.shape[2], device=x.device))
        return self.core(q, k, self.exchange(v, x, first), x)

    def exchange(self, v: Tensor, x: Tensor, first: FirstLayer | None) -> Tensor:
        """Offer the values v [M, B, (T,) G, V] to later layers, or combine them with those of the first layer."""
        if first is not None and self.layer.index == 0:
            first.values = v
        elif first is not None and first.values is not None and self.core.asks_first_layer:
            return self.core.blend(v, first.values, x)
        return v

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split [..., channels] into q [..., H, K], k [..., G, K] and v [..., G, V]."""
        full, groups = self.config, self.config.key_value_heads
        shapes = [(full.heads, full.key_width), (groups, full.key_width), (groups, full.value_width)]
        parts = qkv.split([heads * width for heads, width in shapes], dim=-1)
        q, k, v = (part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True))
        return q, k, v

    def project_out(self, y: Tensor) -> Tensor:
        """Apply the norm, where there is one, and the output projection: [M, ..., H, V] -> [M, ..., C]."""
        if self.norm is not None:
            y = self.norm(y)
        return self.output(y.flatten(-2))

    def initial_state(self, batch: int) -> HeadsState:
        tail = None if self.conv is None else self.conv.initial_tail(batch)
        return HeadsState(self.core.initial_state(batch, self.project.weight), tail)

    def step(
        self, x: Tensor, state: HeadsState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, HeadsState]:
        qkv, tail = self.project(x), state.tail
        if self.conv is not None and tail is not None:
            qkv, tail = self.conv.step(qkv, tail)
        q, k, v = self.split(qkv)
        if self.config.rope:
            q, k = rotate(q, k, torch.tensor(position, device=x.device))
        y, core = self.core.step(q, k, self.exchange(v, x, first), x, state.core)
        return self.project_out(y), HeadsState(core, tail)


def rotate(q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate pairs (i, i + K/2) by position · base^(-2i/K): q, k [..., (T,) H, K], positions [T] or a scalar."""
    half = q.shape[-1] // 2
    frequencies = ROPE_BASE ** (-torch.arange(half, device=q.device, dtype=torch.float32) / half)
    angles = positions[..., None].float() * frequencies
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]

    def turn(x: Tensor) -> Tensor:
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)

    return turn(q), turn(k)


def fold(x: Tensor) -> Tensor:
    """Join members and batch, as the operators take them: [M, B, ...] -> [M·B, ...]."""
    return x.reshape(-1, *x.shape[2:])
