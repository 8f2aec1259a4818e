"""Both scans by their definitions in float64, token by token: slow, and written to be read."""

import torch
from torch import Tensor

from icl_bench.kernels.scan.records import LinearInputs, SelectiveInputs, state_dtype


def selective_scan_reference(inputs: SelectiveInputs) -> tuple[Tensor, Tensor]:
    """h_t = e^(dt_t a) h_(t-1) + dt_t x_t b_t,  y_t = sum_s c_t h_t + d x_t: y [N, T, C] and the last h [N, C, S].

    arXiv 2312.00752, eq. 2 and 4, with the input matrix discretised as dt b. With a bias, dt_t is
    softplus(dt_t + dt_bias).
    """
    x, dt, b, c = (tensor.double() for tensor in (inputs.x, inputs.dt, inputs.b, inputs.c))
    n, length, channels = x.shape
    each = n // inputs.members
    a = inputs.a.double().repeat_interleave(each, dim=0)
    if inputs.dt_bias is not None:
        dt = torch.nn.functional.softplus(dt + inputs.dt_bias.double().repeat_interleave(each, dim=0)[:, None])
    h = a.new_zeros(n, channels, a.shape[2]) if inputs.state is None else inputs.state.double()
    outputs = []
    for t in range(length):
        h = torch.exp(dt[:, t, :, None] * a) * h + torch.einsum("nc,ns->ncs", dt[:, t] * x[:, t], b[:, t])
        outputs.append(torch.einsum("ncs,ns->nc", h, c[:, t]))
    y = torch.stack(outputs, dim=1)
    if inputs.d is not None:
        y = y + inputs.d.double().repeat_interleave(each, dim=0)[:, None] * x
    return y.to(inputs.x.dtype), h.to(state_dtype(inputs.x.dtype))


def linear_scan_reference(inputs: LinearInputs) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_(t-1) + b_t: all h [N, T, C], and the last h [N, C]; complex inputs are complex128 inside."""
    wide = torch.complex128 if inputs.b.dtype.is_complex else torch.float64
    a, b = inputs.a.to(wide), inputs.b.to(wide)
    h = torch.zeros_like(b[:, 0]) if inputs.state is None else inputs.state.to(wide)
    outputs = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        outputs.append(h)
    return torch.stack(outputs, dim=1).to(inputs.b.dtype), h.to(state_dtype(inputs.b.dtype))
