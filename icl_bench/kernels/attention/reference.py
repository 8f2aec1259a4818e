"""Softmax attention by its plain definition in float64: slow, and written to be read."""

import torch
from torch import Tensor

from icl_bench.kernels.attention.records import AttentionInputs, AttentionOptions


def attention_reference(inputs: AttentionInputs, options: AttentionOptions) -> Tensor:
    """Return y_i = sum_j A_ij v_j / sum_j A_ij, A_ij = e^(c_i - c_j) e^(scale q_i.k_j) for i - window < j <= i.

    c is the inclusive sum of log_g over T. The result, [N, T, H, V], is rounded to the type of v at the end.
    """
    q, k, v, log_g = inputs
    t, shared = q.shape[1], q.shape[2] // k.shape[2]
    keys, values = (x.double().repeat_interleave(shared, dim=2) for x in (k, v))
    scores = options.scale * torch.einsum("nihk,njhk->nijh", q.double(), keys)
    if log_g is not None:
        c = log_g.double().cumsum(dim=1).repeat_interleave(shared, dim=2)
        scores = scores + c[:, :, None] - c[:, None]
    distance = torch.arange(t, device=q.device)[:, None] - torch.arange(t, device=q.device)
    seen = (distance >= 0) & (distance < (options.window or t))
    weights = scores.masked_fill(~seen[None, :, :, None], -torch.inf).softmax(dim=2)
    return torch.einsum("nijh,njhv->nihv", weights, values).to(v.dtype)
