"""Shared parts of the delta-rule family: sizes, and the core over the operator `delta_rule`."""

from abc import abstractmethod
from typing import ClassVar, Self, cast

from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import Flops, LayerContext
from icl_bench.architectures.frame import Core, HeadsLayout, fold
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.layers import StackedLinear, widen
from icl_bench.errors import SpecError
from icl_bench.kernels.delta.api import DeltaImpl, delta_rule, delta_step, initial_delta_state
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions


class DeltaCore(Core):
    """The delta rule, or gated linear attention, on inputs that a subclass makes from q, k, v and x."""

    def __init__(self, sizes: tuple[int, int, int], options: DeltaOptions, layer: LayerContext) -> None:
        super().__init__()
        self.sizes, self.options, self.impl = sizes, options, cast(DeltaImpl, layer.impl)

    @abstractmethod
    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> DeltaInputs:
        """Return the inputs of the operator, [M, B, T, ...] each, without the state."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        y: Tensor = delta_rule(folded(self.inputs(q, k, v, x)), self.options, self.impl)[0].unflatten(0, q.shape[:2])
        return y

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return initial_delta_state(like.shape[0] * batch, *self.sizes, device=like.device, dtype=like.dtype)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        inputs = folded(self.inputs(*(part[:, :, None] for part in (q, k, v, x))))
        y, state = delta_step(inputs._replace(state=state), self.options)
        return y[:, 0].unflatten(0, q.shape[:2]), state


def folded(inputs: DeltaInputs) -> DeltaInputs:
    """Return the inputs with members and batch in one axis, rates and decays of heads and values in float32."""
    of_channels = inputs.log_decay is not None and inputs.log_decay.ndim == inputs.q.ndim
    rates = ("beta", "log_value_decay") if of_channels else ("beta", "log_decay", "log_value_decay")
    given = {name: x for name, x in inputs._asdict().items() if x is not None}
    return inputs._replace(**{name: fold(widen(x) if name in rates else x) for name, x in given.items()})


class WritingRate(StackedLinear):
    """sigmoid(x W), the share of the old value that a write replaces, or twice that: [M, ..., C] -> [M, ..., G]."""

    def __init__(self, members: int, d_model: int, width: int, doubled: bool) -> None:
        super().__init__(members, d_model, width)
        self.doubled = doubled

    def forward(self, x: Tensor) -> Tensor:
        rate = widen(super().forward(x)).sigmoid()
        return 2 * rate if self.doubled else rate


class DeltaHeads(RecurrentHeads):
    """Base of the delta-rule mixers: keys and queries of length 1, SiLU after the convolution, an RMS norm of outputs.

    Value heads may be more than key heads: value head g reads key head g // (G / H).
    """

    family = "delta rule"
    operator = "delta"

    size_parameters: ClassVar[tuple[str, ...]] = ("heads", "value_heads", "d_key", "d_value")

    value_heads: int | None = Field(default=None, ge=1)
    """Value heads, G, a multiple of H; H by default."""
    negative_eigenvalues: bool = False
    """Double the writing rate, so that a write can turn the sign of what its key held (arXiv 2411.12537)."""

    def resolved(self, d_model: int) -> Self:
        full = super().resolved(d_model).model_copy(update={"value_heads": self.value_heads or self.heads})
        if full.groups % full.heads:
            raise SpecError(f"value_heads must be a multiple of heads = {full.heads}; got {full.groups}; change either")
        return full

    @property
    def groups(self) -> int:
        """Number of value heads, G, of a resolved architecture."""
        return self.value_heads or self.heads

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Value heads, key width and value width, of a resolved architecture."""
        return self.groups, self.key_width, self.value_width

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(value_heads=self.groups, silu=True, key_norm="l2", output_norm="head")

    @property
    def write_flops(self) -> float:
        """Operations of one read, one write and one query, of a resolved architecture."""
        return 6.0 * self.groups * self.key_width * self.value_width

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(2.0 * self.gate_products(d_model), self.write_flops)

    @abstractmethod
    def gate_products(self, d_model: int) -> int:
        """Return the number of weights of rates and decays, of a resolved architecture."""
