"""The Triton attention in Triton's interpreter, at small sizes, without bfloat16, whose products are wrong there."""

import pytest
import torch

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.attention.api import attention
from icl_bench.kernels.attention.triton.table import SHORT_TILES, TILES, Tile, short_tile
from tests.kernels.attention.attention_oracle import assert_within_bounds, make_case
from tests.kernels.numerics import DEVICE, assert_gradients_lie_side_by_side, poison

GATES = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@GATES
@pytest.mark.parametrize("window", [None, 1, 20], ids="window-{}".format)
@pytest.mark.parametrize("t", [1, 7, 31, 32, 33, 70], ids="T{}".format)
def test_output_and_gradients_match_the_definition(t, window, gated):
    assert_within_bounds(make_case(t, gated=gated, h=1, g=1, device=DEVICE), window=window)


@GATES
@pytest.mark.parametrize("window", [None, 33, 64, 65, 100], ids="window-{}".format)
def test_half_precision_matches_the_definition(window, gated):
    case = make_case(200, h=1, g=1, gated=gated, dtype=torch.float16, device=DEVICE)
    assert_within_bounds(case, window=window)


@pytest.mark.parametrize("t", [64, 65], ids="T{}".format)
def test_half_precision_at_one_tile_and_one_more(t):
    assert_within_bounds(make_case(t, gated=True, dtype=torch.float16, device=DEVICE))


@pytest.mark.parametrize("k, v", [(5, 3), (24, 40), (16, 64), (33, 130)])
def test_any_key_and_value_width(k, v):
    assert_within_bounds(make_case(35, k=k, v=v, gated=True, h=1, g=1, device=DEVICE))


@pytest.mark.parametrize("t", [20, 40], ids="T{}".format)
@pytest.mark.parametrize("h, g", [(2, 1), (6, 3)])
def test_query_heads_share_keys(t, h, g):
    assert_within_bounds(make_case(t, n=2, h=h, g=g, gated=True, device=DEVICE), window=11)


@pytest.mark.parametrize("scale", [0.01, 2.0])
def test_scale(scale):
    assert_within_bounds(make_case(40, h=1, g=1, device=DEVICE), scale=scale)


def test_a_long_past_of_strong_gates_costs_no_digits():
    """Cumulated gates near -20,000 differ between neighbours by about one, which float32 holds to 2e-3 only."""
    case = make_case(40, h=1, g=1, gated=True, device=DEVICE)
    case[4][:, 0] = -20_000
    assert_within_bounds(case)


def test_strided_views_are_read_in_place():
    q, k, v, do, gate = make_case(40, h=2, g=2, gated=True, device=DEVICE)
    packed = torch.stack([q, k, v], dim=3)
    assert not packed.unbind(3)[1].is_contiguous()
    assert_within_bounds([*packed.unbind(3), do.transpose(1, 2).contiguous().transpose(1, 2), gate])


def test_gradients_are_the_same_bits_again():
    q, k, v, do = make_case(70, h=2, g=1, device=DEVICE)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    first, second = (torch.autograd.grad(attention(*leaves, impl="triton"), leaves, do) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_operators_are_sound(monkeypatch):
    monkeypatch.undo()  # torch's own fake tensors use torch.empty too
    q, k, v, _, gate = make_case(9, k=3, v=2, gated=True, device=DEVICE)
    leaves = [x.requires_grad_() for x in (q, k, v, gate)]
    names = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.icl_bench.attention_forward.default, (*leaves, 4, 0.5), test_utils=names)
    plain = (*leaves[:3], None, None, 0.5)
    torch.library.opcheck(torch.ops.icl_bench.attention_forward.default, plain, test_utils=names)


def test_traces_without_a_break(monkeypatch):
    monkeypatch.undo()
    q, k, v, do, gate = make_case(9, gated=True, device=DEVICE)
    traced = torch.compile(lambda *x: attention(*x, window=4, impl="triton"), fullgraph=True, backend="aot_eager")
    leaves = [x.requires_grad_() for x in (q, k, v, gate)]
    found = torch.autograd.grad(traced(*leaves), leaves, do)
    wanted = torch.autograd.grad(attention(*leaves, window=4, impl="triton"), leaves, do)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("change", [{"k": 129}, {"v": 257}, {"dtype": torch.float64}], ids=str)
def test_refuses_what_it_cannot_run(change):
    q, k, v, _ = make_case(4, **change, device=DEVICE)
    with pytest.raises(KernelUnavailableError, match="impl='triton'"):
        attention(q, k, v, impl="triton")


@pytest.mark.parametrize("size, width", {key[1:] for key in TILES}, ids=str)
def test_statistics_are_written_wherever_key_gradients_read_them(size, width):
    """They read whole tiles of rows: a tile that did not nest in the writers' would reach past what was written."""
    entries = zip(*(TILES[direction, size, width] for direction in ("forward", "query", "key_value")), strict=True)
    for forward, query, key_value in entries:
        assert forward.queries % key_value.queries == query.queries % key_value.queries == 0
        assert 128 % forward.queries == 128 % query.queries == 0


@pytest.mark.parametrize("size, width", SHORT_TILES, ids=str)
def test_short_sequences_take_the_smallest_block(size, width):
    blocks = sorted(SHORT_TILES[size, width])
    assert short_tile(size, width, width, 1) == Tile(blocks[0], blocks[0], SHORT_TILES[size, width][blocks[0]], 1)
    assert short_tile(size, width, width, blocks[-1] + 1) is None


@pytest.mark.parametrize("t", [20, 40], ids="T{}".format)
def test_gradients_of_heads_side_by_side_are_made_in_one_tensor(t):
    assert_gradients_lie_side_by_side(lambda *parts: attention(*parts, window=11, impl="triton"), t)
