"""Power attention: scores (q·k)^p, a linear recurrence over the symmetric p-th power of the keys.

    A_ij = exp(G_i - G_j) (q_i·k_j / sqrt(K))^p for j <= i,   G = running sum of log g
    y_i  = sum_j A_ij v_j / sum_j A_ij                        normalizer = sum, even p
    y_i  = rms_norm(sum_j A_ij v_j)                           normalizer = rms, per head

    S_t = g_t S_(t-1) + phi(k_t) v_t^T,   z_t = g_t z_(t-1) + phi(k_t),   phi(q)·phi(k) = (q·k)^p

With `spectrum`, lower degrees are read from the same state; see `spectrum`. With `offset=learned`, scores are
(beta_h + q·k / sqrt(K))^p, of all degrees up to p: keys have one more channel, a one, and beta_h = softplus(b_h). With
`degrees`, equal groups of heads have these powers.

State: D V sums a head, D = C(K + p - 1, p), and D more for z where the normalizer is the sum of scores. Odd p cannot
be normalised by the sum, which can vanish or change sign; it takes a per-head RMS norm of the output unless told
otherwise. The sum of scores is raised by 1e-6, or by a share of its largest value (`relative_eps`; see
`kernels.power.relative`), so that it is never 0: at the start, scores are about .18^p, and a
first token is shrunk by 0.1 % at p = 4, but by 3 % at p = 6, and by a quarter where its score is the median one.
Work a token: 4 D V a head. Source: "Scaling Context Requires Rethinking Attention" (arXiv 2507.04239),
equation 7 and section 4; it normalises by the sum and supports even p alone.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, Knob, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import HeadsArchitecture
from icl_bench.architectures.spectrum import RelativeCore, Spectrum, SpectrumCore, SpectrumShares
from icl_bench.architectures.sums import MixedCore, PowerCore, ScoreGain, ScoreOffset, Sums
from icl_bench.errors import SpecError
from icl_bench.kernels.power.records import Normalize
from icl_bench.runs.declarations import CapacityLaw
from icl_bench.schema import READS_NONE, later

Normalizer = Literal["sum", "rms", "raw"]
"""Divisor of the output: the `sum` of scores, the `rms` of the output per head, or none (`raw`)."""
Offset = Annotated[Literal["none", "learned"], READS_NONE]
"""Number added to scores before the power: none, or one `learned` for each query head."""
HIGHEST_POWER = 6


class PowerHeads(HeadsArchitecture):
    """Base of the architectures that keep power sums: the size of their state, their work and their law."""

    family = "power sums"
    operator = "power"

    @property
    @abstractmethod
    def degree(self) -> int:
        """Power of the scores, p."""

    @property
    @abstractmethod
    def chosen_normalizer(self) -> Normalizer:
        """Normaliser, of a resolved architecture."""

    @property
    def layout(self) -> HeadsLayout:
        parts = super().layout
        return parts._replace(output_norm="head") if self.chosen_normalizer == "rms" else parts

    @property
    def score_scale(self) -> float | None:
        """Factor on q·k; None for 1 / sqrt(K)."""
        return None

    @property
    def score_eps(self) -> float:
        """Number added to the sum of scores."""
        return 1e-6

    @property
    def feature_function(self) -> Callable[[Tensor], Tensor] | None:
        """Function of queries and keys [..., K] whose power is taken; None for the identity."""
        return None

    def resolved(self, d_model: int) -> Self:
        return super().resolved(d_model).model_copy(update={"normalizer": self.chosen_normalizer})

    def key_rank(self, d_model: int) -> tuple[int, int] | None:
        return super().key_rank(d_model) if self.feature_function is None else None

    def features(self, x: Tensor) -> Tensor:
        """Apply the feature function to queries or keys [..., K]."""
        return x if self.feature_function is None else self.feature_function(x)

    @property
    def expanded_channels(self) -> int:
        """Channels of a key before expansion, those of the core included, of a resolved architecture."""
        return self.key_width

    @property
    def expanded_width(self) -> int:
        """Width of a key after expansion, D = C(K + p - 1, p)."""
        return math.comb(self.expanded_channels + self.degree - 1, self.degree)

    @property
    def law(self) -> CapacityLaw | None:
        if self.feature_function is not None or self.silu:
            return None
        groups, key, value = self.sizes
        return CapacityLaw(degree=self.degree, key_width=key, key_heads=groups, value_width=value)

    @property
    def sums(self) -> Sums:
        """Sizes and options of power attention, of a resolved architecture."""
        normalize: Normalize = "sum" if self.chosen_normalizer == "sum" else "none"
        return Sums(*self.sizes, self.degree, self.score_scale, normalize, self.score_eps)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return PowerCore(self.sums, layer, gate, self.features, ignores_zeros=self.feature_function is None)

    def core_size(self, length: int) -> StateSize:
        columns = self.value_width + (self.chosen_normalizer == "sum")
        return StateSize(sums=self.key_value_heads * self.expanded_width * columns)

    def core_flops(self, d_model: int, length: int) -> Flops:
        columns = self.value_width + (self.chosen_normalizer == "sum")
        return Flops(0.0, 2.0 * (self.key_value_heads + self.heads) * self.expanded_width * columns)


@ARCHITECTURES.register("power")
class Power(PowerHeads):
    """Power attention, scores (q·k)^p: the state grows with p, the parameters do not."""

    shown = ("p",)
    knobs: ClassVar = {
        **HeadsArchitecture.knobs,
        "degree": (Knob("p", lambda config, d_model, length: range(1, HIGHEST_POWER + 1)),),
    }

    p: int = Field(default=2, ge=1, le=HIGHEST_POWER)
    """Power of the scores."""
    normalizer: Normalizer | None = None
    """`sum` of scores (even p), per-head `rms` norm of the output, or `raw`; by default sum, for odd p rms."""
    eps: float = later(1e-6, gt=0)
    """Number added to the sum of scores."""
    relative_eps: bool = later(False)
    """Take eps as a share of the sum that keys in the direction of the query would have; needs the sum of scores."""
    scale: float | None = later(None, gt=0)
    """Factor on q·k; 1 / sqrt(d_key) by default."""
    spectrum: Spectrum = later("none")
    """Read degrees p - 2, p - 4, .. too: none, shares of a head that are `learned`, depend on the `length` so far or on
    the `token`, or the fixed ones that recall most (`centred`); scores then have both signs, which needs rms or raw."""
    offset: Offset = later("none")
    """Number added to scores before the power: none, or one `learned` for each head, which costs one key channel."""
    head_gain: bool = later(False)
    """Multiply the queries of each head by exp(g), g learned and 0 at the start."""
    degrees: tuple[int, ...] = later(())
    """Powers of equal groups of heads, from 1 to their largest, p; none for p in all heads."""

    @model_validator(mode="after")
    def _check_normalizer(self) -> Self:
        if self.p % 2 and self.normalizer == "sum":
            raise ValueError(
                f"normalizer=sum needs an even p, since a sum of odd powers can vanish; got p={self.p}; "
                "use normalizer=rms or an even p"
            )
        if self.spectrum != "none" and (self.p < 2 or self.normalizer == "sum"):
            raise ValueError(
                "spectrum reads degrees below p >= 2, with both signs, so that their sum can vanish; got "
                f"p={self.p}, normalizer={self.normalizer}; use p=2 or more with normalizer=rms"
            )
        return self

    @model_validator(mode="after")
    def _check_eps(self) -> Self:
        if self.relative_eps and (self.p % 2 or self.degrees or self.chosen_normalizer != "sum"):
            raise ValueError(
                "relative_eps needs the sum of scores of one even power; got "
                f"p={self.p}, degrees={list(self.degrees)}, normalizer={self.chosen_normalizer}; "
                "use p=2 or 4 with normalizer=sum, or leave relative_eps out"
            )
        return self

    @model_validator(mode="after")
    def _check_degrees(self) -> Self:
        if not self.degrees:
            return self
        odd = any(degree % 2 for degree in self.degrees)
        if min(self.degrees) < 1 or max(self.degrees) != self.p or (odd and self.normalizer == "sum"):
            raise ValueError(
                "degrees are 1 to their largest, p, and even where the sum of scores divides; got "
                f"{list(self.degrees)} with p={self.p}; write p={max(self.degrees)} and normalizer=rms"
            )
        if self.spectrum != "none" or self.offset != "none" or self.head_gain:
            raise ValueError("degrees go without spectrum, offset and head_gain; got both; leave one of them out")
        return self

    def resolved(self, d_model: int) -> Self:
        full = super().resolved(d_model)
        if full.degrees and full.key_value_heads % len(full.degrees):
            raise SpecError(
                f"each of {len(full.degrees)} degrees has as many heads; got kv_heads = {full.kv_heads}; change either"
            )
        return full

    @property
    def degree(self) -> int:
        return self.p

    @property
    def score_scale(self) -> float | None:
        return self.scale

    @property
    def score_eps(self) -> float:
        return self.eps

    @property
    def chosen_normalizer(self) -> Normalizer:
        odd = any(degree % 2 for degree in self.degrees or (self.p,))
        return self.normalizer or ("rms" if odd or self.spectrum != "none" else "sum")

    @property
    def expanded_channels(self) -> int:
        return self.key_width + (self.offset == "learned")

    @property
    def sums(self) -> Sums:
        scale = self.scale or self.key_width**-0.5
        return super().sums._replace(key_width=self.expanded_channels, scale=scale)

    @property
    def law(self) -> CapacityLaw | None:
        return super().law if (self.spectrum, self.offset, self.degrees) == ("none", "none", ()) else None

    @property
    def rises(self) -> bool:
        return self.p > 2 and self.chosen_normalizer != "sum" and not self.degrees

    @property
    def parts(self) -> list[Sums]:
        """Sizes and options of each group of heads with a degree of its own."""
        groups = self.degrees or (self.p,)
        return [self.sums._replace(heads=self.key_value_heads // len(groups), p=degree) for degree in groups]

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        sums = self.sums
        if self.degrees:
            return MixedCore(self.parts, layer, gate, self.features)
        assert sums.scale is not None
        offset = ScoreOffset(members, self.heads, sums.scale) if self.offset == "learned" else None
        gain = ScoreGain(members, self.heads) if self.head_gain else None
        if self.relative_eps:
            return RelativeCore(sums, layer, gate, self.features, offset, gain)
        if self.spectrum == "none":
            return PowerCore(sums, layer, gate, self.features, offset, gain, ignores_zeros=offset is None)
        shares = SpectrumShares(members, d_model, self.heads, self.spectrum, self.p, self.expanded_channels)
        return SpectrumCore(sums, layer, gate, self.features, offset, shares, gain)

    def core_size(self, length: int) -> StateSize:
        columns = self.value_width + (self.chosen_normalizer == "sum")
        rows = sum(sums.heads * math.comb(sums.key_width + sums.p - 1, sums.p) for sums in self.parts)
        return StateSize(sums=rows * columns)

    def core_flops(self, d_model: int, length: int) -> Flops:
        own = 2.0 * d_model * self.heads * (self.p // 2) if self.spectrum == "token" else 0.0
        return Flops(own, 2.0 * (1 + self.heads // self.key_value_heads) * self.core_size(length).sums)
