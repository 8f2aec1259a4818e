"""RWKV-7: a delta rule whose vectors for reading, erasing and writing all differ, with a decay for each key channel.

    S_t = D(w_t) S_(t-1) - (a_t * m_t) (S_(t-1)^T m_t)^T + k~_t v_t^T,   y_t = S_t^T r_t
    x_s = x_t + (x_(t-1) - x_t) * mu_s for each of the streams s = r, w, k, v, a, g
    r, k, v = x_r W_r, x_k W_k, x_v W_v
    log w = -exp(-1/2) sigmoid(w_0 + tanh(x_w W_1) W_2),   a = sigmoid(a_0 + (x_a A_1) A_2)
    m = k * k_k, of length 1 in each head;   k~ = k * (1 + (a - 1) * k_a)
    v = v + (v_first - v) * sigmoid(v_0 + (x_v V_1) V_2) after the first layer, whose values are v_first
    out = ((layer_norm(y_t) + (sum_c r k~ r_k) v_t) * (sigmoid(x_g G_1) G_2)) W_o, norm and sum over each head

What is erased is read from the state before its decay. State: K V sums a head, and the input of the last token. Work a
token: 8 K V a head. Source: Peng et al. (arXiv 2503.14456), whose heads have 64 columns: `heads` of C / 64. Ramps over
channels and layers, and the factors of adapters (W, A, V, G), start as published; so do W_r, W_k and W_v, drawn from a
normal distribution of the published variance. W_o starts as in every mixer of this package, where it is published as 0.
"""

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, FirstLayer, Flops, LayerContext, Mixer
from icl_bench.architectures.decays import TORCH_GAIN
from icl_bench.architectures.initialisation import Init, constant, fixed, normal, orthogonal
from icl_bench.architectures.layers import Coefficients, LayerNorm, Stacked, StackedLinear
from icl_bench.architectures.token_shift import NORM_EPS, ShiftedHeads, ShiftMixer, beside_before, depth, rising
from icl_bench.kernels.delta.erasing import erasing_delta, takes_erasing_delta
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions, ErasingOptions, ErasingWeights
from icl_bench.kernels.fleet.adapters import adapted_decays, adapted_gate
from icl_bench.kernels.fleet.erasing_keys import erasing_keys
from icl_bench.kernels.fleet.products import blend
from icl_bench.kernels.fleet.projection import project
from icl_bench.kernels.fleet.row_columns import blend_columns, product_of_columns, take_columns
from icl_bench.kernels.fleet.token_bonus import token_bonus, weighted_bonus
from icl_bench.kernels.fleet.token_pairs import shifted_weights

LEAST_LOG_DECAY = -math.exp(-0.5)
ADAPTER_GAIN = 0.1
"""Gain of the second factor of an adapter."""
SHIFT_EXPONENTS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
"""Exponents of the shares of the token before at the start, 1 - (n / C)^(exponent (1 - l / L)) for channel n."""


@ARCHITECTURES.register("rwkv-7")
class Rwkv7(ShiftedHeads):
    """RWKV-7: a delta rule with a decay and a rate for each key channel, on inputs mixed with the token before."""

    family = "delta rule"
    operator = "delta"

    value_residual: bool = True
    """Mix the values of later layers with those of the first layer; the first layer then has heads of equal shape."""

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return Rwkv7Mixer(members, d_model, self.resolved(d_model), layer)

    def ranks(self, d_model: int) -> dict[str, int]:
        """Return the columns of the adapters of decays, rates, gate and values."""
        return {name: adapter_rank(factor, d_model) for name, factor in zip("wagv", (2.5, 2.5, 5, 1.7), strict=True)}

    def flops(self, d_model: int, length: int) -> Flops:
        full = self.resolved(d_model)
        (keys, values), ranks = full.channels(), self.ranks(d_model)
        projections = 2 * d_model * (keys + values)
        adapters = (ranks["w"] + ranks["a"]) * (d_model + keys) + ranks["g"] * (d_model + values)
        residual = ranks["v"] * (d_model + values) if self.value_residual else 0
        return Flops(2.0 * (projections + adapters + residual), 8.0 * keys * full.value_width)


class Stream(NamedTuple):
    """A projection of the input mixed with the token before."""

    width: int
    weight: Init
    """Initial values of the projection."""
    share: str
    """Name of the shares of the token before, which two streams may have in common."""


