"""Initial values of parameters: kinds of draws, and the walk over a model that makes them.

Every value is drawn on the CPU from its member's seed and the parameter's qualified name, so that a member starts
alike in a fleet of any size and on any device.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from icl_bench import random

Init = Callable[[int, str, torch.Size], Tensor]
"""Return the initial value of one member's parameter, from the member's seed, the qualified name and the shape."""


class Initialised(ABC):
    """Base of modules that own parameters and draw them."""

    @abstractmethod
    def initialise(self, seeds: Sequence[int], path: str) -> None:
        """Draw the parameters of this module alone in place, member m from `seeds[m]`; `path` is its qualified name."""


def initialise(model: nn.Module, seeds: Sequence[int]) -> None:
    """Draw every parameter of a model in place, member m from `seeds[m]`."""
    for path, module in model.named_modules():
        if isinstance(module, Initialised):
            module.initialise(seeds, path)


def constant(value: float) -> Init:
    """Start every element at the same value."""
    return lambda seed, name, shape: torch.full(shape, value)


def fixed(values: Tensor) -> Init:
    """Start all members at these values, such as a ramp over channels."""
    return lambda seed, name, shape: values.expand(shape)


def normal(std: float, mean: float = 0.0) -> Init:
    """Draw from a normal distribution."""
    return lambda seed, name, shape: random.normal_by_name(seed, name, shape.numel()).mul(std).add(mean).view(shape)


def uniform_between(low: float, high: float) -> Init:
    """Draw uniformly from (low, high)."""

    def values(seed: int, name: str, shape: torch.Size) -> Tensor:
        keys = torch.tensor(random.stream("init", seed, name))
        return random.uniform(keys, "uniform", shape.numel()).mul(high - low).add(low).view(shape)

    return values


def stratified(low: float, high: float) -> Init:
    """Draw n elements uniformly, one from each n-th part of (low, high), the parts in random order.

    The few rates of a layer then spread over the whole range at every seed.
    """

    def values(seed: int, name: str, shape: torch.Size) -> Tensor:
        keys, count = torch.tensor(random.stream("init", seed, name)), shape.numel()
        parts = random.permutation(keys, "parts", count) + random.uniform(keys, "uniform", count)
        return parts.mul((high - low) / count).add(low).view(shape)

    return values


def mapped(init: Init, function: Callable[[Tensor], Tensor]) -> Init:
    """Draw by `init`, then apply a function in float64, such as `torch.log`."""
    return lambda seed, name, shape: function(init(seed, name, shape))


def log_uniform(low: float, high: float) -> Init:
    """Draw values whose logarithm is uniform between log(low) and log(high)."""
    return mapped(uniform_between(math.log(low), math.log(high)), torch.exp)


def step_bias(low: float = 1e-3, high: float = 1e-1) -> Init:
    """Draw c with softplus(c) log-uniform in (low, high), spread over the elements: the steps of state-space models."""
    return mapped(stratified(math.log(low), math.log(high)), lambda x: inverse_softplus(x.exp()))


def orthogonal(gain: float) -> Init:
    """Draw a matrix with orthonormal rows or columns, whichever are fewer, times `gain`, uniformly among all."""

    def values(seed: int, name: str, shape: torch.Size) -> Tensor:
        matrix = random.normal_by_name(seed, name, shape.numel()).view(shape)
        q, r = torch.linalg.qr(matrix if shape[0] >= shape[1] else matrix.T)
        columns: Tensor = q * r.diagonal().sign() * gain
        return columns if shape[0] >= shape[1] else columns.T

    return values


def inverse_softplus(x: Tensor) -> Tensor:
    """Return y with softplus(y) = x, for x > 0, without loss of digits where x is small."""
    return x + (-torch.expm1(-x)).log()
