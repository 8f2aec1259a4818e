"""Rankings: the entries that are compared, and the claims that the numbers allow."""

import pytest

from icl_bench.reports.analysis import Section, analyse
from icl_bench.reports.context import StudyContext
from icl_bench.reports.ranking import groups_of, rankings, state_groups, sweep_agrees
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.record import RunRecord
from tests.reports.factory import make_record, noise, section_of, sections_of, several


def test_a_difference_within_the_noise_is_not_claimed() -> None:
    noisy = [make_record("linear", seed, accuracies=(0.5 + noise(3 * seed, 0.2),) * 3) for seed in range(5)]
    (ranking,) = rankings(section_of([*noisy, *several("softmax", 0.51)]))
    assert [row.claim for row in ranking.comparisons] == ["not significant"]


def test_one_seed_is_no_sample() -> None:
    others = [make_record("softmax", accuracies=(0.9,) * 3)]
    (ranking,) = rankings(section_of([*several("linear", 0.5), *others]))
    assert [row.claim for row in ranking.comparisons] == ["not compared"]


def test_two_seeds_are_a_sample() -> None:
    pairs = [make_record(arch, seed, accuracies=(value + 0.01 * seed,) * 3) for seed in (0, 1)
             for arch, value in (("linear", 0.5), ("softmax", 0.9))]  # fmt: skip
    (ranking,) = rankings(section_of(pairs))
    assert [(row.claim, row.p) for row in ranking.comparisons] == [("not significant", pytest.approx(2 / 6))]


def test_states_match_within_five_percent_of_one_size() -> None:
    section = section_of([make_record(f"window:w={w}", state=w) for w in (950, 1050, 1051, 2000)])
    groups = state_groups(section.entries, lambda entry: entry.state_elements)
    assert [[entry.state_elements for entry in group] for group in groups] == [[950, 1050]]


def test_all_pairs_of_a_report_are_one_family() -> None:
    runs = [run for name in ("linear", "softmax") for run in several(name, 0.5 if name == "linear" else 0.9)]
    alone = rankings(section_of(runs))[0].comparisons[0].p
    copies = [run for task in ("copy", "k-hop") for run in several("linear", 0.5, task=task)]
    more = [run for task in ("copy", "k-hop") for run in several("softmax", 0.9, task=task)]
    found = [ranking for section in sections_of([*runs, *copies, *more]) for ranking in rankings(section)]
    assert [ranking.pairs for ranking in found] == [3, 3, 3]
    assert [ranking.comparisons[0].p for ranking in found] == [pytest.approx(3 * alone)] * 3


def with_lock_in(runs: list[RunRecord]) -> Section:
    (section,) = analyse(FinishedRuns.of(runs), StudyContext(primary_test="lock-in"))
    return section


def bimodal(arch: str, locked: int, level: float, seeds: int = 10) -> list[RunRecord]:
    """Ten or more seeds, of which some are locked in at a level."""
    values = [level + noise(seed) if seed < locked else 0.14 + noise(seed) for seed in range(seeds)]
    return [make_record(arch, seed, accuracies=(value,) * 3) for seed, value in enumerate(values)]


def test_pairs_without_the_best_that_differ_clearly_are_kept_with_the_one_ahead_first() -> None:
    levels = {"linear": 0.5, "softmax": 0.7, "power:p=2": 0.9}
    runs = [run for name, level in levels.items() for run in bimodal(name, 10, level)]
    (ranking,) = rankings(section_of([*runs, *several("window:w=1", 0.01, 0.001)]))
    assert ranking.best is not None and ranking.best.label == "power:p=2"
    assert [(first.label, row.other.label, row.claim) for first, row in ranking.further] == [
        ("softmax", "linear", "ahead")
    ]
    near = [run for run in runs if run.result.arch != "softmax"] + bimodal("softmax", 10, 0.5)
    assert rankings(section_of(near))[0].further == ()


def test_the_primary_test_decides_which_difference_is_claimed() -> None:
    better = [*bimodal("linear", 10, 0.8), *bimodal("softmax", 10, 0.9)]
    surer = [*bimodal("linear", 10, 0.8), *bimodal("softmax", 2, 0.9)]
    assert [row.claim for row in rankings(section_of(better))[0].comparisons] == ["ahead"]
    assert [row.claim for row in rankings(with_lock_in(better))[0].comparisons] == ["not significant"]
    (ranking,) = rankings(with_lock_in(surer))
    assert ranking.best is not None and ranking.best.label == "linear"
    assert [row.claim for row in ranking.comparisons] == ["ahead"]
    assert ranking.comparisons[0].p == ranking.comparisons[0].p_lock_in < 0.001


def test_the_larger_share_of_locked_in_seeds_is_the_best_whatever_the_number_of_seeds() -> None:
    few = [record for record in bimodal("linear", 10, 0.8) if record.result.seed < 3]
    (ranking,) = rankings(with_lock_in([*few, *bimodal("softmax", 4, 0.9)]))
    assert ranking.best is not None and ranking.best.label == "linear"


