"""Stacked layers: every parameter has a leading member axis M, and every activation is [M, B, T, C].

A layer declares its parameters with `declare`; `initialise` then draws them on the CPU, each from its member's seed and
its own qualified name, so that a member starts alike in a fleet of any size and on any device.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from icl_bench import random

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
        y = torch.bmm(flat, self.weight) if self.bias is None else torch.baddbmm(self.bias[:, None], flat, self.weight)
        return y.view(*x.shape[:-1], y.shape[-1])


class Embedding(Stacked):
    """Rows of a table: ids [M, B, T] -> [M, B, T, C]. Where tied, its transpose is the output head."""

    weight: Tensor

    def __init__(self, members: int, vocabulary: int, width: int) -> None:
        super().__init__(members)
        self.declare("weight", (vocabulary, width), Init(std=0.3 / math.sqrt(width)))

    def forward(self, ids: Tensor) -> Tensor:
        members, vocabulary, width = self.weight.shape
        offsets = torch.arange(members, device=ids.device).view(-1, 1, 1) * vocabulary
        return functional.embedding(ids + offsets, self.weight.view(members * vocabulary, width))


class RMSNorm(Stacked):
    """x / rms(x) * weight over the last axis: [M, ..., C], in float32 (Zhang and Sennrich, arXiv 1910.07467)."""

    weight: Tensor

    def __init__(self, members: int, width: int) -> None:
        super().__init__(members)
        self.declare("weight", (width,), Init(mean=1.0))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        weight = self.weight.view(self.members, *[1] * (x.dim() - 2), -1)
        return (scaled * weight).to(x.dtype)


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
        padded = functional.pad(x, (0, 0, self.length - 1, 0))
        return self.combine([padded[:, :, self.length - 1 - j : padded.shape[2] - j] for j in range(self.length)])

    def combine(self, shifted: list[Tensor]) -> Tensor:
        """sum_j weight_j shifted_j."""
        taps = self.weight.to(shifted[0].dtype).view(self.members, self.length, *[1] * (shifted[0].dim() - 2), -1)
        total = shifted[0] * taps[:, 0]
        for j in range(1, self.length):
            total = torch.addcmul(total, shifted[j], taps[:, j])
        return total

    def step(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """One position: x [M, B, C], tail [M, B, L - 1, C] oldest first -> output and the next tail."""
        window = torch.cat([tail, x[:, :, None]], dim=2)
        return self.combine([window[:, :, self.length - 1 - j] for j in range(self.length)]), window[:, :, 1:]


class GatedMLP(nn.Module):
    """(silu(x W_gate) * x W_up) W_down: [M, B, T, C] -> the same (Shazeer, arXiv 2002.05202)."""

    def __init__(self, members: int, width: int, hidden: int, gain: float) -> None:
        super().__init__()
        self.up = Linear(members, width, 2 * hidden)
        self.down = Linear(members, hidden, width, gain)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)
