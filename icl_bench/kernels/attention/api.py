"""Softmax attention, its key-value cache and its step: arguments, defaults and the choice of an implementation.

    A_ij = exp(c_i - c_j) exp(scale q_i.k_j)  for max(0, i - window + 1) <= j <= i,   c = inclusive sums of log_g over T
    y_i = sum_j A_ij v_j / sum_j A_ij

With a gate this is the forgetting transformer (arXiv 2503.02130); without, softmax or sliding-window attention.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.arguments import accumulation_dtype, check_choice, check_sequences, check_token
from icl_bench.kernels.attention.blocked import attention_torch
from icl_bench.kernels.attention.records import (
    WIDEST_KEY,
    WIDEST_VALUE,
    AttentionInputs,
    AttentionOptions,
    KeyValueCache,
    check_attention,
    check_cache,
)
from icl_bench.kernels.attention.reference import attention_reference
from icl_bench.kernels.backends import check_triton, has_triton

AttentionImpl = Literal["auto", "reference", "torch", "sdpa", "triton"]

SHORT_LENGTHS = {32: 256, 64: 1024}
"""The longest sequences that "auto" gives to Triton and not to "sdpa", by the widest heads in them."""


def attention(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None = None, *, window: int | None = None,
    scale: float | None = None, impl: AttentionImpl = "auto",
) -> Tensor:  # fmt: skip
    """Return causal softmax attention [N, T, H, V] in the type of v, over all keys or a window, optionally gated.

    Args:
        q: Queries [N, T, H, K].
        k: Keys [N, T, G, K]; H is a multiple of G, and head h reads key-value head h // (H // G).
        v: Values [N, T, G, V].
        log_g: Log gates [N, T, G], finite and at most 0, float32, or None; a token is not decayed by its own gate.
        window: Number of keys that a query sees, itself included; None for all.
        scale: Factor on q.k; 1/sqrt(K) by default.
        impl: "reference" (float64 by the definition), "torch" (operators of torch on any device, linear in T with a
            window), "sdpa" (torch's own attention, without a gate; with a window T x T scores), "triton" (CUDA), or
            "auto": "sdpa" where a query sees all keys and there is no gate (Triton up to 256 tokens and widths of 32
            in half precision, 1,024 and 64), else Triton where it can run, else "torch", but for short sequences on a
            CPU, where a mask costs less.

    Raises:
        ArgumentError: A shape, type or value breaks one of these rules.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    inputs = AttentionInputs(q, k, v, log_g)
    check_sequences(*inputs)
    options = check_attention(inputs, window, scale)
    check_choice("impl", impl, get_args(AttentionImpl))
    return ATTENTION_FORMS[auto_attention_form(inputs, options) if impl == "auto" else impl](inputs, options)


def attention_step(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, cache: KeyValueCache, *, window: int | None = None,
    scale: float | None = None,
) -> tuple[Tensor, KeyValueCache]:  # fmt: skip
    """Take one token: its key and value enter the cache, those outside the window leave, and the query reads it.

    The arguments are those of `attention` without the axis T, q [N, H, K] and so on, and the cache before this token.
    Return y [N, H, V] in the type of v and the cache after it; raise ArgumentError for a value that breaks a rule.
    """
    inputs = AttentionInputs(q, k, v, log_g)
    check_token(*inputs)
    options = check_attention(inputs, window, scale)
    check_cache(cache, inputs)
    new = _append(cache, inputs, window)
    kind = accumulation_dtype(q.dtype)
    n, heads, key_width = q.shape
    grouped = q.reshape(n, k.shape[1], -1, key_width).to(kind)
    scores = options.scale * torch.einsum("ngrk,nlgk->ngrl", grouped, new.k.to(kind))
    if new.decay is not None:
        scores = scores + new.decay.transpose(1, 2)[:, :, None]
    out = torch.einsum("ngrl,nlgv->ngrv", scores.softmax(dim=-1), new.v.to(kind))
    return out.reshape(n, heads, -1).to(v.dtype), new


def empty_cache(
    n: int, heads: int, key_width: int, value_width: int, *, gated: bool, device: torch.device | str, dtype: torch.dtype
) -> KeyValueCache:
    """Return the cache before any token (L = 0) for G = heads key-value heads and inputs of `dtype`."""
    k, v = (torch.zeros(n, 0, heads, width, device=device, dtype=dtype) for width in (key_width, value_width))
    decay = torch.zeros(n, 0, heads, device=device, dtype=accumulation_dtype(dtype)) if gated else None
    return KeyValueCache(k, v, decay)


def _append(cache: KeyValueCache, inputs: AttentionInputs, window: int | None) -> KeyValueCache:
    first = 0 if window is None else max(0, cache.k.shape[1] + 1 - window)
    decay = None
    if cache.decay is not None and inputs.log_g is not None:
        gate = inputs.log_g.to(cache.decay.dtype)[:, None]
        decay = torch.cat([cache.decay + gate, torch.zeros_like(gate)], dim=1)[:, first:]
    keys = torch.cat([cache.k, inputs.k[:, None]], dim=1)[:, first:]
    return KeyValueCache(keys, torch.cat([cache.v, inputs.v[:, None]], dim=1)[:, first:], decay)


def _sdpa(inputs: AttentionInputs, options: AttentionOptions) -> Tensor:
    q, k, v, log_g = inputs
    if log_g is not None:
        raise KernelUnavailableError("impl='sdpa' has no gate; got log_g: use impl='auto' or impl='torch'")
    t, mask = q.shape[1], None
    if options.window is not None and options.hides(t):
        ones = torch.ones(t, t, dtype=torch.bool, device=q.device)
        mask = ones.tril() & ones.triu(1 - options.window)
    shared = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=options.scale, enable_gqa=shared)
    return out.transpose(1, 2)


