"""Layers from outside the package: what they must not do is found before they are trained, and where."""

import sys

import pytest
import torch

from icl_bench.architectures.base import StateSize
from icl_bench.architectures.plain import LayerFaultError, Plain, PlainMixer
from icl_bench.errors import SourceChangedError
from icl_bench.harness.training.outside_layers import check_layer
from icl_bench.harness.training.roster import Roster
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs

SOURCE = '''
import torch
from torch import nn

class Causal(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.linear = nn.Linear(d_model, d_model)

    def forward(self, x):
        return self.linear(x) + x.cumsum(1)

class Local(nn.Linear):
    """Reads its own token alone, and needs no state."""

    def __init__(self, d_model):
        super().__init__(d_model, d_model)

class Pair(Causal):
    """Returns weights beside the outputs."""

    def forward(self, x):
        return super().forward(x), None

class Dropping(Causal):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))

class Normed(Causal):
    """Mixes examples in training mode alone."""

    def __init__(self, d_model):
        super().__init__(d_model)
        self.norm = nn.BatchNorm1d(d_model)

    def forward(self, x):
        return super().forward(self.norm(x.mT).mT)

class Peek(Causal):
    """The output at position 7 alone reads the token at position 9, once a weight has left 0."""

    def __init__(self, d_model):
        super().__init__(d_model)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        y = super().forward(x).clone()
        y[:, 7] = y[:, 7] + self.weight * x[:, 9]
        return y

class Neighbour(Causal):
    def forward(self, x):
        return super().forward(x) + x.roll(1, 0)

class Counting(Causal):
    """Carries something from call to call."""

    def __init__(self, d_model):
        super().__init__(d_model)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls

class Infinite(Causal):
    def forward(self, x):
        return super().forward(x) / torch.arange(x.shape[1]).view(-1, 1)

class Steep(Causal):
    """The square root of 0 has an infinite gradient."""

    def forward(self, x):
        return super().forward(x) + (0 * self.linear(x)).sqrt()

class Flat(Causal):
    def forward(self, x):
        return x.mean(1)
'''
UNKNOWN, NONE = None, StateSize()


@pytest.fixture
def check(tmp_path, monkeypatch):
    (tmp_path / "outside_checks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)

    def check(name: str, state: StateSize | None = UNKNOWN, length: int = 12) -> PlainMixer:
        mixer = PlainMixer(2, 8, Plain(path=f"outside_checks:{name}", params={}))
        mixer.initialise([0, 1], "")
        drawn = torch.randn(3, 2, 2, length, 8, generator=torch.Generator().manual_seed(3))
        check_layer(drawn, mixer, f"outside_checks:{name}", state)
        return mixer

    yield check
    sys.modules.pop("outside_checks", None)


@pytest.mark.parametrize("length", [1, 2, 12, 300])
@pytest.mark.parametrize("name", ["Causal", "Pair", "Dropping", "Normed", "Local"])
def test_an_honest_layer_is_let_through_as_it_was(check, name: str, length: int) -> None:
    before = torch.random.get_rng_state()
    mixer = check(name, NONE if name == "Local" else UNKNOWN, length)
    assert torch.equal(before, torch.random.get_rng_state()) and mixer.training
    assert mixer.template["module"].training
    if name == "Normed":
        mean, _, count = mixer.held
        assert not mean.any() and not count.any()


@pytest.mark.parametrize(
    ("name", "state", "length", "found"),
    [
        ("Peek", UNKNOWN, 12, r"no later token; the output at position 7 reads the token at position 9, .*; make"),
        ("Peek", UNKNOWN, 90, r"no later token; the output at position 7 reads the token at position 9, .*; make"),
        ("Neighbour", UNKNOWN, 12, "depends on its own example; the output at position 0 changes with the other exam"),
        ("Causal", NONE, 12, "declares 0 elements, but its output at position 11 reads the token at position 0; count"),
        ("Counting", UNKNOWN, 12, "a second call changes them by 1 of the largest, so that a call carries something"),
        ("Infinite", UNKNOWN, 12, "the output at position 0 is not"),
        ("Steep", UNKNOWN, 12, "gradients are finite numbers at the start; that of stacked.0 is not"),
        ("Flat", UNKNOWN, 12, r"outside_checks:Flat maps \[2, 12, 8\] to \[2, 8\] torch.float32; return one tensor"),
    ],
)
def test_a_layer_that_does_what_it_must_not_is_found_with_the_position(check, name, state, length, found) -> None:
    with pytest.raises(LayerFaultError, match=found):
        check(name, state, length)


def test_buffers_are_in_checkpoints_and_the_test_is_in_evaluation_mode(check, tmp_path) -> None:
    """A fleet that goes on from a state of all members ends as one that was never interrupted; dropout is off."""
    runs = specs("outside_checks:Normed", seeds=(0, 1, 2))
    whole, first = Trainer(runs, Machine(CPU)), Trainer(runs, Machine(CPU))
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    assert sum(name.startswith("member buffer ") for name in saved) == 3 * 2
    roster = Roster(3)
    second = roster.restore(Trainer(runs, Machine(CPU)), 2, saved)
    for _ in range(2):
        second.step()
    for name, tensor in second.state().items():
        assert torch.equal(tensor, whole.state()[name]), name
    before = [buffer.clone() for buffer in second.model.buffers()]
    assert second.validate(second.working_model) == second.validate(second.working_model) and second.test(
        [second.working_model]
    )
    assert all(torch.equal(one, other) for one, other in zip(before, second.model.buffers(), strict=True))
    assert second.model.training


def test_buffers_of_members_that_go_on_move_with_them(check) -> None:
    runs = specs("outside_checks:Normed", seeds=(0, 1, 2))
    trainer, roster = Trainer(runs, Machine(CPU)), Roster(3)
    trainer.step()
    trainer.optimiser.state.diverged_at[:2] = 1
    trainer.optimiser.state.active[:2] = False
    narrowed = roster.narrow(trainer)
    own = {name: tensor for name, tensor in narrowed.state().items() if name.startswith("member buffer ")}
    assert own and all(torch.equal(tensor[0], trainer.state()[name][2]) for name, tensor in own.items())


def test_a_layer_that_was_edited_meanwhile_is_refused(check, tmp_path) -> None:
    (run,) = specs("outside_checks:Causal")
    component = run.arch[0].model_copy(update={"source": "0123456789abcdef"})
    with pytest.raises(SourceChangedError, match="outside_checks:Causal changed after the command had read it; give"):
        Trainer([run.model_copy(update={"arch": (component,)})], Machine(CPU))
