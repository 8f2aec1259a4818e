"""RMS norm in plain torch, on any device and in any type."""

import torch
from torch import Tensor


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight, in float32 for half precision: x [M, N, C], weight [M, C]."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * weight[:, None]).to(x.dtype)
