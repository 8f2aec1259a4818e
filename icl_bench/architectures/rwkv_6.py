"""RWKV-6: gated linear attention with a bonus for the current token, on inputs mixed with the token before.

    S_t = D(w_t) S_(t-1) + k_t v_t^T,   y_t = (S_(t-1) + D(u) k_t v_t^T)^T r_t
    log w_t = -min(exp(w_0 + tanh(x_w W_1) W_2), 5)
    x_s = x_t + (x_(t-1) - x_t) * (mu_s + m_s) for each of the streams s = w, k, v, r, g
    m_s = tanh((x_t + (x_(t-1) - x_t) * mu_x) A_s) B_s
    k, v, r = x_k W_k, x_v W_v, x_r W_r;   out = (layer_norm(y_t) * silu(x_g W_g)) W_o, the norm over each head

Published decays have no bound; here a channel keeps at least exp(-5) = 0.7 % of its sum. State: K V sums a head, and
the input of the last token. Work a token: 4 K V a head. Source: Peng et al. (arXiv 2404.05892), whose heads have 64
columns: `heads` of C / 64. A_s have 32 columns and W_1 has 64; all ramps and adapters (A, B, W_1, W_2) start as in the
code of its authors.
"""

import math

import torch
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, Mixer
from icl_bench.architectures.initialisation import constant, fixed, uniform_between
from icl_bench.architectures.layers import Coefficients, LayerNorm, Stacked, StackedLinear
from icl_bench.architectures.token_shift import NORM_EPS, ShiftedHeads, ShiftMixer, beside_before, depth, rising
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.fleet.adapters import adapted_decays
from icl_bench.kernels.fleet.products import gated_product, scale_heads
from icl_bench.kernels.fleet.projection import project_beside
from icl_bench.kernels.fleet.token_mix import token_mix
from icl_bench.kernels.fleet.token_pairs import shifted_weights
from icl_bench.kernels.fleet.weighted_dots import weighted_dots

STREAMS = "wkvrg"
MIX_RANK = 32
DECAY_RANK = 64
LARGEST_DECAY = 5.0
"""Largest -log w; the same bound as that of `kda`."""
ADAPTER_BOUND = 0.01
"""Bound of the second factors of adapters at the start."""


@ARCHITECTURES.register("rwkv-6")
class Rwkv6(ShiftedHeads):
    """RWKV-6: a decay for each key channel, a bonus for the current token, and inputs mixed by what they hold."""

    family = "decay of channels"
    operator = "delta"

    def key_rank(self, d_model: int) -> tuple[int, int] | None:
        width = self.resolved(d_model).key_width
        return min(width, d_model), width

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return Rwkv6Mixer(members, d_model, self.resolved(d_model), layer)

    def flops(self, d_model: int, length: int) -> Flops:
        full = self.resolved(d_model)
        keys, values = full.channels()
        adapters = 2 * len(STREAMS) * MIX_RANK * d_model + DECAY_RANK * (d_model + keys)
        return Flops(2.0 * (d_model * (2 * keys + 3 * values) + adapters), 4.0 * keys * full.value_width)


class TokenMix(Stacked):
    """Inputs mixed with the token before by shares that depend on both, for five streams."""

    share: Tensor
    shares: Tensor
    down: Tensor
    up: Tensor

    def __init__(self, members: int, d_model: int, layer: LayerContext) -> None:
        super().__init__(members)
        ramp, half = (
            (torch.arange(d_model, dtype=torch.float64) / d_model) ** (factor * (1 - layer.index / layer.layers))
            for factor in (1.0, 0.5)
        )
        shares = {"w": 1 - ramp, "k": 1 - ramp, "v": 1 - ramp - 0.3 * depth(layer), "r": 1 - half, "g": 1 - half}
        self.declare("share", (d_model,), fixed(1 - ramp), decay=False)
        self.declare("shares", (len(STREAMS), d_model), fixed(torch.stack([shares[s] for s in STREAMS])), decay=False)
        self.declare("down", (d_model, len(STREAMS) * MIX_RANK), constant(0.0), kind="matrix")
        bounds = uniform_between(-ADAPTER_BOUND, ADAPTER_BOUND)
        self.declare("up", (len(STREAMS), MIX_RANK, d_model), bounds)

    def streams(self, pairs: Tensor) -> dict[str, Tensor]:
        """Return the mixed inputs by the name of their stream, of tokens beside those before them, [M, B, (T,) 2 C]."""
        weight = shifted_weights([self.down], [self.share])
        rows, (low,) = project_beside(pairs.flatten(1, -2), weight, [weight.shape[-1]])
        low = low.view(*pairs.shape[:-1], -1)
        return dict(zip(STREAMS, token_mix(rows.view(pairs.shape), low, self.shares, self.up), strict=True))


class Rwkv6Mixer(ShiftMixer):
    """Projections with a token shift that depends on tokens, around gated linear attention; see the module."""

    options = DeltaOptions(rule="linear", scale=1.0, least_log_decay=-LARGEST_DECAY, ahead=True)

    def __init__(self, members: int, d_model: int, config: Rwkv6, layer: LayerContext) -> None:
        super().__init__(d_model, config, layer)
        keys, values = config.channels()
        self.mixed = TokenMix(members, d_model, layer)
        widths = {"w": DECAY_RANK, "k": keys, "v": values, "r": keys, "g": values}
        self.projections = torch.nn.ModuleDict(
            {s: StackedLinear(members, d_model, widths[s], gain=0.0 if s == "w" else 1.0) for s in STREAMS}
        )
        decays = -6 + 5 * rising(keys) ** (0.7 + 1.3 * depth(layer))
        gain = ADAPTER_BOUND * math.sqrt(DECAY_RANK / 3)  # the variance of a uniform draw within the bound
        self.decay = StackedLinear(members, DECAY_RANK, keys, gain, fixed(decays), decay=False)
        zigzag = 0.1 * ((torch.arange(keys) + 1) % 3 - 1)
        bonus = (depth(layer) * (1 - rising(keys)) + zigzag).view(self.key_shape)
        self.bonus = Coefficients(members, self.key_shape, fixed(bonus))
        self.norm = LayerNorm(members, self.value_shape, self.value_width * NORM_EPS, bias=True)
        self.output = StackedLinear(members, values, d_model, layer.output_gain)

    @property
    def takes_pairs(self) -> bool:
        return True

    def parts(self, x: Tensor, before: Tensor | None) -> dict[str, Tensor]:
        streams = self.mixed.streams(beside_before(x, before, self.d_model))
        return {name: self.projections[name](stream) for name, stream in streams.items()}

    def inputs(self, parts: dict[str, Tensor], v: Tensor) -> DeltaInputs:
        r, k = (parts[name].unflatten(-1, self.key_shape) for name in "rk")
        assert self.decay.bias is not None
        bias = self.decay.bias - math.log(LARGEST_DECAY)
        log_decay = adapted_decays(parts["w"], self.decay.weight, bias, "exp", -LARGEST_DECAY, "tanh").view(k.shape)
        return DeltaInputs(r, k, v, log_decay=log_decay)

    def finish(self, y: Tensor, inputs: DeltaInputs) -> Tensor:
        own = weighted_dots(inputs.q, inputs.k, self.bonus.weight)
        return self.norm(scale_heads(inputs.v, own, y)).flatten(-2)

    def project_out(self, y: Tensor, g: Tensor) -> Tensor:
        return self.output(gated_product(y, g, "silu"))