class ShiftedLinear(Stacked):
    """(x + (before - x) * mu_s) W_s for each stream s, all by one product with x and the token before."""

    def __init__(self, members: int, d_model: int, streams: Mapping[str, Stream], layer: LayerContext) -> None:
        super().__init__(members)
        self.streams = streams
        channels = torch.arange(d_model, dtype=torch.float64) / d_model
        for name in {stream.share: None for stream in streams.values()}:
            power = SHIFT_EXPONENTS[name] * (1 - layer.index / layer.layers)
            self.declare(f"share_{name}", (d_model,), fixed(1 - channels**power), decay=False)
        for name, stream in streams.items():
            self.declare(f"weight_{name}", (d_model, stream.width), stream.weight, kind="matrix")

    @property
    def places(self) -> dict[str, int]:
        """First column of each projection, by name."""
        widths = (stream.width for stream in self.streams.values())
        return dict(zip(self.streams, accumulate(widths, initial=0), strict=False))

    def named(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the parts of the projections by name."""
        parts = rows.split([stream.width for stream in self.streams.values()], dim=-1)
        return dict(zip(self.streams, parts, strict=True))

    def forward(self, x: Tensor, before: Tensor | None) -> Tensor:
        """Return the projections side by side, for x and the token before it, [M, B, (T,) C] each.

        Where `before` is None, it is that in x, or stands beside it.
        """
        weights = [getattr(self, f"weight_{name}") for name in self.streams]
        shares = [getattr(self, f"share_{stream.share}") for stream in self.streams.values()]
        pairs = beside_before(x, before, weights[0].shape[1])
        return project(pairs.flatten(1, -2), shifted_weights(weights, shares)).view(*x.shape[:-1], -1)


class AdapterUp(StackedLinear):
    """x W + b, the second factor of an adapter: W starts orthogonal times 0.1, and taller than wide as much larger."""

    bias: Tensor

    def __init__(self, members: int, rank: int, width: int, bias: Init | None) -> None:
        super().__init__(members, rank, width, bias=bias, decay=False)
        self.inits["weight"] = orthogonal(ADAPTER_GAIN * max(1.0, math.sqrt(rank / width)))


class Rwkv7Mixer(ShiftMixer):
    """Projections with token shift around the delta rule; see the module."""

    options = DeltaOptions(rule="untied", reads="undecayed", scale=1.0, least_log_decay=LEAST_LOG_DECAY)

    def __init__(self, members: int, d_model: int, config: Rwkv7, layer: LayerContext) -> None:
        super().__init__(d_model, config, layer)
        self.mixes_values = config.value_residual and layer.index > 0
        (keys, values), ranks = config.channels(), config.ranks(d_model)
        self.shifted = ShiftedLinear(members, d_model, streams(d_model, config, self.mixes_values), layer)
        self.decay = AdapterUp(members, ranks["w"], keys, fixed(first_decays(self.key_shape, layer)))
        self.rate = AdapterUp(members, ranks["a"], keys, fixed(first_rates(self.key_shape)))
        residuals = fixed(0.73 - 0.4 * (rising(values) - 0.5))
        self.residual = AdapterUp(members, ranks["v"], values, residuals) if self.mixes_values else None
        self.gate = AdapterUp(members, ranks["g"], values, None)
        erasing = (0.71 - 0.1 * (rising(keys) - 0.5)).view(self.key_shape)
        self.erasing = Coefficients(members, self.key_shape, fixed(erasing))
        self.weakening = Coefficients(members, self.key_shape, constant(1.02))
        self.bonus = Coefficients(members, self.key_shape, constant(-0.04))
        self.norm = LayerNorm(members, self.value_shape, self.value_width * NORM_EPS, bias=True)
        self.output = StackedLinear(members, values, d_model, layer.output_gain)

    @property
    def takes_pairs(self) -> bool:
        return True

    @property
    def asks_first_layer(self) -> bool:
        return self.mixes_values

    def parts(self, x: Tensor, before: Tensor | None) -> dict[str, Tensor]:
        return self.activated(self.shifted(x, before))

    def activated(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the parts of the projections by name, that of decays activated."""
        parts = self.shifted.named(rows)
        return parts | {"w": parts["w"].tanh()}

    def exchange(self, parts: dict[str, Tensor], first: FirstLayer | None) -> Tensor:
        v = super().exchange(parts, first)
        if self.residual is None or first is None or first.values is None:
            return v
        gate = self.residual.product(parts["v1"])
        return blend(v.flatten(-2), first.values.flatten(-2), gate, self.residual.bias).view(v.shape)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        return self.output_at(x, None, first)

    def forward_at(self, x: Tensor, positions: Tensor, first: FirstLayer | None = None) -> Tensor:
        return self.output_at(x, positions, first)

    def output_at(self, x: Tensor, positions: Tensor | None, first: FirstLayer | None) -> Tensor:
        """Compute the output, [M, B, T, C], or at positions [M, B, S] alone; by operators on columns where they run."""
        rows, kept = self.shifted(x, None), None if first is None else first.values
        fused = self.impl in ("auto", "triton") and (self.residual is None or kept is not None)
        if not fused or not takes_erasing_delta(rows, self.core_options):
            return self.project_out(*self.mix_parts(self.activated(rows), first, positions))
        places, values = self.shifted.places, None
        if self.residual is not None and kept is not None:
            weights = self.residual.weight, self.residual.bias
            rows, values = blend_columns(rows, places["v"], kept.flatten(-2), places["v1"], *weights)
            values = values.unflatten(-1, self.value_shape)
        sparse = positions is not None
        rows, y, v, sums = erasing_delta(rows, values, self.core_weights, self.core_options, sparse=sparse)
        gate = None
        if positions is None:
            gate = product_of_columns(rows, places["g"], self.gate.weight, "sigmoid").view(y.shape)
        out, v = weighted_bonus(y, v, sums, self.norm_weights, eps=self.norm.eps, gate=gate, positions=positions)
        if first is not None and self.layer.index == 0:
            first.values = v
        if positions is None:
            return self.output(out.flatten(-2))
        return self.project_out(out.flatten(-2), take_columns(rows, places["g"], self.gate.weight.shape[1], positions))

    @property
    def norm_weights(self) -> tuple[Tensor, Tensor]:
        """Gain and shift of the norm of heads."""
        assert self.norm.bias is not None
        return self.norm.weight, self.norm.bias

    @property
    def core_options(self) -> ErasingOptions:
        """Sizes and numbers of the core where it is one operator."""
        places = self.shifted.places
        return ErasingOptions(*self.key_shape, self.value_width, LEAST_LOG_DECAY, places["a"], places["w"])

    @property
    def core_weights(self) -> ErasingWeights:
        """Parameters of the core where it is one operator."""
        shift = self.rate.bias.unflatten(-1, self.key_shape)
        keys = shift, self.erasing.weight, self.weakening.weight
        return ErasingWeights(*keys, self.decay.bias, self.rate.weight, self.decay.weight, self.bonus.weight)

    def inputs(self, parts: dict[str, Tensor], v: Tensor) -> DeltaInputs:
        r, k = (parts[name].unflatten(-1, self.key_shape) for name in "rk")
        decay, shift = self.decay, self.rate.bias.unflatten(-1, self.key_shape)
        log_decay = adapted_decays(parts["w"], decay.weight, decay.bias, "sigmoid", LEAST_LOG_DECAY).view(k.shape)
        rate = self.rate.product(parts["a"]).view(k.shape).to(k.dtype)
        written, read, erase = erasing_keys(k, rate, shift, self.erasing.weight, self.weakening.weight)
        return DeltaInputs(r, written, v, log_decay=log_decay, read=read, erase=erase)

    def finish(self, y: Tensor, inputs: DeltaInputs) -> Tensor:
        return token_bonus(*inputs[:3], self.bonus.weight, y, self.norm_weights, eps=self.norm.eps).flatten(-2)

    def project_out(self, y: Tensor, g: Tensor) -> Tensor:
        return self.output(adapted_gate(y, g, self.gate.weight, "sigmoid"))


def streams(d_model: int, config: Rwkv7, mixes_values: bool) -> dict[str, Stream]:
    """Return the projections of a layer by name: queries, keys and values, and the first factors of adapters."""
    (keys, values), ranks = config.channels(), config.ranks(d_model)
    wide, narrow = (normal(bound * TORCH_GAIN / math.sqrt(d_model)) for bound in (0.5, 0.05))
    made = {"r": Stream(keys, wide, "r"), "k": Stream(keys, narrow, "k"), "v": Stream(values, wide, "v")}
    made |= {name: Stream(ranks[name], constant(0.0), name) for name in "wag"}
    return made | ({"v1": Stream(ranks["v"], constant(0.0), "v")} if mixes_values else {})


def adapter_rank(factor: float, d_model: int) -> int:
    """Return the columns of an adapter: factor sqrt(C) to the nearest multiple of 32, at least 32."""
    return max(32, 32 * round(factor * math.sqrt(d_model) / 32))


def first_decays(shape: tuple[int, int], layer: LayerContext) -> Tensor:
    """Return w_0 at the start, [H K]: it rises over all channels, later layers steeper, and over those of each head."""
    slope: Tensor = rising(shape[0] * shape[1]) ** (1 + depth(layer) ** 0.3)
    return -6 + 6 * slope + 0.5 + 2.5 * bent(shape)


def first_rates(shape: tuple[int, int]) -> Tensor:
    """Return a_0 at the start, [H K]."""
    return -0.19 + 0.3 * bent(shape) + 0.4 * (rising(shape[0] * shape[1]) - 0.5)


def bent(shape: tuple[int, int]) -> Tensor:
    """Return z |z| for z from -1 to 1 over the channels of each head, [H K]."""
    z = 2 * rising(shape[1]) - 1 if shape[1] > 1 else torch.zeros(1, dtype=torch.float64)
    return (z * z.abs()).repeat(shape[0])
