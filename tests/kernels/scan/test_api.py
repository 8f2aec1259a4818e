"""Both scans in operators of torch, their steps and their states against the definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.scan import api
from icl_bench.kernels.scan.api import linear_scan, linear_scan_step, selective_scan, selective_scan_step
from tests.kernels.numerics import assert_equal_in_float64
from tests.kernels.scan.scan_oracle import (
    assert_close_to_exact,
    linear_case,
    relative_error,
    results,
    run_scan,
    selective_case,
)

F64 = torch.float64
LENGTHS = pytest.mark.parametrize("t", [1, 7, 16, 65], ids="T{}".format)


def closed_form(case):
    """y of the selective scan as a sum over all earlier tokens, and over the state before them."""
    each = case["x"].shape[0] // case["a"].shape[0]
    a, d, bias = (case[name].repeat_interleave(each, dim=0) for name in ("a", "d", "dt_bias"))
    dt = torch.nn.functional.softplus(case["dt"] + bias[:, None])
    reach = dt.cumsum(1)
    later = torch.ones(dt.shape[1], dt.shape[1], dtype=torch.bool).tril()
    decay = torch.exp((reach[:, :, None] - reach[:, None])[..., None] * a[:, None, None])
    weights = torch.where(later[None, :, :, None, None], decay, 0.0)
    writes = (dt * case["x"])[..., None] * case["b"][:, :, None]
    h = torch.einsum("ntscw,nscw->ntcw", weights, writes)
    h = h + torch.exp(reach[..., None] * a[:, None]) * case["state"][:, None]
    return torch.einsum("ntcw,ntw->ntc", h, case["c"]) + d[:, None] * case["x"], h[:, -1]


@LENGTHS
def test_the_definition_is_the_sum_over_earlier_tokens(t):
    case = selective_case(t, dtype=F64)
    for found, wanted in zip(run_scan(case, "reference"), closed_form(case), strict=True):
        assert_equal_in_float64("closed form", found, wanted)


@LENGTHS
@pytest.mark.parametrize("bias", [False, True], ids=["steps", "softplus"])
def test_the_selective_scan_and_its_gradients_are_those_of_the_definition(t, bias):
    assert_close_to_exact(selective_case(t, bias=bias, dtype=F64), "sequential", 1e-12)
    assert_close_to_exact(selective_case(t, bias=bias), "sequential", 1e-5)


@LENGTHS
def test_the_linear_scan_and_its_gradients_are_those_of_the_definition(t):
    for dtype in (F64, torch.complex128):
        assert_close_to_exact(linear_case(t, dtype=dtype), "sequential", 1e-12)
    for dtype in (torch.float32, torch.complex64):
        assert_close_to_exact(linear_case(t, dtype=dtype), "sequential", 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("half_steps", [False, True], ids=["float32", "half"])
def test_half_types_round_the_outputs_alone(dtype, half_steps):
    bound = torch.finfo(dtype).eps / 2
    kind = dtype if half_steps else None
    assert_close_to_exact(selective_case(33, bias=False, dtype=dtype, step_dtype=kind), "sequential", bound)
    assert_close_to_exact(linear_case(33, dtype=dtype, decay_dtype=kind), "sequential", bound)


def test_optional_tensors_may_be_left_out():
    case = selective_case(9, bias=False, dtype=F64)
    bare = {name: x for name, x in case.items() if name not in ("d", "state")}
    full = bare | {"d": torch.zeros_like(case["d"]), "state": torch.zeros_like(case["state"])}
    assert torch.equal(selective_scan(**bare), run_scan(full, "auto")[0])
    linear = linear_case(9, dtype=F64)
    zeros = linear | {"state": torch.zeros_like(linear["state"])}
    assert torch.equal(linear_scan(linear["a"], linear["b"]), run_scan(zeros, "auto")[0])


@pytest.mark.parametrize("impl", ["reference", "sequential"])
def test_halves_through_the_state_equal_the_whole(impl):
    for case in (selective_case(20, dtype=F64), linear_case(20, dtype=F64), linear_case(20, dtype=torch.complex128)):
        whole, last = run_scan(case, impl)
        sequences = {"x", "dt", "b", "c"} if "x" in case else {"a", "b"}
        outputs, state = [], case["state"]
        for part in (slice(0, 7), slice(7, 20)):
            piece = {name: x[:, part] if name in sequences else x for name, x in case.items()}
            y, state = run_scan(piece | {"state": state}, impl)
            outputs.append(y)
        assert relative_error(torch.cat(outputs, 1), whole) < 1e-14 and relative_error(state, last) < 1e-14


def test_steps_equal_the_scan():
    case = selective_case(12)
    y, last = run_scan(case, "auto")
    state, outputs = case["state"], []
    for t in range(12):
        token = {name: x[:, t] if name in ("x", "dt", "b", "c") else x for name, x in case.items()}
        out, state = selective_scan_step(**token | {"state": state})
        outputs.append(out)
    assert relative_error(torch.stack(outputs, 1), y) < 1e-6 and relative_error(state, last) < 1e-6
    for dtype in (torch.float32, torch.complex64):
        linear = linear_case(12, dtype=dtype)
        y, last = run_scan(linear, "auto")
        state, outputs = linear["state"], []
        for t in range(12):
            out, state = linear_scan_step(linear["a"][:, t], linear["b"][:, t], state)
            outputs.append(out)
        assert torch.equal(torch.stack(outputs, 1), y) and torch.equal(state, last)


@pytest.mark.parametrize("a", [0.0, -1e-4, -50.0, -1e4])
def test_decays_of_one_and_of_nothing_are_exact(a):
    case = selective_case(40, bias=False, dtype=F64)
    case["a"] = torch.full_like(case["a"], a)
    assert_close_to_exact(case, "sequential", 1e-12)


def test_a_nan_spoils_no_earlier_output():
    for case in (selective_case(20), linear_case(20)):
        before = run_scan(case, "auto")[0]
        first = "x" if "x" in case else "b"
        spoilt = run_scan(case | {first: case[first].index_fill(1, torch.tensor([13]), torch.nan)}, "auto")[0]
        assert torch.equal(spoilt[:, :13], before[:, :13]) and spoilt[:, 13].isnan().all()


def test_gradients_agree_with_finite_differences():
    case = selective_case(5, members=2, batch=1, channels=2, width=2, dtype=F64)
    leaves = [x.requires_grad_() for x in case.values()]
    assert torch.autograd.gradcheck(lambda *x: run_scan(dict(zip(case, x, strict=True)), "sequential"), leaves)


def test_members_are_blocks_of_sequences():
    case = selective_case(6, members=3, batch=2, dtype=F64)
    whole = run_scan(case, "auto")[0]
    for member in range(3):
        rows = slice(2 * member, 2 * member + 2)
        own = {name: x[member : member + 1] if name in ("a", "d", "dt_bias") else x[rows] for name, x in case.items()}
        assert_equal_in_float64("member", run_scan(own, "auto")[0], whole[rows])


def change(name, make):
    case = selective_case(4)
    return case | {name: make(case[name])}


@pytest.mark.parametrize(
    "case, message",
    [
        (change("x", lambda x: x[0]), r"x must be \[N, T, C\]"),
        (change("x", lambda x: x[:3]), "N must be a multiple of M"),
        (change("dt", lambda x: x[:, :2]), r"dt must be \[N, T, C\]"),
        (change("c", lambda x: x[..., :2]), r"c must be \[N, T, S\]"),
        (change("d", lambda x: x[:1]), r"d must be \[M, C\]"),
        (change("b", lambda x: x.double()), "must share one type"),
        (change("dt", lambda x: x.half()), "dt must be torch.float32 or of the type of x"),
        (change("a", lambda x: x.bfloat16()), "a must be float32"),
        (change("state", lambda x: x[..., :1]), r"state must be \[N, C, S\]"),
        (change("state", lambda x: x.double()), "the state must be torch.float32"),
        (change("d", lambda x: x.to("meta")), "on one device"),
    ],
)
def test_selective_arguments_that_do_not_fit_are_refused(case, message):
    with pytest.raises(ArgumentError, match=message):
        run_scan(case, "auto")


@pytest.mark.parametrize(
    "name, make, message",
    [
        ("b", lambda x: x[0], r"b must be \[N, T, C\]"),
        ("a", lambda x: x[:, :1], r"a must be \[N, T, C\]"),
        ("a", lambda x: x.half(), "a of its type"),
        ("state", lambda x: x[:1], r"state must be \[N, C\]"),
    ],
)
def test_linear_arguments_that_do_not_fit_are_refused(name, make, message):
    case = linear_case(4)
    with pytest.raises(ArgumentError, match=message):
        run_scan(case | {name: make(case[name])}, "auto")


def test_an_unknown_form_is_refused():
    with pytest.raises(ArgumentError, match="impl must be one of"):
        run_scan(selective_case(4), "fast")


@pytest.mark.parametrize(
    "dtype, kind", [(torch.bfloat16, torch.float32), (F64, F64), (torch.complex64, torch.complex64)]
)
def test_initial_states_are_zeros_of_the_type_of_sums(dtype, kind):
    state = api.initial_scan_state(2, 3, device="cpu", dtype=dtype)
    assert state.dtype == kind and state.shape == (2, 3) and not state.any()


def test_the_scans_compile_without_a_break():
    for case in (selective_case(5), linear_case(5)):
        compiled = torch.compile(lambda case: run_scan(case, "auto"), fullgraph=True, backend="aot_eager")
        assert all(torch.equal(x, y) for x, y in zip(compiled(case), run_scan(case, "auto"), strict=True))
    assert results(selective_case(5), "auto")["da"].shape == (2, 5, 3)
