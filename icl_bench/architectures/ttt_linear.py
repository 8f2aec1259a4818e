"""Test-time training with a linear inner model (TTT-Linear): the state is a model that is trained on keys and values.

    W_t = W_s - n_t sum_(s < j <= t) e_j dl_j/dW,   b_t = b_s - n_t sum_(s < j <= t) e_j dl_j/db
    l_j = |LN(k_j W_s + b_s) - (v_j - k_j)|^2 / 2,   y_t = q_t + LN(q_t W_t + b_t)
    e_j = r sigmoid(x_j W_e + c) / K,   n_t = max(0, 1/i + m_i) for token i of its minibatch of 16

s is the last token of the minibatch before: gradients are those of the model at the start of a minibatch. LN is a layer
norm of each head with gain and bias; W_0 and b_0 are learned; r = 1. Queries and keys are rotated by their place in the
minibatch. out = (rms_norm(y) * silu(x W_g)) W_o, the norm over all heads. State: W_s, b_s and the sums of their
gradients, 2 (K^2 + K) numbers a head. Work a token: 10 K^2 a head. Source: Sun et al. (arXiv 2407.04620); their output
norm is a layer norm, and the gate there a GELU.
"""

import itertools
from typing import ClassVar, NamedTuple, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, FirstLayer, Flops, Knob, LayerContext, Mixer, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout, HeadsMixer, HeadsState
from icl_bench.architectures.heads import KEY_WIDTH, RecurrentHeads
from icl_bench.architectures.initialisation import constant, normal
from icl_bench.architectures.layers import Coefficients, StackedLinear, widen
from icl_bench.architectures.rotation import rotate
from icl_bench.errors import SpecError
from icl_bench.kernels.backends import FleetImpl
from icl_bench.kernels.fleet.inner_descent import InnerLayer, InnerNorm, InnerTokens, inner_descent, take_token
from icl_bench.kernels.fleet.records import MINIBATCH

INNER_STD = 0.02
"""Standard deviation of the inner weights at the start, and of those of the inner learning rate."""
MOST_HEADS = 16
HEADS = Knob(
    "heads", lambda config, d_model, length: sorted(range(1, MOST_HEADS + 1), key=lambda n: abs(n - config.heads))
)
"""Matching varies the heads too, since even widths alone are far apart."""


@ARCHITECTURES.register("ttt-linear")
class TttLinear(RecurrentHeads):
    """Test-time training of a linear map: a step of gradient descent for each token, gradients by minibatches."""

    family = "test-time training"

    size_parameters: ClassVar[tuple[str, ...]] = ("heads", "d_key")
    knobs: ClassVar = {"width": (KEY_WIDTH, HEADS)}
    shown = ("d_key",)

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""
    rate: float = Field(default=1.0, gt=0)
    """Largest inner learning rate, r, before its division by K."""

    def resolved(self, d_model: int) -> Self:
        full = super().resolved(d_model)
        width = full.key_width if self.d_value is None else full.value_width
        if width != full.key_width or width % 2:
            raise SpecError(
                f"the inner model maps rotated keys to values of their even width; got d_key={full.d_key}, d_value="
                f"{full.d_value}; set an even d_key and leave d_value out"
            )
        return full.model_copy(update={"d_value": width})

    @property
    def inner_widths(self) -> list[int]:
        """Widths of the inner model from keys to values, of a resolved architecture."""
        return [self.key_width, self.key_width]

    @property
    def inner_size(self) -> int:
        """Number of parameters of the inner model of a head, of a resolved architecture."""
        widths = self.inner_widths
        return sum((width + 1) * out for width, out in itertools.pairwise(widths))

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_norm="all", output_gate="silu")

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        full = self.resolved(d_model)
        core = full.core(members, d_model, None, layer)
        return TestTimeMixer(members, d_model, full.layout, core, None, layer)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return TestTimeCore(members, d_model, self, cast(FleetImpl, layer.impl))

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=2 * self.heads * self.inner_size)

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(2.0 * d_model * self.heads, 10.0 * self.heads * self.inner_size)


