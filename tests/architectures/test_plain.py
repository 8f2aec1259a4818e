"""A user's own layer, given by its import path."""

import sys

import pytest
import torch

from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.base import StateSize
from icl_bench.architectures.interface import Tokens
from icl_bench.architectures.plain import Plain
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

class Bare(torch.nn.Linear):
    def __init__(self, d_model: int):
        super().__init__(d_model, d_model)

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
    assert Plain(path="my_layers:Shift", params={}).state_size(8, 100) == StateSize(cache=8)
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
    ],
)
def test_wrong_paths_are_refused(mine, path, params, error, text) -> None:
    with pytest.raises(error, match=text):
        Plain(path=path, params=params).make(8)
