"""Launch configurations of the power kernels: a fixed table, measured on Hopper; nothing is tuned while running.

The key is (kernel, form, width) for each arithmetic, width being the larger of the padded key and value widths.
Arithmetic is "bf16" for bfloat16 inputs, "tf32" for float16 (the same 10 bits of fraction, but the exponents of
float32, so that no power overflows), and "ieee" for float32. A state of p >= 3 is "tf32" for bfloat16 too: where a
query meets few keys, u^T Z w is small beside |u| |Z| |w|, and 8 bits of Z cost percents of the sum of weights.
"""

from typing import NamedTuple

import torch
import triton.language as tl


class Blocks(NamedTuple):
    """Block sizes and scheduling of one kernel."""

    m: int  # query rows
    n: int  # key rows
    warps: int
    stages: int  # pipeline depth of the loop over tokens
    state_stages: int = 1  # pipeline depth of the loop over state tiles
    depth: int = 256  # state rows to a step of that loop


# Forms: "tiles" reads a state of p >= 2 in tiles; "rows" is linear attention and the quadratic form over at most SHORT
# tokens, "long" over more. "mixed" serves key gradients where key and value widths differ. "value_gradient" is there
# where gradients of values are made apart from those of keys, "gated_forward" where gates take other blocks.
# Blocks are chosen among those that compile right. On Hopper, ptxas of Triton 3.6 reads the address of a tile before
# it is made in what "rows" are made for where the widths differ (`Problem.short`), in the pipelined "mixed" kernel with
# K = 64, V = 32, and in query gradients in tiles of 64 x 64 with K = V = 16 (`benchmarks/miscompiled_kernels.py` finds
# such kernels). In tf32, eight warps on 64 rows of width 128 are wrong in the first rows of each chunk; four are right.
# A pipelined loop over a state must advance by two key channels at least, `depth` being twice the value width: of one,
# the registers are written while products still read them.
_BF16 = {
    ("chunk_sums", "tiles", 16): Blocks(0, 128, 4, 3),
    ("chunk_sums", "tiles", 32): Blocks(0, 64, 4, 3),
    ("chunk_sums", "tiles", 64): Blocks(0, 64, 4, 3),
    ("chunk_sums", "tiles", 128): Blocks(0, 64, 4, 3),
    ("chunk_sums", "rows", 16): Blocks(0, 128, 4, 2),
    ("chunk_sums", "rows", 32): Blocks(0, 128, 4, 2),
    ("chunk_sums", "rows", 64): Blocks(0, 128, 4, 2),
    ("chunk_sums", "rows", 128): Blocks(0, 64, 4, 3),
    ("forward", "tiles", 16): Blocks(64, 64, 4, 3, 3),
    ("forward", "tiles", 32): Blocks(128, 64, 4, 3, 3),
    ("forward", "tiles", 64): Blocks(128, 64, 4, 3, 3),
    ("forward", "tiles", 128): Blocks(128, 64, 8, 3, 2),
    ("gated_forward", "tiles", 64): Blocks(128, 32, 4, 3, 3),
    ("forward", "rows", 16): Blocks(64, 32, 4, 3),
    ("forward", "rows", 32): Blocks(64, 32, 4, 3),
    ("forward", "rows", 64): Blocks(64, 32, 4, 3),
    ("forward", "rows", 128): Blocks(64, 64, 4, 2),
    ("forward", "long", 16): Blocks(64, 64, 4, 3),
    ("forward", "long", 32): Blocks(64, 64, 4, 3),
    ("forward", "long", 64): Blocks(64, 64, 4, 3),
    ("forward", "long", 128): Blocks(128, 64, 8, 3),
    ("query_gradient", "tiles", 16): Blocks(64, 32, 4, 3, 3),
    ("query_gradient", "tiles", 32): Blocks(128, 64, 4, 3, 3),
    ("query_gradient", "tiles", 64): Blocks(128, 32, 4, 3, 3, 128),
    ("query_gradient", "tiles", 128): Blocks(128, 32, 8, 2, 2),
    ("query_gradient", "rows", 16): Blocks(64, 32, 4, 3),
    ("query_gradient", "rows", 32): Blocks(64, 32, 4, 3),
    ("query_gradient", "rows", 64): Blocks(64, 32, 4, 3),
    ("query_gradient", "rows", 128): Blocks(64, 32, 4, 3),
    ("query_gradient", "long", 16): Blocks(64, 64, 4, 3),
    ("query_gradient", "long", 32): Blocks(64, 64, 4, 3),
    ("query_gradient", "long", 64): Blocks(64, 64, 4, 3),
    ("query_gradient", "long", 128): Blocks(64, 64, 4, 2),
    ("value_gradient", "tiles", 64): Blocks(32, 128, 4, 3, 3),
    ("key_gradient", "tiles", 16): Blocks(32, 64, 4, 3, 3),
    ("key_gradient", "tiles", 32): Blocks(64, 64, 4, 3, 3),
    ("key_gradient", "tiles", 64): Blocks(32, 128, 4, 3, 3, 128),
    ("key_gradient", "tiles", 128): Blocks(32, 128, 8, 2, 2),
    ("key_gradient", "rows", 16): Blocks(32, 64, 4, 3),
    ("key_gradient", "rows", 32): Blocks(32, 64, 4, 3),
    ("key_gradient", "rows", 64): Blocks(32, 64, 4, 3),
    ("key_gradient", "rows", 128): Blocks(32, 64, 4, 3),
    ("key_gradient", "long", 16): Blocks(64, 128, 4, 3),
    ("key_gradient", "long", 32): Blocks(32, 128, 4, 3),
    ("key_gradient", "long", 64): Blocks(64, 64, 4, 3),
    ("key_gradient", "long", 128): Blocks(64, 128, 8, 3),
    ("key_gradient", "mixed", 16): Blocks(32, 64, 4, 1),
    ("key_gradient", "mixed", 32): Blocks(32, 64, 4, 1),
    ("key_gradient", "mixed", 64): Blocks(32, 64, 4, 1),
    ("key_gradient", "mixed", 128): Blocks(32, 64, 8, 1),
}


