import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from icl_bench import random
from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet import random_bits

WORD = 2**64 - 1
SIGNED = st.integers(-(2**63), 2**63 - 1)
SIGNIFICANCE = 1e-4
"""Significance of a test on a fixed sample, which either always passes or always fails."""


def splitmix(value: int) -> int:
    """Apply the finaliser of SplitMix64 in unbounded integers."""
    value &= WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


def keys(count: int, *name: str | int) -> torch.Tensor:
    return random.row_keys(torch.tensor(random.stream("test", *name)), torch.arange(count))


def uniformity(counts: torch.Tensor) -> float:
    return float(stats.chisquare(counts.numpy()).pvalue)


@given(SIGNED)
def test_mix_is_splitmix64(value):
    assert int(random_bits.mix(torch.tensor(value))) == random_bits.signed(splitmix(value))


def test_mix_reproduces_the_published_generator():
    """The first outputs of SplitMix64 from seed 1234567, as in the test vectors of Vigna's splitmix64.c."""
    states = [random_bits.signed(1234567 + (i + 1) * random_bits.GOLDEN) for i in range(3)]
    assert [int(bits) & WORD for bits in random_bits.mix(torch.tensor(states))] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(SIGNED, st.text(max_size=20), st.integers(1, 5))
def test_random_bits_follow_the_definition(key, purpose, count):
    base = splitmix(key ^ random.stream("purpose", purpose))
    expected = [random_bits.signed(splitmix(base + i * random_bits.GOLDEN)) for i in range(1, count + 1)]
    assert random.random_bits(torch.tensor(key), purpose, count).tolist() == expected


@given(SIGNED, st.integers(0, 63))
def test_shift_right_is_logical(value, places):
    if places:
        assert int(random_bits.shift_right(torch.tensor(value), places)) == (value & WORD) >> places


@given(SIGNED, st.integers(1, 2**31 - 1))
def test_scale_bits_takes_the_upper_half(value, high):
    assert int(random_bits.scale_bits(torch.tensor(value), high)) == (((value & WORD) >> 32) * high) >> 32


@given(SIGNED, st.integers(0, 2**40))
def test_row_keys_follow_the_definition(stream, index):
    key = random.row_keys(torch.tensor(stream), torch.tensor(index))
    assert int(key) == random_bits.signed(splitmix(stream + (index + 1) * random_bits.GOLDEN))


def test_fewer_counters_are_a_prefix_of_more():
    some, more = (random.random_bits(keys(3), "x", count) for count in (4, 9))
    assert torch.equal(some, more[:, :4])


def test_rows_depend_on_their_keys_alone():
    for draw in (random.random_bits, random.permutation):
        assert torch.equal(draw(keys(9), "x", 7)[3:5], draw(keys(9)[3:5], "x", 7))
    assert torch.equal(random.distinct(keys(9), "x", 7, 1009)[3:5], random.distinct(keys(9)[3:5], "x", 7, 1009))


def test_stream_names_do_not_run_together():
    names = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("1",), (1,), (), ("",)]
    assert len({random.stream(*name) for name in names}) == len(names)


def test_streams_are_disjoint():
    streams = [keys(50_000, split, seed) for split in ("train", "val", "test") for seed in range(2)]
    assert torch.cat(streams).unique().numel() == 6 * 50_000


def test_purposes_are_independent():
    one, other = (random.integers(keys(20_000), purpose, 1, 8).flatten() for purpose in ("a", "b"))
    assert uniformity(torch.bincount(8 * one + other, minlength=64)) > SIGNIFICANCE


@pytest.mark.parametrize("high", [2, 3, 7, 10, 64, 1000])
def test_integers_are_uniform(high):
    drawn = random.integers(keys(20_000), "x", 10, high)
    assert drawn.min() == 0
    assert drawn.max() == high - 1
    assert uniformity(torch.bincount(drawn.flatten(), minlength=high)) > SIGNIFICANCE


def test_neighbouring_counters_and_rows_are_independent():
    drawn = random.integers(keys(20_000), "x", 2, 16)
    assert uniformity(torch.bincount(16 * drawn[:, 0] + drawn[:, 1], minlength=256)) > SIGNIFICANCE
    assert uniformity(torch.bincount(16 * drawn[:-1, 0] + drawn[1:, 0], minlength=256)) > SIGNIFICANCE


