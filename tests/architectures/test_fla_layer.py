"""Layers of flash-linear-attention, on a stand-in for the package: its kernels need a GPU."""

import json
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from icl_bench.architectures import fla_layer
from icl_bench.architectures.base import StateSize
from icl_bench.architectures.fla_layer import FlaLayer, measured_state
from icl_bench.architectures.plain import PlainMixer
from icl_bench.harness.resolve import arch_component, make_arch
from icl_bench.harness.training import validator
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs

TINY = [
    *("--set", "train.steps=4", "--set", "train.batch=2", "--set", "evaluation.examples=2"),
    *("--set", "evaluation.validation=2", "--set", "evaluation.points=2", "--set", "model.d_model=8"),
]


class Cache:
    """Stores what a layer hands over, by the index of the layer."""

    def __init__(self) -> None:
        self.states: list[dict[str, object]] = []

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, layer_idx: int) -> dict[str, object]:
        return self.states[layer_idx]


class Summing(nn.Module):
    """A running sum of projections, with a cache of the sum and of the last two inputs."""

    def __init__(self, hidden_size=2048, num_heads=4, mode="chunk", layer_idx=None, **kwargs) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise AssertionError(f"{hidden_size} cannot be divided by {num_heads}")
        self.layer_idx, self.linear = layer_idx, nn.Linear(hidden_size, hidden_size)

    def entries(self, x, y):
        return {"recurrent_state": (y[:, -1].float(),), "attn_state": None, "conv_state": [x[:, -2:], x[:, -1:]]}

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False, **kwargs):
        assert self.training, "another kernel evaluates up to 64 tokens"
        assert use_cache == (past_key_values is not None)
        y = self.linear(hidden_states).cumsum(1)
        if use_cache:
            assert self.layer_idx == 0
            past_key_values.states.append(self.entries(hidden_states, y))
        return y, None, past_key_values


class Keeping(Summing):
    """A cache of all keys and values, whose number grows."""

    def entries(self, x, y):
        return {"recurrent_state": None, "attn_state": {"keys": x, "values": (y,)}}


class Peeking(Summing):
    """Sees one token too many."""

    def forward(self, hidden_states, **kwargs):
        return super().forward(hidden_states.roll(-1, 1))


class Forgetful(Summing):
    """Has no form with a cache."""

    def entries(self, x, y):
        raise NotImplementedError("no cache")


class Bare(nn.Linear):
    """A layer without a place and without a cache, which returns one tensor."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, hidden_size)

    def forward(self, x, **kwargs):
        return super().forward(x)


@pytest.fixture
def package(monkeypatch):
    layers, cache = ModuleType("fla.layers"), ModuleType("fla.models.utils")
    classes = (Summing, Keeping, Peeking, Forgetful, Bare)
    layers.__dict__.update({cls.__name__: cls for cls in classes}, __all__=[cls.__name__ for cls in classes])
    cache.__dict__["Cache"] = Cache
    for name, module in {"fla.layers": layers, "fla.models": ModuleType("fla.models"), cache.__name__: cache}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "fla", ModuleType("fla"))
    yield
    measured_state.cache_clear()


def test_members_equal_the_layer_itself_with_their_own_parameters(package) -> None:
    layer = make_arch(arch_component("fla:Summing:num_heads=2", 8))
    assert isinstance(layer, FlaLayer)
    mixer = PlainMixer(2, 8, layer)
    mixer.initialise([3, 4], "")
    mixer.eval()  # the module inside stays in training mode
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    weight, bias = mixer.stacked
    expected = (torch.einsum("mbtc,mdc->mbtd", x, weight) + bias[:, None, None]).cumsum(2)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize("length", [4, 8])
def test_state_is_measured_by_its_cache(package, length: int) -> None:
    assert measured_state("fla:Summing:num_heads=2", 8, length, "cpu") == StateSize(sums=8, cache=24)
    assert measured_state("fla:Keeping", 8, length, "cpu") == StateSize(cache=2 * 8 * length)
    assert measured_state("fla:Bare", 8, length, "cpu") is None


def test_a_cache_that_cannot_be_filled_is_logged_and_the_state_unknown(package, caplog) -> None:
    assert measured_state("fla:Forgetful", 8, 4, "cpu") is None
    assert "the state of fla:Forgetful could not be measured: NotImplementedError: no cache" in caplog.text


def test_state_is_unknown_without_a_gpu(package, monkeypatch) -> None:
    monkeypatch.setattr(fla_layer.torch.cuda, "is_available", lambda: False)
    assert FlaLayer(path="fla:Summing", params={}).state_size(8, 4) is None


def test_no_thread_computes_beside_its_calls(package, monkeypatch) -> None:
    monkeypatch.setattr(validator, "usable_cores", lambda: 2)
    for arch, beside in (("gated-conv+fla:Bare", False), ("softmax", True)):
        watch = validator.Validator(Trainer(specs(arch), Machine(CPU)))
        assert watch.beside == beside
        watch.close()


def test_layers_train_in_fleets_and_one_that_sees_later_tokens_fails(package, command) -> None:
    archs = ("--arch", "fla:Summing:num_heads=2", "--arch", "gated-conv+fla:Bare", "--arch", "fla:Peeking")
    outcome = command("run", "copy", *archs, "--seeds", "0,1", "--fleet", "2", "--device", "cpu", "--json", *TINY)
    runs = json.loads(outcome.out)["runs"]
    assert outcome.status == 3
    assert [(run["arch"], run["status"]) for run in runs] == [
        *[("fla:Summing:num_heads=2", "ok")] * 2,
        *[("gated-conv+fla:Bare", "ok")] * 2,
        *[("fla:Peeking", "error")] * 2,
    ]
    assert "fla:Peeking: an output depends on no later token; " in runs[-1]["detail"]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            "fla:Summing:num_head=2",
            "fla:Summing has no parameter 'num_head'; did you mean 'num_heads'? parameters: num",
        ),
        ("fla:Summing:hidden_size=8", "fla:Summing has no parameter 'hidden_size'; parameters: num_heads, mode"),
        ("fla:Summing:layer_idx=1", "fla:Summing has no parameter 'layer_idx'; parameters: num_heads, mode"),
        ("fla:Summing:num_heads=3", "AssertionError: 64 cannot be divided by 3 ("),
        ("fla:Sumning", "fla has no layer 'Sumning'; did you mean 'Summing'? known: Summing, Keeping, Peeking, "),
    ],
)
def test_a_wrong_spec_is_one_line_and_status_2(package, command, spec: str, text: str) -> None:
    outcome = command("run", "copy", "--arch", spec)
    assert outcome.status == 2 and text in outcome.err and outcome.err.count("\n") == 1


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch, command) -> None:
    monkeypatch.setitem(sys.modules, "fla.layers", None)
    monkeypatch.setitem(sys.modules, "fla", None)
    outcome = command("check-arch", "fla:DeltaNet")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("Error: fla:DeltaNet needs flash-linear-attention, which cannot be imported")
    assert "run `pip install 'icl-bench[fla]'`" in outcome.err
