"""Softmax attention in operators of torch: all T x T scores, or blocks of b queries by b + w - 1 keys for a window w.

A block of b queries that starts at position s sees the keys from s - w + 1 to s + b - 1, so query i of the block sees
the keys i <= j < i + w of those, and the cost is linear in T. Both forms go through one masked softmax.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.attention.records import AttentionInputs, AttentionOptions
from icl_bench.kernels.matrices import ELEMENT_COST, factor_dtype, fold_heads, matrix_product


class _MaskedSoftmax(torch.autograd.Function):
    """o = softmax(scale q k^T + c_i - c_j + mask) v on q [B, R I, K], k [B, J, K], v [B, J, V], mask [.., I, J].

    Only the weights A are kept at the size of the scores. The gradient of c_t is the row sum less the column sum of
    ds = A (do v^T - do.o). On paper rows of ds sum to zero; but o is made of the weights as they are rounded for the
    product, and the remainder of the rows is in the columns as well. The gradient of a gate sums that of c over the
    later tokens, so that the rows must be kept to cancel it: without them it errs by 2 to 5 percent in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, c: Tensor | None, mask: Tensor, scale: float) -> Tensor:
        i, j = mask.shape[-2:]
        scores = matrix_product(q, k.mT)
        shaped = scores.view(-1, len(mask), q.shape[1] // i, i, j)
        torch.add(mask[:, None], shaped, alpha=scale, out=shaped)
        if c is not None:
            sums = c.to(mask.dtype).view(-1, len(mask), 1, 1, j)
            shaped.sub_(sums).add_(sums[..., 0, j - i :, None])
        weights = scores.softmax(dim=-1)
        out = matrix_product(weights.to(factor_dtype(v)), v)
        ctx.save_for_backward(q, k, v, weights, out)
        ctx.scale, ctx.queries, ctx.gated = scale, i, c is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None, None]:
        q, k, v, weights, out = ctx.saved_tensors
        factor = factor_dtype(v)
        grad = grad.to(factor)
        grad_v = matrix_product(weights.mT.to(factor), grad)
        grad_scores = matrix_product(grad, v.mT)
        grad_scores.sub_((grad * out).sum(dim=-1, keepdim=True)).mul_(weights)
        grad_c = _gate_sums_gradient(grad_scores, ctx.queries) if ctx.gated else None
        grad_scores = grad_scores.to(factor)
        grad_q = matrix_product(grad_scores, k).mul_(ctx.scale)
        grad_k = matrix_product(grad_scores.mT, q).mul_(ctx.scale)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), grad_c, None, None


def _gate_sums_gradient(grad_scores: Tensor, queries: int) -> Tensor:
    """Return the gradient [B, J] of c in float64 from ds [B, R I, J]; queries are at the last I of the J positions."""
    out = grad_scores.sum(dim=1).double().neg_()
    out[:, -queries:] += grad_scores.sum(dim=2).view(len(out), -1, queries).sum(dim=1)
    return out


def attention_torch(inputs: AttentionInputs, options: AttentionOptions) -> Tensor:
    """Return attention [N, T, H, V] in the type of v, by the cheaper of the two forms by `attention_form_costs`."""
    t, key, value = inputs.q.shape[1], inputs.q.shape[3], inputs.v.shape[3]
    if options.window is None or options.window >= t:
        return attention_by_blocks(inputs, options._replace(window=t), t)
    block = default_block(t, key, value, options.window)
    whole, blocks = attention_form_costs(t, key, value, options.window, block)
    return attention_by_blocks(inputs, options, t if whole <= blocks else block)


def attention_form_costs(t: int, key_width: int, value_width: int, window: int, block: int) -> tuple[int, int]:
    """Return the cost of all T x T scores and of blocks of b queries for one head, in multiply-adds.

    An element that goes through memory is charged e = 32 multiply-adds. A score costs a = K + V + e, and each block
    pads and copies its b + w - 1 keys and values:

        whole:   T^2 a
        blocks:  ceil(T / b) (b + w - 1) (b a + 2 (K + V) e)
    """
    score = key_width + value_width + ELEMENT_COST
    keys = block + window - 1
    return t * t * score, -(-t // block) * keys * (block * score + 2 * (key_width + value_width) * ELEMENT_COST)


def default_block(t: int, key_width: int, value_width: int, window: int) -> int:
    """Return the block of least cost by `attention_form_costs` among the multiples of 16 up to 256."""
    return min(range(16, 257, 16), key=lambda block: attention_form_costs(t, key_width, value_width, window, block)[1])


def attention_by_blocks(inputs: AttentionInputs, options: AttentionOptions, block: int) -> Tensor:
    """Return attention over blocks of queries, each with the keys that its window reaches; one block of T is whole."""
    q, k, v, log_g = inputs
    window = options.window or q.shape[1]
    n, t, heads, _ = q.shape
    groups, dtype = k.shape[2], accumulation_dtype(q.dtype)
    back = 0 if block == t else window - 1  # keys before the block
    count = -(-t // block)
    rows = _query_blocks(q, count, block, groups)
    keys, values = (_key_blocks(x, count, block, back) for x in (k, v))
    # Sums of gates within each block, in float64.
    c = None if log_g is None else _key_blocks(log_g.double()[..., None], count, block, back).squeeze(-1).cumsum(dim=1)
    mask = _band(count, block, back, window, q.device, dtype)
    out: Tensor = _MaskedSoftmax.apply(rows, keys, values, c, mask, options.scale)
    out = out.view(n, groups, count, heads // groups, block, -1).permute(0, 2, 4, 1, 3, 5)
    return out.reshape(n, count * block, heads, -1)[:, :t].to(v.dtype)


def _query_blocks(q: Tensor, count: int, block: int, groups: int) -> Tensor:
    """Cut queries into blocks: [N, T, H, K] -> [N*G*count, R*block, K]."""
    n, t, heads, width = q.shape
    padded = q if count * block == t else pad(q, (0, 0, 0, 0, 0, count * block - t))
    blocks = padded.reshape(n, count, block, groups, heads // groups, width).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(n * groups * count, -1, width)


def _key_blocks(x: Tensor, count: int, block: int, back: int) -> Tensor:
    """Cut [N, T, G, K] into blocks with `back` positions before each, zeros outside: [N*G*count, back + block, K]."""
    if block == x.shape[1] and back == 0:
        return fold_heads(x, x.shape[2])
    padded = pad(x, (0, 0, 0, 0, back, count * block - x.shape[1]))
    return padded.unfold(1, back + block, block).permute(0, 2, 1, 4, 3).flatten(0, 2)


def _band(count: int, block: int, back: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return 0 where a query sees a key and -inf elsewhere: [count, block, back + block]."""
    i = torch.arange(block, device=device)[:, None]
    j = torch.arange(-back, block, device=device)
    start = torch.arange(0, count * block, block, device=device)[:, None, None]
    seen = (j <= i) & (j > i - window) & (start + j >= 0)
    return torch.zeros(seen.shape, device=device, dtype=dtype).masked_fill_(~seen, -torch.inf)
