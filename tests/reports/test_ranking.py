"""Rankings: the entries that are compared, and the claims that the numbers allow."""

from icl_bench.reports.ranking import rankings, state_groups
from tests.reports.factory import make_record, noise, section_of, several


def test_a_difference_within_the_noise_is_not_claimed() -> None:
    noisy = [make_record("linear", seed, accuracies=(0.5 + noise(3 * seed, 0.2),) * 3) for seed in range(5)]
    (ranking,) = rankings(section_of([*noisy, *several("softmax", 0.51)]))
    assert [row.claim for row in ranking.comparisons] == ["not significant"]


def test_architectures_without_common_seeds_are_not_compared() -> None:
    others = [make_record("softmax", seed, accuracies=(0.9,) * 3) for seed in (10, 11)]
    (ranking,) = rankings(section_of([*several("linear", 0.5), *others]))
    assert [row.claim for row in ranking.comparisons] == ["not compared"]


def test_states_match_within_five_percent_of_one_size() -> None:
    section = section_of([make_record(f"window:w={w}", state=w) for w in (950, 1050, 1051, 2000)])
    groups = [[entry.state_elements for entry in group] for group in state_groups(section.entries)]
    assert groups == [[950, 1050], [1051], [2000]]
