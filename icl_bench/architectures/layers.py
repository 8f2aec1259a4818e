"""Stacked layers: every parameter has a leading member axis M, and every activation is [M, B, T, C].

A layer declares its parameters with `declare`; `initialise` then draws them on the CPU, each from its member's seed and
its own qualified name, so that a member starts alike in a fleet of any size and on any device.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from icl_bench import random
from icl_bench.kernels.fleet.convolution import short_convolution
from icl_bench.kernels.fleet.convolution_reference import combine
from icl_bench.kernels.fleet.embedding import embed
from icl_bench.kernels.fleet.gated_unit import gated_unit
from icl_bench.kernels.fleet.norm import add_rms_norm, rms_norm
from icl_bench.kernels.fleet.places import Places
from icl_bench.kernels.fleet.projection import project

TAP_STD = 0.3
"""Start of the taps of a convolution; 0.5, which keeps the variance of four taps, learns recall more slowly."""


class Init(NamedTuple):
    """How a parameter starts: normal with mean `mean` and standard deviation `std` (0 for a constant)."""

    mean: float = 0.0
    std: float = 0.0


class Stacked(nn.Module):
    """Base of layers whose parameters have a leading member axis."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members
        self.inits: dict[str, Init] = {}

    def declare(self, name: str, shape: tuple[int, ...], init: Init) -> None:
        """Add the parameter `name`, [M, *shape], to be drawn by `initialise`."""
        self.inits[name] = init
        self.register_parameter(name, nn.Parameter(torch.empty(self.members, *shape)))


def initialise(model: nn.Module, seeds: list[int]) -> None:
    """Draw every declared parameter; member m from `seeds[m]`."""
    for path, module in model.named_modules():
        if isinstance(module, Stacked):
            for name, init in module.inits.items():
                draw(module.get_parameter(name), f"{path}.{name}", init, seeds)


@torch.no_grad()
def draw(parameter: Tensor, name: str, init: Init, seeds: list[int]) -> None:
    """Fill [M, ...] in place."""
    if init.std == 0:
        parameter.fill_(init.mean)
        return
    for row, seed in zip(parameter, seeds, strict=True):
        row.copy_(random.normal(seed, name, row.numel()).mul(init.std).add(init.mean).view_as(row))


class Linear(Stacked):
    """x W + b: [M, ..., C_in] -> [M, ..., C_out]; W normal with standard deviation `gain` / sqrt(C_in), b constant."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, members: int, width_in: int, width_out: int, gain: float = 1.0, bias: float | None = None
    ) -> None:
        super().__init__(members)
        self.declare("weight", (width_in, width_out), Init(std=gain / math.sqrt(width_in)))
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.declare("bias", (width_out,), Init(mean=bias))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1, -2)
        y = project(flat, self.weight) if self.bias is None else torch.baddbmm(self.bias[:, None], flat, self.weight)
        return y.view(*x.shape[:-1], y.shape[-1])


class Embedding(Stacked):
    """Rows of a table: ids [M, B, T] -> [M, B, T, C], normal with standard deviation `scale` / sqrt(C) at the start.

    Where tied, its transpose is the output head.
    """

    weight: Tensor

    def __init__(self, members: int, vocabulary: int, width: int, scale: float = 1.0) -> None:
        super().__init__(members)
        self.declare("weight", (vocabulary, width), Init(std=scale / math.sqrt(width)))

    def forward(self, ids: Tensor, places: Places | None = None) -> Tensor:
        """`places`, where known, spare the gradient a sort."""
        return embed(ids, self.weight, places)


class InputProjection(Linear):
    """x W + b of vectors of real numbers: [M, B, T, I] -> [M, B, T, C]; the bias starts normal.

    Without a bias the norm that follows would leave nothing of an input's length.
    """

    def __init__(self, members: int, width_in: int, width_out: int) -> None:
        super().__init__(members, width_in, width_out, bias=0.0)
        self.inits["bias"] = Init(std=1.0)

    def forward(self, x: Tensor, places: Places | None = None) -> Tensor:
        """`places` belong to words, and there are none."""
        return super().forward(x.to(self.weight.dtype))


class RMSNorm(Stacked):
    """x / rms(x) * weight over the last axis: [M, ..., C], in float32 (Zhang and Sennrich, arXiv 1910.07467)."""

    weight: Tensor

    def __init__(self, members: int, width: int) -> None:
        super().__init__(members)
        self.declare("weight", (width,), Init(mean=1.0))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)

    def after(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual sum x + y (x where y is None) and its norm, in the type of x."""
        return add_rms_norm(x, None if y is None else y.to(x.dtype), self.weight)


class ShortConv(Stacked):
    """Causal convolution of each channel with its own taps: [M, B, T, C] -> the same.

    y_t = sum_j weight_j x_{t-j}, j = 0..L-1. The recurrent form carries the last L - 1 inputs.
    """

    weight: Tensor

    def __init__(self, members: int, channels: int, length: int) -> None:
        super().__init__(members)
        self.length = length
        self.declare("weight", (length, channels), Init(std=TAP_STD))

    def forward(self, x: Tensor) -> Tensor:
        return short_convolution(x, self.weight)

    def step(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """One position: x [M, B, C], tail [M, B, L - 1, C] oldest first -> output and the next tail."""
        window = torch.cat([tail, x[:, :, None]], dim=2)
        return combine([window[:, :, self.length - 1 - j] for j in range(self.length)], self.weight), window[:, :, 1:]


class GatedMLP(nn.Module):
    """(silu(x W_gate) * x W_up) W_down: [M, B, T, C] -> the same (Shazeer, arXiv 2002.05202)."""

    def __init__(self, members: int, width: int, hidden: int, gain: float) -> None:
        super().__init__()
        self.up = Linear(members, width, 2 * hidden)
        self.down = Linear(members, hidden, width, gain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(gated_unit(self.up(x)))
        return out
