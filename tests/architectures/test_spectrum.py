"""Lower degrees of power attention: shares that start at 0, the polynomial of scores, and the best weights."""

import math

import pytest
import torch

from icl_bench.architectures.base import DegreeRise
from icl_bench.architectures.spectrum import centred_weights
from icl_bench.errors import SpecError
from icl_bench.harness.conformance import vary
from icl_bench.kernels.power.expansion import expanded_width
from tests.architectures.test_contract import D_MODEL, architecture, inputs, mixer, recurrent

KINDS = ["learned", "length", "token"]


@pytest.mark.parametrize("p", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_spectrum_starts_as_the_power_bit_for_bit(kind: str, p: int) -> None:
    x = inputs()
    power = mixer(f"power:p={p},normalizer=rms,heads=2,d_key=3")
    spectrum = mixer(f"power:p={p},spectrum={kind},heads=2,d_key=3")
    assert torch.equal(spectrum(x), power(x))


@pytest.mark.parametrize("p", [2, 3, 4, 5])
def test_a_spectrum_keeps_the_state_of_the_power(p: int) -> None:
    for kind in [*KINDS, "centred"]:
        spectrum, power = (architecture(f"power:p={p},{extra}") for extra in (f"spectrum={kind}", "normalizer=rms"))
        assert spectrum.state_size(D_MODEL, 100) == power.state_size(D_MODEL, 100)


@pytest.mark.parametrize("kind", [*KINDS, "centred"])
@pytest.mark.parametrize("p", [2, 3, 4])
def test_a_spectrum_is_the_polynomial_of_scores_and_norms(p: int, kind: str) -> None:
    layer, x = vary(mixer(f"power:p={p},spectrum={kind},normalizer=raw,heads=2,d_key=3")), inputs()
    q, k, v = layer.operands(layer.project(x))
    shares = layer.core.shares
    lower = shares(x).detach().expand(*x.shape[:3], 2, -1)
    causal = torch.ones(x.shape[2], x.shape[2], dtype=torch.float64).tril()
    s = torch.einsum("mbihk,mbjhk->mbhij", q, k) / math.sqrt(3)
    norms = torch.einsum("mbih,mbjh->mbhij", q.norm(dim=-1), k.norm(dim=-1)) / math.sqrt(3)
    weights = s**p
    for i in range(p // 2):
        share = lower[..., i].transpose(2, 3)[..., None]  # [M, B, H, T, 1]
        weights = weights + share * s ** (p - 2 * i - 2) * norms ** (2 * i + 2)
    expected = torch.einsum("mbhij,mbjhv->mbihv", weights * causal, v)
    torch.testing.assert_close(layer.mix(x, None), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(recurrent(layer, x)[0], layer(x), rtol=1e-9, atol=1e-9)


def test_shares_by_length_and_by_token_are_what_their_names_say() -> None:
    x = inputs()
    length, token = (vary(mixer(f"power:p=2,spectrum={kind},heads=2")).core.shares for kind in ("length", "token"))
    centre = centred_weights(2, D_MODEL // 2)[0]
    logs = torch.arange(x.shape[2], dtype=torch.float64).log1p()[:, None]
    wanted = length.level.weight[:, None, None] + length.slope.weight[:, None, None] * logs
    torch.testing.assert_close(length(x)[..., 0].expand_as(wanted), wanted * centre)
    wanted = token.level.weight[:, None, None] + torch.einsum("mbtc,mch->mbth", x, token.by_token.weight)
    torch.testing.assert_close(token(x)[..., 0], wanted * centre)


@pytest.mark.parametrize("p", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("d", [3, 8, 16])
def test_the_centred_polynomial_of_a_random_cosine_has_the_mean_square_1_over_d(p: int, d: int) -> None:
    """The moments of the cosine of random directions are E s^2n = (2n - 1)!! / (d (d + 2) .. (d + 2n - 2))."""
    coefficients = {p: 1.0} | {p - 2 * m: weight for m, weight in enumerate(centred_weights(p, d), start=1)}

    def moment(n: int) -> float:
        return math.prod(range(1, n, 2)) / math.prod(range(d, d + n, 2))

    square = sum(a * b * moment(i + j) for i, a in coefficients.items() for j, b in coefficients.items())
    at_one = sum(coefficients.values())
    assert math.isclose(square / at_one**2, 1 / expanded_width(d, p), rel_tol=1e-9)


def test_gradients_of_the_shares_are_those_of_finite_differences() -> None:
    layer, x = vary(mixer("power:p=4,spectrum=length,heads=1,d_key=2,d_value=3")), inputs(batch=1, length=4)
    shares = (layer.core.shares.level.weight, layer.core.shares.slope.weight)
    parameters = dict(layer.named_parameters())

    def outputs(level: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        own = {"core.shares.level.weight": level, "core.shares.slope.weight": slope}
        return torch.func.functional_call(layer, parameters | own, (x,))

    assert torch.autograd.gradcheck(outputs, [share.detach().requires_grad_() for share in shares])


@pytest.mark.parametrize("kind", ["none", "learned"])
@pytest.mark.parametrize("p", [3, 4])
def test_a_rising_degree_is_a_mean_of_degrees_in_training_alone(p: int, kind: str) -> None:
    layer, x = vary(mixer(f"power:p={p},spectrum={kind},normalizer=raw,heads=2,d_key=3")), inputs()
    plain = layer.mix(x, None)
    q, k, v = layer.operands(layer.project(x))
    s = torch.einsum("mbihk,mbjhk->mbhij", q, k) / math.sqrt(3)
    squares = torch.einsum("mbih,mbjh->mbhij", q.square().sum(-1), k.square().sum(-1)) / 3
    lower = torch.einsum("mbhij,mbjhv->mbihv", (s ** (p - 2) * squares / 3).tril(), v)
    steps = torch.tensor(4)
    layer.core.raise_degree(DegreeRise(steps, 20.0))
    torch.testing.assert_close(layer.mix(x, None), 0.25 * plain + 0.75 * lower, rtol=1e-9, atol=1e-9)
    assert torch.equal(layer.eval().mix(x, None), plain)
    steps.fill_(19)
    torch.testing.assert_close(layer.train().mix(x, None), plain, rtol=1e-12, atol=1e-12)


def test_gradients_through_a_rising_degree_are_those_of_finite_differences() -> None:
    layer, x = vary(mixer("power:p=3,heads=1,d_key=2,d_value=3")), inputs(batch=1, length=4)
    layer.core.raise_degree(DegreeRise(torch.tensor(2), 10.0))
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_a_gain_of_a_head_is_a_factor_on_its_scores() -> None:
    gained, plain, x = (
        mixer("power:p=3,head_gain=true,normalizer=raw,heads=2"),
        mixer("power:p=3,normalizer=raw,heads=2"),
        inputs(),
    )
    assert torch.equal(gained(x), plain(x))
    gained.core.gain.weight.data = torch.tensor([[0.5, -1.0], [0.0, 2.0]], dtype=torch.float64)
    factors = (3 * gained.core.gain.weight.detach()).exp()[:, None, None, :, None]
    torch.testing.assert_close(gained.mix(x, None), plain.mix(x, None) * factors, rtol=1e-9, atol=1e-9)


def test_the_constant_of_a_norm_can_be_set() -> None:
    small, plain, x = mixer("power:p=3,norm_eps=1e-24,conv=0"), mixer("power:p=3,conv=0"), 0.1 * inputs()
    assert bool((small(x).norm() > 100 * plain(x).norm()).all())
    torch.testing.assert_close(small(x), small(10 * x), rtol=1e-3, atol=1e-3)


def test_an_offset_is_added_to_scores() -> None:
    layer, x = vary(mixer("power:p=3,offset=learned,normalizer=raw,heads=2,d_key=3")), inputs()
    q, k, v = layer.operands(layer.project(x))
    beta = torch.nn.functional.softplus(layer.core.offset.weight)[:, None, :, None, None]
    s = torch.einsum("mbihk,mbjhk->mbhij", q, k) / math.sqrt(3) + beta
    expected = torch.einsum("mbhij,mbjhv->mbihv", (s**3).tril(), v)
    torch.testing.assert_close(layer.mix(x, None), expected, rtol=1e-9, atol=1e-9)
    assert architecture("power:p=3,offset=learned,heads=2,d_key=3").state_size(D_MODEL, 9).sums == 2 * 20 * 6


def test_groups_of_heads_have_the_outputs_of_their_own_degrees() -> None:
    mixed, x = mixer("power:p=3,degrees=[2|3],heads=4,d_key=2,normalizer=raw"), inputs()
    whole = mixed.mix(x, None)
    for p, heads in ((2, slice(0, 2)), (3, slice(2, 4))):
        alone = mixer(f"power:p={p},heads=4,d_key=2,normalizer=raw").mix(x, None)
        assert torch.equal(whole[..., heads, :], alone[..., heads, :])
    sizes = architecture("power:p=3,degrees=[2|3],heads=4,d_key=2,normalizer=raw").state_size(D_MODEL, 9)
    assert sizes.sums == 2 * 3 * (3 + 4)  # two heads of each degree, D = 3 and 4 rows, values of width 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("power:p=2,degrees=[2|3]", "write p=3"),
        ("power:p=3,degrees=[2|3],normalizer=sum", "normalizer"),
        ("power:p=4,degrees=[2|4],spectrum=learned", "leave one of them out"),
        ("power:p=3,degrees=[1|2|3],heads=4", "change either"),
    ],
)
def test_degrees_that_do_not_fit_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        architecture(text).resolved(D_MODEL)


def test_new_parameters_leave_ids_alone_and_a_spectrum_takes_no_sum_of_scores() -> None:
    assert (
        not {"spectrum", "offset", "degrees", "head_gain", "norm_eps"} & architecture("power:p=2").model_dump().keys()
    )
    assert architecture("power:p=2,spectrum=learned").resolved(D_MODEL).normalizer == "rms"
    assert architecture("power:p=2,spectrum=none") == architecture("power:p=2,offset=none")
    for text in ("power:p=2,spectrum=learned,normalizer=sum", "power:p=1,spectrum=token"):
        with pytest.raises(SpecError, match="use p=2 or more with normalizer=rms"):
            architecture(text)


def test_a_relative_eps_needs_the_sum_of_an_even_power() -> None:
    for text in ("power:p=3,relative_eps=true", "power:p=2,relative_eps=true,spectrum=learned"):
        with pytest.raises(SpecError, match="relative_eps needs the sum of scores of one even power"):
            architecture(text)


def test_a_relative_eps_keeps_first_tokens_at_any_initial_scale() -> None:
    """An absolute eps of 1e-6 outweighs scores of about 1e-3 at p = 4; a share of 1e-6 does not."""
    x = 1e-2 * inputs()
    kept, lost = (mixer(f"power:p=4,heads=1,conv=0{extra}").mix(x, None) for extra in (",relative_eps=true", ""))
    assert (lost[:, :, 0].norm() / kept[:, :, 0].norm()) < 0.1
