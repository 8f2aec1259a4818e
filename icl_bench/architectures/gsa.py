"""Gated slot attention (GSA): softmax attention over a fixed number of slots, each of which forgets by its own gate.

    S_t = S_(t-1) D(exp(f_t)) + k_t s_t^T,   R_t = D(exp(f_t)) R_(t-1) + s_t v_t^T
    f_t = log sigmoid(x_t W_f) / 8,   s_t = 1 - exp(f_t), one for each slot
    y_t = R_t^T softmax(S_t^T q_t / sqrt(K))
    q, k, v = silu(x W);   out = rms_norm(silu(y)) W_o, the norm over each head

S holds a key and R a value for each of L slots. State: (K + V) L sums a head. Work a token: 4 (K + V) L a head. Source:
Zhang et al. (arXiv 2409.07146). There is no convolution by default, so that one layer alone cannot bind neighbouring
tokens.
"""

from typing import ClassVar, NamedTuple, cast

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, Flops, Knob, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.deltas import folded
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import KEY_WIDTH, RecurrentHeads
from icl_bench.architectures.layers import StackedLinear
from icl_bench.kernels.delta.api import DeltaImpl, delta_rule, delta_step, initial_delta_state
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.fleet.causal_softmax import causal_softmax
from icl_bench.kernels.fleet.decays import decays_with_shares
from icl_bench.kernels.fleet.records import SeenKeys

TEMPERATURE = 8.0
"""Divisor of the logarithm of decays."""
FIND = DeltaOptions(rule="linear")
READ = DeltaOptions(rule="linear", scale=1.0)
MOST_SLOTS = 2048


@ARCHITECTURES.register("gsa")
class GatedSlotAttention(RecurrentHeads):
    """Gated slot attention: keys and values are written into slots, and a softmax over the slots reads them."""

    family = "decay of channels"
    operator = "delta"

    size_parameters: ClassVar[tuple[str, ...]] = ("heads", "d_key", "d_value", "slots")
    knobs: ClassVar = {"width": (Knob("slots", lambda config, d_model, length: range(1, MOST_SLOTS + 1)), KEY_WIDTH)}
    shown = ("slots",)

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""
    slots: int = Field(default=64, ge=1)
    """Slots of a head, L."""

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(silu=True, output_norm="head")

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return SlotCore(members, d_model, self, layer)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=self.heads * self.slots * (self.key_width + self.value_width))

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(2.0 * d_model * self.heads * self.slots, 4.0 * self.core_size(length).sums)


class SlotState(NamedTuple):
    """State of a `SlotCore`."""

    keys: Tensor
    """Keys by slot, [M·B, H, K, L]."""
    values: Tensor
    """Values by slot, [M·B, H, L, V]."""


class SlotCore(Core):
    """Two passes of gated linear attention: one finds the slots that a query reads, one reads them."""

    def __init__(self, members: int, d_model: int, config: GatedSlotAttention, layer: LayerContext) -> None:
        super().__init__()
        self.config, self.impl = config, cast(DeltaImpl, layer.impl)
        self.forget = StackedLinear(members, d_model, config.heads * config.slots)

    def shares(self, x: Tensor) -> list[Tensor]:
        """Return logarithms of decays, float32, and the shares that a token writes, twice, [M, B, T, H, L] each."""
        shape = self.config.heads, self.config.slots
        return [part.unflatten(-1, shape) for part in decays_with_shares(self.forget(x), 1 / TEMPERATURE)]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return self.attend(q, k, v, x, None)[0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: SlotState | None) -> tuple[Tensor, SlotState]:
        """Find slots and read them: [M, B, T, H, .] each, and T = 1 with a state -> [M, B, T, H, V], the last state."""
        log_decay, share, *again = self.shares(x)
        find = DeltaInputs(q, k, share, log_value_decay=log_decay, state=None if state is None else state.keys)
        scores, keys = self.run(find, FIND)
        # behind the last slot all are seen
        chosen = causal_softmax(scores, SeenKeys(self.config.slots - 1, 1), 1.0).unflatten(0, q.shape[:2])
        read = DeltaInputs(chosen, again[1], v, log_decay=again[0], state=None if state is None else state.values)
        y, values = self.run(read, READ)
        return functional.silu(y).unflatten(0, q.shape[:2]), SlotState(keys, values)

    def run(self, inputs: DeltaInputs, options: DeltaOptions) -> tuple[Tensor, Tensor]:
        """Run one pass, by its step where there is a state."""
        state, inputs = inputs.state, folded(inputs._replace(state=None))
        if state is None:
            return delta_rule(inputs, options, self.impl)
        return delta_step(inputs._replace(state=state), options)

    def initial_state(self, batch: int, like: Tensor) -> SlotState:
        n, heads, slots = like.shape[0] * batch, self.config.heads, self.config.slots
        widths = (self.config.key_width, slots), (slots, self.config.value_width)
        return SlotState(*(initial_delta_state(n, heads, *w, device=like.device, dtype=like.dtype) for w in widths))

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: SlotState) -> tuple[Tensor, SlotState]:
        y, state = self.attend(q[:, :, None], k[:, :, None], v[:, :, None], x[:, :, None], state)
        return y[:, :, 0], state