def test_uniform_is_uniform_in_the_open_interval():
    drawn = random.uniform(keys(20_000), "x", 5).flatten()
    assert drawn.dtype == torch.float64
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert stats.kstest(drawn.numpy(), "uniform").pvalue > SIGNIFICANCE


def test_uniform_never_reaches_its_ends():
    """The extreme bit patterns give the smallest and the largest number, both inside (0, 1)."""
    low, high = (random_bits.shift_right(torch.tensor(bits), 12).double().add(0.5) * 2.0**-52 for bits in (0, -1))
    assert float(low) == 2.0**-53
    assert float(high) == 1 - 2.0**-53


def test_permutations_are_uniform():
    drawn = random.permutation(keys(24_000), "x", 4)
    ranks = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
    counts = torch.bincount(torch.tensor([ranks[tuple(row)] for row in drawn.tolist()]), minlength=24)
    assert uniformity(counts) > SIGNIFICANCE


@pytest.mark.parametrize("high", [1, 2, 3, 13, 101, 511, 512, 513, 521, 1000, 1009, 4095, 4096, 8191])
def test_distinct_covers_its_range_once(high):
    """A draw of the whole range has each integer once, also for primes, which have no factors for the cipher."""
    drawn = random.distinct(keys(3), "x", high, high)
    assert torch.equal(drawn.sort(dim=-1).values, torch.arange(high).expand(3, high))


@given(SIGNED, st.integers(1, 5000), st.data())
def test_distinct_are_different_and_in_range(key, high, data):
    count = data.draw(st.integers(1, min(high, 40)))
    drawn = random.distinct(torch.tensor(key), "x", count, high).tolist()
    assert len(set(drawn)) == count
    assert min(drawn) >= 0
    assert max(drawn) < high


@pytest.mark.parametrize("high", [4, 5, 20, 32, 509, 512, 521, 4095])
def test_distinct_are_uniform(high):
    """The first two integers, their difference and their order are uniform."""
    drawn = random.distinct(keys(max(100_000, 100 * high)), "x", 2, high)
    assert uniformity(torch.bincount(drawn[:, 0], minlength=high)) > SIGNIFICANCE
    assert uniformity(torch.bincount(drawn[:, 1], minlength=high)) > SIGNIFICANCE
    difference = (drawn[:, 1] - drawn[:, 0]) % high
    assert uniformity(torch.bincount(difference, minlength=high)[1:]) > SIGNIFICANCE
    ascending = int((drawn[:, 0] < drawn[:, 1]).sum())
    assert stats.binomtest(ascending, len(drawn)).pvalue > SIGNIFICANCE


@given(st.integers(2, 10**6))
def test_cipher_sides_cover_the_range_closely(high):
    left, right = random_bits.cipher_sides(high)
    assert high <= left * right < high + max(left, right)


def differences(left: int, right: int, start: tuple[int, int]) -> torch.Tensor:
    """Return the probabilities of the nonzero differences of two enciphered values that were `start` apart.

    For random functions: a round leaves the difference of its side as it is where the other sides agree, and makes it
    uniform elsewhere.
    """
    chance = torch.zeros(left, right, dtype=torch.float64)
    chance[start] = 1
    for i in range(random_bits.FEISTEL_ROUNDS):
        side = i % 2
        moved = chance.mean(dim=side, keepdim=True).expand_as(chance).clone()
        moved.select(1 - side, 0).copy_(chance.select(1 - side, 0))
        chance = moved
    return chance.flatten()[1:]


def total_variation(left: int, right: int, start: tuple[int, int]) -> float:
    chance = differences(left, right, start)
    return float((chance - 1 / len(chance)).abs().sum()) / 2


