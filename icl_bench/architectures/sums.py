"""Cores over power attention: sums of expanded keys times values, decayed by one scalar for each token and head."""

from abc import abstractmethod
from typing import ClassVar, NamedTuple, cast

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, fold
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.layers import widen
from icl_bench.kernels.power.api import PowerImpl, initial_power_state, power_attention, power_step
from icl_bench.kernels.power.records import Normalize, PowerState


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
        y = power_attention(
            *filled.folded(), p=sums.p, scale=sums.scale, normalize=sums.normalize, eps=sums.eps, impl=self.impl
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
