"""The multi-head mixer that power, linear, window and softmax attention share; they differ in their memory alone.

q, k, v = conv(x W_qkv)         short causal convolution of width `conv`, none where 0
q, k = rope(q), rope(k)         rotation by position (Su et al., arXiv 2104.09864), where `rope`
log g = log sigmoid(x W_g + b)  one gate for each token and key-value head, where `gate`
y = memory(q, k, v, log g)      what the architecture is
out = norm(y) W_o               norm: per-head RMS, where the memory asks for it
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import Architecture, Flops, Mixer, StateSize
from icl_bench.architectures.layers import Linear, RMSNorm, ShortConv
from icl_bench.errors import SpecError
from icl_bench.kernels.fleet.rows import take_rows

GATE_START = 6.0
"""Bias of a gate at the start: sigmoid(6) = 0.9975, a horizon of about 400 tokens."""
ROPE_BASE = 10_000.0


class Memory(ABC):
    """What is kept of keys and values: arguments are [N, T, H, K], [N, T, G, K], [N, T, G, V] and [N, T, G] or None."""

    normalise_output: bool = False
    """Whether the output of each head goes through an RMS norm."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        """The parallel form: [N, T, H, V]."""

    @abstractmethod
    def initial_state(self, n: int, like: Tensor) -> Any:
        """The empty memory of n sequences, with the device and dtype of `like`."""

    @abstractmethod
    def step(self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """One token: the arguments without the axis T."""


class HeadsArchitecture(Architecture):
    """Base of the architectures whose mixer is `HeadsMixer`: the factors that all of them share."""

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
    """Whether queries and keys are rotated by position; needs an even key width."""
    gate: bool = False
    """Whether scores decay by a learned gate for each token and key-value head."""

    @abstractmethod
    def memory(self, impl: str) -> Memory:
        """The memory, of a resolved architecture."""

    @abstractmethod
    def memory_size(self, length: int) -> StateSize:
        """State of the memory after `length` tokens, of a resolved architecture."""

    @abstractmethod
    def memory_flops(self, length: int) -> float:
        """Work of the memory on one token, of a resolved architecture."""

    def resolved(self, d_model: int) -> Self:
        width = d_model // self.heads
        if width < 1 and (self.d_key is None or self.d_value is None):
            raise SpecError(
                f"heads must be at most the model width {d_model}; got {self.heads}; give d_key and d_value"
            )
        given = {"kv_heads": self.heads, "d_key": width, "d_value": width}
        missing = {name: value for name, value in given.items() if getattr(self, name) is None}
        full = self.model_copy(update=missing)
        if full.heads % full.key_value_heads:
            raise SpecError(
                f"heads must be a multiple of kv_heads = {full.kv_heads}; got {full.heads}; change one of them"
            )
        if full.rope and full.key_width % 2:
            raise SpecError(f"rope needs an even d_key; got {full.d_key}; change d_key or set rope=false")
        return full

    @property
    def key_value_heads(self) -> int:
        """G, of a resolved architecture."""
        return self.kv_heads or self.heads

    @property
    def key_width(self) -> int:
        """K, of a resolved architecture."""
        assert self.d_key is not None
        return self.d_key

    @property
    def value_width(self) -> int:
        """V, of a resolved architecture."""
        assert self.d_value is not None
        return self.d_value

    @property
    def channels(self) -> int:
        """Width of queries, keys and values together."""
        return (self.heads + self.key_value_heads) * self.key_width + self.key_value_heads * self.value_width

    def build(self, members: int, d_model: int, gain: float, impl: str) -> Mixer:
        return HeadsMixer(members, d_model, self.resolved(d_model), gain, impl)

    def state_size(self, d_model: int, length: int) -> StateSize:
        full = self.resolved(d_model)
        tail = StateSize(cache=max(0, full.conv - 1) * full.channels)
        return full.memory_size(length).plus(tail)

    def flops(self, d_model: int, length: int) -> Flops:
        full = self.resolved(d_model)
        gates = full.key_value_heads if full.gate else 0
        projections = d_model * (full.channels + gates + full.heads * full.value_width)
        return Flops(2.0 * (projections + full.conv * full.channels), full.memory_flops(length))


class HeadsState(NamedTuple):
    """State of a `HeadsMixer`."""

    memory: Any
    tail: Tensor | None
    """Last inputs of the convolution, [M, B, conv - 1, channels]."""


class HeadsMixer(Mixer):
    """Projections, convolution, rotation and gate around a memory; see the module."""

    def __init__(self, members: int, d_model: int, config: HeadsArchitecture, gain: float, impl: str) -> None:
        super().__init__()
        self.config = config
        self.memory = config.memory(impl)
        self.project = Linear(members, d_model, config.channels)
        self.conv = ShortConv(members, config.channels, config.conv) if config.conv else None
        self.gate = Linear(members, d_model, config.key_value_heads, bias=GATE_START) if config.gate else None
        self.norm = RMSNorm(members, config.value_width) if self.memory.normalise_output else None
        self.output = Linear(members, config.heads * config.value_width, d_model, gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.recalled(x))

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        y = self.recalled(x)
        return self.finish(take_rows(y.flatten(-2), positions).unflatten(-1, y.shape[-2:]))

    def recalled(self, x: Tensor) -> Tensor:
        """What the memory gives: [M, B, T, C] -> [M, B, T, H, V]."""
        members, batch, length, _ = x.shape
        qkv = self.project(x)
        if self.conv is not None:
            qkv = self.conv(qkv)
        q, k, v = self.split(qkv)
        if self.config.rope:
            q, k = rotate(q, k, torch.arange(length, device=x.device))
        fold = (members * batch, length)
        log_g = self.log_gate(x)
        y = self.memory.attend(
            q.reshape(*fold, *q.shape[3:]),
            k.reshape(*fold, *k.shape[3:]),
            v.reshape(*fold, *v.shape[3:]),
            None if log_g is None else log_g.reshape(*fold, -1),
        )
        return y.view(members, batch, length, *y.shape[2:])

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., channels] -> q [..., H, K], k [..., G, K], v [..., G, V]."""
        full = self.config
        keys = full.key_value_heads * full.key_width
        q, k, v = qkv.split([full.heads * full.key_width, keys, full.key_value_heads * full.value_width], dim=-1)
        return (
            q.unflatten(-1, (full.heads, full.key_width)),
            k.unflatten(-1, (full.key_value_heads, full.key_width)),
            v.unflatten(-1, (full.key_value_heads, full.value_width)),
        )

    def log_gate(self, x: Tensor) -> Tensor | None:
        """[M, ..., C] -> [M, ..., G] float32, at most 0."""
        return None if self.gate is None else functional.logsigmoid(self.gate(x).float())

    def finish(self, y: Tensor) -> Tensor:
        """[M, ..., H, V] -> [M, ..., C]."""
        if self.norm is not None:
            y = self.norm(y)
        out: Tensor = self.output(y.flatten(-2))
        return out

    def initial_state(self, batch: int) -> HeadsState:
        weight = self.project.weight
        n = weight.shape[0] * batch
        tail = None
        if self.conv is not None:
            tail = weight.new_zeros(weight.shape[0], batch, self.conv.length - 1, self.config.channels)
        return HeadsState(self.memory.initial_state(n, weight), tail)

    def step(self, x: Tensor, state: HeadsState, position: int) -> tuple[Tensor, HeadsState]:
        qkv, tail = self.project(x), state.tail
        if self.conv is not None and tail is not None:
            qkv, tail = self.conv.step(qkv, tail)
        q, k, v = self.split(qkv)
        if self.config.rope:
            q, k = rotate(q, k, torch.tensor(position, device=x.device))
        log_g = self.log_gate(x)
        y, memory = self.memory.step(
            q.flatten(0, 1),
            k.flatten(0, 1),
            v.flatten(0, 1),
            None if log_g is None else log_g.flatten(0, 1),
            state.memory,
        )
        return self.finish(y.view(*x.shape[:2], *y.shape[1:])), HeadsState(memory, tail)


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