@pytest.mark.parametrize(("left", "right"), [(2, 2), (3, 2), (5, 4), (5, 7)], ids=str)
def test_rounds_of_the_cipher_are_random_functions(left, right):
    """Differences of two values follow the calculated law, which is not uniform, for sides of 4, 5, 20 and 32."""
    base = random_bits.mix(keys(200_000, "cipher"))[:, None]
    drawn = random_bits.feistel(base, torch.tensor([0, right]), left, right)
    apart = [(drawn[:, 1] // right - drawn[:, 0] // right) % left, (drawn[:, 1] - drawn[:, 0]) % right]
    counts = torch.bincount(apart[0] * right + apart[1], minlength=left * right)[1:]
    expected = differences(left, right, (1, 0)) * len(drawn)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > SIGNIFICANCE
    assert uniformity(counts) < SIGNIFICANCE


def test_two_enciphered_values_are_nearly_independent():
    """The bounds in the docstring of `draw_distinct` hold; two values differ in one side, the other, or both."""
    sides = {random_bits.cipher_sides(high) for high in range(random_bits.SMALLEST_CIPHER, 4097)}
    assert max(total_variation(*pair, (1, 0)) for pair in sides) < 2e-3
    assert max(total_variation(*pair, start) for pair in sides for start in ((0, 1), (1, 1))) < 2e-4
    assert 0.12 < max(total_variation(*random_bits.cipher_sides(high), (1, 0)) for high in range(4, 512)) < 0.13


def test_small_ranges_are_not_enciphered():
    with pytest.raises(ArgumentError, match="high must be at least 512 for a cipher; got 511: take a permutation"):
        random_bits.draw_distinct(keys(3), 0, 4, 511)


def test_normal_is_standard_normal():
    drawn = random.normal_by_name(0, "weight", 50_001)
    assert drawn.shape == (50_001,)
    assert stats.kstest(drawn.numpy(), "norm").pvalue > SIGNIFICANCE
    assert not torch.equal(drawn, random.normal_by_name(1, "weight", 50_001))
    assert not torch.equal(drawn, random.normal_by_name(0, "bias", 50_001))


def test_gaussian_values_are_quantiles_in_whole_units():
    """The values are multiples of 2^-16, so float64 sums them exactly, and libraries agree on them."""
    values = random.quantiles(torch.device("cpu"))
    assert torch.equal(values * 2**16, (values * 2**16).round()) and (values.diff() >= 0).all()
    exact = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16)
    assert float((values - exact).abs().max()) <= 2**-17
    assert torch.equal(values, -values.flip(0)) and (values != 0).all() and torch.equal(values, values.float().double())


def test_gaussian_numbers_are_normal_and_independent():
    drawn = random.gaussian(keys(50_000, "gaussian"), "x", 6)
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > SIGNIFICANCE
    # of six, two words of four numbers each: 15 correlations, each normal with deviation 1/sqrt(n)
    correlations = torch.corrcoef(drawn.T) - torch.eye(6)
    assert float(correlations.abs().max()) < stats.norm.isf(SIGNIFICANCE / 30) / 50_000**0.5
    assert torch.equal(random.gaussian(keys(9), "x", 7)[3:5], random.gaussian(keys(9)[3:5], "x", 7))
    assert torch.equal(random.gaussian(keys(3), "x", 9)[:, :5], random.gaussian(keys(3), "x", 5))


def test_golden_values():
    """Every recorded result depends on these numbers."""
    key = random.row_keys(torch.tensor(random.stream("golden", 1)), torch.tensor(0))
    assert random.stream("golden", 1) == -7117040073584795981
    assert random.random_bits(key, "x", 2).tolist() == [-6893314921786864918, -8745914757440375651]
    assert random.integers(key, "x", 4, 100).tolist() == [62, 52, 33, 24]
    assert random.uniform(key, "x", 1).tolist() == [0.6263126493085968]
    assert random.permutation(key, "x", 6).tolist() == [1, 0, 5, 3, 4, 2]
    assert random.distinct(key, "x", 4, 8191).tolist() == [6117, 2426, 5316, 5125]
    assert random.gaussian(key, "x", 2).tolist() == [-1.7208251953125, -0.38116455078125]
    # libraries may round log and cos differently in the last place
    assert random.normal_by_name(0, "x", 2).tolist() == pytest.approx(
        [-2.3406981149670454, 1.2167775868017219], rel=1e-14
    )
