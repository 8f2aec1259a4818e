"""H3: a shifted memory and a diagonal state-space memory around products of keys and values.

    q, k, v = x W + b,   k'_t = sum_(j < N) w_j k_(t-j) + D_k k_t
    m_t[a, b] = sum_(s <= t) f(t - s) k'_s[a] v_s[b] + D k'_t[a] v_t[b] in each head
    out_t = (sum_a q_t[a] m_t[a]) W_o + b_o
    f(l) = 2 Re sum_(n < N/2) C_n B_n' A_n'^l,   A' = (1 + d A / 2) / (1 - d A / 2),   B' = d B / (1 - d A / 2)

N = `d_state` taps and real numbers of state for each product; heads have `d_head` channels a, and as many b. A starts
at -1/2 + pi i n, B at 1, C normal, d log-uniform from 0.001 to 0.1; each head has its own. State: (N - 1) C keys, and
N `d_head` sums for each channel. Work a token: 4 operations for each sum. Source: Fu et al. (arXiv 2212.14052), with
the diagonal memory of S4D (arXiv 2206.11893).
"""

import math
from typing import ClassVar, NamedTuple, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import (
    ARCHITECTURES,
    Architecture,
    FirstLayer,
    Flops,
    Knob,
    LayerContext,
    Mixer,
    StateSize,
)
from icl_bench.architectures.frame import fold
from icl_bench.architectures.initialisation import constant, fixed, log_uniform, mapped, normal, uniform_between
from icl_bench.architectures.layers import Coefficients, ShortConv, Stacked, StackedLinear, widen
from icl_bench.errors import SpecError
from icl_bench.kernels.fleet.convolution import short_convolution
from icl_bench.kernels.fleet.head_pairs import pair_heads, read_heads
from icl_bench.kernels.long_convolution.api import ConvolutionImpl, long_convolution

BLOCK = 32
"""Distances whose powers are made at once; all others are products of two powers."""


