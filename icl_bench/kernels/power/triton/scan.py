"""From the sums of chunks of power attention to the states before them, in Triton."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "chunk", "chunks"])
def scan_kernel(
    sums, gates, initial, final, prefix, dots,
    T, chunk, chunks, elements, used, expanded, tile_elements,
    GATED: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, REVERSE: tl.constexpr, DOTS: tl.constexpr,
    TRIANGLE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The exclusive decayed prefix sums over the chunks, in place, in float32 registers.

    REVERSE goes from the last chunk to the first. DOTS also gives, for each chunk, this block's share of the product of
    the state before the chunk (`prefix`), decayed over it, with the gradient of the state after it: what every gate of
    the chunk receives from pairs outside it. Grid: blocks of `used` times N * G.
    """
    blocks = tl.cdiv(used, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK
    index = first + tl.arange(0, BLOCK)
    mask = index < used
    acc = tl.zeros([BLOCK], tl.float32)
    if INITIAL:
        acc = tl.load(initial + row * elements + index, mask=mask, other=0.0)
    sums += row * chunks * elements
    prefix += row * chunks * elements
    if DOTS:
        # A tile off the diagonal stands for two tiles of the full product; the normaliser is kept in full.
        count = tl.full([BLOCK], 1.0, tl.float32)
        if TRIANGLE:
            tile = index // tile_elements
            b = ((tl.sqrt((8 * tile + 1).to(tl.float32)) - 1.0) * 0.5 + 1e-3).to(tl.int32)
            count = tl.where((tile == b * (b + 3) // 2) | (index >= expanded), 1.0, 2.0)
        dots += tl.program_id(0).to(tl.int64) * chunks
    for i in tl.range(0, chunks, num_stages=STAGES):
        c = i
        if REVERSE:
            c = chunks - 1 - i
        place = tl.cast(c, tl.int64) * elements
        value = tl.load(sums + place + index, mask=mask, other=0.0).to(tl.float32)
        decay = 1.0
        if GATED:
            decay = tl.exp2(tl.load(gates + row * T + tl.minimum((c + 1) * chunk, T) - 1))
        if DOTS:
            before = tl.load(prefix + place + index, mask=mask, other=0.0).to(tl.float32)
            tl.store(dots + c, tl.sum(acc * before * count) * decay)
        tl.store(sums + place + index, acc.to(sums.dtype.element_ty), mask=mask)
        if GATED:
            acc *= decay
        acc += value
    if FINAL:
        tl.store(final + row * elements + index, acc, mask=mask)
