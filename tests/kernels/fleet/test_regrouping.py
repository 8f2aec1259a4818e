"""Groups of other sizes: both forms, both directions, and what is refused."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.records import Groups
from icl_bench.kernels.fleet.regrouping import regroup
from tests.kernels.numerics import DEVICE


@pytest.mark.parametrize(
    "blocks",
    [
        [Groups(3, 5, 16)],
        [Groups(2, 16, 16), Groups(3, 30, 32)],
        [Groups(8, 59, 64), Groups(1, 3, 3)],
        [Groups(2, 9, 4)],
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups_keep_their_numbers(blocks, dtype):
    width = sum(block.groups * block.size for block in blocks)
    x = torch.randn(2, 37, width, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    parts, start = [], 0
    for block in blocks:
        for _ in range(block.groups):
            part = x[..., start : start + block.size][..., : block.new_size]
            parts += [part, part.new_zeros(*part.shape[:-1], block.new_size - part.shape[-1])]
            start += block.size
    wanted = torch.cat(parts, dim=-1)
    for impl in ("torch", "triton", "auto"):
        found = regroup(x, blocks, impl=impl)
        assert torch.equal(found, wanted)
        if all(block.size <= block.new_size for block in blocks):
            assert torch.equal(regroup(found, [block.inverse for block in blocks], impl=impl), x)


def test_rows_that_lie_apart_are_taken():
    x = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0)).to(DEVICE)[:, :3, :6]
    assert torch.equal(regroup(x, [Groups(2, 3, 4)], impl="triton"), regroup(x, [Groups(2, 3, 4)], impl="torch"))


def test_other_widths_are_refused():
    with pytest.raises(ArgumentError, match="groups"):
        regroup(torch.zeros(2, 7), [Groups(2, 3, 4)])
