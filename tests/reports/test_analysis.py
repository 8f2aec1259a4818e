"""Runs become entries: the choice of a learning rate, the seeds that measure, and the settings that are kept apart."""

import random
from collections.abc import Sequence

import pytest

from icl_bench.reports.analysis import Section, analyse
from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.document import compose
from icl_bench.reports.entry import Entry
from icl_bench.reports.naming import family_of
from icl_bench.reports.recall import recalls
from icl_bench.runs.declarations import CONVENTIONAL_SIZES, ArchitectureDeclaration, CapacityLaw
from icl_bench.runs.outline import FinishedRuns, MeasuredRun
from icl_bench.runs.record import RunRecord
from tests.reports.factory import comparison, make_record, section_of, sections_of


def only(records: Sequence[RunRecord]) -> Entry:
    (entry,) = section_of(records).entries
    return entry


def test_the_rate_is_chosen_on_validation_and_never_on_test() -> None:
    records = [
        make_record(lr=1e-3, accuracies=(0.5, 0.5, 0.5), validation=0.9),
        make_record(lr=1e-2, accuracies=(1.0, 1.0, 1.0), validation=0.6),
    ]
    assert only(records).rate == 1e-3
    assert only(records).accuracy == 0.5


def test_fresh_seeds_measure_where_there_are_any() -> None:
    sweep = [make_record(seed=seed, lr=lr, validation=lr) for seed in (0, 1) for lr in (1e-3, 1e-2)]
    assert sorted(only(sweep).accuracies) == [(0, 0), (1, 1)]
    assert not only(sweep).fresh
    fresh = [make_record(seed=seed, lr=1e-2, accuracies=(0.3,) * 3) for seed in (10, 11, 12)]
    entry = only([*sweep, *fresh])
    assert sorted(entry.accuracies) == [(10, 10), (11, 11), (12, 12)]
    assert entry.fresh
    assert [sorted(rate.by_seed) for rate in entry.rates] == [[(0, 0), (1, 1)]] * 2


def test_equal_rates_give_the_middle_one() -> None:
    rates = (1e-4, 1e-3, 1e-2, 1e-1)
    records = [make_record(lr=lr, validation=value) for lr, value in zip(rates, (1.0, 1.0, 1.0, 0.2), strict=True)]
    assert only(records).rate == 1e-3
    assert not only(records).at_edge
    assert only(records[:2]).at_edge


def test_a_diverged_run_counts_as_zero_and_other_failures_do_not_count() -> None:
    records = [
        make_record(seed=0, accuracies=(1.0,) * 3),
        make_record(seed=1, status="diverged"),
        make_record(seed=2, status="oom"),
        make_record(seed=3, status="error"),
    ]
    entry = only(records)
    assert entry.accuracies == {(0, 0): 1.0, (1, 1): 0.0}
    assert entry.in_cell("pairs=8") == {(0, 0): 1.0, (1, 1): 0.0}
    assert (entry.solved_seeds, len(entry.failed)) == (1, 3)
    section = section_of(records)
    assert (len(section.locked_seeds(section.entries[0])), section.training(section.entries[0])) == (1, "bimodal")


def test_a_rate_at_which_every_seed_diverged_is_not_chosen() -> None:
    records = [make_record(lr=1e-3, validation=0.01), make_record(lr=1e-1, status="diverged")]
    assert only(records).rate == 1e-3
    assert only([make_record(lr=1e-3, validation=0.01), make_record(lr=1e-1, status="oom")]).rate == 1e-3


def test_gaps_of_a_sweep_are_known() -> None:
    records = [make_record(seed=seed, lr=lr) for seed in (0, 1) for lr in (1e-3, 1e-2, 1e-1)]
    assert only(records).missing == ()
    assert only(records[:-1]).missing == ((1, 0.1),)


def test_settings_keep_runs_of_one_label_apart() -> None:
    records = [make_record(), make_record(model={"d_model": 128}), make_record("linear")]
    assert [entry.label for entry in section_of(records).entries] == [
        "linear, d_model=64",
        "power:p=2, d_model=64",
        "power:p=2, d_model=128",
    ]
    assert section_of(records).families == ("linear", "power:p=2")


def test_a_field_that_a_specification_leaves_out_has_its_value_in_a_label() -> None:
    records = [make_record(), make_record(model={"init": "gpt-2"})]
    assert [entry.label for entry in section_of(records).entries] == ["power:p=2, init=fan-in", "power:p=2, init=gpt-2"]


def test_parameters_that_the_label_hides_keep_runs_apart() -> None:
    records = [make_record(), make_record(arch_params={"conv": 0})]
    assert [entry.label for entry in section_of(records).entries] == ["power:p=2, conv=0", "power:p=2, conv=4"]


