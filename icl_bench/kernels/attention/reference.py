"""Softmax attention by its plain definition in float64: slow, and written to be read."""

import torch
from torch import Tensor


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, window: int | None, scale: float
) -> Tensor:
    """y_i = sum_j A_ij v_j / sum_j A_ij, A_ij = e^(c_i - c_j) e^(scale q_i.k_j) for i - window < j <= i.

    c is the inclusive sum of log_g over T. Returns [N, T, H, V] in float64.
    """
    shared = q.shape[2] // k.shape[2]
    keys, values = (x.double().repeat_interleave(shared, dim=2) for x in (k, v))
    scores = scale * torch.einsum("nihk,njhk->nijh", q.double(), keys)
    if log_g is not None:
        c = log_g.double().cumsum(dim=1).repeat_interleave(shared, dim=2)
        scores = scores + c[:, :, None] - c[:, None]
    distance = torch.arange(q.shape[1], device=q.device)[:, None] - torch.arange(q.shape[1], device=q.device)
    seen = (distance >= 0) & (distance < (q.shape[1] if window is None else window))
    weights = scores.masked_fill(~seen[None, :, :, None], -torch.inf).softmax(dim=2)
    return torch.einsum("nijh,njhv->nihv", weights, values)
