"""A good layer passes every check; a layer with one fault fails the check of that fault, and no other."""

import json
import sys

import pytest

from icl_bench.architectures import ARCHITECTURES
from icl_bench.architectures.base import StateSize
from icl_bench.architectures.linear import Linear
from icl_bench.errors import SpecError
from icl_bench.harness import conformance
from icl_bench.harness.conformance import CHECKS, check_architecture, run_check

SOURCE = """
import random

import torch
from torch import nn

class Good(nn.Module):
    '''Sum of all values so far, gated by the token.'''

    def __init__(self, d_model):
        super().__init__()
        self.values, self.gate = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def forward(self, x):
        return self.gate(x).sigmoid() * self.values(x).cumsum(1)

    def state_elements(self, length):
        return self.values.in_features

    def initial_state(self, batch):
        return torch.zeros(batch, self.values.in_features)

    def step(self, x, state, position):
        state = state + self.values(x)
        return self.gate(x).sigmoid() * state, state

class Future(Good):
    def forward(self, x):
        return super().forward(x) + x.roll(-1, 1)

    initial_state = property()  # no recurrent form

class HiddenFuture(Good):
    def __init__(self, d_model):
        super().__init__(d_model)
        self.later = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return super().forward(x) + self.later * x.roll(-1, 1)

    initial_state = property()

class BatchMixer(Good):
    def forward(self, x):
        return super().forward(x) + x.mean(0, keepdim=True)

    initial_state = property()

class WrongCount(Good):
    def state_elements(self, length):
        return 7

class Shrinking(Good):
    def state_elements(self, length):
        return 2048 // length

    initial_state = property()

class WrongStep(Good):
    def step(self, x, state, position):
        y, state = super().step(x, state, position)
        return 1.1 * y, state

class NoGradient(Good):
    '''The square root of 0 has an infinite gradient.'''

    def forward(self, x):
        return super().forward(x) + (0 * self.values(x)).sqrt()

class Unused(Good):
    def __init__(self, d_model):
        super().__init__(d_model)
        self.unused = nn.Linear(d_model, 1)

class Noisy(Good):
    def forward(self, x):
        return super().forward(x) + 1e-4 * torch.randn_like(x)

class Drawn(Good):
    def __init__(self, d_model):
        super().__init__(d_model)
        self.factor = 1 + random.SystemRandom().random()

    def forward(self, x):
        return self.factor * super().forward(x)

    initial_state = property()

class Narrow(Good):
    def forward(self, x):
        return x[..., 1:]

class Refuses(Good):
    def forward(self, x):
        raise RuntimeError("not today")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "faulty_layers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("faulty_layers", None)


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.delitem(CHECKS, "four-pair recall (sanity)")


def failures(text: str) -> dict[str, str]:
    return {check.name: check.found for check in check_architecture(text, 8) if check.outcome == "failed"}


def test_a_good_layer_passes(mine, untrained) -> None:
    checks = check_architecture("faulty_layers:Good", 8)
    assert {check.outcome for check in checks} == {"passed"}
    found = {check.name: check.found for check in checks}
    assert found["causality"] == found["examples apart"] == "bit-equal"
    assert found["state by length"] == "constant: 8 elements" and found["state count"] == "8 elements after 70 tokens"


def test_a_layer_without_parameters_has_no_gradients_to_check(untrained) -> None:
    (check,) = (check for check in check_architecture("torch.nn:Identity", 8) if check.name == "gradients")
    assert (check.outcome, check.found) == ("not applicable", "no parameters")


@pytest.mark.parametrize("text", ["softmax", "mamba-2", "rwkv-7:d_key=4", "log-linear:d_key=4", "gated-conv"])
def test_architectures_of_the_package_pass(untrained, text: str) -> None:
    checks = check_architecture(text, 8)
    assert {check.outcome for check in checks} == {"passed"}, checks


@pytest.mark.parametrize(
    ("name", "check", "found"),
    [
        ("Future", "causality", "outputs change by"),
        ("HiddenFuture", "causality", "outputs change by"),
        ("BatchMixer", "examples apart", "outputs change by"),
        ("WrongCount", "state count", "7 declared, 8 carried after 1 tokens"),
        ("Shrinking", "state by length", "32, 8, 2 elements at T = 64, 256, 1024"),
        ("WrongStep", "parallel = recurrent", "bound 1e-03"),
        ("NoGradient", "gradients", "not finite in values."),
        ("Unused", "gradients", "none in unused.bias, unused.weight"),
        ("Drawn", "seeds repeat", "a seed gives different outputs: the layer draws numbers that are no parameters or"),
        ("Narrow", "shapes", "maps [3, 1, 8] to [3, 1, 7] torch.float32; return one tensor of the shape of the input"),
        ("Refuses", "shapes", "RuntimeError: not today"),
    ],
)
def test_a_fault_fails_the_check_that_it_breaks(mine, untrained, name: str, check: str, found: str) -> None:
    failed = failures(f"faulty_layers:{name}")
    assert set(failed) == {check} and found in failed[check]


def test_random_numbers_of_a_layer_are_found(mine, untrained) -> None:
    failed = failures("faulty_layers:Noisy")
    assert "seeds repeat" in failed and "causality" not in failed
    assert failed["seeds repeat"] == "two calls on the same input differ: the layer draws random numbers"


def test_no_other_check_is_made_where_shapes_are_wrong(mine) -> None:
    rest = check_architecture("faulty_layers:Narrow", 8)[1:]
    assert len(rest) == len(CHECKS) - 1
    assert {(check.outcome, check.found) for check in rest} == {("not applicable", "needs shapes")}


def test_an_architecture_of_a_plugin_is_held_to_the_size_that_it_declares(untrained, monkeypatch) -> None:
    class Short(Linear):
        """Declares a smaller state than it carries."""

        def state_size(self, d_model: int, length: int) -> StateSize:
            return StateSize(sums=3)

    monkeypatch.setitem(ARCHITECTURES._entries, "short", Short)
    assert set(failures("short")) == {"state count"}


def test_two_architectures_at_once_are_refused() -> None:
    with pytest.raises(SpecError, match=r"one architecture is checked at a time; got 'linear\+softmax'; check its"):
        check_architecture("linear+softmax", 8)


@pytest.mark.parametrize(
    ("text", "outcome", "found"),
    [
        ("linear", "passed", "floor 0.34, after 300 steps at a rate of 0.005 behind gated-conv"),
        pytest.param("hyena", "passed", "after 600 steps at a rate of 0.01 behind gated-conv", marks=pytest.mark.slow),
        ("min-gru", "not applicable", "a vector of state learns pairs in thousands of updates alone"),
        ("window", "not applicable", "a fixed number of tokens back"),
    ],
)
def test_recall_of_four_pairs(text: str, outcome: str, found: str) -> None:
    check = run_check("recall", conformance.check_recall, conformance.Subject(text, 32))
    assert check.outcome == outcome and found in check.found


@pytest.mark.parametrize("learnt_at", [0.005, 0.01, None])
def test_recall_is_trained_at_another_rate_where_it_was_not_learnt(learnt_at, monkeypatch) -> None:
    def learn(subject: conformance.Subject, arch: str, rate: float, steps: int) -> conformance.Verdict:
        asked.append((rate, steps))
        return rate == learnt_at, f"at {rate}"

    asked: list[tuple[float, int]] = []
    monkeypatch.setattr(conformance, "learn_recall", learn)
    check = run_check("recall", conformance.check_recall, conformance.Subject("hyena", 32))
    assert asked == [*conformance.ATTEMPTS[: 1 if learnt_at == 0.005 else 2]]
    assert (check.outcome, check.found) == ("failed" if learnt_at is None else "passed", f"at {asked[-1][0]}")


def test_a_layer_that_reads_values_of_the_first_one_has_itself_in_front(monkeypatch) -> None:
    monkeypatch.setattr(conformance, "ATTEMPTS", ((0.005, 2),))
    check = run_check("recall", conformance.check_recall, conformance.Subject("rwkv-7", 16))
    assert check.found.endswith("after 2 steps at a rate of 0.005")


def test_command_prints_a_table_or_a_document_and_its_status_tells_of_failures(
    mine, untrained, command, monkeypatch
) -> None:
    here = lambda action, function, *arguments, seconds: function(*arguments)  # noqa: E731
    monkeypatch.setattr(conformance, "isolated", here)  # a process of its own would train on recall too
    good = command("check-arch", "faulty_layers:Good", "--d-model", "8")
    assert good.status == 0 and "causality" in good.out and "bit-equal" in good.out and not good.err
    bad = command("check-arch", "faulty_layers:Future", "--d-model", "8", "--json")
    document = json.loads(bad.out)
    assert bad.status == 3 and document["arch"] == "faulty_layers:Future" and document["ok"] is False
    assert {check["name"] for check in document["checks"] if check["outcome"] == "failed"} == {"causality"}


@pytest.mark.parametrize("spec", ["no-such-thing", "faulty_layers:Missing", "power:p=0", "a+b"])
def test_a_wrong_spec_is_one_line_and_status_2(mine, command, spec: str) -> None:
    outcome = command("check-arch", spec)
    assert outcome.status == 2 and outcome.err.startswith("Error: ") and outcome.err.count("\n") == 1