def test_records_are_read_of_the_runs_that_measure_alone() -> None:
    sweep = [make_record(seed=seed, lr=lr, validation=lr) for seed in range(4) for lr in (1e-3, 1e-2, 3e-2)]
    fresh = [make_record(seed=seed, lr=3e-2) for seed in (8, 9)]
    failed = make_record(seed=5, lr=1e-3, status="error")
    runs = FinishedRuns.of([*sweep, *fresh, failed])
    read: list[str] = []

    def counted(run_id: str) -> MeasuredRun:
        read.append(run_id)
        return runs.load(run_id)

    compose(analyse(runs._replace(load=counted)), lambda i, figure: None, [], "command", NO_STUDY)
    example = sweep[0]  # sizes are read from the first that ended well
    assert set(read) == {record.result.id for record in (*fresh, failed, example)}


def shape(sections: Sequence[Section]) -> list[tuple[str, str, list[str]]]:
    """Tasks, labels and ids in their order."""
    entries = [(section.task, entry) for section in sections for entry in section.entries]
    return [(task, entry.label, [run.id for run in entry.runs]) for task, entry in entries]


def test_sections_are_tasks_and_order_does_not_matter() -> None:
    records = [*comparison(2), make_record(task="copy"), make_record(task="copy", lr=1e-2)]
    shuffled = random.Random(0).sample(records, len(records))
    assert shape(sections_of(records)) == shape(sections_of(shuffled))
    assert [section.task for section in sections_of(records)] == ["assoc-recall", "copy"]


@pytest.mark.parametrize(
    ("label", "family"),
    [
        ("power:p=2,d_key=8", "power:p=2"),
        ("window:w=16", "window"),
        ("softmax", "softmax"),
        ("power:p=2,gate=true,heads=1", "power:p=2,gate=true"),
        ("gated-conv+softmax:heads=2", "gated-conv+softmax"),
        ("package.module:Layer:d_key=3,size=4", "package.module:Layer:size=4"),
        ("package.module:Layer", "package.module:Layer"),
    ],
)
def test_a_family_is_the_label_without_sizes(label: str, family: str) -> None:
    part = ArchitectureDeclaration(name="", size_parameters=CONVENTIONAL_SIZES)
    assert family_of(label, [part] * (1 + label.count("+"))) == family


def test_what_all_architectures_share_is_named_once() -> None:
    archs = ("power:p=2,heads=1,d_key=8,conv=2", "power:p=2,heads=1,d_key=9,conv=2", "window:w=4,heads=1,conv=2")
    section = section_of([make_record(arch) for arch in archs])
    assert [entry.label for entry in section.entries] == ["power:p=2,d_key=8", "power:p=2,d_key=9", "window:w=4"]
    assert section.common_parameters == ("conv=2", "heads=1")
    derived = section_of([make_record("linear:conv=4,d_key=8"), make_record("softmax")])  # all have conv=4
    assert [entry.label for entry in derived.entries] == ["linear:d_key=8", "softmax"]
    hybrids = section_of([make_record("gated-conv+window:w=4,conv=0"), make_record("gated-conv+softmax:conv=0")])
    assert [entry.label for entry in hybrids.entries] == ["gated-conv+softmax", "gated-conv+window:w=4"]
    assert section_of([make_record(archs[0])]).common_parameters == ()  # a lone architecture keeps its name


def test_an_unknown_mixer_is_named_by_its_declaration() -> None:
    declared = ArchitectureDeclaration(name="ssm", size_parameters=("d_state", "expand"), shown=("order",))
    archs = ("ssm:order=2,d_state=8,expand=2", "ssm:order=2,d_state=16,expand=2", "ssm:order=2,d_state=16,expand=4")
    section = section_of([with_declaration(make_record(arch), declared) for arch in archs])
    assert [entry.label for entry in section.entries] == list(archs)
    assert section.families == ("ssm:order=2",)


def test_an_unknown_mixer_has_the_capacity_that_it_declares() -> None:
    law = CapacityLaw(degree=2, key_width=16, key_heads=4, value_width=16)
    known, other = ArchitectureDeclaration(name="ssm", law=law), ArchitectureDeclaration(name="ssm")
    runs = [with_declaration(make_record("ssm:d_state=8"), one) for one in (known, other)]
    predicted = [recalls(section_of([run]))[0].predicted for run in runs]
    assert predicted[0] == recalls(section_of([make_record("power:p=2")]))[0].predicted and predicted[1] is None


def with_declaration(run: RunRecord, declared: ArchitectureDeclaration) -> RunRecord:
    """A record whose architecture declares this."""
    return run.model_copy(update={"result": run.result.model_copy(update={"declarations": (declared,)})})
