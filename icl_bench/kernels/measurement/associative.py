"""The selective scan by PyTorch's associative scan, a plain form that its compiler takes at any length.

States of all tokens lie in memory, [N, T, C, S]. PyTorch's own gradient of that scan did not end compiling; here it is
the scan of the gradients of states from the last token to the first, and elementwise products and sums.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad, sigmoid, softplus

from icl_bench.kernels.measurement.problem import ContenderRun, Tensors

NAMES = ("x", "dt", "a", "b", "c", "d", "dt_bias")


def associative_selective_scan(problem: Any, device: torch.device) -> ContenderRun:
    """Return the compiled forward and backward pass for one member, as one function that can be differentiated."""
    states_of: Any = torch.compile(scan_forward, dynamic=False)
    gradients_of: Any = torch.compile(scan_backward, dynamic=False)

    class Scan(torch.autograd.Function):
        """Forward and backward pass as one operator."""

        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            y, h = states_of(*inputs)
            ctx.save_for_backward(*inputs, h)
            return cast(Tensor, y)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
            return cast(tuple[Tensor, ...], gradients_of(*ctx.saved_tensors, dy))

    def run(inputs: Tensors) -> Tensor:
        y: Tensor = Scan.apply(*(inputs[name] for name in NAMES))
        return y

    return run


def scan_forward(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, dt_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return y [N, T, C], and the states [N, T, C, S] in float32."""
    step = softplus(dt.float() + dt_bias)
    h = scanned(torch.exp(step[..., None] * a), (step * x)[..., None] * b[:, :, None].float())
    return ((h * c[:, :, None]).sum(-1) + d * x).to(x.dtype), h


def scan_backward(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, dt_bias: Tensor, h: Tensor, dy: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of all inputs for that of y, in the order of the inputs."""
    dy, wide, raw = dy.float(), x.float(), dt.float() + dt_bias
    step = softplus(raw)
    decay = torch.exp(step[..., None] * a)
    # The gradient of a state decays into that of the state before it by the decay of the later token.
    later = pad(decay[:, 1:], (0, 0, 0, 0, 0, 1), value=1.0)
    dh = scanned(later.flip(1), (dy[..., None] * c[:, :, None]).flip(1)).flip(1)
    dlog = dh * decay * pad(h[:, :-1], (0, 0, 0, 0, 1, 0))
    written = (dh * b[:, :, None]).sum(-1)
    draw = ((dlog * a).sum(-1) + written * wide) * sigmoid(raw)
    db, dc = (dh * (step * wide)[..., None]).sum(2), (h * dy[..., None]).sum(2)
    da, dd, dbias = (dlog * step[..., None]).sum((0, 1)), (dy * wide).sum((0, 1)), draw.sum((0, 1))
    dx = written * step + d * dy
    return dx.to(x.dtype), draw.to(dt.dtype), da[None], db.to(b.dtype), dc.to(c.dtype), dd[None], dbias[None]


def scanned(decay: Tensor, added: Tensor) -> Tensor:
    """Return h_t = decay_t h_(t-1) + added_t along axis 1."""
    from torch._higher_order_ops.associative_scan import associative_scan

    def joined(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    h: Tensor = associative_scan(joined, (decay, added), dim=1, combine_mode="pointwise")[1]
    return h
