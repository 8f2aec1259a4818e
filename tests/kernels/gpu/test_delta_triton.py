"""The Triton kernels of the delta rule on a GPU against float64: the gate in front of any timing."""

import pytest
import torch

from icl_bench.kernels.delta.api import delta_rule
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.delta.triton import launch
from icl_bench.kernels.delta.triton.ops import delta_triton
from tests.kernels.delta.delta_oracle import VARIANTS, check, make_problem, results
from tests.kernels.numerics import poison

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
LENGTHS = [1, 7, 15, 16, 17, 63, 64, 65, 255, 1000, 4097]
WIDTHS = [(16, 16), (64, 64), (64, 128), (128, 32), (24, 40), (128, 256), (8, 100)]
FAMILIES = ["delta-net", "gated-delta-net", "kda", "unbounded-kda", "rwkv-7", "gla"]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_variants(name, dtype):
    check(delta_triton, *make_problem(VARIANTS[name], n=3, t=150, heads=2, groups=4, key=32, value=32, dtype=dtype,
                                      device="cuda"))  # fmt: skip


@pytest.mark.parametrize("t", LENGTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_lengths(name, t):
    check(delta_triton, *make_problem(VARIANTS[name], t=t, heads=2, key=32, value=32, dtype=BF16, device="cuda"))


@pytest.mark.parametrize(("key", "value"), WIDTHS)
@pytest.mark.parametrize("name", ["gated-delta-net", "kda", "rwkv-7", "gla"])
def test_widths(name, key, value):
    check(delta_triton, *make_problem(VARIANTS[name], t=100, key=key, value=value, dtype=BF16, device="cuda"))


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_without_a_first_state(name):
    check(delta_triton, *make_problem(VARIANTS[name], t=100, key=32, value=32, dtype=F16, initial=False, device="cuda"))


@pytest.mark.parametrize("name", ["kda", "unbounded-kda", "rwkv-7", "gla"])
def test_decays_of_channels_in_bfloat16(name):
    inputs, options = make_problem(VARIANTS[name], n=2, t=100, heads=2, key=32, value=32, dtype=BF16, device="cuda")
    check(delta_triton, inputs._replace(log_decay=inputs.log_decay.bfloat16()), options)


@pytest.mark.parametrize("keys", ["same", "few", "cosine"])
@pytest.mark.parametrize("name", ["delta-net", "gated-delta-net", "kda"])
def test_repeated_keys(name, keys):
    size = {"t": 256, "key": 32, "value": 32, "keys": keys, "device": "cuda"}
    check(delta_triton, *make_problem(VARIANTS[name], rate=2.0, dtype=BF16, **size))
    inputs, options = make_problem(VARIANTS[name], dtype=BF16, **size)
    check(delta_triton, inputs._replace(beta=torch.ones_like(inputs.beta)), options, overwritten=keys == "same")


@pytest.mark.parametrize("keys", ["same", "few", "cosine"])
@pytest.mark.parametrize("name", ["delta-net", "gated-delta-net", "kda"])
def test_repeated_keys_at_the_largest_rate(name, keys):
    # The states of a rate of 2 for every token never decay, and rounding in tf32 (or of keys) adds up over all tokens.
    inputs, options = make_problem(VARIANTS[name], t=64, key=32, value=32, keys=keys, dtype=F32, device="cuda")
    same = keys == "same"
    check(delta_triton, inputs._replace(beta=torch.full_like(inputs.beta, 2.0)), options, same, undamped=same)


@pytest.mark.parametrize("value", [32, 64])
@pytest.mark.parametrize("keys", ["same", "few", "cosine"])
@pytest.mark.parametrize("name", ["delta-net", "gated-delta-net", "kda"])
def test_states_that_keep_their_errors_in_bfloat16(name, keys, value):
    inputs, options = make_problem(VARIANTS[name], t=256, key=32, value=value, keys=keys, decay=0.0, dtype=BF16,
                                   device="cuda")  # fmt: skip
    inputs = inputs._replace(beta=torch.full_like(inputs.beta, 2.0))
    check(delta_triton, inputs, options, overwritten=keys == "same")


@pytest.mark.parametrize(("name", "dtype"), [(x, BF16) for x in VARIANTS] + [(x, F32) for x in FAMILIES])
def test_segments_in_parallel(name, dtype, monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: 48)
    t = 301 // VARIANTS[name].substeps
    check(delta_triton, *make_problem(VARIANTS[name], n=2, t=t, heads=2, groups=4, key=32, value=32, dtype=dtype,
                                      device="cuda"))  # fmt: skip


@pytest.mark.parametrize("t", [t for t in LENGTHS if t > 16])
@pytest.mark.parametrize("name", FAMILIES[:3])
def test_lengths_of_segments(name, t, monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: 16 if t < 255 else 64)
    check(delta_triton, *make_problem(VARIANTS[name], t=t, heads=2, key=64, value=64, dtype=BF16, device="cuda"))


@pytest.mark.parametrize(("key", "value"), WIDTHS[:-1])
@pytest.mark.parametrize("name", ["delta-net", "gated-delta-net"])
def test_widths_of_segments(name, key, value, monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: 32)
    check(delta_triton, *make_problem(VARIANTS[name], t=200, key=key, value=value, dtype=BF16, device="cuda"))


@pytest.mark.parametrize("keys", ["same", "few", "cosine"])
@pytest.mark.parametrize("name", ["delta-net", "gated-delta-net", "kda"])
def test_repeated_keys_over_segments(name, keys, monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: 32)
    size = {"t": 256, "key": 32, "value": 32, "keys": keys, "device": "cuda"}
    check(delta_triton, *make_problem(VARIANTS[name], rate=2.0, dtype=BF16, **size))
    inputs, options = make_problem(VARIANTS[name], dtype=BF16, **size)
    check(delta_triton, inputs._replace(beta=torch.ones_like(inputs.beta)), options, overwritten=keys == "same")


@pytest.mark.parametrize("decay", [0.0, -5.0, -50.0, -1000.0])
@pytest.mark.parametrize("name", ["gated-delta-net", "kda", "unbounded-kda", "rwkv-6"])
def test_gates_over_segments(name, decay, monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: 32)
    check(delta_triton, *make_problem(VARIANTS[name], t=100, key=32, value=32, decay=decay, dtype=BF16, device="cuda"))


@pytest.mark.parametrize("name", ["delta-net", "gated-delta-net", "kda"])
def test_one_long_sequence(name):
    inputs, options = make_problem(VARIANTS[name], t=40_003, heads=2, key=64, value=64, dtype=BF16, device="cuda")
    assert launch.segment_length(40_003, 2, 64, 64) < 1000
    check(delta_triton, inputs, options)


def test_nothing_of_a_later_segment_is_read(monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: 32)
    inputs, options = make_problem(VARIANTS["gated-delta-net"], t=200, key=32, value=32, dtype=BF16, device="cuda")
    y, _ = delta_rule(inputs, options, "triton")
    for x in inputs[:5]:
        x[:, 112:] = torch.nan  # a chunk in the middle of a segment begins here
    assert torch.equal(delta_rule(inputs, options, "triton")[0][:, :112], y[:, :112])


@pytest.mark.parametrize("name", ["delta-net", "kda", "rwkv-7"])
def test_segments_are_equal_bit_for_bit_in_two_runs(name, monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: 64)
    inputs, options = make_problem(VARIANTS[name], n=3, t=500, heads=2, groups=4, key=32, value=32, dtype=BF16,
                                   device="cuda")  # fmt: skip
    first, second = (results(lambda x: delta_rule(x, options, "triton"), inputs) for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.parametrize("decay", [0.0, -5.0, -50.0, -1000.0])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("name", ["gated-delta-net", "kda", "unbounded-kda", "unbounded-untied", "rwkv-6", "gsa"])
def test_gates_however_strong(name, dtype, decay):
    check(delta_triton, *make_problem(VARIANTS[name], t=100, key=32, value=32, decay=decay, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_beyond_the_sequence_is_read(name):
    inputs, options = make_problem(VARIANTS[name], n=2, t=21, key=24, value=20, dtype=BF16, device="cuda")
    views = {}
    for field, x in inputs._asdict().items():
        if x is not None and field not in ("bonus", "state"):
            views[field] = torch.full((2, x.shape[1] + 9, *x.shape[2:]), torch.nan, dtype=x.dtype, device="cuda")
            views[field] = views[field][:, : x.shape[1]].copy_(x)
    for whole, part in zip(
        results(lambda x: delta_rule(x, options, "triton"), inputs).values(),
        results(lambda x: delta_rule(x, options, "triton"), inputs._replace(**views)).values(), strict=True,
    ):  # fmt: skip
        assert torch.equal(whole, part)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_runs_are_equal_bit_for_bit(name):
    inputs, options = make_problem(VARIANTS[name], n=50, t=64, heads=2, groups=4, key=32, value=32, dtype=BF16,
                                   device="cuda")  # fmt: skip
    first, second = (results(lambda x: delta_rule(x, options, "triton"), inputs) for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_more_sequences_than_a_grid_has_rows():
    inputs, options = make_problem(VARIANTS["gated-delta-net"], n=70_000, t=3, key=16, value=16, groups=1, dtype=BF16,
                                   device="cuda")  # fmt: skip
    whole = results(lambda x: delta_rule(x, options, "triton"), inputs)
    part = DeltaInputs(*(None if x is None else x[69_000:] for x in inputs))
    y, last = delta_rule(part, options, "triton")
    assert torch.equal(whole["y"][69_000:], y) and torch.equal(whole["last"][69_000:], last)
    assert whole["dq"].isfinite().all()


@pytest.mark.memory(22, in_turn=True)
@pytest.mark.slow
def test_offsets_beyond_31_bits(monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda tokens, *sizes: tokens)
    n, t, groups, width = 4097, 1024, 16, 32  # 2^31 elements and more
    shape = (n, t, groups, width)
    q, k, v = (torch.empty(shape, dtype=BF16, device="cuda").normal_() for _ in range(3))
    k = k / 6
    y, last = delta_rule(DeltaInputs(q, k, v), DeltaOptions(), "triton")
    part = DeltaInputs(q[-1:].clone(), k[-1:].clone(), v[-1:].clone())
    expected, state = delta_rule(part, DeltaOptions(), "triton")
    assert torch.equal(y[-1:], expected) and torch.equal(last[-1:], state)


@pytest.mark.memory(22, in_turn=True)
@pytest.mark.slow
def test_offsets_beyond_31_bits_in_segments(monkeypatch):
    t, groups, width = 1 << 19, 65, 64  # 2^31 elements and more
    q, k, v = (torch.empty(1, t, groups, width, dtype=BF16, device="cuda").normal_() for _ in range(3))
    k = k / 9
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: t // 8)
    y, last = delta_rule(DeltaInputs(q, k, v), DeltaOptions(), "triton")
    part = DeltaInputs(*(x[:, :, -1:].clone() for x in (q, k, v)))
    expected, state = delta_rule(part, DeltaOptions(), "triton")
    assert torch.equal(y[:, :, -1:], expected) and torch.equal(last[:, -1:], state)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_second_device():
    for t in (50, 1100):
        inputs, options = make_problem(VARIANTS["kda"], t=t, key=32, value=32, dtype=BF16, device="cuda:1")
        check(delta_triton, inputs, options)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("name", ["gated-delta-net", "rwkv-7", "gla"])
def test_captured_in_a_graph_and_compiled(name, segments, monkeypatch):
    monkeypatch.undo()  # torch's own fake tensors use torch.empty too
    if segments:
        monkeypatch.setattr(launch, "segment_length", lambda *sizes: 32)
    inputs, options = make_problem(VARIANTS[name], n=4, t=64, key=32, value=32, dtype=BF16, device="cuda")
    expected = results(lambda x: delta_rule(x, options, "triton"), inputs)
    traced = torch.compile(lambda x: delta_rule(x, options, "triton"), fullgraph=True, backend="aot_eager")
    compiled = results(traced, inputs)
    assert all(torch.equal(x, compiled[name]) for name, x in expected.items())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()), torch.no_grad():
        y, last = delta_rule(inputs, options, "triton")
    graph.replay()
    assert torch.equal(y, expected["y"]) and torch.equal(last, expected["last"])
