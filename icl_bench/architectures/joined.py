"""A multi-head mixer whose output gate is in one tensor with queries, keys and values, where a GPU runs it.

Convolution and gated norm write their columns of the gradient of that tensor, so that one product makes the gradient of
the input, and one that of the weights.
"""

import torch
from torch import Tensor

from icl_bench.architectures.base import FirstLayer
from icl_bench.architectures.frame import HeadsMixer
from icl_bench.architectures.layers import RMSNorm, StackedLinear
from icl_bench.kernels.backends import takes_triton
from icl_bench.kernels.fleet.projection import project_beside
from icl_bench.kernels.fleet.records import HeadColumns, NormOptions
from icl_bench.kernels.fleet.row_columns import convolve_columns, norm_by_columns

LINE = 64
"""Columns of rows are a multiple of it, so that each row of a half type begins with a line of 128 bytes."""


class JoinedMixer(HeadsMixer):
    """`HeadsMixer`, with one tensor for all projections where it can: the same function of the same parameters."""

    def joins(self, x: Tensor) -> bool:
        """Return whether there is one tensor: on a GPU, behind a convolution, with a gate and a norm of each head."""
        layout = self.layout
        whole = self.conv is not None and layout.mixes_values and (layout.silu or layout.key_norm == "l2")
        plain = self.key_norms is None and self.canon is None and not layout.rope
        gated = isinstance(self.output_gate, StackedLinear) and layout.output_norm == "head"
        aligned = (layout.channels + layout.output_width) % LINE == 0
        return whole and plain and gated and aligned and takes_triton("auto", x)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        if not self.joins(x):
            return super().forward(x, first)
        layout, gate, norm, activation = self.layout, self.output_gate, self.norm, self.layout.output_gate
        assert self.conv is not None and isinstance(gate, StackedLinear) and isinstance(norm, RMSNorm)
        assert activation != "none"
        # columns one after the other: the product with 768 of them takes .91 of the time
        weight = torch.cat([part.transpose(1, 2) for part in (self.project.weight, gate.weight)], dim=1).transpose(1, 2)
        x_rows, (rows,) = project_beside(x.flatten(1, -2), weight, [weight.shape[-1]])
        x, rows = x_rows.view(x.shape), rows.view(*x.shape[:-1], -1)
        parts = [HeadColumns(*shape, layout.key_norm == "l2") for shape in layout.shapes[:2]]
        parts.append(HeadColumns(*layout.shapes[2]))
        rows, (q, k, v) = convolve_columns(rows, self.conv.weight, self.conv.bias, parts, silu=layout.silu)
        y = self.core(q, k, self.offer(v, first), x)
        options = NormOptions(norm.eps, activation=activation, gate_first=layout.gate_first)
        return self.output(norm_by_columns(y, rows, layout.channels, norm.weight, options).flatten(-2))
