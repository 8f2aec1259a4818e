"""Launch configurations of the power kernels: a fixed table, measured on Hopper; nothing is tuned while running.

The key is (kernel, form, width) for each arithmetic, width being the larger of the padded key and value widths.
Arithmetic is "bf16" for bfloat16 inputs, "tf32" for float16 (the same 10 bits of fraction, but the exponents of
float32, so that no power overflows), and "ieee" for float32. A state of p >= 3 is "tf32" for bfloat16 too: where a
query meets few keys, u^T Z w is small beside |u| |Z| |w|, and 8 bits of Z cost percents of the sum of weights.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton.language as tl

from icl_bench.kernels.triton.common import padded


class Blocks(NamedTuple):
    """Block sizes and scheduling of one kernel."""

    m: int  # query rows
    n: int  # key rows
    warps: int
    stages: int  # pipeline depth of the loop over tokens
    state_stages: int = 1  # pipeline depth of the loop over state tiles
    depth: int = 256  # state rows to a step of that loop
    registers: int | None = None  # most registers of a thread; None for as many as there are
    own_stages: int = 1  # pipeline depth of a forward pass over the keys of the own block


FORMS = ("tiles", "rows", "long", "wide_keys", "wide_values")
TableRow = Sequence[tuple[int, ...]]  # fields of the blocks for the widths 16, 32, 64 and 128

# Forms: "tiles" reads a state of p >= 2 in tiles; "rows" is linear attention and the quadratic form over at most
# SHORT_CHUNK tokens, "long" over more. "wide_keys" and "wide_values" serve key gradients where that width is larger.
# "value_gradient" is there where gradients of values are made apart from those of keys, "gated_forward" where gates
# take other blocks, "lower_..." where lower degrees do, whose registers would be spilled on larger ones, and
# "lowers_..." where several do. Blocks are chosen among those that compile right. On Hopper, ptxas of Triton 3.6 reads
# the address of a tile before it is made in the code for "rows" where the widths differ (`PowerProblem.short`), in key
# gradients of some pairs of unlike widths on 64 keys, by four warps or by eight, and in query gradients in tiles of 64
# x 64 with K = V = 16 (`benchmarks/miscompiled_kernels.py` finds such kernels). In tf32, eight warps on 64 rows of
# width 128 are wrong in the first rows of each chunk; four are right. Eight warps on 64 keys of unlike widths, which
# share the sums of a key, gave gates other gradients on each of two cards (K = 16, V = 32, one chunk of 300 tokens with
# a gradient of the last state), all else being equal bits; four on 32 do not share them. A pipelined loop over a state
# must advance by two key channels at least, `depth` being twice the value width: with one channel, the registers are
# written while products still read them.
_BF16_ROWS: dict[tuple[str, str], TableRow] = {
    ("chunk_sums", "tiles"): ((0, 128, 4, 3), (0, 64, 4, 3), (0, 64, 4, 3), (0, 64, 4, 3)),
    ("chunk_sums", "rows"): ((0, 128, 4, 2), (0, 128, 4, 2), (0, 128, 4, 2), (0, 64, 4, 3)),
    ("forward", "tiles"): ((64, 64, 4, 3, 3), (128, 64, 4, 3, 3), (128, 64, 4, 3, 3), (128, 64, 8, 3, 2)),
    ("forward", "rows"): ((64, 32, 4, 3), (64, 32, 4, 3), (64, 32, 4, 3), (64, 64, 4, 2)),
    ("forward", "long"): ((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3), (128, 64, 8, 3)),
    ("query_gradient", "tiles"): ((64, 32, 4, 3, 3), (128, 64, 4, 3, 3), (128, 32, 4, 3, 3, 128), (128, 32, 8, 2, 2)),
    ("query_gradient", "rows"): ((64, 32, 4, 3), (64, 32, 4, 3), (64, 32, 4, 3), (64, 32, 4, 3)),
    ("query_gradient", "long"): ((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 2)),
    ("key_gradient", "tiles"): ((32, 64, 4, 3, 3), (64, 64, 4, 3, 3), (32, 128, 4, 3, 3, 128), (32, 128, 8, 2, 2)),
    ("key_gradient", "rows"): ((32, 64, 4, 3), (32, 64, 4, 3), (32, 64, 4, 3), (32, 64, 4, 3)),
    ("key_gradient", "long"): ((64, 128, 4, 3), (32, 128, 4, 3), (64, 64, 4, 3), (64, 128, 8, 3)),
    ("key_gradient", "wide_keys"): ((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    ("key_gradient", "wide_values"): ((32, 32, 4, 1), (32, 32, 4, 1), (32, 64, 4, 1), (32, 32, 4, 1)),
}


def _by_width(rows: Mapping[tuple[str, str], TableRow]) -> dict[tuple[str, str, int], Blocks]:
    return {
        (kernel, form, width): Blocks(*blocks)
        for (kernel, form), row in rows.items()
        for width, blocks in zip((16, 32, 64, 128), row, strict=True)
    }


def _all_forms(sums: TableRow, forward: TableRow, keys: TableRow) -> dict[tuple[str, str, int], Blocks]:
    """Return a table that is the same for all forms; query gradients run as the forward does."""
    kernels = {"chunk_sums": sums, "forward": forward, "query_gradient": forward, "key_gradient": keys}
    kernels |= {f"short_{kernel}": rows for kernel, rows in kernels.items() if kernel != "chunk_sums"}
    return _by_width({(k, form): row for k, row in kernels.items() for form in FORMS})


_BF16 = _by_width(_BF16_ROWS) | {
    ("gated_forward", "tiles", 64): Blocks(128, 32, 4, 3, 3, own_stages=2),
    ("value_gradient", "tiles", 64): Blocks(32, 128, 4, 3, 3),
    # With at most 128 registers, four programs of such short rows share a multiprocessor.
    ("lower_query_gradient", "rows", 16): Blocks(64, 32, 4, 3, registers=128),
    ("lower_key_gradient", "rows", 16): Blocks(32, 64, 4, 3, registers=128),
    ("lower_key_gradient", "long", 16): Blocks(64, 64, 4, 3),
    ("lower_key_gradient", "long", 32): Blocks(32, 64, 4, 3),
    ("lower_key_gradient", "long", 64): Blocks(64, 64, 4, 3),
    ("short_forward", "rows", 16): Blocks(64, 32, 4, 1, registers=128),
    ("short_query_gradient", "rows", 16): Blocks(64, 64, 4, 1),
    ("short_key_gradient", "rows", 16): Blocks(32, 64, 4, 1, registers=128),
    ("gated_lower_short_query_gradient", "rows", 16): Blocks(64, 64, 4, 1, registers=128),
    ("gated_lowers_short_query_gradient", "rows", 16): Blocks(64, 32, 4, 1, registers=128),
    ("gated_lower_short_key_gradient", "rows", 16): Blocks(32, 64, 4, 1, registers=168),
    ("short_forward", "rows", 32): Blocks(64, 32, 4, 1),
    ("short_query_gradient", "rows", 32): Blocks(64, 32, 4, 1),
    ("short_key_gradient", "rows", 32): Blocks(32, 64, 4, 1),
}
_TF32 = _all_forms(
    [(0, 32, 4, 2)] * 2 + [(0, 32, 8, 2)] * 2,
    [(64, 32, 4, 2)] * 3 + [(64, 32, 4, 1, 1, 128)],
    [(32, 64, 4, 2)] * 3 + [(32, 32, 8, 1, 1, 128)],
)
_IEEE = _all_forms(
    [(0, 16, 4, 1)] * 2 + [(0, 16, 8, 1)] * 2,
    [(32, 32, 4, 1, 1, 32)] * 3 + [(32, 32, 8, 1, 1, 32)],
    [(32, 32, 4, 1, 1, 32)] * 3 + [(32, 32, 8, 1, 1, 32)],
)
LAUNCH_TABLES = {"bf16": _BF16, "tf32": _TF32, "ieee": _IEEE}
ARITHMETIC = {torch.bfloat16: "bf16", torch.float16: "tf32", torch.float32: "ieee"}
SHORT_CHUNK = 256
"""Tokens to a chunk up to which scores take less time than reading queries, keys and values."""
SCAN_BLOCK = 512
SCAN_STAGES = 8
STATISTICS_ROWS = 64
GATE_BLOCK = 1024
LEAST_FILLED = 0.8
"""Least share of the multiprocessors that a walk keeps busy.

