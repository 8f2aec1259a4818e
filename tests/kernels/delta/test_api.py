"""The plain forms of the delta rule against its scan in float64, and the errors of its arguments."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.delta.api import delta_rule, delta_step, initial_delta_state
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from tests.kernels.delta.delta_oracle import VARIANTS, make_problem, results

F64 = torch.float64
# Both forms add at most a few hundred products of each element in float64, with factors of at most about 10.
TOLERANCE = 1e-12


def assert_same(found, exact, tolerance=TOLERANCE):
    assert found.keys() == exact.keys()
    for name, x in exact.items():
        assert found[name].isfinite().all(), name
        # Relative to the result, or to the terms of order 1 whose difference it is.
        error = (found[name] - x).norm() / x.norm().clamp(min=1.0)
        assert error <= tolerance, f"{name}: {error:.3g}"


def compare(inputs, options, tolerance=TOLERANCE, **others):
    exact = results(lambda x: delta_rule(x, options, "reference"), inputs)
    assert_same(results(lambda x: delta_rule(x, options._replace(**others), "chunked"), inputs), exact, tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_chunks_match_the_scan_with_every_gradient(name):
    for t, chunk in ((1, None), (7, 4), (20, 8), (17, 16), (33, 32)):
        inputs, options = make_problem(VARIANTS[name], t=t, heads=2, groups=4)
        compare(inputs, options, chunk=chunk)


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_match_the_scan(name):
    inputs, options = make_problem(VARIANTS[name], t=5)
    y, last = delta_rule(inputs, options, "reference")
    state, outputs, substeps = inputs.state, [], inputs.substeps
    for t in range(5):
        rows = [
            x if x is None or field in ("bonus", "state")
            else x[:, t : t + 1] if x.shape[1] == 5
            else x[:, t * substeps : (t + 1) * substeps]
            for field, x in zip(DeltaInputs._fields, inputs, strict=True)
        ]  # fmt: skip
        out, state = delta_step(DeltaInputs(*rows)._replace(state=state), options)
        outputs.append(out)
    assert_same({"y": torch.cat(outputs, dim=1), "last": state}, {"y": y, "last": last})


@pytest.mark.parametrize("name", ["delta-net", "gated-delta-net", "kda", "rwkv-7", "gla", "gsa", "gated-delta-product"])
def test_two_halves_make_the_whole(name):
    inputs, options = make_problem(VARIANTS[name], t=12)
    y, last = delta_rule(inputs, options)
    cut = 5
    halves = []
    for part in (slice(0, cut), slice(cut, None)):
        rows = [
            x if x is None or field in ("bonus", "state") else x.unflatten(1, (12, -1))[:, part].flatten(1, 2)
            for field, x in zip(DeltaInputs._fields, inputs, strict=True)
        ]
        halves.append(DeltaInputs(*rows))
    first, state = delta_rule(halves[0], options)
    second, state = delta_rule(halves[1]._replace(state=state), options)
    assert_same({"y": torch.cat([first, second], dim=1), "last": state}, {"y": y, "last": last})


@pytest.mark.parametrize("keys", ["same", "few", "cosine"])
@pytest.mark.parametrize("rate", [1.0, 2.0])
@pytest.mark.parametrize("name", ["delta-net", "gated-delta-net", "kda"])
def test_repeated_keys(name, rate, keys):
    inputs, options = make_problem(VARIANTS[name], t=100, keys=keys)
    inputs = inputs._replace(beta=torch.full_like(inputs.beta, rate))
    # Signs alternate for a rate of 2, and terms that are as large as the sums cancel: one more digit is lost.
    compare(inputs, options, 1e-11, chunk=64)


@pytest.mark.parametrize("decay", [0.0, -5.0, -50.0, -1000.0])
@pytest.mark.parametrize("name", ["gated-delta-net", "unbounded-kda", "unbounded-untied", "hgrn2", "rwkv-6", "gsa"])
def test_gates_however_strong(name, decay):
    compare(*make_problem(VARIANTS[name], t=40, decay=decay))


def test_strong_and_weak_gates_side_by_side():
    inputs, options = make_problem(VARIANTS["unbounded-kda"], t=64)
    inputs.log_decay[:, ::7] = -200.0
    compare(inputs, options)


def test_nothing_of_a_later_token_is_read():
    for name, variant in VARIANTS.items():
        inputs, options = make_problem(variant, t=10)
        y, _ = delta_rule(inputs, options)
        spoilt = {}
        for field, x in inputs._asdict().items():
            if x is not None and field not in ("bonus", "state"):
                tokens = x.unflatten(1, (10, -1))
                spoilt[field] = torch.cat([tokens[:, :6], tokens[:, 6:] - 3], dim=1).flatten(1, 2)
        assert torch.equal(delta_rule(inputs._replace(**spoilt), options)[0][:, :6], y[:, :6]), name


def test_half_precision_is_rounded_once():
    inputs, options = make_problem(VARIANTS["gated-delta-net"], t=50, dtype=torch.bfloat16)
    y, state = delta_rule(inputs, options)
    exact, last = delta_rule(inputs, options, "reference")
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    # An output is one of the two numbers of bfloat16 around the exact one; a state has the rounding of float32 sums.
    assert ((y.double() - exact.double()).abs() <= 2**-7 * exact.double().abs() + 1e-5).all()
    assert (state - last).norm() <= 1e-5 * last.norm()


def test_the_first_state_is_zero():
    inputs, options = make_problem(VARIANTS["kda"], initial=False)
    zeros = initial_delta_state(1, 2, 8, 6, device="cpu", dtype=F64)
    assert torch.equal(delta_rule(inputs, options)[0], delta_rule(inputs._replace(state=zeros), options)[0])


X = torch.zeros(2, 6, 2, 4)
GOOD = {"q": X, "k": X, "v": torch.zeros(2, 6, 4, 3)}


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        ({"q": X[0]}, {}, r"q must have 4 axes \[N, T, heads, width\]; got \[6, 2, 4\]: reshape it"),
        ({"k": X[:, :5]}, {}, "k must have n T tokens for T queries; got 5 for T = 6: give n keys to a query"),
        ({"v": torch.zeros(2, 6, 3, 3)}, {}, "G must be a multiple of H, .* got G = 3, H = 2: change one"),
        ({"v": torch.zeros(2, 6, 4, 0)}, {}, "K and V must be at least 1; got K = 4, V = 0"),
        ({"q": X.double()}, {}, "q, k, v must share one type .* got torch.float32, torch.float64: cast"),
        ({"beta": torch.zeros(2, 6, 2)}, {}, r"beta must be \[N, nT, G\] = \[2, 6, 4\]; got \[2, 6, 2\]"),
        ({"beta": torch.zeros(2, 6, 4).bfloat16()}, {}, "beta must be torch.float32 .* got torch.bfloat16: cast it"),
        ({"log_decay": torch.zeros(2, 6, 4, 3)}, {}, r"log_decay must be \[N, T, G, K\] = \[2, 6, 4, 4\]"),
        ({"log_decay": torch.zeros(2, 6, 3)}, {}, r"log_decay must be \[N, T, G\] or \[N, T, G, K\] = \[2, 6, 4\]"),
        ({"erase": X}, {}, "erase belongs to rule untied; got rule='delta': leave it out"),
        ({"read": X}, {"rule": "linear"}, "read belongs to rule delta or untied; got rule='linear'"),
        ({"read": X}, {"rule": "untied"}, "rule='untied' needs read and erase; got None: give both"),
        ({"bonus": X[0, 0]}, {}, "bonus belongs to rule linear; got rule='delta'"),
        ({"bonus": X}, {"rule": "linear"}, r"bonus must be \[H, K\] or \[N, H, K\]; got \[2, 6, 2, 4\]"),
        ({"state": torch.zeros(2, 2, 4, 3)}, {}, r"state must be \[N, G, K, V\] = \[2, 4, 4, 3\]"),
        ({}, {"rule": "gated"}, "rule must be one of delta, untied, linear; got 'gated': pick one"),
        ({}, {"reads": "both"}, "reads must be one of decayed, undecayed; got 'both': pick one"),
        ({}, {"chunk": 24}, "chunk must be a power of two; got 24: leave it out"),
        ({}, {"least_log_decay": 1.0}, "least_log_decay must be finite and at most 0; got 1.0: leave it out"),
        ({}, {"scale": 0.0}, "scale must be positive and finite; got 0.0"),
        (
            {"log_decay": torch.zeros(2, 6, 4), "log_value_decay": torch.zeros(2, 6, 4, 3)}, {"rule": "linear"},
            "log_value_decay and log_decay exclude each other; got both: leave one out",
        ),
        (
            {"k": torch.zeros(2, 12, 2, 4), "v": torch.zeros(2, 12, 4, 3), "bonus": X[0, 0]}, {"rule": "linear"},
            "bonus needs one key to a query; got 2: leave one of them out",
        ),
        ({}, {"ahead": True}, "ahead belongs to rule linear; got rule='delta': leave it out"),
        (
            {"k": torch.zeros(2, 12, 2, 4), "v": torch.zeros(2, 12, 4, 3)}, {"rule": "linear", "ahead": True},
            "ahead needs one key to a query; got 2: leave one of them out",
        ),
        (
            {"log_value_decay": torch.zeros(2, 6, 4, 3)}, {"rule": "linear", "ahead": True},
            "a query ahead of its token has no log_value_decay; got both: leave one out",
        ),
    ],
)  # fmt: skip
def test_errors_name_rule_value_and_way_out(inputs, options, message):
    with pytest.raises(ArgumentError, match=message):
        delta_rule(DeltaInputs(**GOOD | inputs), DeltaOptions(**options))


def test_a_step_takes_one_token():
    with pytest.raises(ArgumentError, match="a step takes one token; got T = 6: use delta_rule"):
        delta_step(DeltaInputs(**GOOD))
