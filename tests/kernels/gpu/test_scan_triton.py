"""Both Triton scans on the device: every type, lengths around the blocks, many sequences, far offsets, graphs."""

import pytest
import torch

from icl_bench.kernels.scan.api import linear_scan, selective_scan
from tests.kernels.numerics import assert_replays, poison
from tests.kernels.scan.scan_oracle import assert_close_to_exact, linear_case, results, run_scan, selective_case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = [1, 7, 15, 16, 17, 63, 64, 65, 255, 1000, 4097]
# Gradients of half types round outputs and the states that they read once each, by at most eps / 2, in the mean square
# by less; sums over channels in tf32 round by 2^-11.
BOUNDS = {torch.bfloat16: 3e-3, torch.float16: 1e-3, torch.float32: 1e-5}
TYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@TYPES
@pytest.mark.parametrize("t", LENGTHS, ids="T{}".format)
def test_output_and_gradients_match_the_definition(t, dtype):
    assert_close_to_exact(selective_case(t, channels=70, width=16, dtype=dtype), "triton", BOUNDS[dtype])
    assert_close_to_exact(linear_case(t, channels=140, dtype=dtype), "triton", BOUNDS[dtype])


@TYPES
@pytest.mark.parametrize("channels, width", [(1, 1), (5, 2), (33, 5), (130, 4), (64, 8), (50, 32), (40, 33), (17, 64)])
def test_any_number_of_channels_and_places(channels, width, dtype):
    case = selective_case(100, channels=channels, width=width, bias=False, dtype=dtype, step_dtype=dtype)
    assert_close_to_exact(case, "triton", BOUNDS[dtype])


@pytest.mark.parametrize("a", [0.0, -1e-6, -1e-3, -5.0, -1e4])
def test_decays_of_one_and_of_nothing(a):
    case = selective_case(300, channels=64, width=16, bias=False)
    case["a"] = torch.full_like(case["a"], a)
    assert_close_to_exact(case, "triton", 1e-5)
    linear = linear_case(300)
    linear["a"] = torch.full_like(linear["a"], max(0.0, 1 + a))
    assert_close_to_exact(linear, "triton", 1e-5)


def test_more_sequences_than_a_grid_axis_holds():
    n = 70_000
    case = {
        name: x.cuda() for name, x in selective_case(5, members=2, batch=2, channels=8, width=4, bias=False).items()
    }
    many = {name: x if name in ("a", "d") else x.repeat_interleave(n // 4, 0) for name, x in case.items()}
    y, last = run_scan(many, "triton")
    wanted, end = run_scan(case, "triton")
    assert torch.equal(y, wanted.repeat_interleave(n // 4, 0)) and torch.equal(last, end.repeat_interleave(n // 4, 0))
    leaves = {name: x.requires_grad_() for name, x in many.items()}
    assert_gradients_of_the_last(leaves, case)


def assert_gradients_of_the_last(leaves, case):
    """The last sequence of many equal ones has the gradients that the last of the few has."""
    found = torch.autograd.grad(run_scan(leaves, "triton")[0].sum(), [leaves["x"], leaves["b"]])
    few = {name: x.detach().requires_grad_() for name, x in case.items()}
    wanted = torch.autograd.grad(run_scan(few, "triton")[0].sum(), [few["x"], few["b"]])
    assert all(torch.equal(a[-1], b[-1]) for a, b in zip(found, wanted, strict=True))


@pytest.mark.memory(35, in_turn=True)
def test_offsets_beyond_32_bits(monkeypatch):
    monkeypatch.undo()
    n, t, c = 2100, 1024, 1024
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(n, t, c, device="cuda", dtype=torch.bfloat16, generator=generator).requires_grad_()
    dt = torch.rand(n, t, c, device="cuda", dtype=torch.bfloat16, generator=generator)
    a = -torch.rand(1, c, 2, device="cuda", generator=generator)
    b, read = torch.randn(2, n, t, 2, device="cuda", dtype=torch.bfloat16, generator=generator)
    y = selective_scan(x, dt, a, b, read, impl="triton")
    alone = x[-1:].detach().requires_grad_()
    wanted = selective_scan(alone, dt[-1:], a, b[-1:], read[-1:], impl="triton")
    assert torch.equal(y[-1:], wanted)
    along = torch.randn(1, t, c, device="cuda", dtype=torch.bfloat16, generator=generator)
    (found,) = torch.autograd.grad(y, x, along.expand(n, t, c))
    assert torch.equal(found[-1:], torch.autograd.grad(wanted, alone, along)[0])
    del y, found
    h = linear_scan(dt, x, impl="triton")
    (found,) = torch.autograd.grad(h, x, along.expand(n, t, c))
    wanted = linear_scan(dt[-1:], alone, impl="triton")
    assert torch.equal(h[-1:], wanted) and torch.equal(found[-1:], torch.autograd.grad(wanted, alone, along)[0])


def test_gradients_are_the_same_bits_again():
    for case in (selective_case(300, batch=9, channels=256, width=16, dtype=torch.bfloat16), linear_case(300)):
        first, second = results(case, "triton"), results(case, "triton")
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_captured_graph_gives_the_same_bits():
    for case in (selective_case(100, channels=64, width=16), linear_case(100)):
        leaves = {name: x.requires_grad_() for name, x in case.items()}

        def step(leaves=leaves):
            y, last = run_scan(leaves, "triton")
            return torch.autograd.grad([y.square().sum(), last.sum()], list(leaves.values()))

        assert_replays(step)


def test_compiles_without_a_break(monkeypatch):
    monkeypatch.undo()  # torch's own fake tensors use torch.empty too
    for case in (selective_case(100, channels=64, width=16), linear_case(100)):
        names, leaves = list(case), [x.requires_grad_() for x in case.values()]
        run = lambda *x, names=names: run_scan(dict(zip(names, x, strict=True)), "triton")[0]  # noqa: E731
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        y, wanted = compiled(*leaves), run(*leaves)
        torch.testing.assert_close(y, wanted)
        found, exact = (torch.autograd.grad(out.sum(), leaves) for out in (y, wanted))
        for one, other in zip(found, exact, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_tensors_of_a_device_that_is_not_the_current_one():
    for case in (selective_case(50, channels=64, width=16), linear_case(50)):
        there = {name: x.to("cuda:1") for name, x in case.items()}
        for found, wanted in zip(run_scan(there, "triton"), run_scan(case, "triton"), strict=True):
            assert found.device.index == 1 and torch.equal(found.cpu(), wanted.cpu())
