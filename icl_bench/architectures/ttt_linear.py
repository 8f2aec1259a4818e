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
from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, FirstLayer, Flops, Knob, LayerContext, Mixer, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout, HeadsMixer, HeadsState
from icl_bench.architectures.heads import KEY_WIDTH, RecurrentHeads
from icl_bench.architectures.initialisation import constant, normal
from icl_bench.architectures.layers import Coefficients, StackedLinear, widen
from icl_bench.architectures.rotation import rotate
from icl_bench.errors import SpecError

MINIBATCH = 16
INNER_STD = 0.02
"""Standard deviation of the inner weights at the start, and of those of the inner learning rate."""
NORM_EPS = 1e-6
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
        return TestTimeMixer(members, d_model, full.layout, TestTimeCore(members, d_model, full), None, layer)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return TestTimeCore(members, d_model, self)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=2 * self.heads * self.inner_size)

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(2.0 * d_model * self.heads, 10.0 * self.heads * self.inner_size)


class InnerLayer(NamedTuple):
    """Weights and biases of a layer of the inner models, or sums of their gradients."""

    weight: Tensor
    """[M, B, H, in, out]."""
    bias: Tensor
    """[M, B, H, 1, out]."""

    def apply(self, x: Tensor) -> Tensor:
        """Return x W + b: [M, B, H, T, in] -> [M, B, H, T, out]."""
        return x @ self.weight + self.bias

    def less(self, sums: "InnerLayer", factor: Tensor) -> "InnerLayer":
        """Return the layer after a step of gradient descent."""
        return InnerLayer(self.weight - factor * sums.weight, self.bias - factor * sums.bias)

    def plus(self, x: Tensor, gradient: Tensor) -> "InnerLayer":
        """Return the sums with the gradients of tokens x [M, B, H, T, in] and of their outputs [.., out] added."""
        return InnerLayer(self.weight + x.mT @ gradient, self.bias + gradient.sum(-2, keepdim=True))


class InnerTokens(NamedTuple):
    """Tokens of a minibatch, [M, B, H, T, .] each."""

    q: Tensor
    k: Tensor
    v: Tensor
    rates: Tensor


class TestTimeState(NamedTuple):
    """State of a `TestTimeCore`."""

    layers: tuple[InnerLayer, ...]
    """The inner model at the start of the minibatch."""
    sums: tuple[InnerLayer, ...]
    """Gradients of the tokens of the minibatch so far, times their learning rates."""


