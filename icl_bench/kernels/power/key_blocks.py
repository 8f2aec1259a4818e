"""Wide keys at p = 1: a sum over key channels is a sum over blocks of them, each a head of its own.

    y_i = sum_b sum_j exp(c_i - c_j) scale (q_ib . k_jb) v_j

A head of K key channels becomes B = ceil(K / 128) heads of at most 128 that share its values and its gate; their
outputs add up. A normaliser does not: it divides the whole sum.
"""

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.power.records import PowerInputs, PowerOptions, PowerState

WIDEST_KEY = 128
"""Key channels of a block."""


def key_width_fits(key_width: int, options: PowerOptions) -> bool:
    """Return whether the Triton form takes keys of this width, in blocks or whole."""
    return key_width <= WIDEST_KEY or (options.p == 1 and options.normalize == "none")


def split_keys(inputs: PowerInputs) -> PowerInputs:
    """Return inputs of the same sums over more heads: H B and G B heads of K' = ceil(K / B) key channels.

    Channels that fill the last block up are zeros. The state, if there is one, has no normaliser.
    """
    q, k, v, log_g, state = inputs
    n, t, groups, key_width = k.shape
    blocks, repeat = -(-key_width // WIDEST_KEY), q.shape[2] // groups
    width = -(-key_width // blocks)
    missing = (0, blocks * width - key_width)
    queries = functional.pad(q, missing).view(n, t, groups, repeat, blocks, width).transpose(3, 4)
    keys = functional.pad(k, missing).view(n, t, groups * blocks, width)
    gates = None if log_g is None else log_g.repeat_interleave(blocks, dim=2)
    sums = None
    if state is not None:
        padded = functional.pad(state.s, (0, 0, *missing))
        sums = PowerState(padded.reshape(n, groups * blocks, width, v.shape[3]), None)
    return PowerInputs(queries.reshape(n, t, -1, width), keys, v.repeat_interleave(blocks, dim=2), gates, sums)


def join_keys(y: Tensor, state: PowerState | None, groups: int, key_width: int) -> tuple[Tensor, PowerState | None]:
    """Add up outputs [N, T, H B, V] to [N, T, H, V], and put sums [N, G B, K', V] together to [N, G, K, V]."""
    n, t, _, value_width = y.shape
    parts = y.view(n, t, groups, -(-key_width // WIDEST_KEY), -1, value_width)
    total = parts.sum(3, dtype=torch.float32).flatten(2, 3).to(y.dtype)
    if state is None:
        return total, None
    return total, PowerState(state.s.reshape(n, groups, -1, value_width)[:, :, :key_width], None)
