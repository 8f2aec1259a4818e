"""The Triton attention on the device: every type, every table entry, lengths around the tiles, graphs."""

import pytest
import torch

from icl_bench.kernels.attention.api import attention
from icl_bench.kernels.attention.triton.table import MIDDLE_REACH, SHORT_REACH, SHORT_TILES, TILES
from tests.kernels.attention.attention_oracle import BOUNDS, assert_within_bounds, make_case
from tests.kernels.numerics import assert_replays, poison

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

GATES = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
TYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)
TYPE_OF = {2: torch.bfloat16, 4: torch.float32}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@GATES
@TYPES
@pytest.mark.parametrize("window", [None, 1, 100], ids="window-{}".format)
@pytest.mark.parametrize("t", [4097, 1000, 100, 65, 64, 63, 7, 1], ids="T{}".format)
def test_output_and_gradients_match_the_definition(t, window, dtype, gated):
    assert_within_bounds(make_case(t, k=64, v=64, gated=gated, dtype=dtype, device="cuda"), window=window)


@GATES
def test_a_window_of_many_tiles(gated):
    case = make_case(4097, k=64, v=64, gated=gated, dtype=torch.bfloat16, device="cuda")
    assert_within_bounds(case, window=1056)


@GATES
@pytest.mark.parametrize("window", [None, 50], ids="window-{}".format)
@pytest.mark.parametrize("t", [SHORT_REACH - 57, SHORT_REACH + 57, MIDDLE_REACH + 57], ids="T{}".format)
@pytest.mark.parametrize("size, width", sorted({key[1:] for key in TILES}), ids=str)
def test_every_entry_of_the_table(size, width, t, window, gated):
    case = make_case(t, k=min(width, 128), v=width, gated=gated, dtype=TYPE_OF[size], device="cuda")
    assert_within_bounds(case, window=window)


@GATES
@pytest.mark.parametrize(
    "size, width, block", [(*key, block) for key, blocks in SHORT_TILES.items() for block in blocks]
)
def test_every_short_tile(size, width, block, gated):
    for t in (block, block - 5):
        case = make_case(t, n=3, k=width, v=width, gated=gated, dtype=TYPE_OF[size], device="cuda")
        assert_within_bounds(case)


@TYPES
@pytest.mark.parametrize("k, v", [(5, 3), (16, 64), (24, 40), (96, 192)])
def test_any_key_and_value_width(k, v, dtype):
    assert_within_bounds(make_case(200, h=6, g=2, k=k, v=v, gated=True, dtype=dtype, device="cuda"), window=70)


def test_a_captured_graph_gives_the_same_bits():
    q, k, v, do, gate = make_case(300, h=4, g=2, k=64, v=64, gated=True, dtype=torch.bfloat16, device="cuda")
    leaves = [x.requires_grad_() for x in (q, k, v, gate)]

    def step():
        return torch.autograd.grad(attention(*leaves, window=64, impl="triton"), leaves, do)

    assert_replays(step)


def test_compiles_without_a_break(monkeypatch):
    monkeypatch.undo()  # torch's own fake tensors use torch.empty too
    q, k, v, do = make_case(300, k=64, v=64, dtype=torch.bfloat16, device="cuda")
    leaves = [x.requires_grad_() for x in (q, k, v)]
    compiled = torch.compile(lambda *x: attention(*x, window=64, impl="triton"), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*leaves), leaves, do)
    wanted = torch.autograd.grad(attention(*leaves, window=64, impl="triton"), leaves, do)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
