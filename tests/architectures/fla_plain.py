"""Plain definitions in the places of the kernels of flash-linear-attention, so that its layers run on a CPU."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Plain = Callable[..., Any]


def fla(path: str) -> Any:
    """Return what a dotted path below `fla` names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"fla.{module}"), name)


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def heads_first(function: Plain) -> Plain:
    """Wrap a definition on [B, H, T, ...] for callers with [B, T, H, ...]."""

    def turned(*given: Tensor, **options: Any) -> Tensor:
        y = function(*(x.transpose(1, 2) for x in given), **options)
        return (y[0] if isinstance(y, tuple) else y).transpose(1, 2)

    return turned


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, **_: Any) -> tuple[Tensor, None]:
    rule = heads_first(fla("ops.delta_rule.naive.delta_rule_recurrence"))
    return rule(unit(q), unit(k), v, beta), None


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, A_log: Tensor, dt_bias: Tensor, allow_neg_eigval: bool,
    **_: Any,
) -> Any:  # fmt: skip
    rate = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    decay = fla("ops.gated_delta_rule.gate.naive_gdn_gate")(g, A_log, dt_bias)
    return fla("ops.gated_delta_rule.naive.naive_recurrent_gated_delta_rule")(unit(q), unit(k), v, rate, decay)


def kda(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, A_log: Tensor, dt_bias: Tensor, safe_gate: bool,
    allow_neg_eigval: bool, lower_bound: float | None, **_: Any,
) -> Any:  # fmt: skip
    rate = beta.sigmoid() * (2 if allow_neg_eigval else 1)
    if safe_gate:
        decay = fla("ops.kda.gate.naive_kda_lowerbound_gate")(g, A_log, dt_bias, lower_bound)
    else:
        decay = fla("ops.kda.gate.naive_kda_gate")(g, A_log, dt_bias)
    return fla("ops.kda.naive.naive_recurrent_kda")(unit(q), unit(k), v, decay, rate)


def gdn_2(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, w: Tensor, **_: Any) -> Any:
    return fla("ops.gdn2.naive.naive_recurrent_gdn2")(unit(q), unit(k), v, g, b, w)


def product(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, num_householder: int, **_: Any) -> Any:
    rule = fla("ops.gated_delta_product.naive.naive_recurrent_gated_delta_product")
    return rule(unit(q), unit(k), v, g, beta, q.shape[-1] ** -0.5, num_householder=num_householder)


def gla(q: Tensor, k: Tensor, v: Tensor, gk: Tensor | None = None, g: Tensor | None = None, **_: Any) -> Any:
    return fla("ops.gla.naive.naive_recurrent_gla")(q, k, v, g if gk is None else gk)


def retention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Any:
    return heads_first(fla("ops.retention.naive.naive_retention"))(q, k, v), None


def based(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    return heads_first(fla("ops.based.naive.naive_parallel_based"))(q, k, v)


def gsa(q: Tensor, k: Tensor, v: Tensor, s: Tensor, g: Tensor, scale: float, **_: Any) -> Any:
    return fla("ops.gsa.naive.naive_recurrent_gsa")(q, k, v, s, g, scale)


def hgrn(x: Tensor, g: Tensor, **_: Any) -> Any:
    h, rows = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = g[:, t].exp() * h + x[:, t]
        rows.append(h)
    return torch.stack(rows, dim=1), None


def rwkv_6(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, scale: float, **_: Any) -> Any:
    rule = fla("ops.rwkv6.recurrent_naive.naive_recurrent_rwkv6")
    y, state = rule(*(x.transpose(1, 2) for x in (r, k, v, w)), u, scale)
    return y.transpose(1, 2), state


def rwkv_7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, scale: float, **_: Any) -> Any:
    rule = fla("ops.generalized_delta_rule.dplr.naive.dplr_recurrence")
    y, state = rule(*(x.transpose(1, 2) for x in (r * r.shape[-1] ** 0.5, k, v, a, b, w)))
    return y.transpose(1, 2), state


def forgetting(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **_: Any) -> Tensor:
    y: Tensor = fla("ops.forgetting_attn.naive.naive_forgetting_attn")(q, k, v, g)
    return y


