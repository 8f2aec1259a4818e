"""Gradients in a flat buffer: copied to their places, and added up over ranks while the backward pass goes on.

The buffer is cut into buckets of neighbours. Once the backward pass has written all gradients of a bucket, it begins to
be added up, beside the rest of the pass; that of the layers near the input, whose gradients come last, ends after it.
Every rank takes the same buckets in the same order.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.harness.training.ranks import Ranks
from icl_bench.kernels.fleet.layout import ParameterLayout

LARGE_GRADIENT = 1 << 19
"""Numbers from which on a gradient is copied alone: a launch for many has one block for each 65,536 numbers."""
BUCKET_BYTES = 1 << 22
"""Least size of a bucket: a sum over two GPUs takes some 20 us, however little is added."""


def copy_gradients(views: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Copy gradients to their views of a buffer, in few launches."""
    common: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for view, new in zip(views, gradients, strict=True):
        if new.numel() >= LARGE_GRADIENT:
            view.copy_(new)
        else:
            common.setdefault(new.dtype, []).append((view, new))
    for pairs in common.values():
        torch._foreach_copy_([view for view, _ in pairs], [new for _, new in pairs])


class Bucket(NamedTuple):
    """Neighbours in a flat buffer: the parameters from `first` to before `end`, and all elements between them."""

    first: int
    end: int
    values: Tensor


def buckets_of(layout: ParameterLayout, flat: Tensor, least: int) -> list[Bucket]:
    """Cut a flat buffer into buckets of `least` bytes or more, the last parameters first, but for what is left over."""
    starts, buckets, end = layout.starts, [], len(layout.sizes)
    for first in reversed(range(end)):
        values = flat[starts[first] : starts[end]]
        if values.nbytes >= least or first == 0:
            buckets.append(Bucket(first, end, values))
            end = first
    return buckets


class GradientSums:
    """The sums of a flat buffer of gradients over ranks; `views` are the gradients in it."""

    def __init__(self, ranks: Ranks, layout: ParameterLayout, flat: Tensor, views: Sequence[Tensor]) -> None:
        self.ranks, self.views, self.buckets = ranks, views, buckets_of(layout, flat, BUCKET_BYTES)
        self.bucket_of = [i for i, bucket in enumerate(self.buckets) for _ in range(bucket.first, bucket.end)]
        self.bucket_of.reverse()
        self.arrived: list[dict[int, Tensor]] = [{} for _ in self.buckets]
        self.ends: list[Callable[[], None]] = []

    def add_arriving(self, working: Sequence[Tensor], differentiate: Callable[[], Sequence[Tensor]]) -> None:
        """Add up the gradients of the tensors `working`, which `differentiate` computes and returns, as they come."""
        hooks = [tensor.register_hook(partial(self.arrive, place)) for place, tensor in enumerate(working)]
        try:
            gradients = differentiate()
        finally:
            for hook in hooks:
                hook.remove()
        for place, gradient in enumerate(gradients):
            if place not in self.arrived[self.bucket_of[place]]:
                self.arrive(place, gradient)  # of a tensor that the losses do not depend on
        for end in self.ends:
            end()

    def arrive(self, place: int, gradient: Tensor) -> None:
        """Take the gradient of the parameter at a place; begin the sum of its bucket once that has all of its own."""
        number = self.bucket_of[place]
        bucket, arrived = self.buckets[number], self.arrived[number]
        arrived[place] = gradient
        if len(arrived) == bucket.end - bucket.first:
            places = range(bucket.first, bucket.end)
            copy_gradients(self.views[bucket.first : bucket.end], [arrived[i] for i in places])
            self.ends.append(self.ranks.begin_to_add(bucket.values))
