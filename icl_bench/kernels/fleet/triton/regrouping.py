"""Groups of another size in Triton: one launch, where copies of torch are one for each block and one for the zeros."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import Groups
from icl_bench.kernels.triton.common import tile_shape


@triton.jit(do_not_specialize=["size1", "new1", "edge", "new_edge", "size2", "new2"])
def regroup_kernel(
    x, out, count, width, new_width, size1, new1, edge, new_edge, size2, new2, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write rows of `new_width` numbers from rows of `width`. Grid (rows, columns).

    Groups of the first block end at `edge`, and afterwards at `new_edge`; those of the second follow.
    """
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = columns < new_edge
    within = tl.where(first, columns, columns - new_edge)
    size, new = tl.where(first, size1, size2), tl.where(first, new1, new2)
    group = within // new
    place = within - group * new
    source = tl.where(first, 0, edge) + group * size + place
    mask = (rows < count)[:, None] & (columns < new_width)[None, :]
    value = tl.load(x + rows[:, None] * width + source[None, :], mask=mask & (place < size)[None, :], other=0.0)
    tl.store(out + rows[:, None] * new_width + columns[None, :], value, mask=mask)


def regroup_triton(x: Tensor, blocks: Sequence[Groups]) -> Tensor:
    """Launch the kernel for one or two blocks."""
    x = x.contiguous()
    first, second = blocks[0], blocks[-1]
    width, new_width = x.shape[-1], sum(block.groups * block.new_size for block in blocks)
    out = x.new_empty(*x.shape[:-1], new_width)
    count, (rows, columns) = x.numel() // width, tile_shape(new_width, 128)
    with launch_on(x):
        regroup_kernel[(-(-count // rows), -(-new_width // columns))](
            x, out, count, width, new_width, first.size, first.new_size, first.groups * first.size,
            first.groups * first.new_size, second.size, second.new_size, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
        )  # fmt: skip
    return out
