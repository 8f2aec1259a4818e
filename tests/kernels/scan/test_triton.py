"""Both Triton scans in Triton's interpreter, at small sizes; on a device where there is one."""

import pytest
import torch

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.scan.triton.launch import LINEAR_TOKENS, SPAN
from tests.kernels.numerics import DEVICE, poison
from tests.kernels.scan.scan_oracle import (
    assert_close_to_exact,
    linear_case,
    relative_error,
    results,
    run_scan,
    selective_case,
)

# Some 40 roundings, of 6e-8 each, lie between an input and a gradient, beside sums of up to 100 terms.
FLOAT32_BOUND = 1e-5


def small_case(t, **change):
    """A selective scan of one member with one sequence, its steps as they are."""
    return selective_case(t, **{"members": 1, "batch": 1, "bias": False} | change)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.mark.parametrize("t", [1, 3, SPAN - 1, SPAN + 1, 3 * SPAN], ids="T{}".format)
def test_the_selective_scan_and_its_gradients_are_those_of_the_definition(t):
    assert_close_to_exact(selective_case(t, bias=False), "triton", FLOAT32_BOUND)


@pytest.mark.parametrize("t", [1, LINEAR_TOKENS - 1, LINEAR_TOKENS, LINEAR_TOKENS + 1, 65], ids="T{}".format)
def test_the_linear_scan_and_its_gradients_are_those_of_the_definition(t):
    assert_close_to_exact(linear_case(t), "triton", FLOAT32_BOUND)
    assert_close_to_exact(linear_case(t, n=1, channels=130), "triton", FLOAT32_BOUND)


@pytest.mark.parametrize("channels, width", [(1, 1), (20, 4), (70, 16), (17, 33), (17, 64)])
def test_any_number_of_channels_and_places(channels, width):
    case = small_case(10, channels=channels, width=width)
    assert_close_to_exact(case, "triton", FLOAT32_BOUND)


@pytest.mark.parametrize("half_steps", [False, True], ids=["float32", "half"])
def test_half_types_round_inputs_and_outputs_alone(half_steps):
    """The interpreter cuts digits off where it makes bfloat16, so float16 stands for both here."""
    kind, bound = torch.float16 if half_steps else None, torch.finfo(torch.float16).eps
    assert_close_to_exact(small_case(9, dtype=torch.float16, step_dtype=kind), "triton", bound)
    assert_close_to_exact(linear_case(33, dtype=torch.float16, decay_dtype=kind), "triton", bound)


@pytest.mark.parametrize(("channels", "span"), [(5, 64), (300, 64), (300, 8)])
def test_steps_may_come_before_their_softplus(channels, span, monkeypatch):
    monkeypatch.setattr("icl_bench.kernels.scan.triton.steps.LEAST_SPAN", span)
    case = selective_case(9, members=2, batch=2, channels=channels, width=1)
    case["dt"][:, :3] *= 30
    assert_close_to_exact(case, "triton", FLOAT32_BOUND)


def test_half_steps_may_come_before_their_softplus():
    case = small_case(9, bias=True, dtype=torch.float16, step_dtype=torch.float16)
    assert_close_to_exact(case, "triton", torch.finfo(torch.float16).eps)


@pytest.mark.parametrize("a", [0.0, -1e-4, -50.0, -1e4])
def test_decays_of_one_and_of_nothing_are_exact(a):
    case = small_case(20)
    case["a"] = torch.full_like(case["a"], a)
    assert_close_to_exact(case, "triton", FLOAT32_BOUND)


@pytest.mark.parametrize("missing", [("d",), ("state",), ("d", "state")], ids=" and ".join)
def test_optional_tensors_may_be_left_out(missing):
    case = {name: x for name, x in small_case(9).items() if name not in missing}
    assert_close_to_exact(case, "triton", FLOAT32_BOUND)
    linear = {name: x for name, x in linear_case(9).items() if name not in missing}
    assert_close_to_exact(linear, "triton", FLOAT32_BOUND)


@pytest.mark.parametrize("which", [0, 1], ids=["output", "state"])
def test_a_gradient_may_come_to_one_output_alone(which):
    for case in (small_case(10), linear_case(10)):
        found = {}
        for impl in ("triton", "sequential"):
            leaves = [x.clone().requires_grad_() for name, x in case.items() if name != "c" or which == 0]
            names = [name for name in case if name != "c" or which == 0]
            out = run_scan(case | dict(zip(names, leaves, strict=True)), impl)[which]
            found[impl] = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        for a, b in zip(*found.values(), strict=True):
            assert relative_error(a.double(), b.double()) < FLOAT32_BOUND or b.abs().max() == 0 == a.abs().max()


