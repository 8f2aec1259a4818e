"""Heads side by side: their gradients are made in one tensor, and nothing else is taken for such heads."""

import pytest
import torch
from torch import Tensor

from icl_bench.kernels.columns import gradient_memory, split_heads

SHAPES = [(2, 3), (1, 3), (2, 5)]


def heads(rows: Tensor) -> tuple[Tensor, ...]:
    return split_heads(rows, SHAPES)


def test_a_split_is_that_of_torch_and_so_is_its_gradient() -> None:
    rows = torch.randn(2, 4, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    blocks = rows.split([6, 3, 10], dim=-1)
    for part, block, shape in zip(heads(rows), blocks, SHAPES, strict=True):
        assert torch.equal(part, block.unflatten(-1, shape))
    assert torch.autograd.gradcheck(lambda x: [part.sin() for part in heads(x)], rows)


def test_gradients_that_lie_side_by_side_are_joined_without_a_copy() -> None:
    rows = torch.randn(2, 4, 19, requires_grad=True)
    parts = heads(rows)
    folded = [part.detach().view(8, *part.shape[2:]) for part in parts]
    memory = gradient_memory(folded)
    for place, part in enumerate(memory):
        part.fill_(place + 1.0)
    given = [part.unflatten(0, (2, 4)) for part in memory]
    (gradient,) = torch.autograd.grad(parts, rows, given)
    assert gradient.data_ptr() == memory[0].data_ptr()
    assert gradient.tolist() == [[[1.0] * 6 + [2.0] * 3 + [3.0] * 10] * 4] * 2


@pytest.mark.parametrize("change", ["order", "type", "copy", "gap", "rows"])
def test_other_heads_get_memory_of_their_own(change: str) -> None:
    q, k, v = heads(torch.randn(2, 4, 19))
    changed = {
        "order": [k, q, v],
        "type": [q.double(), k, v],
        "copy": [q, k.clone(), v],
        "gap": [q, v],
        "rows": [part[:, 1:] for part in (q, k, v)],
    }[change]
    for part, like in zip(gradient_memory(changed), changed, strict=True):
        assert part.is_contiguous() and part.shape == like.shape and part.dtype == like.dtype
