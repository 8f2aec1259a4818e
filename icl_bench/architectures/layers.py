"""Stacked layers: every parameter has a leading member axis M, and every activation is [M, B, T, C].

A layer declares its parameters with `declare`: initial value, kind, and exemption from weight decay in every recipe;
`initialisation.initialise` then draws them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from icl_bench.architectures.initialisation import Init, Initialised, constant, normal, uniform_between
from icl_bench.kernels.fleet.adapters import adapted_product
from icl_bench.kernels.fleet.convolution import convolution_step, short_convolution
from icl_bench.kernels.fleet.embedding import embed
from icl_bench.kernels.fleet.gated_mlp import gated_mlp
from icl_bench.kernels.fleet.gated_norm import gated_norm
from icl_bench.kernels.fleet.gated_unit import gated_unit
from icl_bench.kernels.fleet.norm import add_paired_norm, add_rms_norm, rms_norm
from icl_bench.kernels.fleet.projection import project, project_parts
from icl_bench.kernels.fleet.records import GateActivation, HeadColumns, NormOptions
from icl_bench.kernels.fleet.residual import fold_gains, project_onto, unit_rms
from icl_bench.kernels.fleet.split_convolution import split_convolution
from icl_bench.runs.spec import Recipe

PublishedInit = Literal["gpt-2", "torch", "small"]
"""Start of the projections of a layer in the code of its authors; see `start_as_published`."""
Kind = Literal["matrix", "table", "vector"]
"""Kind of a parameter, by which an optimiser treats it: a `matrix` takes activations to activations, a `table` takes
tokens to activations or these to logits, a `vector` is all else: gains, biases, gates, decay rates, taps."""
GPT_2_STD = 0.02
INITIAL_TAP_STD = 0.3
"""Standard deviation of the taps of a convolution at the start; with 0.5, which keeps the variance of four taps, models
learn recall more slowly."""


CANON_TAPS = 4
"""Taps of a canon layer."""


class Stacked(nn.Module, Initialised):
    """Base of layers whose parameters have a leading member axis."""

    __call__: Callable[..., Tensor]

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members
        self.inits: dict[str, Init] = {}

    def declare(self, name: str, shape: tuple[int, ...], init: Init, decay: bool = True, kind: Kind = "vector") -> None:
        """Add a parameter [M, *shape] drawn by `init`; `decay` is False where no recipe may decay it: rates, gates."""
        self.inits[name] = init
        self.register_parameter(name, marked(nn.Parameter(torch.empty(self.members, *shape)), decay, kind))

    @torch.no_grad()
    def initialise(self, seeds: Sequence[int], path: str) -> None:
        """Draw the declared parameters of this module in place, member m from `seeds[m]`; once for equal seeds."""
        for name, init in self.inits.items():
            parameter = self.get_parameter(name)
            drawn = {seed: init(seed, f"{path}.{name}", parameter.shape[1:]) for seed in dict.fromkeys(seeds)}
            for row, seed in zip(parameter, seeds, strict=True):
                row.copy_(drawn[seed])


def marked(parameter: nn.Parameter, decay: bool, kind: Kind) -> nn.Parameter:
    """Return the parameter with the marks that `decays` and `kind_of` read."""
    parameter.decay, parameter.kind = decay, kind  # type: ignore[attr-defined]
    return parameter


def kind_of(parameter: nn.Parameter) -> Kind:
    """Return the declared kind of a parameter."""
    kind: Kind = parameter.kind  # type: ignore[attr-defined]
    return kind


def decays(parameter: nn.Parameter, recipe: Recipe) -> bool:
    """Return whether a training recipe applies weight decay to a parameter: 1 to all but the exempt, 2 to no vector."""
    allowed: bool = parameter.decay  # type: ignore[attr-defined]
    return allowed and (recipe == 1 or kind_of(parameter) != "vector")


def spread(parameter: Tensor, x: Tensor) -> Tensor:
    """Shape a parameter [M, ...] so that it broadcasts over x [M, ..., *], whose last axes are those of its own."""
    own = parameter.shape[1:]
    return parameter.view(parameter.shape[0], *(1,) * (x.dim() - 1 - len(own)), *own)


class Coefficients(Stacked):
    """Numbers that scale or shift activations, without weight decay: [M, *shape] -> shaped to broadcast over x."""

    weight: Tensor

    def __init__(self, members: int, shape: tuple[int, ...], init: Init) -> None:
        super().__init__(members)
        self.declare("weight", shape, init, decay=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers, in the type of x and broadcasting over it."""
        return spread(self.weight, x).to(x.dtype)


