"""Where each word occurs among the tokens of a batch."""

from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Where each word occurs among the N tokens of a member."""

    order: Tensor
    """Indices of tokens sorted by word, and by index within a word, [M, N] int64."""
    starts: Tensor
    """Where each word begins in that order, and at last N, [M, W + 1] int64."""


def find_places(ids: Tensor, words: int) -> Places:
    """Sort the tokens ids [M, ...] of `words` words; pays where many batches are sorted at once."""
    flat = ids.flatten(1)
    members, count = flat.shape
    member = torch.arange(members, device=ids.device)[:, None]
    # One sort of all members is several times faster than one for each; narrow keys take fewer passes.
    kind = torch.int32 if members * words < 1 << 31 else torch.int64
    ordered, order = (flat + member * words).flatten().to(kind).sort(stable=True)
    bounds = (torch.arange(words + 1, device=ids.device) + member * words).to(kind)
    return Places(order.view(members, count) - member * count, torch.searchsorted(ordered, bounds) - member * count)
