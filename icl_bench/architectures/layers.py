"""Stacked layers: every parameter has a leading member axis M, and every activation is [M, B, T, C].

A layer declares its parameters with `declare`, each with its initial value and whether weight decay applies to it;
`initialisation.initialise` then draws them.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from icl_bench.architectures.initialisation import Init, Initialised, constant, normal
from icl_bench.kernels.fleet.convolution import convolution_step, short_convolution
from icl_bench.kernels.fleet.embedding import TokenOccurrences, embed
from icl_bench.kernels.fleet.gated_unit import gated_unit
from icl_bench.kernels.fleet.norm import add_rms_norm, rms_norm
from icl_bench.kernels.fleet.projection import project

INITIAL_TAP_STD = 0.3
"""Standard deviation of the taps of a convolution at the start; with 0.5, which keeps the variance of four taps, models
learn recall more slowly."""


class Stacked(nn.Module, Initialised):
    """Base of layers whose parameters have a leading member axis."""

    __call__: Callable[..., Tensor]

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members
        self.inits: dict[str, Init] = {}

    def declare(self, name: str, shape: tuple[int, ...], init: Init, decay: bool = True) -> None:
        """Add a parameter [M, *shape] drawn by `init`; `decay` is False for rates and gate biases: no weight decay."""
        self.inits[name] = init
        parameter = nn.Parameter(torch.empty(self.members, *shape))
        parameter.decay = decay  # type: ignore[attr-defined]
        self.register_parameter(name, parameter)

    @torch.no_grad()
    def initialise(self, seeds: Sequence[int], path: str) -> None:
        """Draw the declared parameters of this module in place, member m from `seeds[m]`."""
        for name, init in self.inits.items():
            for row, seed in zip(self.get_parameter(name), seeds, strict=True):
                row.copy_(init(seed, f"{path}.{name}", row.shape))


def decays(parameter: nn.Parameter) -> bool:
    """Return whether the optimiser applies weight decay to a parameter."""
    return getattr(parameter, "decay", True)


class StackedLinear(Stacked):
    """x W + b: [M, ..., C_in] -> [M, ..., C_out]; W starts normal, std `gain` / sqrt(C_in); no b for `bias` None."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, members: int, width_in: int, width_out: int, gain: float = 1, bias: Init | None = None) -> None:
        super().__init__(members)
        self.declare("weight", (width_in, width_out), normal(gain / math.sqrt(width_in)))
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.declare("bias", (width_out,), bias)

    def forward(self, x: Tensor) -> Tensor:
        flat, bias = x.flatten(1, -2), self.bias
        y = project(flat, self.weight) if bias is None else torch.baddbmm(bias[:, None], flat, self.weight)
        return y.view(*x.shape[:-1], y.shape[-1])


class Embedding(Stacked):
    """Rows of a table, also a tied head: ids [M, B, T] -> [M, B, T, C]; they start normal, std `scale` / sqrt(C)."""

    weight: Tensor

    def __init__(self, members: int, vocabulary: int, width: int, scale: float = 1.0) -> None:
        super().__init__(members)
        self.declare("weight", (vocabulary, width), normal(scale / math.sqrt(width)))

    def forward(self, ids: Tensor, occurrences: TokenOccurrences | None = None) -> Tensor:
        """Look up ids; their `occurrences`, where known, save the gradient a sort."""
        return embed(ids, self.weight, occurrences)


class RMSNorm(Stacked):
    """x / rms(x) * weight over the last axis: [M, ..., C], in float32 (Zhang and Sennrich, arXiv 1910.07467)."""

    weight: Tensor

    def __init__(self, members: int, width: int) -> None:
        super().__init__(members)
        self.declare("weight", (width,), constant(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)

    def after(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the residual sum x + y (x where y is None) and its norm, in the type of x."""
        return add_rms_norm(x, None if y is None else y.to(x.dtype), self.weight)


class ShortConv(Stacked):
    """y_t = sum_j weight_j x_{t-j}, j = 0..L-1, by channel: [M, B, T, C] -> the same; L - 1 inputs are the state."""

    weight: Tensor

    def __init__(self, members: int, channels: int, length: int) -> None:
        super().__init__(members)
        self.length = length
        self.declare("weight", (length, channels), normal(INITIAL_TAP_STD))

    def forward(self, x: Tensor) -> Tensor:
        return short_convolution(x, self.weight)

    def initial_tail(self, batch: int) -> Tensor:
        """Return the inputs before the first position, zeros: [M, B, L - 1, C]."""
        return self.weight.new_zeros(self.weight.shape[0], batch, self.length - 1, self.weight.shape[-1])

    def step(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one position: x [M, B, C], tail [M, B, L - 1, C] oldest first -> output and the next tail."""
        window = torch.cat([tail, x[:, :, None]], dim=2)
        return convolution_step(list(reversed(window.unbind(2))), self.weight), window[:, :, 1:]


class GatedMLP(nn.Module):
    """(silu(x W_gate) * x W_up) W_down: [M, B, T, C] -> the same (Shazeer, arXiv 2002.05202)."""

    def __init__(self, members: int, width: int, hidden: int, gain: float) -> None:
        super().__init__()
        self.up = StackedLinear(members, width, 2 * hidden)
        self.down = StackedLinear(members, hidden, width, gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated_unit(self.up(x)))
