"""Tiles of the attention kernels: a fixed table with an entry for each pass, element size, width and length.

The tiles were measured on one H200 by `benchmarks/attention_kernels.py`; none is chosen while a program runs, so that
the same call always runs the same code. Every entry is compiled and tested.
"""

from typing import Any, Literal, NamedTuple

from icl_bench.kernels.triton.common import padded

Pass = Literal["forward", "query", "key_value"]


class Tile(NamedTuple):
    """The numbers of queries and keys of a tile, and the options that its program is compiled with."""

    queries: int
    keys: int
    warps: int
    stages: int
    """Stages of the software pipeline."""
    registers: int | None = None
    """Registers of a thread; None to leave them to the compiler."""

    def launch_options(self) -> dict[str, Any]:
        """Return the options of a launch that Triton knows."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}


SHORT_REACH = 512
"""Number of keys that a query sees, up to which a row's first tile is taken."""
MIDDLE_REACH = 2048
"""The same for the second tile; beyond it the third is taken."""

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
SHORT_TILES: dict[tuple[int, int], dict[int, int]] = {
    (2, 32): {64: 4},
    (2, 64): {64: 4},
    (4, 32): {32: 4},
    (4, 64): {32: 4},
}


def width_class(k: int, v: int) -> int:
    """Return the table's width for key width k and value width v."""
    return padded(max(k, v), 32)


def tile_of(direction: Pass, element_size: int, k: int, v: int, reach: int) -> Tile:
    """Return the entry for a pass in which a query sees up to `reach` keys."""
    short, middle, long = TILES[direction, element_size, width_class(k, v)]
    return short if reach <= SHORT_REACH else middle if reach <= MIDDLE_REACH else long


def short_tile(element_size: int, k: int, v: int, t: int) -> Tile | None:
    """Return the tile of `launch_short_backward`, or None where the sequence is too long or too wide for it."""
    fitting = [entry for entry in SHORT_TILES.get((element_size, width_class(k, v)), {}).items() if t <= entry[0]]
    if not fitting:
        return None
    block, warps = min(fitting)
    return Tile(block, block, warps, 1)
