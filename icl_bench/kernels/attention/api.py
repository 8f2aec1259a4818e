"""Softmax attention, its key-value cache and its step: arguments, defaults and the choice of an implementation.

    A_ij = exp(c_i - c_j) exp(scale q_i.k_j)  for max(0, i - window + 1) <= j <= i,   c = inclusive sums of log_g over T
    y_i = sum_j A_ij v_j / sum_j A_ij

With a gate this is the forgetting transformer (arXiv 2503.02130); without, softmax or sliding-window attention.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.arguments import (
    accumulation_dtype,
    check_at_least_one,
    check_choice,
    check_scale,
    check_sequences,
    check_shape,
    check_token,
)
from icl_bench.kernels.attention.blocked import attention_torch
from icl_bench.kernels.attention.reference import attention_reference
from icl_bench.kernels.backends import check_triton, has_triton

Impl = Literal["auto", "reference", "torch", "sdpa", "triton"]

TRITON_KEY_WIDTH = 128
TRITON_VALUE_WIDTH = 256
"""The widest keys and values of the Triton form."""
SHORT, SHORT_WIDTH = 256, 64
"""The longest sequences, and the widest heads in them, that Triton takes from "sdpa" in half precision."""


class KeyValueCache(NamedTuple):
    """What softmax attention carries from token to token: the last L keys, all so far or min(window, t)."""

    k: Tensor
    """[N, L, G, K]."""
    v: Tensor
    """[N, L, G, V]."""
    decay: Tensor | None
    """[N, L, G] float32 (float64 for float64 inputs): the sum of the log gates after each key, so that exp(decay)
    multiplies its weight; None without a gate."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    *,
    window: int | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Causal softmax attention, over all keys so far or a window of them, optionally gated.

    Args:
        q: Queries [N, T, H, K].
        k: Keys [N, T, G, K]; H is a multiple of G, and head h reads key-value head h // (H // G).
        v: Values [N, T, G, V].
        log_g: Logarithms of the gates [N, T, G], finite and at most 0, float32; None for no gate.
            A token is not decayed by its own gate.
        window: How many keys a query sees, itself included; None for all.
        scale: Factor on q.k; 1/sqrt(K) by default.
        impl: "reference" (float64 by the definition), "torch" (plain torch on any device, linear in T with a window),
            "sdpa" (torch's own, without a gate; with a window T x T scores), "triton" (CUDA), or "auto": "sdpa" where a
            query sees all keys and there is no gate (Triton up to 256 tokens and widths of 64 in half precision), else
            Triton where it can run, else "torch", but for short sequences on a CPU, where a mask costs less.

    Returns:
        [N, T, H, V] in the type of v.

    Raises:
        ArgumentError: A shape, type or value breaks one of these rules.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_sequences(q, k, v, log_g)
    _check_window(window)
    check_choice("impl", impl, get_args(Impl))
    factor = check_scale(scale, q)
    if impl == "auto":
        impl = _choose(q, v, log_g, window)
    if impl == "reference":
        return attention_reference(q, k, v, log_g, window, factor).to(v.dtype)
    if impl == "sdpa":
        return _attention_sdpa(q, k, v, log_g, window, factor)
    if impl == "triton":
        check_triton(q)
        from icl_bench.kernels.attention.triton.ops import attention_triton

        return attention_triton(q, k, v, log_g, window, factor)
    return attention_torch(q, k, v, log_g, window, factor)


def attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    cache: KeyValueCache,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> tuple[Tensor, KeyValueCache]:
    """One token: its key and value enter the cache, those that fall out of the window leave, and the query reads it.

    Args:
        q: [N, H, K].
        k: [N, G, K].
        v: [N, G, V].
        log_g: [N, G] or None.
        cache: The cache before this token.
        window: How many keys the query sees, itself included; None for all.
        scale: Factor on q.k; 1/sqrt(K) by default.

    Returns:
        y [N, H, V] in the type of v, and the cache after this token.

    Raises:
        ArgumentError: A shape, type or value breaks a rule.
    """
    check_token(q, k, v, log_g)
    _check_window(window)
    _check_cache(cache, k, v, log_g)
    factor = check_scale(scale, q)
    new = _append(cache, k, v, log_g, window)
    kind = accumulation_dtype(q.dtype)
    n, heads, key_width = q.shape
    grouped = q.reshape(n, k.shape[1], -1, key_width).to(kind)
    scores = factor * torch.einsum("ngrk,nlgk->ngrl", grouped, new.k.to(kind))
    if new.decay is not None:
        scores = scores + new.decay.transpose(1, 2)[:, :, None]
    out = torch.einsum("ngrl,nlgv->ngrv", scores.softmax(dim=-1), new.v.to(kind))
    return out.reshape(n, heads, -1).to(v.dtype), new


def empty_cache(
    n: int,
    heads: int,
    key_width: int,
    value_width: int,
    *,
    gated: bool,
    device: torch.device | str,
    dtype: torch.dtype,
) -> KeyValueCache:
    """The cache before any token (L = 0) for G = heads key-value heads and inputs of `dtype`."""
    return KeyValueCache(
        k=torch.zeros(n, 0, heads, key_width, device=device, dtype=dtype),
        v=torch.zeros(n, 0, heads, value_width, device=device, dtype=dtype),
        decay=torch.zeros(n, 0, heads, device=device, dtype=accumulation_dtype(dtype)) if gated else None,
    )


def _append(cache: KeyValueCache, k: Tensor, v: Tensor, log_g: Tensor | None, window: int | None) -> KeyValueCache:
    length = cache.k.shape[1] + 1
    first = 0 if window is None else max(0, length - window)
    decay = None
    if cache.decay is not None and log_g is not None:
        gate = log_g.to(cache.decay.dtype)[:, None]
        decay = torch.cat([cache.decay + gate, torch.zeros_like(gate)], dim=1)[:, first:]
    keys, values = (torch.cat([old, new[:, None]], dim=1)[:, first:] for old, new in ((cache.k, k), (cache.v, v)))
    return KeyValueCache(keys, values, decay)


def _attention_sdpa(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, window: int | None, scale: float) -> Tensor:
    if log_g is not None:
        raise KernelUnavailableError("impl='sdpa' has no gate; got log_g: use impl='auto' or impl='torch'")
    t = q.shape[1]
    mask = None
    if window is not None and window < t:
        ones = torch.ones(t, t, dtype=torch.bool, device=q.device)
        mask = ones.tril() & ones.triu(1 - window)
    out = scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _choose(q: Tensor, v: Tensor, log_g: Tensor | None, window: int | None) -> Impl:
    sees_all = window is None or window >= q.shape[1]
    if log_g is None and sees_all and not _is_short(q, v):
        return "sdpa"
    fits = q.dtype != torch.float64 and q.shape[3] <= TRITON_KEY_WIDTH and v.shape[3] <= TRITON_VALUE_WIDTH
    if fits and has_triton(q):
        return "triton"
    masked = log_g is None and window is not None and q.device.type == "cpu" and _masking_is_cheaper(q.shape[1], window)
    return "sdpa" if masked else "torch"


def _masking_is_cheaper(t: int, window: int) -> bool:
    """Whether T x T scores with a mask cost less on a CPU than blocks of them, forward and backward.

    They cost the same near 230 and 180 tokens for a window of 16, 360 and 290 for 64, and 830 and 950 for 256, at
    widths of 32 and 16: measured in float32 on two cores.
    """
    return t <= 160 + 3 * window


def _is_short(q: Tensor, v: Tensor) -> bool:
    """Whether Triton is faster than torch's own forms on an H200: measured at K = V = 64, 64 and 256 tokens."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return has_triton(q) and half and q.shape[1] <= SHORT and max(q.shape[3], v.shape[3]) <= SHORT_WIDTH


def _check_window(window: int | None) -> None:
    if window is not None:
        check_at_least_one("window", window, "a window of 1 sees the token itself; leave it out to see all keys")


def _check_cache(cache: KeyValueCache, k: Tensor, v: Tensor, log_g: Tensor | None) -> None:
    n, groups, key_width = k.shape
    length = cache.k.shape[1] if cache.k.ndim > 1 else 0
    check_shape("cache.k", cache.k, (n, length, groups, key_width), "[N, L, G, K]")
    check_shape("cache.v", cache.v, (n, length, groups, v.shape[-1]), "[N, L, G, V]")
    if (cache.decay is None) != (log_g is None):
        raise ArgumentError(
            "cache.decay must be a tensor with a gate and None without; got "
            f"{'no decay' if cache.decay is None else 'a decay'} and {'no log_g' if log_g is None else 'a log_g'}: "
            "make the cache with the same gated as the call"
        )
    if cache.decay is not None:
        check_shape("cache.decay", cache.decay, (n, length, groups), "[N, L, G]")