@ARCHITECTURES.register("h3")
class H3(Architecture):
    """H3: products of shifted keys and values, kept by a diagonal state-space model."""

    family = "convolution"
    operator = "long_convolution"

    size_parameters = ("d_state", "d_head")
    shown = ("d_state",)
    knobs: ClassVar = {
        "width": (
            Knob("d_state", lambda config, d_model, length: range(2, 513, 2)),
            Knob("d_head", lambda config, d_model, length: (2, 1, 4, 8)),
        )
    }

    d_state: int | None = Field(default=None, ge=2)
    """Taps of the shifted memory, and numbers of state for each product, N, even; a quarter of the model width."""
    d_head: int = Field(default=2, ge=1)
    """Channels of a head, which divides the model width."""

    def resolved(self, d_model: int) -> Self:
        width = self.d_state or max(2, d_model // 8 * 2)
        if width % 2:
            raise SpecError(f"d_state must be even, as states are complex numbers; got {width}; change it by one")
        if d_model % self.d_head:
            raise SpecError(f"d_head must divide the model width {d_model}; got {self.d_head}; change d_head")
        return self.model_copy(update={"d_state": width})

    def width(self, d_model: int) -> int:
        """Return the number of taps, and of numbers of state for each product."""
        return cast(int, self.resolved(d_model).d_state)

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return H3Mixer(members, d_model, self.width(d_model), self.d_head, layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        width = self.width(d_model)
        return StateSize(sums=d_model * self.d_head * width, cache=(width - 1) * d_model)

    def flops(self, d_model: int, length: int) -> Flops:
        width = self.width(d_model)
        return Flops(2.0 * d_model * (4 * d_model + width), 4.0 * d_model * self.d_head * width)


class DiagonalMemory(Stacked):
    """The filters of a diagonal state-space model, [M, heads, T], and its recurrent form."""

    log_decay: Tensor
    frequency: Tensor
    log_step: Tensor
    direct: Tensor

    def __init__(self, members: int, heads: int, pairs: int) -> None:
        super().__init__(members)
        self.heads, count, part = heads, heads * pairs, normal(0.5**0.5)
        frequencies = (math.pi * torch.arange(pairs, dtype=torch.float64)).repeat(heads)
        self.declare("log_decay", (count,), constant(math.log(0.5)), decay=False)
        self.declare("frequency", (count,), fixed(frequencies), decay=False)
        self.declare("log_step", (heads,), mapped(log_uniform(1e-3, 1e-1), torch.log), decay=False)
        self.declare("read_real", (count,), part, decay=False)
        self.declare("read_imaginary", (count,), part, decay=False)
        self.declare("write_real", (count,), constant(1.0), decay=False)
        self.declare("write_imaginary", (count,), constant(0.0), decay=False)
        self.declare("direct", (heads,), normal(1.0), decay=False)

    def complex(self, name: str) -> Tensor:
        """Return the complex numbers of a name, [M, heads, N / 2]."""
        real, imaginary = (getattr(self, f"{name}_{part}") for part in ("real", "imaginary"))
        both: Tensor = torch.complex(real, imaginary).unflatten(-1, (self.heads, -1))
        return both

    def discrete(self) -> tuple[Tensor, Tensor]:
        """Return the transitions A' and the products of read and write coefficients C B', [M, heads, N / 2]."""
        continuous = torch.complex(-self.log_decay.exp(), self.frequency).unflatten(-1, (self.heads, -1))
        step = self.log_step.exp()[..., None]
        divisor = 1 - continuous * (step / 2)
        return (1 + continuous * (step / 2)) / divisor, self.complex("read") * self.complex("write") * step / divisor

    def forward(self, taps: int) -> Tensor:
        transitions, weights = self.discrete()
        logs, short = transitions.log(), torch.arange(BLOCK, device=transitions.device)
        long = torch.arange(-(-taps // BLOCK), device=transitions.device) * BLOCK
        blocks = weights[:, :, None] * (logs[:, :, None] * long[:, None]).exp()
        within = (logs[..., None] * short).exp()
        filters = 2 * (blocks @ within).real.flatten(-2)[..., :taps]
        return torch.cat([filters[..., :1] + self.direct[..., None], filters[..., 1:]], dim=-1)

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one token: products [M, B, heads, P], state [M, B, heads, P, N / 2, 2] -> outputs and the state."""
        transitions, weights = (part[:, None, :, None] for part in self.discrete())
        state = torch.view_as_real(torch.view_as_complex(state) * transitions + inputs[..., None])
        read = 2 * (torch.view_as_complex(state) * weights).real.sum(-1)
        return read + self.direct[:, None, :, None] * inputs, state


class H3State(NamedTuple):
    """State of an `H3Mixer`."""

    keys: Tensor
    """Last keys, [M, B, N - 1, C]."""
    sums: Tensor
    """Complex state of each product, [M, B, heads, d_head^2, N / 2, 2]."""


class H3Mixer(Mixer):
    """Two memories around products of keys and values; see the module."""

    def __init__(self, members: int, d_model: int, width: int, d_head: int, layer: LayerContext) -> None:
        super().__init__()
        self.d_head, self.width, self.impl = d_head, width, cast(ConvolutionImpl, layer.impl)
        bound = (6 / width) ** 0.5
        self.project = StackedLinear(members, d_model, 3 * d_model, bias=constant(0.0), decay=False)
        self.shift = ShortConv(members, d_model, width, taps=uniform_between(-bound, bound))
        self.direct = Coefficients(members, (d_model,), normal(1.0))
        self.memory = DiagonalMemory(members, d_model // d_head, width // 2)
        self.output = StackedLinear(members, d_model, d_model, layer.output_gain, bias=constant(0.0), decay=False)

    def shifted_keys(self, k: Tensor) -> Tensor:
        """Return k' of all tokens: the direct coefficients of keys are part of the first tap."""
        taps, direct = self.shift.weight, self.direct.weight[:, None]
        return short_convolution(k, torch.cat([taps[:, :1] + direct.to(taps.dtype), taps[:, 1:]], dim=1))

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        q, k, v = self.project(x).chunk(3, dim=-1)
        inputs = pair_heads(self.shifted_keys(k), v, self.d_head)
        filters = self.memory(x.shape[2]).repeat_interleave(self.d_head**2, dim=1)
        y = long_convolution(fold(inputs), filters, impl=self.impl)
        return self.output(read_heads(q, y.view(inputs.shape), self.d_head))

    def initial_state(self, batch: int) -> H3State:
        keys = self.shift.initial_tail(batch)
        shape = (keys.shape[0], batch, self.memory.heads, self.d_head**2, self.width // 2, 2)
        return H3State(keys, widen(keys).new_zeros(shape))

    def step(self, x: Tensor, state: H3State, position: int, first: FirstLayer | None = None) -> tuple[Tensor, H3State]:
        q, k, v = self.project(x).chunk(3, dim=-1)
        shifted, keys = self.shift.step(k, state.keys)
        pairs = pair_heads(shifted + self.direct(k) * k, v, self.d_head)
        memory, sums = self.memory.step(widen(pairs).unflatten(-1, (self.memory.heads, -1)), state.sums)
        return self.output(read_heads(q, memory.to(q.dtype).flatten(-2), self.d_head)), H3State(keys, sums)
