"""Inverses of triangular matrices inside of kernels."""

import triton
import triton.language as tl


@triton.jit
def unit_lower_inverse(a, ROWS: tl.constexpr):
    """Return (I + A)^{-1} for A with zeros on the diagonal and above, by substitution in float32.

    The halves X and Z of the inverse on the diagonal are found together: step j takes column j of A times row j of the
    inverse, which is complete by then, from all later rows. With the same steps L, the part of A below them, becomes
    Z L; what is left is -Z L X, added up by rows of X.
    """
    HALF: tl.constexpr = ROWS // 2
    half = tl.arange(0, 2)
    inside = half[:, None, None, None] == half[None, None, :, None]
    below = half[:, None, None, None] > half[None, None, :, None]
    parts = tl.reshape(a, [2, HALF, 2, HALF])
    own = tl.sum(tl.where(inside, parts, 0.0), 2)
    rest = tl.sum(tl.where(inside, 0.0, parts), 2)
    i = tl.arange(0, HALF)[None, :, None]
    j = tl.arange(0, HALF)[None, None, :]
    x = tl.where(i == j, 1.0, tl.zeros([2, HALF, HALF], tl.float32))
    for step in tl.static_range(HALF - 1):
        column = tl.sum(tl.where(j == step, own, 0.0), 2)[:, :, None]
        row = tl.full([2, 1, HALF], step, tl.int32)
        x -= column * tl.gather(x, row, 1)
        rest -= column * tl.gather(rest, row, 1)
    first = tl.sum(tl.where(half[:, None, None] == 0, x, 0.0), 0)
    rest = tl.sum(rest, 0)
    low = tl.zeros([HALF, HALF], tl.float32)
    for step in tl.static_range(HALF):
        column = tl.sum(tl.where(tl.arange(0, HALF)[None, :] == step, rest, 0.0), 1)[:, None]
        low -= column * tl.gather(first, tl.full([1, HALF], step, tl.int32), 0)
    low = tl.where(below, low[None, :, None, :], 0.0)
    return tl.reshape(tl.where(inside, x[:, :, None, :], low), [ROWS, ROWS])
