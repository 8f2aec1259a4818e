"""The multi-head mixer, a frame around the recurrence of an architecture, its core.

q, k, v = act(conv(x W_qkv))    short causal convolution of width `conv`, none where 0; act: none or silu
q, k = norm(q), norm(k)         none, l2 or RMS, for each head
q, k = rope(q), rope(k)         rotation by position (Su et al., arXiv 2104.09864), where `rope`
log g = log sigmoid(x W_g + b)  one gate for each token and key-value head, where `gate`; divided by `gate_divisor`
y = core(q, k, v, log g)        the recurrence of the architecture
out = (norm(y) * act(x W)) W_o  norm: none, of each head, or of all heads together; output gate: none, silu or sigmoid

Linear, power, softmax and window attention have the parameters below; each other architecture has its own and says
which of these parts it takes.
"""

from abc import abstractmethod
from typing import ClassVar, Self

from pydantic import Field

from icl_bench.architectures.base import (
    ARCHITECTURES,
    Architecture,
    Flops,
    Knob,
    LayerContext,
    Mixer,
    StateSize,
)
from icl_bench.architectures.decays import INITIAL_GATE_BIAS, DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout, HeadsMixer, KeyNorm, OutputGate
from icl_bench.architectures.initialisation import constant
from icl_bench.errors import SpecError
from icl_bench.schema import later

WIDEST_MATCHED_KEY = 2048


