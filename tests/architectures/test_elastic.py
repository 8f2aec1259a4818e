"""Elastic power attention: the degree of each token, the choice of a degree after training, its cache and its sums."""

import pytest
import torch

from icl_bench.architectures.elastic import random_rank
from icl_bench.errors import SpecError
from icl_bench.harness.conformance import vary
from icl_bench.kernels.attention.records import KeyValueCache
from icl_bench.kernels.power.expansion import expanded_width
from tests.architectures.test_contract import D_MODEL, architecture, inputs, mixer, recurrent

SMALL = "heads=2,d_key=3,d_value=5,conv=0"


@pytest.mark.parametrize("p", [1, 2, 3])
def test_after_training_a_degree_has_the_outputs_of_the_power(p: int) -> None:
    elastic, power, x = mixer(f"elastic:p={p},{SMALL}").eval(), mixer(f"power:p={p},normalizer=rms,{SMALL}"), inputs()
    torch.testing.assert_close(elastic(x), power(x), rtol=1e-12, atol=1e-12)


def test_training_deals_examples_among_degrees_in_equal_shares() -> None:
    elastic, x = vary(mixer(f"elastic:{SMALL}")), inputs(batch=5)
    whole = elastic(x)
    for p, rows in ((1, slice(0, 2)), (2, slice(2, 4)), (3, slice(4, 5))):
        alone = vary(mixer(f"elastic:p={p},{SMALL}")).eval()
        torch.testing.assert_close(whole[:, rows], alone(x[:, rows]), rtol=1e-12, atol=1e-12)


def test_without_p_a_token_has_the_least_degree_that_suffices() -> None:
    """Three channels have ranks of 3, 5 and 7; 7 tokens of width 3 + 5 are more than the 10 x 5 sums of degree 3."""
    layer = architecture(f"elastic:{SMALL}").resolved(D_MODEL)
    assert [round(random_rank(p, 3), 9) for p in (1, 2, 3)] == [3, 5, 7]
    assert [layer.degree_at(n) for n in range(1, 10)] == [1, 1, 1, 2, 2, 3, 3, 3, 3] and layer.folds_at == 7
    elastic, x = vary(mixer(f"elastic:{SMALL}")).eval(), inputs()
    y = elastic(x)
    for p, tokens in ((1, slice(0, 3)), (2, slice(3, 5)), (3, slice(5, 9))):
        alone = vary(mixer(f"elastic:p={p},{SMALL}")).eval()
        torch.testing.assert_close(y[:, :, tokens], alone(x)[:, :, tokens], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, None])
def test_the_state_is_the_smaller_of_the_cache_and_the_sums(p: int | None) -> None:
    text = f"elastic:{SMALL}" + (f",p={p}" if p else "")
    elastic, x = mixer(text).eval(), inputs()
    for length in range(1, 10):
        size = architecture(text).state_size(D_MODEL, length)
        assert size.elements == 2 * min(8 * length, 5 * expanded_width(3, p or 3))
        state = recurrent(elastic, x[:, :, :length])[1].core
        assert isinstance(state, KeyValueCache) == (size.sums == 0) == (size.cache > 0)


def test_gradients_are_those_of_finite_differences() -> None:
    layer, x = vary(mixer("elastic:degrees=[1|3],heads=1,d_key=2,d_value=3,conv=0")), inputs(length=4)
    parameters = dict(layer.named_parameters())
    names = [name for name in parameters if "norms" in name or name == "project.weight"]

    def outputs(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters | dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, [parameters[name].detach().requires_grad_() for name in names])


def test_operations_by_hand() -> None:
    """Six tokens read 1 to 6 pairs of width 8; ten tokens write 50 sums, of which the last four read all."""
    layer = architecture(f"elastic:{SMALL}").resolved(D_MODEL)
    assert layer.core_flops(D_MODEL, 6).state == pytest.approx(2 * 2 * 8 * 21 / 6)
    assert layer.core_flops(D_MODEL, 10).state == pytest.approx(2 * 2 * (8 * 21 + 50 * (10 + 4)) / 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("elastic:degrees=[2|1]", "rising; got \\[2, 1\\]"),
        ("elastic:degrees=[2|2]", "rising"),
        ("elastic:degrees=[2]", "two or more"),
        ("elastic:degrees=[1|7]", "1 to 6"),
        ("elastic:degrees=[1|2],p=3", "p is one of the degrees \\[1, 2\\]; got 3"),
    ],
)
def test_degrees_that_do_not_fit_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        architecture(text)
    assert "\n" not in str(caught.value)