class TestTimeState(NamedTuple):
    """State of a `TestTimeCore`."""

    layers: tuple[InnerLayer, ...]
    """The inner model at the start of the minibatch."""
    sums: tuple[InnerLayer, ...]
    """Gradients of the tokens of the minibatch so far, times their learning rates."""


class TestTimeCore(Core):
    """A stack of inner layers with GELU between them, trained by minibatches of tokens."""

    def __init__(self, members: int, d_model: int, config: TttLinear, impl: FleetImpl) -> None:
        super().__init__()
        self.impl = impl
        heads, widths = config.heads, config.inner_widths
        self.width, self.largest_rate = config.key_width, config.rate / config.key_width
        self.rate = StackedLinear(members, d_model, heads, bias=constant(0.0), decay=False)
        self.rate.inits["weight"] = normal(INNER_STD)
        self.places = Coefficients(members, (MINIBATCH,), constant(0.0))
        self.gain = Coefficients(members, (heads, 1, self.width), constant(1.0))
        self.shift = Coefficients(members, (heads, 1, self.width), constant(0.0))
        pairs = list(itertools.pairwise(widths))
        self.inner = torch.nn.ModuleList(Coefficients(members, (heads, *pair), normal(INNER_STD)) for pair in pairs)
        self.biases = torch.nn.ModuleList(Coefficients(members, (heads, 1, out), constant(0.0)) for _, out in pairs)

    def layers(self) -> tuple[InnerLayer, ...]:
        """Return the inner model before the first token, with an axis of 1 for the batch."""
        weights, biases = ([widen(p)[:, None] for p in part.parameters()] for part in (self.inner, self.biases))
        return tuple(InnerLayer(*pair) for pair in zip(weights, biases, strict=True))

    def factors(self) -> Tensor:
        """Return n for every place in a minibatch, [M, 16]."""
        learned = widen(self.places.weight)
        counts = torch.arange(1, MINIBATCH + 1, device=learned.device, dtype=learned.dtype)
        return (learned + 1 / counts).clamp(min=0)

    def rates(self, x: Tensor) -> Tensor:
        """Return the learning rates e of tokens, [M, B, (T,) H]."""
        return self.largest_rate * widen(self.rate(x)).sigmoid()

    def norm(self) -> InnerNorm:
        """Return gain and shift of the layer norm."""
        return InnerNorm(*(widen(part.weight)[:, None] for part in (self.gain, self.shift)))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        rates = self.rates(x)
        with torch.autocast(x.device.type, enabled=False):  # steps of training lose too much in bfloat16
            q, k = rotate(q, k, torch.arange(q.shape[2], device=q.device)[:, None] % MINIBATCH)
            return inner_descent(q, k, v, rates, self.factors(), (self.layers(), self.norm()), impl=self.impl)

    def initial_state(self, batch: int, like: Tensor) -> TestTimeState:
        spread = tuple(InnerLayer(*(part.expand(-1, batch, -1, -1, -1) for part in layer)) for layer in self.layers())
        return TestTimeState(spread, tuple(layer.zeros() for layer in spread))

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: tuple[TestTimeState, int]
    ) -> tuple[Tensor, TestTimeState]:
        """Take one token; the state comes with the place of the token in its minibatch, from 0."""
        (layers, sums), place = state
        q, k = rotate(q, k, torch.tensor([place], device=q.device))
        tokens = InnerTokens(*(widen(part)[..., None, :] for part in (q, k, v, self.rates(x)[..., None])))
        factor = self.factors()[:, None, None, place, None, None]
        y, now, sums = take_token(tokens, factor, layers, sums, self.norm())
        if place == MINIBATCH - 1:
            layers, sums = now, tuple(layer.zeros() for layer in now)
        return y.squeeze(-2).to(v.dtype), TestTimeState(layers, sums)


class TestTimeMixer(HeadsMixer):
    """The frame around a `TestTimeCore`, whose steps depend on the place of a token in its minibatch."""

    def step(
        self, x: Tensor, state: HeadsState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, HeadsState]:
        return super().step(x, state._replace(core=(state.core, position % MINIBATCH)), position, first)
