"""Power attention by its plain definition in float64: slow, and written to be read."""

import itertools
import math

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.power.records import PowerInputs, PowerOptions, PowerState


def power_attention_reference(
    inputs: PowerInputs, options: PowerOptions, keep_state: bool
) -> tuple[Tensor, PowerState]:
    """A_ij = e^(c_i - c_j) (scale q_i.k_j)^p for j <= i; y_i = sum_j A_ij v_j / (sum_j A_ij + eps), or not divided.

    arXiv 2507.04239, eq. 7, with c the inclusive sums of log_g. An initial state adds e^(c_i) scale^p phi(q_i) S. The
    last state comes with y [N, T, H, V] whether it is wanted or not.
    """
    q, k, v, log_g, initial = inputs.with_own_heads()
    p, scale, out_type = options.p, options.scale, v.dtype
    shared = q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double(), v.double()
    gate = torch.zeros(k.shape[:3], dtype=torch.float64, device=q.device) if log_g is None else log_g.double()
    c = gate.cumsum(dim=1)
    causal = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).tril()
    decay = (c[:, :, None] - c[:, None]).masked_fill(~causal[None, :, :, None], -torch.inf).exp()  # [N, T, T, G]
    scores = torch.einsum("nihk,njhk->nijh", q, k.repeat_interleave(shared, dim=2))
    weights = decay.repeat_interleave(shared, dim=3) * (scale * scores) ** p
    out = torch.einsum("nijh,njhv->nihv", weights, v.repeat_interleave(shared, dim=2))
    total = weights.sum(dim=2)

    to_last = (c[:, -1:] - c).exp()  # [N, T, G]
    s = torch.einsum("ntg,ntgd,ntgv->ngdv", to_last, expand_reference(k, p), v)
    z = torch.einsum("ntg,ntgd->ngd", to_last, expand_reference(k, p))
    if initial is not None:
        reach = c.exp().repeat_interleave(shared, dim=2)[..., None] * scale**p * expand_reference(q, p)
        old_s = initial.s.double()
        out = out + torch.einsum("nthd,nhdv->nthv", reach, old_s.repeat_interleave(shared, dim=1))
        s = s + c[:, -1, :, None, None].exp() * old_s
        if initial.z is not None:
            old_z = initial.z.double()
            total = total + torch.einsum("nthd,nhd->nth", reach, old_z.repeat_interleave(shared, dim=1))
            z = z + c[:, -1, :, None].exp() * old_z
    kind = accumulation_dtype(out_type)
    if options.normalize == "none":
        return out.to(out_type), PowerState(s.to(kind), None)
    return (out / (total[..., None] + options.eps)).to(out_type), PowerState(s.to(kind), z.to(kind))


def expand_reference(x: Tensor, p: int) -> Tensor:
    """phi(x)_t = sqrt(p! / prod_k hist_k(t)!) x_i1 ... x_ip over non-decreasing tuples t: [..., K] -> [..., D]."""
    entries = []
    for indices in itertools.combinations_with_replacement(range(x.shape[-1]), p):
        repeats = math.prod(math.factorial(indices.count(i)) for i in set(indices))
        entries.append(math.sqrt(math.factorial(p) / repeats) * x[..., list(indices)].prod(dim=-1))
    return torch.stack(entries, dim=-1)
