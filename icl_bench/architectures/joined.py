"""A multi-head mixer whose queries, keys, values and gates come from one projection, where a GPU runs it.

The gradients of all columns of that projection then lie in one tensor: each operator writes its own, and one product
makes the gradient of the input, and one that of the weights.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from icl_bench.architectures.base import FirstLayer
from icl_bench.architectures.frame import Core, HeadsMixer
from icl_bench.architectures.layers import RMSNorm, StackedLinear
from icl_bench.kernels.backends import takes_triton
from icl_bench.kernels.fleet.projection import project
from icl_bench.kernels.fleet.records import HeadColumns, NormOptions
from icl_bench.kernels.fleet.row_columns import convolve_columns, norm_by_columns
from icl_bench.kernels.fleet.rows import take_rows

ROW_UNIT = 16
"""Columns of rows are a multiple of it, 32 bytes of a half type: Triton then loads several numbers at once."""


class JoinedCore(Core):
    """A core whose gates are made of columns of the projection."""

    @abstractmethod
    def gate_weights(self) -> list[Tensor]:
        """Return the weights of the gates, [M, C, columns] each."""

    @abstractmethod
    def mix_rows(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Return the output [M, B, T, H, V] and the rows, whose columns from `first` on are those of the gates."""


class JoinedMixer(HeadsMixer):
    """`HeadsMixer` with a `JoinedCore`, by one projection where it can: the same function of the same parameters."""

    def joins(self, x: Tensor) -> bool:
        """Return whether one projection serves all: on a GPU, behind a convolution, without norms that have gains."""
        layout, gate = self.layout, self.output_gate
        whole = self.conv is not None and layout.mixes_values and (layout.silu or layout.key_norm == "l2")
        plain = self.key_norms is None and self.canon is None and not layout.rope
        of_heads = isinstance(gate, StackedLinear) and layout.output_norm == "head"
        return whole and plain and (gate is None or of_heads) and takes_triton("auto", x)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        if not self.joins(x):
            return super().forward(x, first)
        y, rows = self.mix_joined(x, first, gated=self.output_gate is not None)
        activation = self.layout.output_gate
        if self.output_gate is None or activation == "none":
            return self.output(self.finish(y, None))
        assert isinstance(self.norm, RMSNorm)
        options = NormOptions(self.norm.eps, activation=activation, gate_first=self.layout.gate_first)
        return self.output(norm_by_columns(y, rows, self.layout.channels, self.norm.weight, options).flatten(-2))

    def mix(
        self, x: Tensor, first: FirstLayer | None, qkv: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        if qkv is not None or not self.joins(x):
            return super().mix(x, first, qkv, positions)
        y = self.mix_joined(x, first, gated=False)[0]
        return y if positions is None else take_rows(y.flatten(-2), positions).unflatten(-1, y.shape[-2:])

    def mix_joined(self, x: Tensor, first: FirstLayer | None, gated: bool) -> tuple[Tensor, Tensor]:
        """Return the output of the core and the rows of the projection, with those of the output gate where `gated`."""
        assert isinstance(self.core, JoinedCore) and self.conv is not None
        layout, weights = self.layout, [self.project.weight]
        if gated:
            assert isinstance(self.output_gate, StackedLinear)
            weights.append(self.output_gate.weight)
        start = sum(weight.shape[-1] for weight in weights)
        weights += self.core.gate_weights()
        fill = -sum(weight.shape[-1] for weight in weights) % ROW_UNIT
        weights.append(weights[0].new_zeros(*weights[0].shape[:-1], fill))
        rows = project(x.flatten(1, -2), torch.cat(weights, dim=-1)).view(*x.shape[:-1], -1)
        parts = [HeadColumns(*shape, layout.key_norm == "l2") for shape in layout.shapes[:2]]
        parts.append(HeadColumns(*layout.shapes[2]))
        rows, (q, k, v) = convolve_columns(rows, self.conv.weight, self.conv.bias, parts, silu=layout.silu)
        return self.core.mix_rows(q, k, self.offer(v, first), rows, start)
