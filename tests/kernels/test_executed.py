"""Operations of plain forms are those that torch counts; those of kernels follow from their tiles."""

import doctest

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from icl_bench.kernels import executed
from icl_bench.kernels.attention.api import attention
from icl_bench.kernels.attention.records import AttentionInputs, check_attention
from icl_bench.kernels.executed import attention_operations, last_product_operations, power_operations, visited_pairs
from icl_bench.kernels.fleet.cross_entropy import cross_entropy
from icl_bench.kernels.power.api import power_attention
from icl_bench.kernels.power.records import PowerInputs, check_options


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def operands(t: int, key: int, value: int, gated: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    log_g = -torch.rand(2, t, 3) if gated else None
    return drawn(2, t, 3, key), drawn(2, t, 3, key), drawn(2, t, 3, value), log_g


@pytest.mark.parametrize("t", [64, 200])
@pytest.mark.parametrize("p, normalize", [(1, "none"), (2, "sum"), (2, "none"), (3, "none")])
@pytest.mark.parametrize("impl, chunk", [("quadratic", None), ("chunked", 64)])
def test_plain_power_attention_executes_what_torch_counts(t, p, normalize, impl, chunk) -> None:
    inputs = operands(t, 6, 12, gated=p != 2)
    with FlopCounterMode(display=False) as counter:
        power_attention(*inputs, p=p, normalize=normalize, impl=impl, chunk=chunk).sum().backward()
    given = PowerInputs(*inputs, None)
    options = check_options(given, p, None, normalize, 1e-6, chunk)
    assert power_operations(given, options, impl) == counter.get_total_flops()


@pytest.mark.parametrize("t", [64, 200])
@pytest.mark.parametrize("window", [None, 16, 60])
def test_plain_attention_executes_what_torch_counts(t, window) -> None:
    inputs = operands(t, 6, 12, gated=True)
    with FlopCounterMode(display=False) as counter:
        attention(*inputs, window=window, impl="torch").sum().backward()
    given = AttentionInputs(*inputs)
    assert attention_operations(given, check_attention(given, window, None), "torch") == counter.get_total_flops()


@pytest.mark.parametrize("at_once", [executed.LOGITS_AT_ONCE, 5 * 2 * 17])
def test_the_last_product_executes_what_torch_counts(at_once, monkeypatch) -> None:
    x, table, targets = drawn(2, 9, 6), drawn(2, 17, 6), torch.zeros(2, 9, dtype=torch.int64)
    monkeypatch.setattr(executed, "LOGITS_AT_ONCE", at_once)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(x, table, targets, at_once=at_once)[0].sum().backward()
    assert last_product_operations(x, 17) == counter.get_total_flops()


def test_pairs_are_those_of_the_tiles_that_a_query_sees() -> None:
    assert not doctest.testmod(executed).failed
    seen = torch.ones(40, 40).tril().triu(-10)  # a window of 11
    for rows, columns in ((8, 4), (4, 8), (16, 16)):
        tiles = functional.pad(seen, (0, 8, 0, 8)).unfold(0, rows, rows).unfold(1, columns, columns)
        assert visited_pairs(40, 11, rows, columns) == int(tiles.amax((2, 3)).sum()) * rows * columns


def test_kernels_execute_both_gradients_of_the_state() -> None:
    """p = 2 at K = V = 64: D' = 2,560 rows, and K^2 V for each gradient; pairs inside chunks, of whole tiles."""
    pytest.importorskip("triton")
    t, chunk, rows, width = 8192, 1024, 2560, 64
    x = torch.empty(1, dtype=torch.bfloat16).expand(1, t, 1, width)
    inputs = PowerInputs(x, x, x, None, None)
    found = power_operations(inputs, check_options(inputs, 2, None, "none", 1e-6, chunk), "triton")
    state = 2 * 2 * (t - chunk) * (2 * rows * width + width**3)
    pairs = (t // chunk) * (chunk * chunk / 2) * 2 * width
    assert state + pairs * 10 < found < state + pairs * 10 * 1.2  # products a pair: 2, 3 and 5, less the diagonal
    window = AttentionInputs(x, x, x, None)
    softmax, near = (attention_operations(window, check_attention(window, w, None), "triton") for w in (None, 512))
    assert 9 * width * t * t < softmax < 9.5 * width * t * t and near < softmax / 6
