"""The study in its report, and published results beside measured ones."""

import math
from pathlib import Path

import pytest

from icl_bench.commands.session import context_of
from icl_bench.harness.study.file import load_study, packaged_studies
from icl_bench.harness.study.protocol import runs_of, study_parts
from icl_bench.reports.context import NO_STUDY, PublishedLoss, PublishedResult, StudyContext
from icl_bench.reports.parts.positions import loss_by_work, published_places
from icl_bench.reports.parts.published import published_loss_table, published_table
from icl_bench.reports.report import write_report
from icl_bench.reports.text import NONE
from icl_bench.runs.outline import FinishedRuns
from tests.browser import unpacked
from tests.reports.factory import make_record, section_of, sections_of
from tests.reports.parts.test_positions import with_losses

POINTS = (
    PublishedResult("attention", 10_000, 0.9, "a paper", "softmax"),
    PublishedResult("window", 500, 0.1, "a paper", "window:w=16"),
    PublishedResult("other", 500, 0.1, "a paper"),
)
RECORDS = [
    make_record("softmax", accuracies=(0.95, 0.93, 0.93), state=2_500),
    make_record("window:w=16", accuracies=(0.2, 0.2, 0.2), state=100),
]
STUDY = StudyContext("small", "Is it so?", ("Yes, it is.",), ("It was not.",), ("window cannot be matched",), POINTS)


def test_published_results_stand_beside_what_stands_for_them() -> None:
    attention, window, other = published_table(sections_of(RECORDS), POINTS).rows
    assert attention[4:7] == ("softmax", "9.8 KiB", "0.937")
    assert attention[-2:] == ("+0.037", "met")
    assert window[-2:] == ("+0.100", "not met")
    assert other[-1] == "not measured"


def test_a_study_opens_with_its_question_and_what_was_expected(tmp_path: Path) -> None:
    lines = (
        write_report(FinishedRuns.of(RECORDS), [], tmp_path / "r.md", "icl-bench sweep small", STUDY)
        .read_text()
        .splitlines()
    )
    assert lines[0] == "# icl-bench study: small"
    corrected = write_report(
        FinishedRuns.of(RECORDS), [], tmp_path / "c.md", "c", STUDY._replace(corrections=("2026-11-29: no.",))
    )
    assert "Is it so?\n\nCorrections, written down later:\n\n* 2026-11-29: no.\n" in corrected.read_text()
    for text in ("Is it so?", "* Yes, it is.", "* It was not.", "* window cannot be matched", "## Published results"):
        assert text in lines
    # The runs' own commands are those of a store: a study is made anew by its own.
    assert lines[-3:-1] == ["```sh", "icl-bench sweep small"]


def test_published_results_are_drawn_by_bytes(tmp_path: Path) -> None:
    write_report(FinishedRuns.of(RECORDS), [], tmp_path / "with.md", "c", STUDY)
    write_report(FinishedRuns.of(RECORDS), [], tmp_path / "without.md", "c")
    drawn, plain = ((tmp_path / f"{name}_files" / "1-recall-by-state.svg").read_text() for name in ("with", "without"))
    assert ">state bytes<" in drawn and ">published<" in drawn
    assert ">state elements<" in plain and ">published<" not in plain


def test_the_page_shows_published_results_too(tmp_path: Path) -> None:
    text = write_report(FinishedRuns.of(RECORDS), [], tmp_path / "r.html", "c", STUDY).read_text()
    assert "icl-bench study: small" in text and f'"source":"{STUDY.published[0].source}"' in unpacked(text, "data")


def test_published_points_of_packaged_studies_name_architectures_that_run() -> None:
    found = 0
    for name in packaged_studies():
        study = load_study(name)
        if study.published:
            contenders = [each for part in study_parts(study)[0] for each in part.contenders]
            made = {runs_of(study, each, [1e-3], [0])[0].arch_label for each in contenders}
            assert {point.arch for point in context_of(study, []).published} <= made
            found += len(study.published)
    assert found >= 4


def test_a_message_is_told_without_its_way_out() -> None:
    study = load_study("power-vs-window")
    assert context_of(study, ["a must be b; its nearest is c; choose d"]).left_out == ("a must be b; its nearest is c",)


def test_published_losses_stand_where_the_setting_is_theirs() -> None:
    runs = [with_losses(make_record(arch, seed)) for arch in ("power:p=2", "softmax") for seed in range(3)]
    section = section_of(runs)
    theirs = PublishedLoss("others", 2 * math.log(2), 256, 16, 1e6, "an article", "softmax")
    points = (theirs, theirs._replace(vocabulary=50257), theirs._replace(length=64), theirs._replace(arch="window"))
    ((point, entry, work),) = published_places(section, points)
    assert point is theirs and entry.label == "softmax" and work == 3 * (3e5 + 1e4) * 1e6
    same, *elsewhere = published_loss_table([section], points).rows
    assert same == ("others", "16 of 256 tokens", "1e06", "2.000", "an article", "softmax", "2.400")
    assert all(row[-2:] == ("another setting", NONE) for row in elsewhere)
    drawn = loss_by_work(section, NO_STUDY._replace(published_losses=points))
    assert drawn is not None
    (spot,) = (line for line in drawn.axes[0].get_lines() if line.get_marker() == "D")
    assert spot.get_xydata().tolist() == [[work, pytest.approx(2.0)]]
    low, high = drawn.axes[0].get_ylim()
    assert low < 2 < high


def test_published_losses_of_packaged_studies_name_their_architectures() -> None:
    study = load_study("text-125m")
    contenders = [each for part in study_parts(study)[0] for each in part.contenders]
    made = {runs_of(study, each, [1e-3], [0])[0].arch_label for each in contenders}
    losses = context_of(study, []).published_losses
    assert losses and {point.arch for point in losses} <= made
