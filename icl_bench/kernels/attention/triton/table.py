"""Launch configurations of the attention kernels: a fixed table, one entry a pass, element size, width and length.

Tuned on one H200 by `benchmarks/attention_kernels.py`; nothing is chosen while a program runs, so the same call always
runs the same code. Every entry is compiled and tested.
"""

from typing import Literal, NamedTuple

Pass = Literal["forward", "query", "key_value"]


class Tile(NamedTuple):
    """The shape of a program: queries and keys a tile, warps, stages of its software pipeline, registers a thread."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


# Up to how many keys a query sees: beyond the last, tiles are as large as the long row's.
SHORT = 512
MIDDLE = 2048

# {(pass, bytes an element, the wider of both block widths): (short, middle, long)}
TILES: dict[tuple[Pass, int, int], tuple[Tile, Tile, Tile]] = {
    ("forward", 2, 32): (Tile(64, 32, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3)),
    ("forward", 2, 64): (Tile(64, 32, 4, 3), Tile(64, 64, 4, 3, 128), Tile(128, 64, 8, 3, 128)),
    ("forward", 2, 128): (Tile(64, 32, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3)),
    ("forward", 2, 256): (Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(64, 32, 4, 2)),
    ("forward", 4, 32): (Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    ("forward", 4, 64): (Tile(32, 64, 4, 2), Tile(32, 64, 4, 2), Tile(32, 64, 4, 2)),
    ("forward", 4, 128): (Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    ("forward", 4, 256): (Tile(16, 32, 4, 1), Tile(16, 32, 4, 1), Tile(16, 32, 4, 1)),
    ("query", 2, 32): (Tile(64, 32, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3)),
    ("query", 2, 64): (Tile(64, 32, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3)),
    ("query", 2, 128): (Tile(64, 32, 4, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 3)),
    ("query", 2, 256): (Tile(64, 32, 4, 1), Tile(64, 32, 4, 1), Tile(64, 32, 4, 1)),
    ("query", 4, 32): (Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    ("query", 4, 64): (Tile(32, 64, 4, 2), Tile(32, 64, 4, 2), Tile(32, 64, 4, 2)),
    ("query", 4, 128): (Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    ("query", 4, 256): (Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
    ("key_value", 2, 32): (Tile(32, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    ("key_value", 2, 64): (Tile(32, 64, 4, 3), Tile(64, 64, 4, 2, 168), Tile(64, 64, 4, 2, 168)),
    ("key_value", 2, 128): (Tile(32, 64, 4, 3), Tile(64, 128, 8, 3), Tile(64, 128, 8, 3)),
    ("key_value", 2, 256): (Tile(32, 64, 8, 1), Tile(32, 64, 8, 1), Tile(32, 64, 8, 1)),
    ("key_value", 4, 32): (Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
    ("key_value", 4, 64): (Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
    ("key_value", 4, 128): (Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    ("key_value", 4, 256): (Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
}

# {(bytes an element, width): {block: warps}} of the gradients that one program makes for a whole sequence
ONE_TILE: dict[tuple[int, int], dict[int, int]] = {
    (2, 32): {64: 4},
    (2, 64): {64: 4},
    (4, 32): {32: 4},
    (4, 64): {32: 4},
}

WIDEST = 256


def block_width(width: int) -> int:
    """The power of two, at least 16, that a key or value width is padded to on chip."""
    return max(16, 1 << (width - 1).bit_length())


def width_class(k: int, v: int) -> int:
    """The table's width for key width k and value width v."""
    return max(32, block_width(k), block_width(v))


def tile(direction: Pass, element_size: int, k: int, v: int, reach: int) -> Tile:
    """The entry for a pass in which a query sees up to `reach` keys."""
    short, middle, long = TILES[direction, element_size, width_class(k, v)]
    return short if reach <= SHORT else middle if reach <= MIDDLE else long


def one_tile(element_size: int, k: int, v: int, t: int) -> tuple[int, int] | None:
    """Block and warps of the one-tile gradient, or None where the sequence is too long or too wide for it."""
    fitting = [entry for entry in ONE_TILE.get((element_size, width_class(k, v)), {}).items() if t <= entry[0]]
    return min(fitting, default=None)
