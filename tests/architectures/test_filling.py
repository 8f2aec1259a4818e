"""Zero channels behind heads: layers compute what they do without them, and the rows that kernels see are aligned."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from icl_bench.architectures import filling, frame
from icl_bench.architectures.base import FirstLayer
from icl_bench.architectures.filling import CHANNELS, fill_heads
from icl_bench.architectures.frame import HeadsMixer
from icl_bench.harness.conformance import vary
from icl_bench.kernels.fleet.records import Groups
from icl_bench.kernels.fleet.token_pairs import token_pairs
from tests.architectures.test_contract import inputs, mixer

FILLED = [
    "power:p=2,heads=2,d_key=5,d_value=30,conv=2",
    "power:p=3,heads=4,kv_heads=2,d_key=7,d_value=16,gate=true",
    "linear:heads=2,d_key=11,d_value=31,conv=2",
    "linear:heads=2,normalizer=raw,d_key=16,d_value=9,conv=0",
    "window:w=3,heads=2,d_value=31,conv=4",
    "softmax:heads=4,kv_heads=1,d_key=7,alibi=true",
]
UNFILLED = [
    "linear:feature_map=elu,d_key=5", "power:offset=learned,d_key=5", "power:spectrum=learned,d_key=5",
    "softmax:rope=true,d_key=6", "softmax:sinks=true,d_key=5", "linear:key_norm=rms,d_key=5",
    "window:w=3,output_gate=silu,d_value=5", "softmax:heads=1,d_key=16,d_value=32",
]  # fmt: skip


def results(
    layer: HeadsMixer, x: Tensor, positions: Tensor | None = None, seen: Callable[[Tensor], Tensor] = torch.clone
) -> list[Tensor]:
    """The output for a layer that sees x or what is made of it, and the gradients of x and of all parameters."""
    x = x.clone().requires_grad_()
    y = layer(seen(x)) if positions is None else layer.forward_at(seen(x), positions)
    weights = torch.arange(y.numel(), dtype=y.dtype).view(y.shape).sin()
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])]


# Differences are those of sums in another order, in float64.
@pytest.mark.parametrize("some_positions", [False, True])
@pytest.mark.parametrize("text", FILLED)
def test_zeros_change_neither_outputs_nor_gradients(
    text: str, some_positions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = mixer(text), inputs()
    vary(layer)
    positions = torch.tensor([0, 3, 5]).expand(*x.shape[:2], 3) if some_positions else None
    plain = results(layer, x, positions)
    monkeypatch.setattr(frame, "takes_triton", lambda impl, x: True)
    seen: list[Tensor] = []
    layer.core.register_forward_pre_hook(lambda _, parts: seen.extend(parts[:3]))
    for own, wanted in zip(results(layer, x, positions), plain, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-12)
    assert len(seen) == 3
    assert all(stride % CHANNELS == 0 for part in seen for stride in (part.shape[-1], *part.stride()[:-1]))


@pytest.mark.parametrize("text", UNFILLED)
def test_layers_that_would_change_or_gain_nothing_stay_as_they_are(text: str) -> None:
    assert not mixer(text).can_fill


def test_blocks_are_filled_in_order() -> None:
    x = torch.arange(1.0, 8.0).requires_grad_()
    filled = fill_heads(x, [Groups(2, 2, 3), Groups(1, 3, 4)])
    assert filled.tolist() == [1, 2, 0, 3, 4, 0, 5, 6, 7, 0]
    (gradient,) = torch.autograd.grad((filled * torch.arange(10.0)).sum(), x)
    assert gradient.tolist() == [0, 1, 3, 4, 6, 7, 8]


# Differences are those of sums in another order, in float64.
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("text", [*FILLED[:1], *FILLED[2:5], "softmax:heads=2,conv=0", "based:heads=2,d_key=5"])
def test_queries_at_positions_alone_change_nothing(text: str, filled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = mixer(text), inputs()
    vary(layer)
    positions = torch.tensor([5, 3, 3]).expand(*x.shape[:2], 3)
    plain = results(layer, x, positions)
    monkeypatch.setattr(frame, "takes_triton", lambda impl, x: filled)
    monkeypatch.setattr(frame, "takes_chosen", lambda q, k, v, chosen: True)
    watched = layer.core.register_forward_pre_hook(lambda *_: pytest.fail("all queries"))
    for own, wanted in zip(results(layer, x, positions), plain, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-12)
    watched.remove()
    seen: list[Tensor] = []
    layer.core.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    layer.forward_at(x, positions)
    assert seen[0].shape[2] == x.shape[2], "a hook, as that of a probe, sees all tokens"


@pytest.mark.parametrize(
    "text",
    ["softmax:gate=true", "softmax:alibi=true", "softmax:sinks=true", "power:offset=learned", "power:gate=true",
     "power:spectrum=learned", "power:relative_eps=true", "power:head_gain=true", "linear:feature_map=elu"],
)  # fmt: skip
def test_cores_that_do_more_have_no_rule_of_scores(text: str) -> None:
    assert mixer(text).core.score_rule is None


# Differences are those of sums in another order, in float64.
@pytest.mark.parametrize("some_positions", [False, True])
@pytest.mark.parametrize("text", [FILLED[0], FILLED[2], "window:w=3,heads=2,conv=2", "linear:heads=2,conv=2"])
def test_pairs_of_tokens_are_projected_and_convolved_at_once(
    text: str, some_positions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = mixer(text), inputs()
    vary(layer)
    positions = torch.tensor([0, 3, 5]).expand(*x.shape[:2], 3) if some_positions else None
    plain, offered = results(layer, x, positions), FirstLayer()
    layer(x, offered)
    monkeypatch.setattr(frame, "takes_triton", lambda impl, x: True)
    for own, wanted in zip(results(layer, x, positions, token_pairs), plain, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-12)
    again = FirstLayer()
    layer(token_pairs(x), again)
    assert offered.values is not None and again.values is not None
    torch.testing.assert_close(again.values, offered.values, rtol=1e-10, atol=1e-12)


def test_plain_mixers_of_narrow_models_take_pairs_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "takes_triton", lambda impl, x: True)
    layer = mixer("power:conv=2")
    assert not layer.takes_pairs and layer.to(torch.bfloat16).takes_pairs
    others = ["power:conv=4", "power:conv=2,gate=true", "softmax:conv=2,alibi=true", "linear:conv=2,silu=true"]
    assert not any(mixer(text).to(torch.bfloat16).takes_pairs for text in others)
    monkeypatch.setattr(filling, "WIDEST_FOLDED", 1)
    assert not layer.takes_pairs
