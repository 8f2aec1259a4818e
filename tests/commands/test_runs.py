"""The commands of `icl-bench runs`, `merge`, `--plugin` and `--log` as their users meet them."""

import errno
import json
import os
import re
import sys

import pytest

from icl_bench.registry import PLUGIN_MODULES
from icl_bench.runs.probes import ProbePoint, Probes
from icl_bench.runs.store import Store
from tests.runs.records import MANIFEST, POINT, finished, result, spec

LAYER = """
import torch


class Mix(torch.nn.Linear):
    def __init__(self, d_model):
        super().__init__(d_model, d_model)
"""
STUDY = """
name: s
question: Q?
tasks: ["assoc-recall:length=16,pairs=[2|4],vocab=64"]
archs: ["MODULE:Mix"]
lr: 1e-3
"""


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path / "icl-runs")
    for seed in range(3):
        finished(made, spec(seed))
    return made


def test_list_prints_runs_and_what_cannot_be_read(command, store: Store) -> None:
    (store.path(spec(2).id) / "spec.json").unlink()
    store.begin(spec(9), MANIFEST)
    listed = command("runs", "list", "--task", "assoc-recall")
    assert listed.status == 0 and all(run.id in listed.out for run in (spec(0), spec(1), spec(9)))
    assert listed.out.count(
        "running"
    ) == 1 and f"unreadable: a record must be readable; icl-runs/runs/{spec(2).id[:2]}/{spec(2).id}" in (listed.err)
    plain = json.loads(command("runs", "list", "--status", "ok", "--json").out)
    assert [run["accuracy"] for run in plain["runs"]] == [0.5, 0.5] and len(plain["problems"]) == 1
    assert json.loads(command("runs", "list", "--since", "1h", "--json").out)["runs"] == []


def test_list_sorts_limits_and_refuses_what_no_run_can_have(command, store: Store) -> None:
    finished(store, spec(7), 0.9)
    rows = json.loads(command("runs", "list", "--sort", "accuracy", "-n", "2", "--json").out)["runs"]
    assert [row["accuracy"] for row in rows] == [0.9, 0.5]
    assert [row["seed"] for row in json.loads(command("runs", "list", "--sort", "seed", "--json").out)["runs"]] == [
        *range(3), 7,
    ]  # fmt: skip
    for options, message in (
        (("--status", "bogus"), "--status is one of ok, diverged, oom, timeout, crashed, error, interrupted, running"),
        (("--sort", "acuracy"), "--sort takes a column: .*; got 'acuracy'; did you mean 'accuracy'"),
    ):
        refused = command("runs", "list", *options)
        assert refused.status == 2 and re.search(message, refused.err)
    silent = command("runs", "list", "--arch", "LINEAR")
    assert "no run has the arch 'LINEAR'; did you mean 'linear'? there are linear" in silent.err


def test_hostile_names_reach_no_terminal(command, store: Store) -> None:
    hostile = result(spec(5)).model_copy(update={"task": "\x1b[2Ja\u202eb", "arch": "x\ny", "detail": "\x1b]0;t\x07"})
    store.begin(spec(5), MANIFEST).commit(hostile)
    shown = command("runs", "list").out + command("runs", "show", spec(5).id).out
    assert "\x1b" not in shown and "\u202e" not in shown and "\x07" not in shown


def test_show_takes_the_beginning_of_an_id(command, store: Store) -> None:
    shown = command("runs", "show", spec(1).id[:8])
    assert shown.status == 0 and spec(1).id in shown.out and '"lr":' in shown.out
    assert json.loads(command("runs", "show", spec(1).id, "--json").out)["run"]["result"]["seed"] == 1
    for prefix, message in (("zz", "begins with hexadecimal digits"), ("ffff", "none does"), ("", "hexadecimal")):
        refused = command("runs", "show", prefix)
        assert refused.status == 2 and message in refused.err and refused.err.count("\n") == 1