def flash(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    return forgetting(q, k, v, torch.zeros(q.shape[:3]))


def sparse(
    q: Tensor, k: Tensor, v: Tensor, g_cmp: Tensor, g_slc: Tensor, g_swa: Tensor, block_size: int, block_counts: int,
    window_size: int, **_: Any,
) -> Tensor:  # fmt: skip
    sizes = (block_size, q.shape[-1] ** -0.5)
    means = [x.unflatten(1, (-1, block_size)).mean(2) for x in (k, v)]
    compressed, _lse = fla("ops.nsa.naive.naive_nsa_compression")(q, *means, *sizes)
    blocks = fla("ops.nsa.naive.naive_nsa_topk")(q, means[0], block_counts, *sizes)
    selected = fla("ops.nsa.naive.naive_nsa_selection")(q, k, v, blocks, *sizes)
    attention = fla("ops.forgetting_attn.naive.naive_forgetting_attn")
    window = attention(q, k, v, torch.zeros(q.shape[:3]), window_size=window_size)
    y: Tensor = g_cmp[..., None] * compressed + g_slc[..., None] * selected + g_swa[..., None] * window
    return y


def mesa(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, lamb: Tensor, **_: Any) -> Any:
    return fla("ops.mesa_net.naive.naive_mesa_net_exact")(unit(q), unit(k), v, g, lamb, beta)


def path(q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, g: None, **_: Any) -> Any:
    rule, scale = fla("ops.path_attn.naive.naive_path_attn"), q.shape[-1] ** -0.5
    return rule(q, k, v, w, beta, torch.zeros(beta.shape), scale, chunk_size=q.shape[1]), None


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any) -> Any:
    """Convolve [B, T, C] with taps [C, L]."""
    taps = weight.view(len(weight), 1, -1)
    y = functional.conv1d(functional.pad(x.mT, (taps.shape[-1] - 1, 0)), taps, bias, groups=len(taps)).mT
    return functional.silu(y) if activation == "silu" else y, None


def convolution(self: Any, x: Tensor, **_: Any) -> Any:
    return convolved(x, self.weight, self.bias, self.activation)


def rms_norm(self: Any, x: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def gated_norm(self: Any, x: Tensor, g: Tensor) -> Tensor:
    gate = g.sigmoid() if self.activation == "sigmoid" else functional.silu(g)
    return rms_norm(self, x) * gate


def norm_of_product(self: Any, x: Tensor, z: Tensor) -> Tensor:
    return rms_norm(self, x * functional.silu(z))


def group_norm(self: Any, x: Tensor) -> Tensor:
    y = functional.group_norm(x.flatten(0, 1), self.num_groups, self.weight, self.bias, self.eps)
    return y.view(x.shape)


def rotation(self: Any, q: Tensor, k: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    self._update_cos_sin_cache(q.shape[1], device=q.device, dtype=q.dtype)
    turn = fla("modules.rotary.rotary_embedding_ref")
    return turn(q, self._cos_cached, self._sin_cached), turn(k, self._cos_cached, self._sin_cached)


def normed_linear(x: Tensor, weight: Tensor, bias: None, matrix: Tensor, shift: None) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, 1e-5) @ matrix.T


def token_shift(x: Tensor, *_: Any, output_cache: bool = False, **__: Any) -> Any:
    change = functional.pad(x[:, :-1], (0, 0, 1, 0)) - x
    return (change, None) if output_cache else change


MODULES: Mapping[str, Plain] = {
    "ShortConvolution": convolution,
    "FusedRMSNormGated": gated_norm,
    "GroupNorm": group_norm,
    "RMSNorm": rms_norm,
    "RMSNormGated": norm_of_product,
    "RotaryEmbedding": rotation,
    "SwishFeatureMap": lambda self, x: functional.silu(x),
}
"""Forward passes of the modules of the package that are kernels, by the name of the class."""
OPERATORS: Mapping[str, Plain] = {
    "causal_conv1d": convolved,
    "chunk_gated_delta_product": product,
    "chunk_gated_delta_rule": gated_delta,
    "chunk_gdn2": gdn_2,
    "chunk_hgrn": hgrn,
    "chunk_kda": kda,
    "chunk_mesa_net": mesa,
    "chunk_retention": retention,
    "chunk_rwkv7": rwkv_7,
    "flash_attn_func": flash,
    "fused_addcmul_rwkv7": lambda *given: fla("ops.rwkv7.fused_addcmul.torch_addcmul_rwkv7")(*given),
    "fused_k_rwkv7": lambda *given: fla("ops.rwkv7.fused_k_update.k_update_ref")(*given),
    "fused_recurrent_delta_rule": delta,
    "fused_recurrent_gla": gla,
    "fused_recurrent_gsa": gsa,
    "fused_recurrent_rwkv6": rwkv_6,
    "gate_output_correction": lambda *given: fla("ops.rwkv7.gate_output_correction.gate_output_correction_ref")(*given),
    "l2_norm": lambda x, output_dtype: unit(x),
    "parallel_based": based,
    "parallel_forgetting_attn": forgetting,
    "parallel_nsa": sparse,
    "parallel_path_attn": path,
    "rms_norm_linear": normed_linear,
    "swiglu": lambda x, y: functional.silu(x) * y,
    "swish": functional.silu,
    "token_shift": token_shift,
}
"""Functions in the places of those that layers import, by their name."""
