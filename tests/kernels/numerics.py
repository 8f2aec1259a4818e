"""Tolerances for kernels, derived from the arithmetic and never tuned."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from icl_bench.kernels.columns import split_heads

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

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


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers, on the GPU where there is one."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new tensors with NaN, so that an element that no kernel writes is seen."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, make=make, **k: _filled(make(*a, **k)))


def _filled(x: Tensor) -> Tensor:
    return x.fill_(torch.nan) if x.is_floating_point() else x


def outputs_and_gradients(
    function: Callable[..., object], inputs: Sequence[Tensor], impl: str, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Return the outputs of a form and their gradients along fixed numbers, for inputs in `dtype` or their types."""
    leaves = [part.detach().to(dtype or part.dtype).requires_grad_() for part in inputs]
    outs = function(*leaves, impl=impl)
    outs = outs if isinstance(outs, tuple) else (outs,)
    along = [draw(*out.shape, seed=7 + i).to(inputs[0].dtype).to(out.dtype) for i, out in enumerate(outs)]
    return [out.detach() for out in (*outs, *torch.autograd.grad(outs, leaves, along))]


def assert_forms_match_reference(function: Callable[..., object], inputs: Sequence[Tensor], walk: float = 0.0) -> None:
    """Outputs and gradients of the forms "torch" and "triton" are within rounding of those of "reference" in float64.

    `walk` bounds the terms that are summed into a gradient.
    """
    found, plain = (outputs_and_gradients(function, inputs, impl) for impl in ("triton", "torch"))
    exact, wide = (outputs_and_gradients(function, inputs, impl, torch.float64) for impl in ("reference", "torch"))
    for i, rows in enumerate(zip(found, exact, plain, strict=True)):
        assert_within_rounding(f"result {i}", *rows, walk=walk)
    for i, rows in enumerate(zip(wide, exact, strict=True)):
        assert_equal_in_float64(f"result {i} in operators of torch", *rows)


def assert_within_tf32(function: Callable[..., object], inputs: Sequence[Tensor], products: float) -> None:
    """Results of "triton" err, by their Frobenius norms, as that many products in tf32 one behind the other do.

    Both operands of a product are rounded to 10 bits beside tokens in half precision, and to 21 bits, three parts of
    tf32, beside float32. Operators of torch are equal to the definition in float64.
    """
    bound = 2 * products * 2.0 ** (-21 if inputs[0].dtype == torch.float32 else -10)
    made = outputs_and_gradients(function, inputs, "triton")
    wide, right = (outputs_and_gradients(function, inputs, impl, torch.float64) for impl in ("torch", "reference"))
    for i, (found, plain, exact) in enumerate(zip(made, wide, right, strict=True)):
        assert_equal_in_float64(f"result {i}", plain, exact)
        error, size = float((found.double() - exact).norm()), float(exact.norm())
        assert error <= bound * size, f"result {i}: {error:.3g} of {size:.3g} over {bound:.3g}"


def assert_replays(step: Callable[[], Sequence[Tensor]]) -> None:
    """A step that is captured in a graph gives, replayed twice, the bits that it gives without; on a CUDA device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # inputs of the step may still be under way there
    with torch.cuda.stream(stream):
        wanted = [x.clone() for x in step()]  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # PyTorch's own stream for captures is one of the first device to ask
        found = step()
    for _ in range(2):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def assert_gradients_lie_side_by_side(operator: Callable[..., Tensor], t: int) -> None:
    """Assert that heads of one tensor get gradients in one tensor, with the bits that copies of them get."""
    calls = {}
    rows = torch.randn(2, t, 80, generator=torch.Generator().manual_seed(t)).to(DEVICE).requires_grad_()
    heads = split_heads(rows, [(2, 16), (2, 16), (2, 8)])
    for name, parts in (("joint", heads), ("apart", [part.clone() for part in heads])):
        y = operator(*parts)
        calls[name] = torch.autograd.grad(y, parts, torch.linspace(-1, 1, y.numel(), device=DEVICE).view(y.shape))
    assert len({part.untyped_storage().data_ptr() for part in calls["joint"]}) == 1
    assert all(torch.equal(*pair) for pair in zip(calls["joint"], calls["apart"], strict=True))
