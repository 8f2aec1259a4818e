"""The plain torch forms on CUDA: rounding against the definition, and capture in a CUDA graph."""

import pytest
import torch

from icl_bench.kernels.attention.api import attention
from icl_bench.kernels.power.api import power_attention
from tests.kernels.attention import test_api as test_attention
from tests.kernels.numerics import assert_within_rounding, largest
from tests.kernels.power import test_api as test_power

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NAMES = ["out", "q", "k", "v", "log_g"]
FORMS = {
    "quadratic": lambda *x: power_attention(*x, p=2, eps=0.1, impl="quadratic"),
    "chunked": lambda *x: power_attention(*x, p=2, eps=0.1, impl="chunked", chunk=32),
    "softmax": lambda *x: attention(*x, impl="torch"),
    "window": lambda *x: attention(*x, window=16, impl="torch"),
}


def definition(name):
    if name in ("quadratic", "chunked"):
        return lambda *x: power_attention(*x, p=2, eps=0.1, impl="reference")
    return lambda *x: attention(*x, window=16 if name == "window" else None, impl="reference")


def plain(name):
    if name in ("quadratic", "chunked"):
        return lambda q, k, v, log_g=None: test_power.plain_attention(q, k, v, log_g, 2, "sum")
    return lambda *x: test_attention.plain_attention(*x, window=16 if name == "window" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_forms_err_no_more_than_the_plain_definition(gated, name, dtype):
    inputs = test_attention.make_inputs(100, gated=gated, key_width=16, value_width=16, dtype=dtype)
    along = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = test_attention.with_gradients(definition(name), [x.double() for x in inputs], along)
    expected = test_attention.with_gradients(plain(name), inputs, along)
    actual = test_attention.with_gradients(FORMS[name], [x.cuda() for x in inputs], along.cuda())
    for label, *values in zip(NAMES, (x.cpu() for x in actual), exact, expected, strict=False):
        # see test_power: what reaches and what leaves a gate is summed apart over T
        walk = largest((along * exact[0]).sum(-1)) * 10 if label == "log_g" else 0.0
        assert_within_rounding(f"{name}: {label}", *values, walk=walk)


@pytest.mark.parametrize("name", FORMS)
def test_a_training_step_is_captured_in_a_graph(name):
    inputs = [x.cuda() for x in test_attention.make_inputs(100, gated=True, key_width=16, dtype=torch.float32)]
    leaves = [x.requires_grad_() for x in inputs]

    def step():
        out = FORMS[name](*leaves)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]

    with torch.cuda.stream(torch.cuda.Stream()):  # what is made once, tables and workspaces, is made before the capture
        expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        captured = step()
    for x in captured:
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for label, a, b in zip(NAMES, captured, expected, strict=True):
        assert torch.equal(a, b), label