def value_widths(config: "HeadsArchitecture", d_model: int, length: int) -> list[int]:
    """Return value widths from half to twice model width / heads, nearest to it first."""
    width = max(1, d_model // config.heads)
    return sorted(range(max(1, width // 2), 2 * width + 1), key=lambda value: abs(value - width))


KEY_WIDTH = Knob("d_key", lambda config, d_model, length: range(1, WIDEST_MATCHED_KEY + 1))
VALUE_WIDTH = Knob("d_value", value_widths)


class MultiHead(Architecture):
    """Base of the architectures whose mixer is `HeadsMixer`."""

    @property
    @abstractmethod
    def layout(self) -> HeadsLayout:
        """Sizes and parts, of a resolved architecture."""

    @abstractmethod
    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        """Make the core of a resolved architecture, parameters not yet drawn; `gate` is None without a shared gate."""

    @abstractmethod
    def core_size(self, length: int) -> StateSize:
        """Count the state of the core after `length` tokens, of a resolved architecture."""

    @abstractmethod
    def core_flops(self, d_model: int, length: int) -> Flops:
        """Count the work of the core on one token, its own parameters included, of a resolved architecture."""

    @property
    def gate_heads(self) -> int:
        """Heads of the shared decay gate, of a resolved architecture; 0 without one."""
        return 0

    def make_gate(self, members: int, d_model: int) -> DecayGate:
        """Make the shared decay gate of a resolved architecture that has one."""
        return DecayGate(members, d_model, self.gate_heads)

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        full = self.resolved(d_model)
        gate = full.make_gate(members, d_model) if full.gate_heads else None
        return HeadsMixer(members, d_model, full.layout, full.core(members, d_model, gate, layer), gate, layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        full = self.resolved(d_model)
        tail = StateSize(cache=max(0, full.layout.conv - 1) * full.layout.mixed)
        return full.core_size(length).plus(tail).plus(StateSize(sums=full.layout.rotated_heads))

    def key_rank(self, d_model: int) -> tuple[int, int] | None:
        layout = self.resolved(d_model).layout
        return None if layout.silu else (min(layout.key_width, d_model), layout.key_width)

    def canon_width(self, d_model: int) -> int:
        layout = self.resolved(d_model).layout
        if layout.conv:
            raise SpecError(
                f"canon at b takes the place of the convolution of {ARCHITECTURES.name_of(type(self))}; got conv = "
                f"{layout.conv}; set conv=0, or leave b out of model.canon"
            )
        return layout.channels

    def flops(self, d_model: int, length: int) -> Flops:
        full = self.resolved(d_model)
        layout = full.layout
        projections = d_model * (layout.channels + full.gate_heads + layout.rotated_heads + layout.output_width)
        projections += layout.gate_weights(d_model)
        core = full.core_flops(d_model, length)
        return Flops(2.0 * (projections + layout.conv * layout.mixed) + core.weights, core.state)


class HeadsArchitecture(MultiHead):
    """Base of linear, power, softmax and window attention: the factors that all of them share."""

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
    silu: bool = later(False)
    """Apply SiLU to queries, keys and values, after the convolution."""
    key_norm: KeyNorm = later("none")
    """Norm of queries and keys for each head: none, `l2`, or `rms` with a learned gain."""
    output_norm: bool = later(False)
    """Apply an RMS norm to the output of each head, after the division by the sum of scores."""
    output_gate: OutputGate = later("none")
    """Multiply the output by the `silu` or the `sigmoid` of x W."""
    gate_bias: float = later(INITIAL_GATE_BIAS)
    """Bias of the decay gate at the start."""
    gate_divisor: float = later(1.0, gt=0)
    """Divisor of the logarithm of the decay gate."""
    norm_eps: float = later(1e-6, ge=1e-24)
    """Added to the mean square in the RMS norms of queries, keys and the output; below 1e-24 a gradient overflows."""
    learned_rope: bool = later(False)
    """Let the speed of the rotation depend on the token, 1 + tanh(x W) for each key-value head; needs `rope`."""

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
        if full.learned_rope and not full.rope:
            raise SpecError("learned_rope sets the speed of rope; got rope=false; set rope=true")
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
    def gate_heads(self) -> int:
        return self.key_value_heads if self.gate else 0

    def make_gate(self, members: int, d_model: int) -> DecayGate:
        return DecayGate(members, d_model, self.gate_heads, constant(self.gate_bias), divisor=self.gate_divisor)

    @property
    def layout(self) -> HeadsLayout:
        return HeadsLayout(
            query_heads=self.heads,
            key_heads=self.key_value_heads,
            value_heads=self.key_value_heads,
            key_width=self.key_width,
            value_width=self.value_width,
            conv=self.conv,
            silu=self.silu,
            key_norm=self.key_norm,
            rope=self.rope,
            learned_rope=self.learned_rope,
            output_norm="head" if self.output_norm else "none",
            output_gate=self.output_gate,
            norm_eps=self.norm_eps,
            decay_norms=True,
        )


class HeadSizes(Architecture):
    """Base of the mixers whose state is a matrix for each head: their sizes."""

    size_parameters: ClassVar[tuple[str, ...]] = ("heads", "d_key", "d_value")
    knobs: ClassVar = {"width": (KEY_WIDTH, VALUE_WIDTH)}

    heads: int = Field(default=4, ge=1)
    """Heads, H."""
    d_key: int | None = Field(default=None, ge=1)
    """Key width of a head, K."""
    d_value: int | None = Field(default=None, ge=1)
    """Value width of a head, V."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        """Return the key and the value width of a head where they are not given."""
        return d_model // self.heads, d_model // self.heads

    def resolved(self, d_model: int) -> Self:
        given = dict(zip(("d_key", "d_value"), self.default_widths(d_model), strict=True))
        full = self.model_copy(update={name: value for name, value in given.items() if getattr(self, name) is None})
        if min(full.key_width, full.value_width) < 1:
            raise SpecError(f"heads must be at most the model width {d_model}; got {self.heads}; set d_key and d_value")
        return full

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


class RecurrentHeads(HeadSizes, MultiHead):
    """Base of the multi-head mixers whose state is a matrix for each head: their layout, and the count of the state."""

    conv: int = Field(default=4, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    def resolved(self, d_model: int) -> Self:
        full = super().resolved(d_model)
        if full.layout.rope and full.key_width % 2:
            raise SpecError(f"rotated keys have an even d_key; got {full.d_key}; change d_key")
        return full

    @property
    def layout(self) -> HeadsLayout:
        return HeadsLayout(self.heads, self.heads, self.heads, self.key_width, self.value_width, conv=self.conv)

    def key_rank(self, d_model: int) -> tuple[int, int] | None:
        full = self.resolved(d_model)
        return None if full.layout.silu else (min(full.key_width, d_model), full.key_width)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=self.layout.value_heads * self.key_width * self.value_width)
