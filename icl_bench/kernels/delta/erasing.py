"""The core of RWKV-7 as one operator: adapters, keys, decays, the untied delta rule, and the weights of a bonus.

It equals the second factors of two adapters, `erasing_keys`, `channel_decays` and `delta_rule` one after the other,
which run where this one does not. It is an operator on columns of rows, as those of `fleet.row_columns` are.
"""

import torch
from torch import Tensor

from icl_bench.kernels.backends import takes_triton
from icl_bench.kernels.delta.records import ErasingOptions, ErasingWeights


def takes_erasing_delta(rows: Tensor, options: ErasingOptions) -> bool:
    """Return whether `erasing_delta` runs on such rows: on a GPU, for widths that one program has."""
    if not takes_triton("auto", rows):
        return False
    from icl_bench.kernels.delta.triton.erasing import takes_erasing_call

    return takes_erasing_call(rows, options)


def erasing_delta(
    rows: Tensor,
    values: Tensor | None,
    weights: ErasingWeights,
    options: ErasingOptions,
    *,
    sparse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows, outputs, values, and sums of q k bonus [M, B, T, H] in float32 for written keys k.

    Outputs and values are [M, B, T, H, V]. `rows` [M, B, T, W] begin with queries and keys, [H K] each; the values
    follow where None are given, and columns of adapters where the options say. `sparse` says that the gradients of most
    sums will be 0, for which nothing is read then.
    """
    from icl_bench.kernels.delta.triton.erasing import ErasingDelta

    out: tuple[Tensor, Tensor, Tensor, Tensor] = ErasingDelta.apply(
        rows, values, options, sparse, torch.is_grad_enabled(), *weights
    )
    return out
