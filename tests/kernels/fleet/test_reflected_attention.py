"""Attention over reflected keys against its definition, which reflects all keys at each token, in float64."""

import pytest
import torch
from torch import Tensor

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.fleet import reflected_attention as module
from icl_bench.kernels.fleet.reflected_attention import reflected_attention
from tests.kernels.numerics import assert_equal_in_float64, assert_within_tf32, draw, outputs_and_gradients

SHAPES = [(70, 2, (6, 5)), (20, 1, (16, 16)), (97, 1, (32, 20)), (40, 1, (64, 33))]


def operands(time: int, heads: int, widths: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    key, value = widths
    q, k, v = (draw(2, time, heads, width, dtype=dtype, seed=i) for i, width in enumerate((key, key, value)))
    w = draw(2, time, heads, key, dtype=dtype, seed=3)
    return [q, k, v, w, 2 * draw(2, time, heads, seed=4).sigmoid()]


def attend(*given: Tensor, impl: str) -> Tensor:
    return reflected_attention(*given, impl=impl)


@pytest.mark.parametrize(("time", "heads", "widths"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reflected_attention(time, heads, widths, dtype):
    # Scores of about 1 pass five products of their chunk, and one for each chunk of 32 tokens between.
    assert_within_tf32(attend, operands(time, heads, widths, dtype), 5 + time / 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_equal_reflections_of_full_strength(dtype):
    q, k, v, w, b = operands(80, 1, (16, 16), dtype)
    w = w[:, :1].expand(w.shape).contiguous()
    assert_within_tf32(attend, [q, k, v, w, torch.full_like(b, 2.0)], 5 + 80 / 32)


@pytest.mark.parametrize("chunk", [64, 4, 3, 1])
def test_chunks_of_any_size_are_the_definition(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    given = [x.double() for x in operands(9, 2, (4, 3), torch.float32)]
    assert_equal_in_float64("y", attend(*given, impl="torch"), attend(*given, impl="reference"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_one_token_reads_its_own_value(dtype):
    given = operands(1, 2, (16, 16), dtype)
    assert torch.equal(attend(*given, impl="triton"), given[2])


def test_gradients_repeat_bit_for_bit():
    """Those of queries are written by some threads of a program and read by others."""
    given = operands(70, 8, (32, 16), torch.bfloat16)
    assert all(
        torch.equal(*pair)
        for pair in zip(*(outputs_and_gradients(attend, given, "triton") for _ in range(2)), strict=True)
    )


def test_shapes_are_checked():
    given = operands(5, 2, (4, 3), torch.float32)
    for place, name in ((0, "q"), (2, "v"), (3, "w"), (4, "b")):
        with pytest.raises(ArgumentError, match=f"{name} must be"):
            attend(*given[:place], given[place][:, 1:], *given[place + 1 :], impl="auto")


def test_kernels_refuse_what_they_do_not_take():
    with pytest.raises(KernelUnavailableError, match=r"half precision .* got torch.float32"):
        attend(*operands(2, 1, (4, 4), torch.float32), impl="triton")
    with pytest.raises(KernelUnavailableError, match=r"widths of 64; got .* K=65, V=4"):
        attend(*operands(2, 1, (65, 4), torch.float16), impl="triton")
    *tokens, b = operands(2, 1, (4, 4), torch.float16)
    with pytest.raises(KernelUnavailableError, match=r"got .* torch.float16"):
        attend(*tokens, b.half(), impl="triton")