def widen(x: Tensor) -> Tensor:
    """Return x in float32, or unchanged in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def delayed(x: Tensor) -> Tensor:
    """Return x [M, B, T, ...] one token later, zeros before the first."""
    return torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2)


class StackedLinear(Stacked):
    """x W + b: [M, ..., C_in] -> [M, ..., C_out]; W starts normal, std `gain` / sqrt(C_in); no b for `bias` None.

    `decay` is False where no recipe may decay b; `kind` is "table" for either end of a model.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        members: int,
        width_in: int,
        width_out: int,
        gain: float = 1,
        bias: Init | None = None,
        decay: bool = True,
        kind: Kind = "matrix",
    ) -> None:
        super().__init__(members)
        self.gain, self.fan_in = gain, normal(gain / math.sqrt(width_in))
        self.declare("weight", (width_in, width_out), self.fan_in, kind=kind)
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.declare("bias", (width_out,), bias, decay)

    def forward(self, x: Tensor) -> Tensor:
        y = project(x.flatten(1, -2), self.weight, self.bias)
        return y.view(*x.shape[:-1], y.shape[-1])

    def product(self, x: Tensor) -> Tensor:
        """Return x W, for an operator that adds b itself: a batched product first copies b to all rows."""
        y = project(x.flatten(1, -2), self.weight)
        return y.view(*x.shape[:-1], y.shape[-1])

    def parts(self, x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
        """Return blocks of `widths` columns of x W, [M, ..., width] each, for a layer without bias."""
        blocks = project_parts(x.flatten(1, -2), self.weight, widths)
        return tuple(block.view(*x.shape[:-1], -1) for block in blocks)


class LowRankLinear(nn.Module):
    """(x W_1) W_2 + b, through `rank` columns: [M, ..., C_in] -> [M, ..., C_out]; weight decay leaves b alone.

    `gain` is that of each factor.
    """

    __call__: Callable[..., Tensor]

    def __init__(
        self, members: int, width_in: int, rank: int, width_out: int, gain: float = 1, bias: Init | None = None
    ) -> None:
        super().__init__()
        self.down = StackedLinear(members, width_in, rank, gain)
        self.up = StackedLinear(members, rank, width_out, gain, bias, decay=False)

    def forward(self, x: Tensor) -> Tensor:
        low, up = self.down(x), self.up
        return up(low) if up.bias is None else adapted_product(low, up.weight, up.bias)


class Embedding(Stacked):
    """Rows of a table, also a tied head: ids [M, B, T] -> [M, B, T, C]; they start normal, std `scale` / sqrt(C)."""

    weight: Tensor

    def __init__(self, members: int, vocabulary: int, width: int, scale: float = 1.0) -> None:
        super().__init__(members)
        self.declare("weight", (vocabulary, width), normal(scale / math.sqrt(width)), kind="table")

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids."""
        return embed(ids, self.weight)


def start_as_published(model: nn.Module, output_gain: float, init: PublishedInit) -> None:
    """Let embeddings and projections start as published code does.

    * gpt-2: normal, std .02 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).
    * torch: uniform within 1 / sqrt(inputs), the start of torch.nn.Linear (Mamba, arXiv 2312.00752).
    * small: normal, std sqrt(2 / (5 inputs)), and 2 / (L sqrt(inputs)) at outputs (xLSTM, arXiv 2405.04517).

    Output projections have `output_gain`, 1 / sqrt(2 L). A weight that a layer starts in a way of its own keeps it.
    """
    for module in model.modules():
        if isinstance(module, Embedding):
            module.inits["weight"] = normal(GPT_2_STD)
        elif isinstance(module, StackedLinear) and module.gain in (1.0, output_gain):
            as_fan_in = module.inits["weight"] is module.fan_in
            module.inits["weight"] = published_start(module, init) if as_fan_in else module.inits["weight"]


def published_start(layer: StackedLinear, init: PublishedInit) -> Init:
    """Return the start of a projection, whose gain is 1, or 1 / sqrt(2 L) at the output of a mixer or MLP."""
    if init == "gpt-2":
        return normal(GPT_2_STD * layer.gain)
    inputs = layer.weight.shape[1]
    if init == "torch":
        bound = layer.gain / math.sqrt(inputs)
        return uniform_between(-bound, bound)
    return normal(math.sqrt(0.4 / inputs) if layer.gain == 1 else 4 * layer.gain**2 / math.sqrt(inputs))


class RMSNorm(Stacked):
    """x / rms(x) * weight over the last axis: [M, ..., C], in float32 (Zhang and Sennrich, arXiv 1910.07467)."""

    weight: Tensor

    def __init__(self, members: int, width: int, eps: float = 1e-6, decay: bool = True) -> None:
        super().__init__(members)
        self.eps = eps
        self.declare("weight", (width,), constant(1.0), decay)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)

    def gated(self, x: Tensor, gate: Tensor, activation: GateActivation, gate_first: bool = False) -> Tensor:
        """Return the norm times act(gate), or the norm of that product; the gate is like x."""
        options = NormOptions(self.eps, activation=activation, gate_first=gate_first)
        return gated_norm(x, self.weight, None, gate, options)

    def after(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the residual sum x + y (x where y is None) and its norm, in the type of x."""
        return add_rms_norm(x, None if y is None else y.to(x.dtype), self.weight, eps=self.eps)

    def unit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x for its other use, and x / rms(x), to which the gains are not applied yet."""
        return unit_rms(x, eps=self.eps)

    def pairs_after(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the residual sum of x and y [M, B, T, C], and its norm beside that one token before."""
        return add_paired_norm(x, None if y is None else y.to(x.dtype), self.weight, eps=self.eps)