def _all_forms(sums: list[Blocks], forward: list[Blocks], keys: list[Blocks]) -> dict[tuple[str, str, int], Blocks]:
    """A table for widths 16, 32, 64 and 128 that is the same for all forms; query gradients run as the forward does."""
    kernels = {"chunk_sums": sums, "forward": forward, "query_gradient": forward, "key_gradient": keys}
    return {
        (kernel, form, width): blocks
        for kernel, row in kernels.items()
        for form in ("tiles", "rows", "long", "mixed")
        for width, blocks in zip((16, 32, 64, 128), row, strict=True)
    }


_TF32 = _all_forms(
    [Blocks(0, 32, 4, 2)] * 2 + [Blocks(0, 32, 8, 2)] * 2,
    [Blocks(64, 32, 4, 2)] * 3 + [Blocks(64, 32, 4, 1, 1, 128)],
    [Blocks(32, 64, 4, 2)] * 3 + [Blocks(32, 32, 8, 1, 1, 128)],
)
_IEEE = _all_forms(
    [Blocks(0, 16, 4, 1)] * 2 + [Blocks(0, 16, 8, 1)] * 2,
    [Blocks(32, 32, 4, 1, 1, 32)] * 3 + [Blocks(32, 32, 8, 1, 1, 32)],
    [Blocks(32, 32, 4, 1, 1, 32)] * 3 + [Blocks(32, 32, 8, 1, 1, 32)],
)
TABLES = {"bf16": _BF16, "tf32": _TF32, "ieee": _IEEE}
ARITHMETIC = {torch.bfloat16: "bf16", torch.float16: "tf32", torch.float32: "ieee"}
SHORT = 256
"""Tokens to a chunk up to which scores take less time than reading what they are of."""
SCAN_BLOCK = 512
SCAN_STAGES = 8
STATISTICS_ROWS = 64
GATE_BLOCK = 1024
FACTOR_ROWS = 32


def padded(width: int) -> int:
    """The power of two, at least 16, that holds a width."""
    return max(16, 1 << (width - 1).bit_length())


def arithmetic(dtype: torch.dtype, p: int, stateful: bool) -> str:
    """The arithmetic for inputs of this type, where a state is read or not."""
    return "tf32" if dtype == torch.bfloat16 and p > 2 and stateful else ARITHMETIC[dtype]


def blocks(kernel: str, form: str, kind: str, width: int, gated: bool = False) -> Blocks:
    """The configuration of a kernel in an arithmetic, width being that of the wider of key and value."""
    table, key = TABLES[kind], (form, min(128, padded(width)))
    return (table.get((f"gated_{kernel}", *key)) if gated else None) or table[kernel, *key]


def splits_keys(form: str, kind: str, width: int) -> bool:
    """Whether gradients of values come from a pass of their own, which has more registers for each."""
    return ("value_gradient", form, min(128, padded(width))) in TABLES[kind]


def dot_type(kind: str) -> tl.dtype:
    """What matrix products are fed with."""
    return tl.bfloat16 if kind == "bf16" else tl.float32


def precision(kind: str) -> str:
    """The precision of float32 products; bfloat16 ones do not read it."""
    return "ieee" if kind == "ieee" else "tf32"


def state_type(kind: str) -> torch.dtype:
    """How states are kept between the kernels; sums over chunks are float32 in any case."""
    return torch.bfloat16 if kind == "bf16" else torch.float32


def chunk_unit(dtype: torch.dtype) -> int:
    """Chunks are multiples of this, so that no block of rows lies in two, in any arithmetic for the type."""
    tables = [TABLES[arithmetic(dtype, p, stateful=True)] for p in (2, 3)]
    return max(max(b.m, b.n) for table in tables for b in table.values())
