"""Softmax attention over keys that all later tokens reflect (PaTH, Yang et al., arXiv 2505.16381).

    y_i = sum_j A_ij v_j / sum_j A_ij,   A_ij = exp(q_i^T H_i H_(i-1) ... H_(j+1) k_j / sqrt(K)) for j <= i
    H_s = I - r_s w_s w_s^T,   r_s = b_s / (w_s^T w_s + 1e-6)

So w has the length 1 of the paper however it was rounded: a reflection by a vector that rounding made longer would let
keys grow at each token. A system is solved for each chunk: with N the strictly lower part of w w^T, q H .. H k =
q k^T - (q w^T) D(r) (I + N D(r))^(-1) (w k^T), of which the lower parts count. Further back a query passes one chunk
after the other, by a matrix each.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import accumulation_dtype, check_shape
from icl_bench.kernels.backends import FleetImpl
from icl_bench.kernels.fleet.causal_softmax import causal_softmax
from icl_bench.kernels.fleet.narrow_heads import takes_narrow_heads
from icl_bench.kernels.fleet.records import UNIT_EPS, SeenKeys

CHUNK = 64
"""Tokens of a chunk of the form in operators of torch."""


class SeenTokens(NamedTuple):
    """The tokens that a token reads."""

    keys: Tensor
    """Keys, reflected by all tokens after theirs, [..., J, H, K]."""
    values: Tensor
    """Values, [..., J, H, V]."""


def reflected_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return y [N, T, H, V], in the type of v, for queries, keys and reflections w [N, T, H, K] and b [N, T, H].

    w is of any length. With b in [0, 2] no reflection lengthens a key; b is float32, or float64. "auto" is "triton" on
    CUDA where it fits (`takes_narrow_heads`).
    """
    rows = k.shape[:-1]
    for name, x in (("q", q), ("w", w)):
        check_shape(name, x, tuple(k.shape), "[N, T, H, K]")
    check_shape("v", v, (*rows, v.shape[-1]), "[N, T, H, V]")
    check_shape("b", b, tuple(rows), "[N, T, H]")
    if takes_narrow_heads(impl, k, v, [b]):
        from icl_bench.kernels.fleet.triton.reflected_gradient import FusedReflectedAttention

        fused: Tensor = FusedReflectedAttention.apply(q, k, v, w, b)
        return fused
    kind = torch.float64 if impl == "reference" else accumulation_dtype(v.dtype)
    wide = tuple(x.to(kind) for x in (q, k, v, w, b))
    return (attend_by_token(*wide) if impl == "reference" else attend_by_chunks(*wide)).to(v.dtype)


def attend_by_token(q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Return y by reflecting all keys at each token; arguments as for `reflected_attention`, of one type."""
    seen, rows = SeenTokens(k[:, :0], v[:, :0]), []
    for t in range(k.shape[1]):
        y, seen = reflected_step(q[:, t], k[:, t], v[:, t], w[:, t], b[:, t], seen)
        rows.append(y)
    return torch.stack(rows, dim=1)


def reflected_step(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor, seen: SeenTokens
) -> tuple[Tensor, SeenTokens]:
    """Read one token, q, k and w [..., H, K], v [..., H, V] and b [..., H] of one type -> y [..., H, V], all tokens."""
    rows = w[..., None, :, :]
    along = (seen.keys * rows).sum(-1) * rates_of(w, b)[..., None, :]
    keys = torch.cat([seen.keys - along[..., None] * rows, k[..., None, :, :]], dim=-3)
    values = torch.cat([seen.values, v[..., None, :, :]], dim=-3)
    weights = ((keys * q[..., None, :, :]).sum(-1) * k.shape[-1] ** -0.5).softmax(-2)
    return (weights[..., None] * values).sum(-3), SeenTokens(keys, values)


def rates_of(w: Tensor, b: Tensor) -> Tensor:
    """Return r [..., H] for w [..., H, K] and b [..., H]."""
    return b / (w.square().sum(-1) + UNIT_EPS)


def attend_by_chunks(q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Return y by a system for each chunk; arguments as for `reflected_attention`, of one type."""
    time, size = k.shape[1], min(k.shape[1], CHUNK)
    padded = (functional.pad(x, (0, 0, 0, 0, 0, -time % size)) for x in (q, k, w, v, b[..., None]))
    q, k, w, values, b = (x.transpose(1, 2).unflatten(2, (-1, size)) for x in padded)
    chunks, scaled = [], w * rates_of(w, b[..., 0])[..., None]
    for i, scores in enumerate(scores_of_chunks(q, k, w, scaled)):
        weights = causal_softmax(scores, SeenKeys(first=i * size), k.shape[-1] ** -0.5)
        chunks.append(weights @ values[:, :, : i + 1].flatten(2, 3))
    return torch.cat(chunks, dim=2)[:, :, :time].transpose(1, 2)


def scores_of_chunks(q: Tensor, k: Tensor, w: Tensor, scaled: Tensor) -> list[Tensor]:
    """Return the scores of each chunk with all keys up to its end, [N, H, C, (i + 1) C], the last block lower.

    Tokens are [N, H, chunks, C, K], `scaled` is r w.
    """
    size = q.shape[-2]
    system = torch.eye(size, dtype=w.dtype, device=w.device) + (w @ scaled.mT).tril(-1)
    right = torch.cat([(w @ k.mT).tril(-1), w], dim=-1)
    solved, ahead = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split(
        [size, w.shape[-1]], dim=-1
    )
    along = (q @ scaled.mT).tril()
    own = q @ k.mT - along @ solved
    queries, keys = q - along @ ahead, k - solved.mT @ scaled  # before the chunk, behind it
    through = scaled.mT @ ahead  # the identity less the reflections of a chunk
    blocks = [own.unbind(2)]
    for distance in range(1, q.shape[2]):
        queries = queries[:, :, 1:]
        blocks.append((queries @ keys[:, :, :-distance].mT).unbind(2))
        queries = queries - queries @ through[:, :, :-distance]
    return [torch.cat([blocks[i - j][j] for j in range(i + 1)], dim=-1) for i in range(q.shape[2])]