class LayerNorm(Stacked):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in float32: [M, ..., H, V].

    The gains, and the biases where there are any, are those of each head, [M, H, V] (Ba et al., arXiv 1607.06450).
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, members: int, shape: tuple[int, ...], eps: float = 1e-5, bias: bool = False) -> None:
        super().__init__(members)
        self.eps = eps
        self.declare("weight", shape, constant(1.0), decay=False)
        if bias:
            self.declare("bias", shape, constant(0.0), decay=False)
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return gated_norm(x, self.weight, self.bias, None, NormOptions(self.eps, centred=True))

    def gated(self, x: Tensor, gate: Tensor, activation: GateActivation, gate_first: bool = False) -> Tensor:
        """Return the norm times act(gate), or the norm of that product; the gate is like x."""
        return gated_norm(x, self.weight, self.bias, gate, NormOptions(self.eps, True, activation, gate_first))


class ShortConv(Stacked):
    """y_t = act(sum_j weight_j x_{t-j} + bias), j = 0..L-1, by channel: [M, B, T, C] -> the same.

    L - 1 inputs are the state. The activation is SiLU where `silu`, else none; there is a bias where `bias`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        members: int,
        channels: int,
        length: int,
        silu: bool = False,
        bias: Init | None = None,
        taps: Init | None = None,
    ) -> None:
        super().__init__(members)
        self.length, self.silu = length, silu
        self.declare("weight", (length, channels), taps or normal(INITIAL_TAP_STD))
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.declare("bias", (channels,), bias, decay=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.silu and self.bias is None:
            return short_convolution(x, self.weight)
        return self.heads(x, [HeadColumns(1, x.shape[-1])])[0].squeeze(-2)

    def heads(self, x: Tensor, parts: Sequence[HeadColumns]) -> tuple[Tensor, ...]:
        """Apply the layer, and split its output into parts of [M, B, T, heads, width]."""
        return split_convolution(x, self.weight, self.bias, parts, silu=self.silu)

    def activate(self, y: Tensor) -> Tensor:
        """Add the bias and apply the activation, where there are any."""
        y = y if self.bias is None else y + spread(self.bias, y).to(y.dtype)
        return functional.silu(y) if self.silu else y

    def initial_tail(self, batch: int) -> Tensor:
        """Return the inputs before the first position, zeros: [M, B, L - 1, C]."""
        return self.weight.new_zeros(self.weight.shape[0], batch, self.length - 1, self.weight.shape[-1])

    def step(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one position: x [M, B, C], tail [M, B, L - 1, C] oldest first -> output and the next tail."""
        window = torch.cat([tail, x[:, :, None]], dim=2)
        return self.activate(convolution_step(list(reversed(window.unbind(2))), self.weight)), window[:, :, 1:]


class CanonConv(ShortConv):
    """x + conv(x), a canon layer: four taps by channel, without bias or activation; [M, B, T, C] -> the same.

    The taps start as those of `torch.nn.Conv1d`, uniform in (-1/2, 1/2), which the released code leaves as they are.
    Source: Allen-Zhu, "Physics of Language Models: Part 4.1" (2025).
    """

    def __init__(self, members: int, channels: int) -> None:
        bound = CANON_TAPS**-0.5
        super().__init__(members, channels, CANON_TAPS, taps=uniform_between(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)

    def step(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        y, tail = super().step(x, tail)
        return x + y, tail


class GatedMLP(nn.Module):
    """(silu(x W_gate) * x W_up) W_down: [M, B, T, C] -> the same (Shazeer, arXiv 2002.05202).

    Where `canon`, a canon layer is between the two first projections and the activation; its tail is the state.
    """

    def __init__(self, members: int, width: int, hidden: int, gain: float, canon: bool = False) -> None:
        super().__init__()
        self.up = StackedLinear(members, width, 2 * hidden)
        self.canon = CanonConv(members, 2 * hidden) if canon else None
        self.down = StackedLinear(members, hidden, width, gain)

    def forward(self, x: Tensor) -> Tensor:
        if self.canon is not None:
            return self.down(gated_unit(self.canon(self.up(x))))
        return gated_mlp(x.flatten(1, -2), self.up.weight, self.down.weight).view(x.shape)

    def added_onto(self, total: Tensor, rows: Tensor, gain: Tensor) -> Tensor:
        """Return the stream `total` with the layer's output added in place, for rows whose gains are not applied yet.

        There is no canon layer; both are [M, B, T, C], the gains [M, C].
        """
        both = project(rows.flatten(1, -2), fold_gains(self.up.weight, gain))
        return project_onto(total.flatten(1, -2), gated_unit(both), self.down.weight).view(total.shape)

    def step(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute one position: x [M, B, C] and the tail of the canon layer, None without one -> output and tail."""
        hidden = self.up(x)
        if self.canon is not None and tail is not None:
            hidden, tail = self.canon.step(hidden, tail)
        return self.down(gated_unit(hidden)), tail