@pytest.mark.parametrize(
    ("first", "second"), [((20, 0.3), (8, 0.4)), ((19, 0.8), (11, 0.96))], ids=["low median", "median above the share"]
)
def test_shares_of_locked_in_seeds_are_compared_with_shares(first: tuple, second: tuple) -> None:
    (ranking,) = rankings(with_lock_in([*bimodal("linear", *first, 20), *bimodal("softmax", *second, 20)]))
    assert ranking.best is not None and ranking.best.label == "linear"
    assert [row.claim for row in ranking.comparisons] == ["ahead"] and ranking.comparisons[0].favourable


def test_an_untrained_entry_has_no_rank_and_no_shift() -> None:
    runs = [*several("linear", 0.9), *several("window:w=1", 0.01, 0.001)]
    (ranking,) = rankings(section_of(runs))
    (row,) = ranking.comparisons
    assert (row.claim, row.shift) == ("untrained", None)
    both = [*several("window:w=2", 0.02, 0.001), *several("window:w=1", 0.01, 0.001)]
    assert rankings(section_of(both))[0].best is None


def test_budgets_and_widths_are_ranked_apart() -> None:
    runs = [
        make_record(arch, seed, accuracies=(0.5 + 0.1 * len(arch) / 8 + noise(seed),) * 3, model={"d_model": width})
        for arch in ("linear", "softmax")
        for width in (64, 128)
        for seed in range(3)
    ]
    groups = groups_of(section_of(runs))
    assert [group.where for group in groups] == ["d_model=64", "d_model=128"]
    assert [[entry.kind for entry in group.entries] for group in groups] == [["linear", "softmax"]] * 2
    ladder = section_of([with_steps(run, steps) for run in runs if width_of(run) == 64 for steps in (500, 2000)])
    (group,) = groups_of(ladder)
    assert [entry.label for entry in group.entries] == ["linear, steps=2000", "softmax, steps=2000"]


def test_an_entry_that_lacks_the_largest_budget_is_not_compared_with_those_that_have_it() -> None:
    runs = [with_steps(run, steps) for arch in ("linear", "softmax", "power:p=2") for run in several(arch, 0.5)
            for steps in (500, 2000) if arch != "power:p=2" or steps == 500]  # fmt: skip
    (group,) = groups_of(section_of(runs))
    assert group.where == "steps=2000" and [entry.kind for entry in group.entries] == ["linear", "softmax"]


def width_of(run: RunRecord) -> int:
    """The width of the model."""
    return int(run.spec["model"]["d_model"])


def with_steps(run: RunRecord, steps: int) -> RunRecord:
    """A record of another run with a budget of its own."""
    spec = {**run.spec, "train": {**run.spec["train"], "steps": steps}}
    result = run.result.model_copy(update={"id": f"{run.result.id[:11]}{steps:05}"})
    return run.model_copy(update={"spec": spec, "result": result})


def test_equal_bytes_are_a_group_of_their_own() -> None:
    runs = [make_record("power:p=2", state=1000), make_record("window:w=8", state=1000)]
    runs += [make_record("linear", state=4000), make_record("window:w=16", state=2000)]
    sums = {"power:p=2", "linear"}
    groups = groups_of(section_of([run if run.result.arch in sums else in_half_precision(run) for run in runs]))
    assert [(group.matched, [entry.label for entry in group.entries]) for group in groups] == [
        ("elements", ["power:p=2", "window:w=8"]),
        ("bytes", ["power:p=2", "window:w=16"]),
    ]


def in_half_precision(run: RunRecord) -> RunRecord:
    """A record whose state has two bytes an element."""
    assert run.result.state is not None
    state = run.result.state.model_copy(update={"bytes": 2 * run.result.state.elements})
    return run.model_copy(update={"result": run.result.model_copy(update={"state": state})})


def test_sweeps_are_compared_over_their_common_rates() -> None:
    base = (1e-4, 1e-3, 1e-2)
    easy = [make_record("softmax", lr=lr, validation=value) for lr, value in zip(base, (0.7, 0.8, 0.7), strict=True)]
    bad = [*easy, make_record("softmax", lr=1e-1, validation=0.0), make_record("softmax", lr=1.0, validation=0.0)]
    picky = [make_record("linear", lr=lr, validation=value) for lr, value in zip(base, (0.6, 0.9, 0.6), strict=True)]
    first, second = section_of([*bad, *picky]).entries
    assert sweep_agrees(second, first) and not sweep_agrees(first, second)


@pytest.mark.parametrize(("deviation", "verdict"), [(0.001, "ranks"), (0.02, "at the floor")])
def test_a_cell_is_at_the_floor_by_the_deviation_between_data_seeds(deviation: float, verdict: str) -> None:
    runs = [
        make_record(arch, seed, accuracies=(0.271,), loads=(4,), floors=(0.25 + noise(seed, deviation),))
        for arch in ("linear", "softmax")
        for seed in range(6)
    ]
    (ranking,) = rankings(section_of(runs))
    assert set(ranking.verdicts.values()) == {verdict}
