"""HGRN2: linear attention whose keys are what its decays leave free.

    S_t = D(a_t) S_(t-1) + (1 - a_t) v_t^T,   a_t = l + (1 - l) sigmoid(x_t W_f), one for each key channel
    out = rms_norm(y) W_o, the norm over all heads together,   y_t = S_t^T silu(x_t W_q) / sqrt(K)

The lower bound l is 0 in the first layer, and starts at i / L in layer i of L; each layer learns its own, where the
published model learns one table, whose cumulative softmax rises over the layers. In two layers decays so start near
1/2 and 3/4: recall over 128 tokens takes several times the updates that it takes over 32, or with the bounds of a
model of 24 layers (docs/log.md). State: K V sums a head. Work a token: 4 K V a head. Source: Qin et al. (arXiv
2404.07904).
"""

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.deltas import DeltaCore
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import Coefficients, widen
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions


@ARCHITECTURES.register("hgrn2")
class Hgrn2(RecurrentHeads):
    """HGRN2: decays for each key channel with a lower bound, and keys that are their complement."""

    family = "decay of channels"
    operator = "delta"

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_norm="all")

    def key_rank(self, d_model: int) -> tuple[int, int] | None:
        return None

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return BoundedDecayCore(members, self, layer)

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(0.0, 4.0 * self.heads * self.key_width * self.value_width)


class BoundedDecayCore(DeltaCore):
    """Linear attention with keys 1 - a; the keys of the frame are the raw gates."""

    def __init__(self, members: int, config: Hgrn2, layer: LayerContext) -> None:
        shape = (config.heads, config.key_width)
        super().__init__((*shape, config.value_width), DeltaOptions(rule="linear"), layer)
        self.bound = lower_bound(members, shape, layer)

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> DeltaInputs:
        log_decay, wide = functional.logsigmoid(widen(k)), widen(k)
        if self.bound is not None:
            logit = self.bound(wide)
            log_decay = torch.logaddexp(functional.logsigmoid(logit), functional.logsigmoid(-logit) + log_decay)
        keys = -torch.expm1(log_decay)
        return DeltaInputs(functional.silu(q), keys.to(q.dtype), v, log_decay=log_decay)


def lower_bound(members: int, shape: tuple[int, ...], layer: LayerContext) -> Coefficients | None:
    """Make the logits of lower bounds of decays, which start at i / L in layer i of L; None in the first layer."""
    share = layer.index / layer.layers
    return Coefficients(members, shape, constant(math.log(share / (1 - share)))) if share else None