def test_rm_moves_to_the_trash(command, store: Store) -> None:
    removed = command("runs", "rm", spec(1).id[:10])
    assert removed.status == 0 and len(list((store.root / "trash").iterdir())) == 1
    assert not store.has(spec(1).id) and len(list(store.ids())) == 2
    assert command("runs", "rm", spec(1).id).status == 2


def test_verify_says_what_is_damaged(command, store: Store) -> None:
    assert command("runs", "verify").out == "3 runs and 0 checkpoints are whole, 0 problems\n"
    path = store.path(spec(1).id) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"h"', b'"i"'))
    found = command("runs", "verify")
    assert found.status == 3 and f"damaged: a stored file never changes; icl-runs/runs/{spec(1).id[:2]}" in found.err
    assert json.loads(command("runs", "verify", "--json").out)["runs"] == 2


def test_an_export_is_a_file_or_a_logger(command, store: Store, tmp_path, monkeypatch) -> None:
    from icl_bench.harness import loggers

    assert "3 rows of 3 runs: curves.jsonl" in command("runs", "export", "curves.jsonl", "--curves").out
    assert '"validation": 0.5' in (tmp_path / "curves.jsonl").read_text()
    neither = command("runs", "export")
    assert neither.status == 2 and "an export has a file or a logger; got neither" in neither.err
    ended: list[str] = []

    class Log:
        def __init__(self, folder, about) -> None:
            self.about = about

        def write(self, step, values) -> None:
            assert self.about.id != failing

        def end(self, step, scores) -> None:
            ended.append(self.about.id)

    monkeypatch.setattr(loggers, "LOGGERS", {"wandb": Log})
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: True)
    failing = ""
    done = command("runs", "export", "--to", "wandb")
    assert done.status == 0 and done.out == "3 runs logged to wandb: icl-runs/logs\n" and len(ended) == 3
    failing = spec(1).id
    failed = command("runs", "export", "--to", "wandb")
    assert failed.status == 3 and "runs logged to none" in failed.out


def test_export_and_merge(command, store: Store, tmp_path) -> None:
    assert "3 rows of 3 runs" in command("runs", "export", "runs.csv").out
    assert (tmp_path / "runs.csv").read_text().count("\n") == 4
    assert command("merge", "icl-runs", "--store", "other").out == "3 runs copied, 0 there already\n"
    other = Store(tmp_path / "other")
    other.remove(spec(0).id)
    finished(other, spec(0), accuracy=0.75)
    again = command("merge", "icl-runs", "--store", "other")
    assert again.status == 3 and f"conflict: {spec(0).id}: cells differs in icl-runs" in again.err


def test_a_store_that_is_not_there_is_named(command) -> None:
    for arguments in (["list"], ["verify"], ["show", "00"], ["rm", "00"], ["export", "x.csv"]):
        refused = command("runs", *arguments)
        assert refused.status == 2 and "a store is a folder of runs; icl-runs is none" in refused.err


def test_a_store_that_a_disk_cannot_open_is_one_line(command, store: Store, monkeypatch) -> None:
    real = os.open

    def failing(path, *arguments, **named) -> int:
        if str(path) == str(store.root):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", failing)
    done = command("runs", "rm", "0", "--store", str(store.root))
    assert done.status == 2 and done.err.startswith("Error: ") and len(done.err.splitlines()) == 1


def test_a_report_counts_interrupted_runs(command, store: Store, tmp_path) -> None:
    writer = store.begin(spec(9), MANIFEST)
    gone = writer.attempt.name.replace(f"-{os.getpid()}-", "-99999999-")
    writer.attempt.rename(writer.attempt.with_name(gone))
    assert command("report", "icl-runs").status == 0
    assert "1 run interrupted" in (tmp_path / "report-icl-runs.md").read_text()
    for name in ("-", "x.pdf"):
        assert "a report is Markdown or one HTML page" in command("report", "icl-runs", "-o", name).err