With all of them the first walk took .59 to .78 times as long as sums and scan (d92b724, docs/log.md).
"""
FACTOR_ROWS = 32


def arithmetic(dtype: torch.dtype, p: int, stateful: bool) -> str:
    """Return the arithmetic for inputs of this type, where a state is read or not."""
    return "tf32" if dtype == torch.bfloat16 and p > 2 and stateful else ARITHMETIC[dtype]


@cache
def launch_blocks(kernel: str, form: str, kind: str, width: int, variant: str = "") -> Blocks:
    """Return the configuration of a kernel in an arithmetic, width being that of the wider of key and value.

    The `variant`, of `gated` and of `lower` or `lowers`, may have blocks of its own, `lowers` else those of `lower`.
    """
    table, key = LAUNCH_TABLES[kind], (form, padded(width, 16, 128))
    variants = (variant, variant.replace("lowers", "lower"))
    names = *(f"{x}_{kernel}" for v in variants for x in (v, v.removeprefix("gated_"))), kernel
    return next(table[name, *key] for name in names if (name, *key) in table)


def splits_keys(form: str, kind: str, width: int) -> bool:
    """Return whether gradients of values come from a pass of their own, which has more registers for each."""
    return ("value_gradient", form, padded(width, 16, 128)) in LAUNCH_TABLES[kind]


def dot_type(kind: str) -> tl.dtype:
    """Return the type of the operands of matrix products."""
    return tl.bfloat16 if kind == "bf16" else tl.float32


def precision(kind: str) -> str:
    """Return the precision of float32 products; bfloat16 ones do not read it."""
    return "ieee" if kind == "ieee" else "tf32"


def state_type(kind: str) -> torch.dtype:
    """Return the type of states between the kernels; sums over chunks are float32 in any case."""
    return torch.bfloat16 if kind == "bf16" else torch.float32


def _largest_block(dtype: torch.dtype) -> int:
    tables = [LAUNCH_TABLES[arithmetic(dtype, p, stateful=True)] for p in (2, 3)]
    return max(max(b.m, b.n) for table in tables for b in table.values())


CHUNK_UNITS = {dtype: _largest_block(dtype) for dtype in ARITHMETIC}
"""Unit of chunk lengths by type: blocks of rows, in any arithmetic for the type, then lie in one chunk each."""
