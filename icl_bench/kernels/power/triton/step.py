"""One token of power attention in Triton: the state is read once and written once, which is all the time it takes."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.power.expansion import basis_tuples, power_basis
from icl_bench.kernels.triton.common import padded

STEP_ROWS = 64
"""State rows to a program."""


@triton.jit
def _monomials(x, index, rows, mask, P: tl.constexpr):
    """m_t(x) = product of x_i over the P entries i of tuple t, for a block of tuples."""
    product = tl.full(rows.shape, 1.0, tl.float32)
    for i in tl.static_range(P):
        product *= tl.load(x + tl.load(index + rows * P + i, mask=mask, other=0)).to(tl.float32)
    return product


@triton.jit(do_not_specialize=["D", "groups"])
def power_step_kernel(
    q, k, v, log_g, s, z, index, weight, s_out, z_out, sums, totals,
    D, groups,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, V_BLOCK: tl.constexpr, REPEAT: tl.constexpr,
    QUERY_SHARE: tl.constexpr, KEY_SHARE: tl.constexpr, GATED: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """S' = g S + phi(k) v^T for BLOCK rows of one head, and their share of phi(q) S'. Grid: row blocks times N * G."""
    blocks = tl.cdiv(D, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    rows = block * BLOCK + tl.arange(0, BLOCK)
    mask = rows < D
    factor = tl.load(weight + rows, mask=mask, other=0.0)
    key = _monomials(k + row // KEY_SHARE * K, index, rows, mask, P) * factor
    gate = 1.0
    if GATED:
        gate = tl.exp(tl.load(log_g + row).to(tl.float32))
    if SUM:
        keys = tl.load(z + row * D + rows, mask=mask, other=0.0) * gate + key
        tl.store(z_out + row * D + rows, keys, mask=mask)
    for first in tl.static_range(0, V, V_BLOCK):
        column = first + tl.arange(0, V_BLOCK)
        place = (row * D + rows)[:, None] * V + column[None, :]
        inside = mask[:, None] & (column < V)[None, :]
        value = tl.load(v + row * V + column, mask=column < V, other=0.0).to(tl.float32)
        state = tl.load(s + place, mask=inside, other=0.0) * gate + key[:, None] * value[None, :]
        tl.store(s_out + place, state, mask=inside)
        for r in range(REPEAT):
            query = _monomials(q + (row * REPEAT + r) // QUERY_SHARE * K, index, rows, mask, P) * factor
            share = (row * REPEAT + r) * blocks + block
            tl.store(sums + share * V + column, tl.sum(query[:, None] * state, 0), mask=column < V)
            if SUM and first == 0:
                tl.store(totals + share, tl.sum(query * keys, 0))


@lru_cache(maxsize=64)
def _tables(key_width: int, p: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tuples [D, p] of the symmetric basis and their weights [D]."""
    with torch.inference_mode(False):
        weight = power_basis(key_width, p, torch.device("cpu")).weight[:, 0].float()
        return basis_tuples(key_width, p).int().to(device), weight.to(device)


@torch.library.custom_op("icl_bench::power_step", mutates_args=())
def power_step_triton(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor, z: Tensor | None, p: int, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, s and z (empty where z is None) after one token; outputs are normalised where z is given.

    The token is q [N, H, K], k [N, J, K], v [N, G, V] and log_g [N, G] or None; the state before it is s [N, G, D, V]
    and z [N, G, D] or None, float32 in the symmetric basis; y is [N, max(H, G), V].
    """
    n, query_heads, key_width = q.shape
    groups, value_width = v.shape[1:]
    heads = max(query_heads, groups)
    q, k, v, s = (x.contiguous() for x in (q, k, v, s))
    index, weight = _tables(key_width, p, q.device)
    rows, blocks = len(index), -(-len(index) // STEP_ROWS)
    z = None if z is None else z.contiguous()
    s_out, z_out = torch.empty_like(s), s.new_empty(0) if z is None else torch.empty_like(z)
    sums = torch.empty(n, heads, blocks, value_width, device=q.device)
    totals = torch.empty(n, heads, blocks, device=q.device)
    with launch_on(q):
        power_step_kernel[(blocks * n * groups,)](
            q, k, v, s if log_g is None else log_g.contiguous(), s, s if z is None else z, index, weight,
            s_out, z_out, sums, totals, rows, groups,
            P=p, K=key_width, V=value_width, V_BLOCK=padded(value_width, 16, 128), REPEAT=heads // groups,
            QUERY_SHARE=heads // query_heads, KEY_SHARE=groups // k.shape[1], GATED=log_g is not None,
            SUM=z is not None, BLOCK=STEP_ROWS,
        )  # fmt: skip
    y = sums.sum(2) * scale**p
    if z is not None:
        y = y / (totals.sum(2)[..., None] * scale**p + eps)
    return y.to(v.dtype), s_out, z_out


@power_step_triton.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor, z: Tensor | None, p: int, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y = v.new_empty(q.shape[0], max(q.shape[1], v.shape[1]), v.shape[2])
    return y, s.new_empty(s.shape), s.new_empty(0) if z is None else z.new_empty(z.shape)