def test_a_study_file_imports_what_was_named_alone(command, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(PLUGIN_MODULES, raising=False)
    (tmp_path / "mixing_of_mine.py").write_text(LAYER)
    (tmp_path / "s.yaml").write_text(STUDY.replace("MODULE", "mixing_of_mine"))
    refused = command("sweep", "s.yaml", "--dry-run")
    assert (
        refused.status == 2 and "a study file runs no code of its own; s.yaml names 'mixing_of_mine:Mix'" in refused.err
    )
    assert "mixing_of_mine" not in sys.modules
    monkeypatch.setenv(PLUGIN_MODULES, "")
    listed = command("--plugin", "mixing_of_mine", "plugins")
    assert listed.status == 0 and "mixing_of_mine from --plugin" in listed.out
    assert command("sweep", "s.yaml", "--dry-run").status == 0
    assert "module 'no_such' cannot be imported" in command("--plugin", "no_such", "tasks").err


def test_a_plan_in_which_nothing_can_be_matched_is_refused(command, tmp_path) -> None:
    (tmp_path / "s.yaml").write_text("name: s\nquestion: q\ntasks: copy\narchs: softmax\nsizes: 7\n")
    refused = command("sweep", "s.yaml", "--dry-run", "--json")
    assert refused.status == 2 and not refused.out and "softmax must come within 5% of 7 (state)" in refused.err


def test_an_unknown_logger_is_refused_before_training(command) -> None:
    refused = command("run", "assoc-recall", "--arch", "linear", "--log", "tensorbored")
    assert refused.status == 2 and "did you mean 'tensorboard'?" in refused.err and "started" not in refused.err


def test_floors_are_measured_anew_for_reports(command, tmp_path) -> None:
    made = Store(tmp_path / "icl-runs")
    for seed, label in ((0, "pairs=16"), (1, "pairs=16"), (2, "pairs=17")):
        (cell,) = result(spec(seed)).cells
        writer = made.begin(spec(seed), MANIFEST)
        writer.log(POINT)
        writer.commit(result(spec(seed)).model_copy(update={"cells": (cell.model_copy(update={"label": label}),)}))
    outcome = command("runs", "floors", "--store", str(made.root))
    assert outcome.status == 0 and outcome.out == f"floors of 2 sets of test examples: {made.root / 'floors.json'}\n"
    assert "not measured: assoc-recall: no cell is labelled 'pairs=17'" in outcome.err
    outcome = command("report", str(made.root), "-o", str(tmp_path / "r.md"))
    text = (tmp_path / "r.md").read_text()
    assert outcome.status == 0 and "| `most-frequent` | `any-value` |" in text


def test_probes_are_shown_with_the_outcome_and_its_causes(command, tmp_path) -> None:
    made = Store(tmp_path / "icl-runs")
    names = ("gradient", "block0.sink_share", "block0.largest_score")
    points = tuple(ProbePoint(step=i, values=(2.0 + i, 0.5, None)) for i in range(3))
    done = result(spec(0))
    probes = Probes(id=done.id, task=done.task, arch=done.arch, names=names, points=points)
    for seed, kept in ((0, probes), (1, None)):
        writer = made.begin(spec(seed), MANIFEST)
        if kept is not None:
            writer.keep("probes.json", kept.model_dump_json().encode())
        writer.commit(result(spec(seed)))
    shown = command("runs", "probes", done.id[:8]).out
    assert "causes: sink, over-clipped" in shown
    assert re.search(r"gradient +2 +3 +4\n", shown) and re.search(r"largest_score( +\W){3}\n", shown)
    document = json.loads(command("runs", "probes", done.id, "--json").out)
    assert document["causes"] == ["sink", "over-clipped"] and len(document["probes"]["points"]) == 3
    lacks = command("runs", "probes", spec(1).id)
    assert lacks.status == 2 and "has no probes" in lacks.err
