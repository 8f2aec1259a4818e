"""Tolerances for kernels, derived from the arithmetic and never tuned."""

import torch
from torch import Tensor

# Forms that are equal on paper differ in float64 by the order of at most 10^4 additions, each of relative error
# 1.1e-16, and by a division that can amplify cancellation among powers by about 10^3.
FLOAT64_TOLERANCE = 1e-9


def assert_equal_in_float64(name: str, actual: Tensor, expected: Tensor) -> None:
    """Equal up to reordering, relative to the largest expected entry."""
    assert actual.dtype == expected.dtype == torch.float64, f"{name}: {actual.dtype} against {expected.dtype}"
    assert actual.shape == expected.shape, f"{name}: {list(actual.shape)} against {list(expected.shape)}"
    error = largest(actual - expected)
    budget = FLOAT64_TOLERANCE * largest(expected)
    assert error <= budget, f"{name}: error {error:.3g} over {budget:.3g}"


def assert_within_rounding(name: str, actual: Tensor, exact: Tensor, plain: Tensor, walk: float = 0.0) -> None:
    """`actual` errs at most twice as far as a plain computation in the same type, plus one unit in the last place.

    Args:
        name: What is compared, for the message.
        actual: The result under test.
        exact: The same in float64, from the same (rounded) inputs.
        plain: The same by the plain definition, with every operation in the type of `actual`.
        walk: The size of larger terms that cancel into the result, times the root of their number (roundings add up
            as a random walk); such a result has its unit at this size.
    """
    assert actual.dtype == plain.dtype, f"{name}: {actual.dtype} against {plain.dtype}"
    assert actual.isfinite().all(), f"{name}: not finite"
    unit = torch.finfo(actual.dtype).eps * max(largest(exact), walk)
    error, allowed = largest(actual.double() - exact), largest(plain.double() - exact)
    budget = 2 * (allowed + unit)
    assert error <= budget, f"{name}: error {error:.3g} over {budget:.3g} (the plain form errs by {allowed:.3g})"


def largest(x: Tensor) -> float:
    """The largest absolute entry."""
    return x.detach().abs().max().item() if x.numel() else 0.0
