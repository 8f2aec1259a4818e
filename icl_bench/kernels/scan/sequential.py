"""Both scans token by token in operators of torch, in the type of the state, which stays in the cache of a CPU."""

import torch
from torch import Tensor

from icl_bench.kernels.scan.records import LinearInputs, SelectiveInputs, state_dtype


def selective_scan_by_tokens(inputs: SelectiveInputs) -> tuple[Tensor, Tensor]:
    """Return y [N, T, C] of the selective scan, and the state [N, C, S] after the last token."""
    kind, members = state_dtype(inputs.x.dtype), inputs.members
    x, dt, b, c = (tensor.to(kind).unflatten(0, (members, -1)) for tensor in (inputs.x, inputs.dt, inputs.b, inputs.c))
    a = inputs.a.to(kind)[:, None]
    if inputs.dt_bias is not None:
        dt = torch.nn.functional.softplus(dt + inputs.dt_bias.to(kind)[:, None, None])
    h = x.new_zeros(*x.shape[:2], *a.shape[2:])
    if inputs.state is not None:
        h = inputs.state.unflatten(0, (members, -1))
    outputs = []
    # Slices of `unbind` send their gradients back in one tensor; each slice by index would send a tensor of its own.
    for step, given, write, read in zip(
        dt[..., None].unbind(2), (dt * x)[..., None].unbind(2), b.unbind(2), c.unbind(2), strict=True
    ):
        h = torch.addcmul(given * write[:, :, None], torch.exp(step * a), h)
        outputs.append((h * read[:, :, None]).sum(-1))
    y = torch.stack(outputs, dim=2)
    if inputs.d is not None:
        y = torch.addcmul(y, inputs.d.to(kind)[:, None, None], x)
    return y.flatten(0, 1).to(inputs.x.dtype), h.flatten(0, 1)


def linear_scan_by_tokens(inputs: LinearInputs) -> tuple[Tensor, Tensor]:
    """Return all h [N, T, C] of the linear scan, and the last one [N, C] in the type of a state."""
    kind = state_dtype(inputs.b.dtype)
    decays, additions = inputs.a.to(kind).unbind(1), inputs.b.to(kind).unbind(1)
    h = torch.zeros_like(additions[0]) if inputs.state is None else inputs.state
    outputs = []
    for decay, addition in zip(decays, additions, strict=True):
        h = torch.addcmul(addition, decay, h)
        outputs.append(h)
    return torch.stack(outputs, dim=1).to(inputs.b.dtype), h
