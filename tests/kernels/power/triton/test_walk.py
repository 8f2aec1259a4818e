"""States in one walk over a sequence: where it serves, and its kernel compiled for a GPU that is not there."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

from icl_bench.kernels.power.records import PowerInputs, PowerOptions, PowerState
from icl_bench.kernels.power.triton.ops import whole_chunk
from icl_bench.kernels.power.triton.problem import has_token_rows, make_problem
from tests.kernels.absent_gpu import run_for_hopper

SCRIPT = """
import itertools
from icl_bench.kernels.power.triton import walk
from icl_bench.kernels.power.triton.problem import TokenWeights, make_problem

found = []
listener = lambda *, src, metadata, metadata_group, times, cache_hit: found.append(metadata_group)
triton.knobs.compilation.listener = listener
sources = []
for width, gated in itertools.product((64, 128), (False, True)):
    k = torch.empty(1, 512, 2, width, dtype=torch.bfloat16)
    problem = make_problem(k, k, k, 2, 1.0, True, 1e-6, 128, False)
    states = torch.empty(2, problem.chunks, problem.elements, dtype=torch.bfloat16)
    numbers = torch.empty(1, 2, 512)
    weights, gates, prefix = (TokenWeights(numbers, numbers), numbers, states) if gated else (None, None, None)
    with ahead.unlaunched(sources.append):
        walk.walk_states(problem, k, k, weights, gates, states, prefix, reverse=gated)
for source in sources:
    compile_source(source)
codes = [open(next(path for name, path in group.items() if name.endswith(".ptx"))).read() for group in found]
print(json.dumps([[code.count("wgmma.mma_async"), code.count(".local")] for code in codes]))
"""


def problem(width=64, heads=2, groups=2, key_heads=2, t=512, chunk=128, p=2, value=64, dtype=torch.bfloat16, n=1):
    q, k, v = (
        torch.empty(n, t, count, size, dtype=dtype, device="meta")
        for count, size in ((heads, width), (key_heads, width), (groups, value))
    )
    return make_problem(q, k, v, p, 1.0, True, 1e-6, chunk, False)


def test_it_serves_whole_blocks_of_equal_widths_and_heads_of_their_own():
    assert problem().walkable and problem(width=128, value=128).walkable and problem(t=640, chunk=256).walkable
    others = ({"width": 32, "value": 32}, {"value": 128}, {"p": 3}, {"dtype": torch.float16}, {"t": 576}, {"t": 128})
    shared = ({"heads": 4}, {"key_heads": 1}, {"heads": 1, "key_heads": 1})
    # Tokens of all heads, and elements of the states of one head, that 32 bits do not count.
    many = ({"t": 2**22, "n": 2**9}, {"t": 2**18, "width": 128, "value": 128})
    assert not any(problem(**changes).walkable for changes in (*others, *shared, *many))


def test_rows_of_tokens_are_told_from_other_memory():
    joint = torch.empty(2, 8, 3, 4, 16, dtype=torch.bfloat16)
    assert has_token_rows(joint[:, :, 1]) and has_token_rows(joint[0, :, 1][None])
    assert not has_token_rows(joint[:, 1:, 1]) and has_token_rows(joint[:1, 1:, 1])
    assert not has_token_rows(joint[:, :, 1].transpose(1, 2)) and not has_token_rows(joint[:, :, 1, :, ::2])
    assert not has_token_rows(torch.empty(1, 8, 1, 12, dtype=torch.bfloat16))  # rows of 24 bytes
    assert not has_token_rows(torch.empty(1, 1, 4, 16, dtype=torch.bfloat16).expand(1, 8, 4, 16))  # one row


def device_of(major):
    return SimpleNamespace(major=major, minor=0, multi_processor_count=132)


@pytest.fixture
def hopper(monkeypatch):
    """Take every device for a Hopper GPU, and make tensors without memory."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: device_of(9))
    with FakeTensorMode():
        yield


def chosen_chunk(n=1, t=5_120, heads=12, keys=12, dtype=torch.bfloat16, keep_state=False, state=None):
    q, k, v = (torch.empty(n, t, count, 64, dtype=dtype, device="cuda") for count in (heads, keys, heads))
    options = PowerOptions(p=2, scale=0.125, normalize="sum", eps=1e-6, chunk=None)
    return whole_chunk(PowerInputs(q, k, v, None, state), options, keep_state)


def test_chunks_are_those_of_a_walk_where_it_serves(hopper):
    assert chosen_chunk() == 512 and chosen_chunk(t=65_536) == 512
    assert chosen_chunk(t=4_864) == 4_864


@pytest.mark.parametrize(
    "changes", [{"keys": 1}, {"dtype": torch.float32}, {"keep_state": True}, {"state": PowerState(None, None)},
                {"heads": 6, "keys": 6}, {"t": 5_184}, {"n": 0}], ids=str,
)  # fmt: skip
def test_chunks_are_those_of_sums_and_a_scan_elsewhere(hopper, changes):
    assert chosen_chunk(**changes) == changes.get("t", 5_120)
    assert chosen_chunk(**changes | {"t": changes.get("t", 5_120) + 2**16}) == 1024


def test_chunks_are_those_of_sums_and_a_scan_on_other_devices(hopper, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: device_of(8))
    assert chosen_chunk() == 5_120 and chosen_chunk(t=65_536) == 1024


def test_the_kernel_compiles_for_hopper_with_its_products_and_without_spills(tmp_path):
    counts = run_for_hopper(SCRIPT, tmp_path)
    assert len(counts) == 4 and all(products > 0 and local == 0 for products, local in counts)