class TestTimeCore(Core):
    """A stack of inner layers with GELU between them, trained by minibatches of tokens."""

    def __init__(self, members: int, d_model: int, config: TttLinear) -> None:
        super().__init__()
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
        """Return n for every place in a minibatch, [M, 1, 1, 16, 1]."""
        learned = widen(self.places.weight)
        counts = torch.arange(1, MINIBATCH + 1, device=learned.device, dtype=learned.dtype)
        return (learned + 1 / counts).clamp(min=0)[:, None, None, :, None]

    def rates(self, x: Tensor) -> Tensor:
        """Return the learning rates e of tokens, [M, B, H, T, 1]."""
        return self.largest_rate * widen(self.rate(x)).sigmoid().transpose(2, 3)[..., None]

    def norm(self, z: Tensor) -> Tensor:
        """Apply the layer norm of each head to [M, B, H, T, K]."""
        return self.gain(z) * functional.layer_norm(z, z.shape[-1:], eps=NORM_EPS) + self.shift(z)

    def gradients(self, k: Tensor, target: Tensor, layers: tuple[InnerLayer, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the inputs of all layers for keys [M, B, H, T, K], and the gradients of the loss by their outputs."""
        inputs, outputs = [k], []
        for layer in layers:
            outputs.append(layer.apply(inputs[-1]))
            inputs.append(functional.gelu(outputs[-1], approximate="tanh"))
        gradients = [self.loss_gradient(outputs[-1], target)]
        for layer, z in zip(reversed(layers[1:]), reversed(outputs[:-1]), strict=True):
            gradients.append(gradients[-1] @ layer.weight.mT * gelu_slope(z))
        return inputs[:-1], gradients[::-1]

    def loss_gradient(self, z: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of |LN(z) - target|^2 / 2 by z."""
        centred = z - z.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        normed = centred * scale
        g = self.gain(z) * (self.gain(z) * normed + self.shift(z) - target)
        return scale * (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        rates, kind = self.rates(x), v.dtype
        with torch.autocast(x.device.type, enabled=False):  # steps of training lose too much in bfloat16
            q, k = rotate(q, k, torch.arange(q.shape[2], device=q.device)[:, None] % MINIBATCH)
            q, k, v = (widen(part).transpose(2, 3) for part in (q, k, v))  # [M, B, H, T, K]
            layers, rows = self.layers(), []
            for tokens in zip(*(part.split(MINIBATCH, dim=3) for part in (q, k, v, rates)), strict=True):
                y, layers = self.minibatch(InnerTokens(*tokens), layers)
                rows.append(y)
            return torch.cat(rows, dim=3).transpose(2, 3).to(kind)

    def minibatch(self, tokens: InnerTokens, layers: tuple[InnerLayer, ...]) -> tuple[Tensor, tuple[InnerLayer, ...]]:
        """Take up to 16 tokens: return y [M, B, H, T, K], and the inner model after them."""
        q, k, v, rates = tokens
        inputs, gradients = self.gradients(k, v - k, layers)
        factors = self.factors()[..., : q.shape[3], :]
        steps = (factors * rates.mT).tril()  # of the gradient of token s at token t
        z = q
        for depth, (layer, held, gradient) in enumerate(zip(layers, inputs, gradients, strict=True)):
            z = functional.gelu(z, approximate="tanh") if depth else z
            z = layer.apply(z) - (steps * (z @ held.mT) + steps) @ gradient
        none = tuple(InnerLayer(torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)) for layer in layers)
        sums = added(none, inputs, gradients, rates)
        return q + self.norm(z), descended(layers, sums, factors[..., -1:, :])

    def initial_state(self, batch: int, like: Tensor) -> TestTimeState:
        spread = tuple(InnerLayer(*(part.expand(-1, batch, -1, -1, -1) for part in layer)) for layer in self.layers())
        zeros = tuple(InnerLayer(*(torch.zeros_like(part) for part in layer)) for layer in spread)
        return TestTimeState(spread, zeros)

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: tuple[TestTimeState, int]
    ) -> tuple[Tensor, TestTimeState]:
        """Take one token; the state comes with the place of the token in its minibatch, from 0."""
        (layers, sums), place = state
        q, k = rotate(q, k, torch.tensor([place], device=q.device))
        queries, keys, values = (widen(part)[..., None, :] for part in (q, k, v))
        inputs, gradients = self.gradients(keys, values - keys, layers)
        sums = added(sums, inputs, gradients, self.rates(x[:, :, None]))
        now = descended(layers, sums, self.factors()[..., place, None, :])
        z = queries
        for depth, layer in enumerate(now):
            z = layer.apply(functional.gelu(z, approximate="tanh") if depth else z)
        if place == MINIBATCH - 1:
            layers, sums = now, tuple(InnerLayer(*(torch.zeros_like(part) for part in layer)) for layer in sums)
        return (queries + self.norm(z)).squeeze(-2).to(v.dtype), TestTimeState(layers, sums)


class TestTimeMixer(HeadsMixer):
    """The frame around a `TestTimeCore`, whose steps depend on the place of a token in its minibatch."""

    def step(
        self, x: Tensor, state: HeadsState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, HeadsState]:
        return super().step(x, state._replace(core=(state.core, position % MINIBATCH)), position, first)


def added(
    sums: tuple[InnerLayer, ...], inputs: list[Tensor], gradients: list[Tensor], rates: Tensor
) -> tuple[InnerLayer, ...]:
    """Add the gradients of tokens, times their learning rates, to those of all layers."""
    pairs = zip(sums, inputs, gradients, strict=True)
    return tuple(layer.plus(x, rates * gradient) for layer, x, gradient in pairs)


def descended(layers: tuple[InnerLayer, ...], sums: tuple[InnerLayer, ...], factor: Tensor) -> tuple[InnerLayer, ...]:
    """Return the inner model after a step of gradient descent by the sums, times the factor of the token."""
    return tuple(layer.less(own, factor) for layer, own in zip(layers, sums, strict=True))


def gelu_slope(x: Tensor) -> Tensor:
    """Return the derivative of GELU in its tanh form."""
    inner = (2 / torch.pi) ** 0.5
    t = torch.tanh(inner * (x + 0.044715 * x**3))
    slope: Tensor = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner * (1 + 3 * 0.044715 * x * x)
    return slope
