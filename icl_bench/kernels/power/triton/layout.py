"""The layout of an expanded state in tiles, and conversion from the symmetric basis of `expansion` and back.

With factor vectors u (degree a) and w (degree p - a), each in the symmetric basis of its own degree, entry (i, j) of a
tile is weight_u(i) weight_w(j) times the plain moment of the joined tuple, and the symmetric entry is weight_p of it
times the same moment: the two differ by a constant. Gradients convert as states do, since both bases are isometric.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.power.expansion import basis_tuples, expanded_width, power_basis, tuple_places

STATE_TILE = 16


class StateLayout(NamedTuple):
    """The layout of the state of power p over K key channels on chip."""

    p: int
    key_width: int
    left: int  # degree of u; that of w is p - left
    u: int  # width of u
    w: int  # width of w; 1 for p = 1
    symmetric: bool  # u and w are the same vector
    tiles: int
    expanded: int  # rows D' of the state in tiles

    @property
    def linear(self) -> bool:
        """Tell whether the rows are those of the key itself."""
        return self.p == 1

    def normaliser(self, normalize: bool) -> int:
        """Return the elements of the normaliser beside a state."""
        return self.u * self.w if normalize else 0


def tile_layout(key_width: int, p: int) -> StateLayout:
    """Return the layout of power p: rows of the key for p = 1, pairs of 16-wide pieces for p >= 2."""
    if p == 1:
        return StateLayout(p, key_width, 1, key_width, 1, False, 1, key_width)
    left = (p + 1) // 2
    symmetric = p % 2 == 0
    u = expanded_width(key_width, left)
    w = u if symmetric else expanded_width(key_width, p - left)
    pieces, others = -(-u // STATE_TILE), -(-w // STATE_TILE)
    tiles = pieces * (pieces + 1) // 2 if symmetric else pieces * others
    return StateLayout(p, key_width, left, u, w, symmetric, tiles, tiles * STATE_TILE * STATE_TILE)


class _Map(NamedTuple):
    """Rows of one basis by the rows of another: out[r] = factor[r] * x[place[r]]."""

    place: Tensor
    factor: Tensor


class _Maps(NamedTuple):
    to_tiles: _Map
    from_tiles: _Map
    to_normaliser: _Map
    from_normaliser: _Map


def to_tiles(layout: StateLayout, s: Tensor) -> Tensor:
    """Convert [.., D, V] in the symmetric basis to [.., D', V] in tiles; padded rows are zero."""
    return s if layout.linear else _rows(_maps(layout, s.device).to_tiles, s)


def from_tiles(layout: StateLayout, s: Tensor) -> Tensor:
    """Convert [.., D', V] in tiles to [.., D, V]."""
    return s if layout.linear else _rows(_maps(layout, s.device).from_tiles, s)


def to_normaliser(layout: StateLayout, z: Tensor) -> Tensor:
    """Convert [.., D] to [.., U * W]."""
    return z if layout.linear else _rows(_maps(layout, z.device).to_normaliser, z[..., None])[..., 0]


def from_normaliser(layout: StateLayout, z: Tensor) -> Tensor:
    """Convert [.., U * W] to [.., D]."""
    return z if layout.linear else _rows(_maps(layout, z.device).from_normaliser, z[..., None])[..., 0]


def _rows(table: _Map, x: Tensor) -> Tensor:
    return x.index_select(-2, table.place) * table.factor[:, None]


@lru_cache(maxsize=64)
def _maps(layout: StateLayout, device: torch.device) -> _Maps:
    with torch.inference_mode(False):
        return _Maps(*(_Map(*(t.to(device) for t in table)) for table in _make_maps(layout)))


def _make_maps(layout: StateLayout) -> _Maps:
    u, w = basis_tuples(layout.key_width, layout.left), basis_tuples(layout.key_width, layout.p - layout.left)
    i = torch.arange(layout.u).repeat_interleave(layout.w)
    j = torch.arange(layout.w).repeat(layout.u)
    joined = torch.cat([u[i], w[j]], dim=1).sort(dim=1).values
    place = tuple_places(joined, basis_tuples(layout.key_width, layout.p), layout.key_width)
    factor = (_weight(layout, layout.left)[i] * _weight(layout, layout.p - layout.left)[j]) / (
        _weight(layout, layout.p)[place]
    )
    normaliser = _Map(place, factor.float())
    row = _tile_row(layout, i, j)
    kept = row >= 0
    tiles = _Map(torch.zeros(layout.expanded, dtype=torch.int64), torch.zeros(layout.expanded))
    tiles.place[row[kept]] = place[kept]
    tiles.factor[row[kept]] = factor[kept].float()
    return _Maps(
        to_tiles=tiles,
        from_tiles=_inverse(row[kept], place[kept], factor[kept]),
        to_normaliser=normaliser,
        from_normaliser=_inverse(i * layout.w + j, place, factor),
    )


def _weight(layout: StateLayout, degree: int) -> Tensor:
    return power_basis(layout.key_width, degree, torch.device("cpu")).weight[:, 0]


def _tile_row(layout: StateLayout, i: Tensor, j: Tensor) -> Tensor:
    """Return the row of product (i, j), or -1 where its mirror image is kept instead."""
    a, b = i // STATE_TILE, j // STATE_TILE
    inner = i % STATE_TILE * STATE_TILE + j % STATE_TILE
    if layout.symmetric:
        return torch.where(a <= b, (b * (b + 1) // 2 + a) * STATE_TILE * STATE_TILE + inner, -1)
    return (a * -(-layout.w // STATE_TILE) + b) * STATE_TILE * STATE_TILE + inner


def _inverse(row: Tensor, place: Tensor, factor: Tensor) -> _Map:
    """Map each symmetric entry to the first of its rows: any will do, as all hold the same moment."""
    far = int(row.max()) + 1
    index = torch.full((int(place.max()) + 1,), far).scatter_reduce_(0, place, row, "amin")
    by_row = torch.zeros(far, dtype=torch.float64)
    by_row[row] = 1 / factor
    return _Map(index, by_row[index].float())