def test_views_of_wider_tensors_are_read_in_place():
    """Tokens around the sequences, and channels beside theirs, are NaN: nothing of them is read."""
    for case in (small_case(11), linear_case(11)):
        views = {}
        for name, x in case.items():
            views[name] = x
            if (x.ndim == 3 and name not in ("a", "state")) or ("x" not in case and name != "state"):
                wide = torch.full((x.shape[0], x.shape[1] + 3, x.shape[2] + 2), torch.nan, device=x.device)
                wide[:, 1:-2, 1:-1] = x
                views[name] = wide[:, 1:-2, 1:-1]
        for found, wanted in zip(run_scan(views, "triton"), run_scan(case, "triton"), strict=True):
            assert torch.equal(found, wanted)
        assert_close_to_exact(views, "triton", FLOAT32_BOUND)


def test_a_nan_spoils_no_earlier_output():
    for case in (small_case(20), linear_case(20)):
        before = run_scan(case, "triton")[0]
        first = "x" if "x" in case else "b"
        changed = case[first].clone()
        changed[:, 13] = torch.nan
        spoilt = run_scan(case | {first: changed}, "triton")[0]
        assert torch.equal(spoilt[:, :13], before[:, :13]) and spoilt[:, 13].isnan().all()


def test_halves_through_the_state_equal_the_whole():
    for case in (small_case(20), linear_case(20)):
        whole, last = run_scan(case, "triton")
        sequences = {"x", "dt", "b", "c"} if "x" in case else {"a", "b"}
        outputs, state = [], case["state"]
        for part in (slice(0, SPAN), slice(SPAN, 20)):
            piece = {name: x[:, part] if name in sequences else x for name, x in case.items()}
            y, state = run_scan(piece | {"state": state}, "triton")
            outputs.append(y)
        assert torch.equal(torch.cat(outputs, 1), whole) and torch.equal(state, last)


def test_gradients_are_the_same_bits_again():
    for case in (selective_case(9, members=1, batch=3, bias=False), linear_case(20)):
        first, second = results(case, "triton"), results(case, "triton")
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_operators_are_sound(monkeypatch):
    monkeypatch.undo()  # torch's own fake tensors use torch.empty too
    names = ("test_schema", "test_autograd_registration", "test_faketensor")
    case = small_case(9)
    leaves = [x.requires_grad_() for x in case.values()]
    for arguments in ((*leaves, True), (*leaves[:5], None, None, False)):
        torch.library.opcheck(torch.ops.icl_bench.selective_forward.default, arguments, test_utils=names)
    steps = tuple(x.requires_grad_() for x in (case["dt"].detach(), torch.zeros(1, 5, device=DEVICE)))
    torch.library.opcheck(torch.ops.icl_bench.selective_steps.default, steps, test_utils=names)
    linear = [x.requires_grad_() for x in linear_case(9).values()]
    for arguments in (tuple(linear), (*linear[:2], None)):
        torch.library.opcheck(torch.ops.icl_bench.linear_scan_forward.default, arguments, test_utils=names)


def test_traces_without_a_break(monkeypatch):
    monkeypatch.undo()
    for case in (small_case(9), linear_case(9)):
        names, leaves = list(case), [x.requires_grad_() for x in case.values()]
        run = lambda *x, names=names: run_scan(dict(zip(names, x, strict=True)), "triton")  # noqa: E731
        traced = torch.compile(run, fullgraph=True, backend="aot_eager")
        outs, wanted = traced(*leaves), run(*leaves)
        assert all(torch.equal(a, b) for a, b in zip(outs, wanted, strict=True))
        gradients = (torch.autograd.grad([x.sum() for x in made], leaves) for made in (outs, wanted))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("change", [{"dtype": torch.float64}, {"width": 65}], ids=str)
def test_refuses_what_it_cannot_run(change):
    with pytest.raises(KernelUnavailableError, match="impl='triton'"):
        run_scan(selective_case(4, **change), "triton")
    if "dtype" in change:
        for dtype in (torch.float64, torch.complex64):
            with pytest.raises(KernelUnavailableError, match="impl='triton'"):
                run_scan(linear_case(4, dtype=dtype), "triton")
