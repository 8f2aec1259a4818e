"""Checks of arguments that operators share: they raise ArgumentError with the rule, the value and the way out."""

import math

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError

SEQUENCE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of powers, sums and states: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_sequences(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, *, shared: bool = False) -> None:
    """Refuse anything but q [N, T, H, K], k [N, T, G, K], v [N, T, G, V] and log_g [N, T, G] or None.

    `shared` allows k [N, T, J, K] with J heads that divide G, and q with H heads that divide G.
    """
    _check_tensors(q, k, v, log_g, prefix="N, T", shared=shared)
    if q.shape[1] < 1:
        raise ArgumentError(f"T must be at least 1; got q of shape {_shape(q)}: pass one token or more")


def check_token(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, *, shared: bool = False) -> None:
    """Refuse anything but one token: the tensors of `check_sequences` without T."""
    _check_tensors(q, k, v, log_g, prefix="N", shared=shared)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(choices)}; got {value!r}: pick one of these")


def check_at_least_one(name: str, value: int, way_out: str) -> None:
    """Refuse an integer below 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name} must be an integer of at least 1; got {value!r}: {way_out}")


def check_scale(scale: float | None, q: Tensor) -> float:
    """Return the scale, 1/sqrt(K) for None."""
    if scale is None:
        return float(q.shape[-1] ** -0.5)
    if not 0 < scale < math.inf:
        raise ArgumentError(f"scale must be positive and finite; got {scale}: leave it out for 1/sqrt(K)")
    return scale


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], axes: str) -> None:
    """Refuse a tensor of another shape; `axes` names the axes, as in "[N, G, D, V]"."""
    if tuple(tensor.shape) != shape:
        raise ArgumentError(f"{name} must be {axes} = {list(shape)}; got {_shape(tensor)}: reshape it to fit")


def check_pair(fit: bool, rule: str, first: Tensor, second: Tensor) -> None:
    """Refuse two tensors whose shapes do not fit the rule."""
    if not fit:
        raise ArgumentError(f"{rule}; got {_shape(first)} and {_shape(second)}: reshape them")


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, prefix: str, shared: bool) -> None:
    rank = len(prefix.split()) + 2
    key_heads = "J" if shared else "G"
    for name, tensor, last in (("q", q, "H, K"), ("k", k, f"{key_heads}, K"), ("v", v, "G, V")):
        if tensor.ndim != rank:
            layout = f"[{prefix}, {last}]"
            raise ArgumentError(f"{name} must have {rank} axes {layout}; got shape {_shape(tensor)}: reshape it")
    _check_kinds(q, k, v)
    *leading, heads, key_width = q.shape
    keys, groups = k.shape[-2], v.shape[-2] if shared else k.shape[-2]
    _check_heads(heads, keys, groups, shared)
    check_shape("k", k, (*leading, keys, key_width), f"[{prefix}, {key_heads}, K]")
    check_shape("v", v, (*leading, groups, v.shape[-1]), f"[{prefix}, G, V]")
    if key_width < 1 or v.shape[-1] < 1:
        raise ArgumentError(f"K and V must be at least 1; got K = {key_width}, V = {v.shape[-1]}: use wider heads")
    if log_g is not None:
        _check_gate(log_g, q, (*leading, groups), f"[{prefix}, G]")


def _check_heads(heads: int, keys: int, groups: int, shared: bool) -> None:
    if shared and (min(keys, groups) < 1 or groups % keys != 0):
        raise ArgumentError(
            f"G must be a multiple of J to share keys evenly; got G = {groups}, J = {keys}: change one of them"
        )
    if groups < 1 or (heads % groups != 0 and not (shared and groups % heads == 0)):
        rule = "H must be a multiple of G, or divide it," if shared else "H must be a multiple of G"
        raise ArgumentError(f"{rule} to share keys evenly; got H = {heads}, G = {groups}: change one of them")


def _check_kinds(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not q.dtype == k.dtype == v.dtype or q.dtype not in SEQUENCE_DTYPES:
        raise ArgumentError(
            f"q, k and v must share one type of bfloat16, float16, float32 or float64; "
            f"got {q.dtype}, {k.dtype} and {v.dtype}: cast them to one"
        )
    if not q.device == k.device == v.device:
        raise ArgumentError(
            f"q, k and v must be on one device; got {q.device}, {k.device} and {v.device}: move them together"
        )


def _check_gate(log_g: Tensor, q: Tensor, shape: tuple[int, ...], axes: str) -> None:
    check_shape("log_g", log_g, shape, axes)
    if log_g.dtype not in (torch.float32, torch.float64):
        raise ArgumentError(
            f"log_g must be float32, as its sums over T lose too much otherwise; got {log_g.dtype}: use log_g.float()"
        )
    if log_g.device != q.device:
        raise ArgumentError(f"log_g must be on the device of q, {q.device}; got {log_g.device}: move it there")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
