"""A user's own layer, given by its import path."""

import sys

import pytest
import torch

from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.base import StateSize
from icl_bench.architectures.interface import Tokens
from icl_bench.architectures.plain import LayerFaultError, Plain, PlainMixer
from icl_bench.errors import SpecError, UnknownNameError
from icl_bench.harness.accounting import account
from icl_bench.runs.spec import ModelSpec

MODEL = ModelSpec(d_model=8, mlp=0)
SOURCE = '''
import torch

class Shift(torch.nn.Module):
    """Adds the previous token."""

    def __init__(self, d_model: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.linear = torch.nn.Linear(d_model, d_model)

    def forward(self, x):
        shifted = torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        return self.linear(x + self.scale * shifted)

    def state_elements(self, length):
        return self.linear.in_features

class Cheat(torch.nn.Linear):
    """Reads the next token, or another example, by a weight that starts at `start`."""

    def __init__(self, d_model: int, dim: int, start: float = 1.0, size: int = 0):
        super().__init__(d_model, d_model)
        if size < 0:
            raise ValueError("size is at least 0")
        self.dim, self.share = dim, torch.nn.Parameter(torch.tensor(start))

    def forward(self, x):
        return super().forward(x + self.share * x.roll(-1, self.dim))

    def state_elements(self, length):
        return "many" if self.dim else -length

class Dropping(Shift):
    def forward(self, x):
        return super().forward(torch.nn.functional.dropout(x, 0.5))

class Narrow(Shift):
    def forward(self, x):
        return super().forward(x)[..., 1:], None

class Bare(torch.nn.Linear):
    def __init__(self, d_model: int):
        super().__init__(d_model, d_model)

class Buffered(torch.nn.Module):
    """Holds random features, counts its calls in training, normalises over the batch, and drops inputs."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.register_buffer("features", torch.randn(hidden_size, hidden_size))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.frozen = torch.nn.Parameter(torch.randn(hidden_size), requires_grad=False)
        self.norm, self.drop = torch.nn.BatchNorm1d(hidden_size), torch.nn.Dropout(0.5)

    def forward(self, x):
        if self.training:
            self.calls = self.calls + 1
        return self.drop(self.norm((x @ self.features).mT).mT) + self.frozen

class Kinds:
    class Dim(Shift):
        def __init__(self, mode: str = "a", dim: int = 3):
            super().__init__(dim)

Dim = Kinds.Dim

class Embedded(Shift):
    def __init__(self, heads: int = 2, *, n_embd: int):
        super().__init__(n_embd)

class Width(Shift):
    def __init__(self, width: int, hidden_size: int = 5):
        super().__init__(width)

def made_layer(d_model: int, scale: float = 1.0):
    return Shift(d_model, scale) if scale else scale

NOT_A_LAYER = 3
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_layers", None)


def test_members_start_from_their_own_seeds_and_stay_apart(mine) -> None:
    layer = Plain(path="my_layers:Shift", params={"scale": 2.0})
    pair = Backbone([1, 2], Tokens(7), [layer], MODEL, "auto")
    alone = Backbone([2], Tokens(7), [layer], MODEL, "auto")
    ids, positions = torch.arange(2 * 3 * 5).view(2, 3, 5) % 7, torch.arange(5).expand(2, 3, 5)
    for both, own in zip(pair.parameters(), alone.parameters(), strict=True):
        assert torch.equal(both[1:], own)
    logits = pair(ids, positions)
    torch.testing.assert_close(logits[1:], alone(ids[1:], positions[1:]), rtol=1e-5, atol=1e-6)
    logits[0].sum().backward()
    stacked = dict(pair.named_parameters())["block0.mixer.stacked.0"]
    assert stacked.grad is not None and stacked.grad[0].abs().sum() > 0 and stacked.grad[1].abs().sum() == 0


def test_the_global_random_state_is_left_alone(mine) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Backbone([1], Tokens(7), [Plain(path="my_layers:Shift", params={})], MODEL, "auto")
    assert torch.equal(torch.rand(3), expected)


def test_state_is_counted_where_the_class_tells_it(mine) -> None:
    assert Plain(path="my_layers:Shift", params={}).state_size(8, 100) == StateSize(sums=8)
    assert Plain(path="my_layers:Bare", params={}).state_size(8, 100) is None
    with pytest.raises(SpecError, match=r"the state of my_layers:Bare is unknown: it has no method state_elements"):
        account("softmax+my_layers:Bare", 8, 2, 100)


@pytest.mark.parametrize(
    ("path", "params", "error", "text"),
    [
        ("no_such_module:X", {}, UnknownNameError, "module 'no_such_module' cannot be imported"),
        ("my_layers:Missing", {}, UnknownNameError, "module 'my_layers' has no 'Missing'"),
        ("my_layers:NOT_A_LAYER", {}, SpecError, "names a class of torch.nn.Module"),
        ("my_layers:Shift", {"sclae": 1}, SpecError, "unexpected keyword argument 'sclae'"),
        (
            "my_layers:Cheat",
            {"dim": 1, "size": -1},
            SpecError,
            r"size is at least 0 \(.*my_layers.py, line \d+\); check",
        ),
    ],
)
def test_wrong_paths_are_refused(mine, path, params, error, text) -> None:
    with pytest.raises(error, match=text):
        Plain(path=path, params=params).make(8)


@pytest.mark.parametrize(
    ("dim", "text"), [(1, r"by state_elements\(100\): ValueError: "), (0, "returned -100; mend it")]
)
def test_a_count_of_the_state_that_is_none_is_refused(mine, dim, text) -> None:
    layer = Plain(path="my_layers:Cheat", params={"dim": dim})
    with pytest.raises(SpecError, match=text):
        layer.state_size(8, 100)
    with pytest.raises(SpecError, match="my_layers:Cheat"):  # before anything is trained
        layer.resolved(8)


def own_mixer(name: str, **params) -> PlainMixer:
    made = PlainMixer(2, 8, Plain(path=f"my_layers:{name}", params=params))
    made.initialise([0, 1], "")
    return made


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_an_output_of_another_kind_is_a_fault_of_the_layer(mine) -> None:
    with pytest.raises(LayerFaultError, match=r"my_layers:Narrow maps \[2, 3, 8\] to \[2, 3, 7\] torch"):
        own_mixer("Narrow")(draw(2, 2, 3, 8))


def test_buffers_follow_seed_and_member_and_are_those_of_the_run_alone(mine) -> None:
    config = Plain(path="my_layers:Buffered", params={})
    pair, alone = PlainMixer(2, 8, config), PlainMixer(1, 8, config)
    pair.initialise([3, 4], "")
    alone.initialise([4], "")
    statistics = [f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert pair.held_names == ["frozen", "features", "calls", *statistics]
    x = draw(2, 3, 5, 8)
    for mixer, own in ((pair, x), (alone, x[1:])):
        torch.manual_seed(0)
        mixer(own)
    for both, single in zip(pair.held, alone.held, strict=True):
        torch.testing.assert_close(both[1:], single)
    _, features, calls, mean, *_ = pair.held
    assert not torch.equal(features[0], features[1]) and calls.tolist() == [1, 1]
    torch.testing.assert_close(mean, 0.1 * torch.einsum("mbtc,mcd->md", x, features) / 15, rtol=1e-4, atol=1e-5)
    pair.eval()
    assert torch.equal(pair(x), pair(x)) and calls.tolist() == [1, 1]


def test_only_trained_parameters_are_parameters(mine) -> None:
    mixer = own_mixer("Buffered")
    assert mixer.names == ["norm.weight", "norm.bias"] and len(list(mixer.parameters())) == 2


@pytest.mark.parametrize(
    ("name", "params"),
    [("Buffered", {}), ("Dim", {}), ("Embedded", {}), ("Width", {}), ("made_layer", {"scale": 2.0})],
)
def test_the_width_goes_where_a_class_or_a_function_takes_it(mine, name: str, params) -> None:
    mixer = own_mixer(name, **params)
    assert mixer(draw(2, 2, 5, 8)).shape == (2, 2, 5, 8)


def test_a_function_that_makes_no_module_is_refused(mine) -> None:
    with pytest.raises(
        SpecError, match=r"a layer is a torch.nn.Module; my_layers:made_layer makes a float; return one"
    ):
        own_mixer("made_layer", scale=0.0)