def _triton(inputs: AttentionInputs, options: AttentionOptions) -> Tensor:
    check_triton(inputs.q)
    from icl_bench.kernels.attention.triton.ops import attention_triton

    return attention_triton(inputs, options)


ATTENTION_FORMS: Mapping[str, Callable[[AttentionInputs, AttentionOptions], Tensor]] = {
    "reference": attention_reference,
    "torch": attention_torch,
    "sdpa": _sdpa,
    "triton": _triton,
}


def auto_attention_form(inputs: AttentionInputs, options: AttentionOptions) -> str:
    """Return the name of the implementation that "auto" takes."""
    q, _, v, log_g = inputs
    plain, t = log_g is None, q.shape[1]
    if plain and not options.hides(t) and not _is_short(q, v):
        return "sdpa"
    fits = q.dtype != torch.float64 and q.shape[3] <= WIDEST_KEY and v.shape[3] <= WIDEST_VALUE
    if fits and has_triton(q):
        return "triton"
    # On a CPU, T x T scores with a mask and blocks of them cost the same, forward and backward, near 230 and 180 tokens
    # for a window of 16, 360 and 290 for 64, and 830 and 950 for 256, at widths of 32 and 16 in float32 on two cores.
    masked = plain and q.device.type == "cpu" and options.window is not None and t <= 160 + 3 * options.window
    return "sdpa" if masked else "torch"


def _is_short(q: Tensor, v: Tensor) -> bool:
    """Return whether Triton is faster than torch's own on an H200: measured at K = V = 64 and 64, 256, 1,024 tokens.

    At 1,024, 8 heads and 131,072 tokens in all: forward .45 ms, backward 1.19; cuDNN .40 and 1.38, FlashAttention-2 .62
    and 1.87.
    """
    half, widest = q.dtype in (torch.bfloat16, torch.float16), max(q.shape[3], v.shape[3])
    longest = next((length for width, length in SHORT_LENGTHS.items() if widest <= width), 0)
    return has_triton(q) and half and q.shape[1] <= longest
