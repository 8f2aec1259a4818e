"""Lower degrees of power attention, read from the state of degree p with a share for each head.

    y_t = r_p + sum_m theta_m c_m r_(p-2m),   r_j = sum_i g_ti (a q_t·k_i)^j (a |q_t| |k_i|)^(p-j) v_i
    c_m = (-1)^m p! / (m! (p - 2m)! 2^m) / ((K + 2p - 2) (K + 2p - 4) ..)   m factors, m = 1 .. p // 2

At theta = 0 this is power attention of degree p. At theta = 1 the sum of scores is the monic Gegenbauer polynomial of
parameter K / 2, whose mean square over random directions of keys is the least: with keys of length 1 its noise of
recall is 1 / D, that of the power (2p - 1)!! / (K (K + 2) .. (K + 2p - 2)) > 1 / D. A large theta makes the degree
p - 2. The lower terms are contractions of the state of degree p, so that they cost no state.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from icl_bench.architectures.base import LayerContext
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import fold
from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import Coefficients, StackedLinear, widen
from icl_bench.architectures.sums import PowerCore, ScoreGain, ScoreOffset, Sums
from icl_bench.kernels.power.records import PowerInputs, PowerState
from icl_bench.kernels.power.relative import relative_attention, relative_step
from icl_bench.kernels.power.spectrum import spectrum_step
from icl_bench.schema import READS_NONE

Spectrum = Annotated[Literal["none", "learned", "length", "token", "centred"], READS_NONE]
"""Shares of the lower degrees: none, `learned`, learned by `length` or by `token`, or all 1 (`centred`)."""


def centred_weights(p: int, key_width: int) -> list[float]:
    """Return c_1, c_2, .. of the degrees p - 2, p - 4, .. of the monic Gegenbauer polynomial of parameter K / 2.

    >>> centred_weights(2, 8)  # s^2 - 1 / (K + 2)
    [-0.1]
    """
    weights = []
    for m in range(1, p // 2 + 1):
        falling = math.prod(key_width + 2 * p - 2 * i for i in range(1, m + 1))
        count = math.factorial(p) / (math.factorial(m) * math.factorial(p - 2 * m) * 2**m)
        weights.append((-1) ** m * count / falling)
    return weights


class SpectrumShares(nn.Module):
    """theta_m c_m for each query head, from theta_m = t_m + s_m log(1 + position) + x W: x [M, B, (T,) C] -> [.., m].

    `learned` has t, `length` has t and s, `token` has t and W, all 0 at the start; `centred` is theta = 1.
    """

    def __init__(self, members: int, d_model: int, heads: int, kind: Spectrum, p: int, key_width: int) -> None:
        super().__init__()
        self.heads, self.centre = heads, centred_weights(p, key_width)
        size, zero = heads * (p // 2), constant(0.0)
        # one axis beside that of the members, so that working copies keep float32
        self.level = None if kind == "centred" else Coefficients(members, (size,), zero)
        self.slope = Coefficients(members, (size,), zero) if kind == "length" else None
        self.by_token = StackedLinear(members, d_model, size, gain=0.0) if kind == "token" else None

    def forward(self, x: Tensor, position: int | None = None) -> Tensor:
        """Return weights [M, B | 1, (T | 1,) H, p // 2] for all T tokens of x, or for the one at `position`."""
        row = widen(x)[..., :1]
        centre = torch.stack([row.new_full((), weight) for weight in self.centre])
        if self.level is None:
            return centre.expand(*(1 for _ in x.shape[:-1]), self.heads, -1)
        theta: Tensor = self.level(row)
        if self.slope is not None:
            theta = theta + self.slope(row) * self.logarithms(row, position)
        if self.by_token is not None:
            theta = theta + widen(self.by_token(x))
        weights: Tensor = theta.unflatten(-1, (self.heads, -1)) * centre
        return weights

    def logarithms(self, row: Tensor, position: int | None) -> Tensor | float:
        """Return log(1 + position) of all tokens of a row [M, B, T, 1], as [T, 1], or of one token."""
        if position is not None:
            return math.log1p(position)
        return torch.arange(row.shape[2], device=row.device, dtype=row.dtype)[:, None].log1p()


class SpectrumCore(PowerCore):
    """Power attention that reads lower degrees too."""

    def __init__(
        self,
        sums: Sums,
        layer: LayerContext,
        gate: DecayGate | None,
        features: Callable[[Tensor], Tensor],
        offset: ScoreOffset | None,
        shares: SpectrumShares,
        gain: ScoreGain | None = None,
    ) -> None:
        super().__init__(sums, layer, gate, features, offset, gain)
        self.shares = shares

    def weights(self, x: Tensor, position: int | None = None) -> Tensor:
        """Return the weights of lower degrees, [M B or M or 1, (T | 1,) H, p // 2], by token or alike in a batch."""
        return fold(self.shares(x, position))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return self.read_degrees(self.operands(q, k, v, x), self.weights(x))

    def step_at(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: PowerState, position: int
    ) -> tuple[Tensor, PowerState]:
        inputs = PowerInputs(*self.operands(q, k, v, x).folded(), state)
        y, state = spectrum_step(inputs, self.weights(x, position), p=self.sums.p, scale=self.sums.scale)
        return y.unflatten(0, q.shape[:2]), state


class RelativeCore(PowerCore):
    """Power attention whose sum of scores is raised by a share of its largest value; see `kernels.power.relative`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        sums, inputs = self.sums, PowerInputs(*self.operands(q, k, v, x).folded(), None)
        y = relative_attention(inputs, p=sums.p, eps=sums.eps, scale=sums.scale, impl=self.impl)
        out: Tensor = y.unflatten(0, q.shape[:2])
        return out

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: PowerState) -> tuple[Tensor, PowerState]:
        sums, inputs = self.sums, PowerInputs(*self.operands(q, k, v, x).folded(), state)
        y, state = relative_step(inputs, p=sums.p, eps=sums.eps, scale=sums.scale)
        return y.unflatten(0, q.shape[:2]), state
