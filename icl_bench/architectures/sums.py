"""Cores over power attention: sums of expanded keys times values, decayed by one scalar for each token and head."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import DegreeRise, Flops, LayerContext, Rising, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, fold
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import Stacked, spread, widen
from icl_bench.kernels.fleet.records import ScoreRule
from icl_bench.kernels.power.api import PowerImpl, initial_power_state, power_attention, power_step
from icl_bench.kernels.power.records import Normalize, PowerInputs, PowerState
from icl_bench.kernels.power.spectrum import spectrum_attention


class Sums(NamedTuple):
    """Sizes of the sums, and options of power attention."""

    heads: int
    """Value heads, G."""
    key_width: int
    value_width: int
    """Width of the values as they are summed, V."""
    p: int = 1
    scale: float | None = None
    """Factor on q.k; 1 / sqrt(K) for None."""
    normalize: Normalize = "none"
    eps: float = 1e-6


class Operands(NamedTuple):
    """Arguments of power attention: [M, B, (T,) ., .] each."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None

    def folded(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the arguments with members and batch in one axis."""
        return fold(self.q), fold(self.k), fold(self.v), None if self.log_g is None else fold(widen(self.log_g))


FEATURE_WIDTH = 16
"""Key width of a head, by default, where the features of a key are quadratic in its width."""


class FeatureHeads(RecurrentHeads):
    """Base of the mixers that sum features of narrow keys times values, and the features themselves."""

    shown = ("d_key",)

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return FEATURE_WIDTH, d_model // self.heads

    @property
    @abstractmethod
    def features(self) -> int:
        """Number of features of a key, of a resolved architecture."""

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=self.heads * self.features * (self.value_width + 1))

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(0.0, 4.0 * self.core_size(length).sums)


ALIGNED_COLUMNS = 8
"""Columns of a half type in 16 bytes, the widest load of a GPU."""


class SumsCore(Core):
    """Power attention on operands that a subclass makes from queries, keys, values and the input of the layer."""

    aligned: ClassVar[bool] = False
    """Fill the values of the parallel form with zeros up to a width whose rows a GPU loads at once."""

    def __init__(self, sums: Sums, layer: LayerContext, gate: DecayGate | None = None) -> None:
        super().__init__(gate)
        self.sums, self.impl = sums, cast(PowerImpl, layer.impl)

    @abstractmethod
    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Operands:
        """Return the arguments of power attention; with or without the axis T."""

    def finish(self, y: Tensor, operands: Operands, v: Tensor) -> Tensor:
        """Turn the output of power attention [M, B, (T,) H, .] into that of the core; `v` as the frame gave it."""
        return y

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        sums, operands = self.sums, self.operands(q, k, v, x)
        width = operands.v.shape[-1]
        missing = -width % ALIGNED_COLUMNS if self.aligned else 0
        filled = operands._replace(v=functional.pad(operands.v, (0, missing))) if missing else operands
        scale = sums.key_width**-0.5 if sums.scale is None and self.ignores_zeros else sums.scale
        y = power_attention(
            *filled.folded(), p=sums.p, scale=scale, normalize=sums.normalize, eps=sums.eps, impl=self.impl
        )
        return self.finish(y[..., :width].unflatten(0, q.shape[:2]), operands, v)

    def initial_state(self, batch: int, like: Tensor) -> PowerState:
        sums = self.sums
        return initial_power_state(
            like.shape[0] * batch, *sums[:3], p=sums.p, normalize=sums.normalize, device=like.device, dtype=like.dtype
        )

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: PowerState) -> tuple[Tensor, PowerState]:
        sums, operands = self.sums, self.operands(q, k, v, x)
        y, state = power_step(
            *operands.folded(), state, p=sums.p, scale=sums.scale, normalize=sums.normalize, eps=sums.eps
        )
        return self.finish(y.unflatten(0, q.shape[:2]), operands, v), state


INITIAL_OFFSET = 0.01
"""Offset of scores at the start: capacity falls where it is a large part of a score, so that it has to be learned."""


class ScoreOffset(Stacked):
    """beta = softplus(b) for each query head, added to scores: one more channel, beta / scale in q and 1 in k."""

    weight: Tensor

    def __init__(self, members: int, heads: int, scale: float) -> None:
        super().__init__(members)
        self.scale = scale
        self.declare("weight", (heads,), constant(math.log(math.expm1(INITIAL_OFFSET))), decay=False)

    def extended(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries [.., H, K + 1] and keys [.., J, K + 1] whose scores are beta + scale q.k."""
        beta = functional.softplus(spread(self.weight, q[..., 0]))
        channel = (beta / self.scale).to(q.dtype).expand(q.shape[:-1])
        return torch.cat([q, channel[..., None]], dim=-1), functional.pad(k, (0, 1), value=1.0)


class ScoreGain(Stacked):
    """exp(g), a learned factor on the queries of each head, 1 at the start: scores that begin too small can grow."""

    weight: Tensor

    def __init__(self, members: int, heads: int) -> None:
        super().__init__(members)
        self.declare("weight", (heads,), constant(0.0), decay=False)

    def forward(self, q: Tensor) -> Tensor:
        """Return queries [.., H, K] times the factor."""
        return q * spread(self.weight, q[..., 0]).exp()[..., None].to(q.dtype)


class PowerCore(SumsCore, Rising):
    """Power attention on features of queries and keys, with the shared gate, an offset and a gain where there are any.

    While the degree rises in training, a share a from near 0 to 1, the sums are a r_p + (1 - a) r_(p-2) / K, where
    r_(p-2) is the lower degree of `spectrum`, whose weights are |q|^2 |k|^2 / K in place of the (q·k)^2 that random
    directions make of them. Tests and the recurrent form always have degree p.
    """

    def __init__(
        self,
        sums: Sums,
        layer: LayerContext,
        gate: DecayGate | None,
        features: Callable[[Tensor], Tensor],
        offset: ScoreOffset | None = None,
        gain: ScoreGain | None = None,
        ignores_zeros: bool = False,
    ) -> None:
        super().__init__(sums, layer, gate)
        self.features, self.offset, self.gain, self.ignores_zeros = features, offset, gain, ignores_zeros
        self.rise: DegreeRise | None = None

    @property
    def score_rule(self) -> ScoreRule | None:
        sums, (gate,) = self.sums, self.gates
        rising = self.rise is not None and self.training
        if not self.ignores_zeros or gate or self.gain or rising or self.impl != "auto":
            return None
        scale = sums.key_width**-0.5 if sums.scale is None else sums.scale
        return ScoreRule(scale, sums.p, normalized=sums.normalize == "sum", eps=sums.eps)

    def raise_degree(self, rise: DegreeRise) -> None:
        self.rise = rise if self.sums.p > 2 and self.sums.normalize == "none" else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        if self.rise is None or not self.training:
            return super().forward(q, k, v, x)
        lower = widen(q).new_zeros(1, 1, max(q.shape[-2], v.shape[-2]), self.sums.p // 2)
        return self.read_degrees(self.operands(q, k, v, x), lower)

    def read_degrees(self, operands: Operands, lower: Tensor) -> Tensor:
        """Attend with lower degrees too: weights as for `spectrum_attention` -> [M, B, T, H, V]."""
        sums, lead = self.sums, operands.q.shape[:2]
        if self.rise is not None and self.training:
            share = self.rise.share()
            operands = operands._replace(v=operands.v * share.to(operands.v.dtype))
            first = torch.zeros_like(lower[..., :1]) + (1 - share) / (share * sums.key_width)
            lower = lower + functional.pad(first, (0, lower.shape[-1] - 1))
        inputs = PowerInputs(*operands.folded(), None)
        y, _ = spectrum_attention(inputs, lower, p=sums.p, scale=sums.scale, impl=self.impl, keep_state=False)
        out: Tensor = y.unflatten(0, lead)
        return out

    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Operands:
        q, k = self.features(q), self.features(k)
        q = q if self.gain is None else self.gain(q)
        q, k = (q, k) if self.offset is None else self.offset.extended(q, k)
        return Operands(q, k, v, self.log_gate(x))


class MixedCore(Core):
    """Power attention of another degree in each of several equal groups of heads, and their outputs side by side."""

    def __init__(
        self, parts: Sequence[Sums], layer: LayerContext, gate: DecayGate | None, features: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(gate)
        self.parts, self.impl, self.features = tuple(parts), cast(PowerImpl, layer.impl), features

    def groups(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Iterator[tuple[Sums, Operands]]:
        """Yield the options and the arguments of each group of heads."""
        count, log_g = len(self.parts), self.log_gate(x)
        gates = [None] * count if log_g is None else log_g.chunk(count, dim=-1)
        heads = (one.chunk(count, dim=-2) for one in (self.features(q), self.features(k), v))
        for sums, *own in zip(self.parts, *heads, gates, strict=True):
            yield sums, Operands(*own)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        outputs = [
            power_attention(
                *own.folded(), p=sums.p, scale=sums.scale, normalize=sums.normalize, eps=sums.eps, impl=self.impl
            )
            for sums, own in self.groups(q, k, v, x)
        ]
        y: Tensor = torch.cat(outputs, dim=-2).unflatten(0, q.shape[:2])
        return y

    def initial_state(self, batch: int, like: Tensor) -> tuple[PowerState, ...]:
        rows, device, dtype = like.shape[0] * batch, like.device, like.dtype
        return tuple(
            initial_power_state(rows, *sums[:3], p=sums.p, normalize=sums.normalize, device=device, dtype=dtype)
            for sums in self.parts
        )

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: tuple[PowerState, ...]
    ) -> tuple[Tensor, tuple[PowerState, ...]]:
        steps = [
            power_step(*own.folded(), before, p=sums.p, scale=sums.scale, normalize=sums.normalize, eps=sums.eps)
            for (sums, own), before in zip(self.groups(q, k, v, x), state, strict=True)
        ]
        outputs, after = zip(*steps, strict=True)
        return torch.cat(outputs, dim=-2).unflatten(0, q.shape[:2]), after
