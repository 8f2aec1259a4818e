"""The records of a call of attention, checked once for all forms, and the cache that tokens pass on."""

from typing import NamedTuple

from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_at_least_one, check_scale, check_shape

WIDEST_KEY, WIDEST_VALUE = 128, 256
"""Largest widths of keys and values that the Triton form takes."""


class AttentionInputs(NamedTuple):
    """Tensors of a call: q [N, T, H, K], k [N, T, G, K], v [N, T, G, V], log_g [N, T, G]; in a step without T."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None = None


class AttentionOptions(NamedTuple):
    """Options of a call, as `attention` takes them."""

    window: int | None
    scale: float

    def hides(self, t: int) -> bool:
        """Return whether the window hides any key of a sequence of t tokens."""
        return self.window is not None and self.window < t


class KeyValueCache(NamedTuple):
    """The last L keys [N, L, G, K] and values [N, L, G, V] of softmax attention: all so far or min(window, t)."""

    k: Tensor
    v: Tensor
    decay: Tensor | None
    """[N, L, G] float32 (float64 for float64 inputs): the sum of the log gates after each key, so that exp(decay)
    multiplies its weight; None without a gate."""


def check_attention(inputs: AttentionInputs, window: int | None, scale: float | None) -> AttentionOptions:
    """Return the options of a call; raise ArgumentError for a value that breaks a rule."""
    if window is not None:
        check_at_least_one("window", window, "a window of 1 sees the token itself; leave it out to see all keys")
    return AttentionOptions(window, check_scale(scale, inputs.q))


def check_cache(cache: KeyValueCache, inputs: AttentionInputs) -> None:
    """Raise ArgumentError where a cache does not fit the token of a step."""
    n, groups, key_width = inputs.k.shape
    length = cache.k.shape[1] if cache.k.ndim > 1 else 0
    check_shape("cache.k", cache.k, (n, length, groups, key_width), "[N, L, G, K]")
    check_shape("cache.v", cache.v, (n, length, groups, inputs.v.shape[-1]), "[N, L, G, V]")
    if (cache.decay is None) != (inputs.log_g is None):
        raise ArgumentError(
            "cache.decay must be a tensor with a gate and None without; got "
            f"{'no decay' if cache.decay is None else 'a decay'} and "
            f"{'no log_g' if inputs.log_g is None else 'a log_g'}: make the cache with the same gated as the call"
        )
    if cache.decay is not None:
        check_shape("cache.decay", cache.decay, (n, length, groups), "[N, L, G]")
