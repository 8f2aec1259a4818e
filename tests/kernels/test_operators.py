"""Operators that skip the dispatcher: the same numbers and gradients, recorded by compilers."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from icl_bench.kernels.operators import operator


@operator("icl_bench_tests::squared_times")
def squared_times(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return factor x^2."""
    return factor * x * x


@squared_times.register_fake
def _(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x.new_empty(x.shape)


@operator("icl_bench_tests::doubled")
def doubled(x: torch.Tensor) -> torch.Tensor:
    """Return 2 x."""
    return 2 * x


def _keep(ctx, inputs, output) -> None:
    x, ctx.factor = inputs
    ctx.save_for_backward(x)


squared_times.register_autograd(lambda ctx, dy: (2 * ctx.factor * ctx.saved_tensors[0] * dy, None), setup_context=_keep)


class Names(TorchDispatchMode):
    """Keeps the names of the operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [torch.Tensor.requires_grad_, torch.nn.Parameter])
def test_a_call_runs_the_function_with_its_gradient(make) -> None:
    x = make(torch.tensor([1.0, -2.0]))
    with Names() as dispatched:
        y = squared_times(x, 3.0)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist() == [3.0, 12.0] and gradient.tolist() == [6.0, -12.0]
    assert dispatched.names and not any("squared_times" in name for name in dispatched.names)


def test_compilers_record_the_operator() -> None:
    x, seen = torch.tensor([1.0, -2.0], requires_grad=True), []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(lambda x: squared_times(x, 3.0).sum(), backend=backend, fullgraph=True)
    (gradient,) = torch.autograd.grad(compiled(x), x)
    assert gradient.tolist() == [6.0, -12.0] and any("squared_times" in name for name in seen)


def test_an_operator_without_gradient_lets_none_pass() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    with torch.no_grad():
        assert doubled(x).tolist() == [2.0, -4.0]
    with pytest.raises(RuntimeError, match="autograd formula"):
        doubled(x).sum().backward()
