"""Limits of machines, and the share of them that a measured time comes to."""

from typing import NamedTuple


class Work(NamedTuple):
    """Operations of a pass, counted for the cheapest way to the result."""

    products: float = 0.0
    """Operations of matrix products, two for each multiplication with its addition."""
    operations: float = 0.0
    """Operations of float32 outside of matrix products."""
    exponentials: float = 0.0

    def with_backward(self) -> "Work":
        """Return the work of a forward and a backward pass: two products for each one, and every exponential again."""
        return Work(3 * self.products, 3 * self.operations, 2 * self.exponentials)


class MachineLimits(NamedTuple):
    """Rates that a machine cannot exceed, a second, by its data sheet.

    Source of the rate of exponentials: CUDA C++ programming guide, throughput of native arithmetic instructions,
    compute capability 9.0: 16 a clock and multiprocessor (of single operations in float32: 128).
    """

    bytes: float
    products: float
    """In bfloat16 with dense operands, whatever the precision asked for."""
    operations: float
    exponentials: float


# 132 multiprocessors at 1.98 GHz: 16 exponentials a clock are 4.2e12 a second, 128 multiply-adds 67e12 operations.
LIMITS = {
    "H200": MachineLimits(4.8e12, 989e12, 67e12, 4.2e12),
    "H100": MachineLimits(3.35e12, 989e12, 67e12, 4.2e12),
}
"""Limits by a part of the device's name; both in the SXM version."""


class LimitShare(NamedTuple):
    """The share of a limit that a time comes to, and the resource that binds."""

    share: float
    resource: str


def limit_share(device: str, milliseconds: float, work: Work, moved: int) -> LimitShare | None:
    """Return the least time that the device allows for `work` and for `moved` bytes, over the time taken.

    None for a device whose limits are not known.
    """
    limits = next((known for part, known in LIMITS.items() if part in device), None)
    if limits is None:
        return None
    seconds = {"bytes": moved / limits.bytes}
    for resource, count in work._asdict().items():
        seconds[resource] = count / getattr(limits, resource)
    binding = max(seconds, key=lambda resource: seconds[resource])
    return LimitShare(1000 * seconds[binding] / milliseconds, binding)
