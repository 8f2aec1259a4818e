"""The command line as its users meet it: documents, exit codes, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = [
    "--set", "train.steps=6", "--set", "train.batch=4", "--set", "model.d_model=16", "--set", "evaluation.examples=8",
    "--set", "evaluation.validation=4", "--set", "evaluation.points=2", "--device", "cpu",
]  # fmt: skip
TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"


def test_run_prints_a_table_and_keeps_progress_off_standard_output(command) -> None:
    outcome = command("run", TASK, "--arch", "power:p=2", "--arch", "window:w=4", *TINY)
    assert outcome.status == 0
    assert "power:p=2" in outcome.out and "window:w=4" in outcome.out and "floor" in outcome.out
    assert "2 runs" in outcome.err and "started" in outcome.err and "started" not in outcome.out


def test_json_is_one_document_as_designed(command) -> None:
    outcome = command("run", TASK, "--arch", "linear", "--seeds", "0,1", "--lr", "1e-3,1e-2", "--json", *TINY)
    document = json.loads(outcome.out)
    assert document["schema"] == 1 and len(document["runs"]) == 4
    first = document["runs"][0]
    assert set(first) >= {
        "id", "task", "arch", "seed", "lr", "status", "params", "state", "steps", "seconds", "examples_per_second",
        "accuracy", "by_cell", "floor", "exact_match",
    }  # fmt: skip
    assert set(first["state"]) == {"elements", "bytes", "length"} and set(first["by_cell"]) == {"pairs=2", "pairs=4"}


def test_the_same_command_again_finds_its_runs_done(command) -> None:
    arguments = ["run", TASK, "--arch", "linear", "--json", *TINY]
    first, second = command(*arguments), command(*arguments)
    assert "1 run, done already" in second.err and "started" not in second.err
    assert json.loads(first.out) == json.loads(second.out)


def test_run_writes_a_report_and_report_writes_one_of_the_store(command, tmp_path) -> None:
    assert command("run", TASK, "--arch", "linear", "--report", "one.md", *TINY).status == 0
    text = (tmp_path / "one.md").read_text()
    assert "linear" in text and "icl-bench run" in text and list((tmp_path / "one_files").glob("*.svg"))
    assert command("report", "icl-runs", "-o", "all.md").out.strip().endswith("all.md")
    assert (tmp_path / "all.md").is_file()


def test_a_report_of_an_empty_store_is_refused(command) -> None:
    outcome = command("report", "nowhere")
    assert outcome.status == 2 and outcome.err.startswith("Error: a report needs finished runs; nowhere has none")


def test_a_diverged_run_exits_with_3_and_is_named(command) -> None:
    outcome = command("run", TASK, "--arch", "linear", "--lr", "1e30", *TINY, "--set", "train.clip=none", "--json")
    run = json.loads(outcome.out)["runs"][0]
    assert outcome.status == 3 and run["status"] == "diverged" and "at step" in run["detail"]
    assert f"failed: {run['id']} linear seed 0: diverged" in outcome.err


@pytest.mark.parametrize("kind", ["tasks", "plugins"])
def test_listings(command, kind: str) -> None:
    rows = json.loads(command(kind, "--json").out)[kind]
    assert all(set(row) == {"name", "summary"} for row in rows)
    assert [line.split()[0] for line in command(kind).out.splitlines()] == [row["name"] for row in rows]


def test_architectures_are_listed_by_family(command) -> None:
    rows = json.loads(command("archs", "--json").out)["archs"]
    assert all(row["recurrence"] and row["state"] for row in rows)
    lines = command("archs").out.splitlines()
    families = [line.removesuffix(":") for line in lines if not line.startswith(" ")]
    assert len(set(families)) == len(families) and set(families) == {row["family"] for row in rows}
    assert {line.split(":")[0].strip() for line in lines if line.startswith("  ") and line[2] != " "} == {
        row["name"] for row in rows
    }
    assert any(line.strip() == "S_t = S_(t-1) + b_t k_t (v_t - S_(t-1)^T k_t)^T" for line in lines)


def test_show_marks_scored_tokens(command) -> None:
    shown = json.loads(command("show", TASK, "--cell", "pairs=4", "--json").out)
    assert len(shown["tokens"]) == 16 and len(shown["scored"]) == 4
    text = command("show", TASK, "--cell", "pairs=4").out
    for scored in shown["scored"]:
        assert f"{shown['tokens'][scored['position']]}→{scored['target']}" in text


def test_show_refuses_an_unknown_cell(command) -> None:
    outcome = command("show", TASK, "--cell", "pairs=3")
    assert outcome.status == 2 and "no cell is labelled 'pairs=3'; did you mean 'pairs=" in outcome.err


def test_state_counts_without_training(command) -> None:
    rows = json.loads(command("state", "power:p=2", "softmax", "--length", "64", "--json").out)["archs"]
    assert [row["arch"] for row in rows] == ["power:p=2", "softmax"]
    assert rows[0]["elements"] == 2 * (4 * 136 * 17 + 3 * 192) and rows[1]["elements"] == 2 * (64 * 4 * 32 + 3 * 192)
    assert "power:p=2" in command("state", "power:p=2").out


def test_doctor_looks_at_the_machine(command) -> None:
    checks = {check["name"]: check for check in json.loads(command("doctor", "--json").out)["checks"]}
    assert checks["torch"]["ok"] and checks["store"]["ok"] and "GPU" in checks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "assoc-recal", "--arch", "linear"], "no task is named 'assoc-recal'; did you mean 'assoc-recall'?"),
        (["run", TASK, "--arch", "powr"], "no architecture is named 'powr'; did you mean 'power'?"),
        (["run", TASK, "--arch", "power:p=0"], "power: p: must be at least 1; got 0"),
        (["run", TASK, "--arch", "power:p"], "a parameter is key=value; got 'p'"),
        (
            ["run", "assoc-recall:pairs=17", "--arch", "linear"],
            "length must hold 17 pairs and queries of two tokens each; got 64",
        ),
        (
            ["run", "assoc-recall:vocab=40", "--arch", "linear"],
            "vocab must leave a key and a value for each pair; got vocab=40",
        ),
        (["run", TASK, "--arch", "linear", "--device", "tpu"], "--device is one of auto, cpu, cuda; got 'tpu'"),
        (
            ["run", TASK, "--arch", "linear", "--store", "/dev/null/x"],
            "the store is a folder that can be written; /dev/null/x",
        ),
        (["run", TASK, "--arch", "power", "--impl", "fast", *TINY], "--impl is one of auto, reference"),
    ],
)
def test_what_the_user_must_change_is_one_line_and_exit_2(command, arguments: list[str], message: str) -> None:
    outcome = command(*arguments)
    assert outcome.status == 2 and outcome.out == ""
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("Error: ") and message in last


def test_an_unreadable_record_is_named(command, tmp_path) -> None:
    command("run", TASK, "--arch", "linear", *TINY)
    (result,) = (tmp_path / "icl-runs").glob("runs/*/*/result.json")
    result.write_text("{}")
    outcome = command("run", TASK, "--arch", "linear", *TINY)
    assert outcome.status == 2 and str(result.relative_to(tmp_path)) in outcome.err


def test_an_interrupted_run_exits_with_130_and_leaves_nothing_finished(tmp_path) -> None:
    arguments = [sys.executable, "-m", "icl_bench", "run", TASK, "--arch", "linear", "--set", "train.steps=1000000"]
    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stderr is not None
        while "started" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not list(Path(tmp_path).glob("icl-runs/runs/*/*/result.json"))
    assert not list(Path(tmp_path).glob("icl-runs/attempts/*"))


def test_compare_tunes_measures_and_reports(command, tmp_path) -> None:
    wish = [
        "--state",
        "512",
        "--lr",
        "1e-3..1e-2/2",
        "--seeds",
        "0,1",
        "--arch",
        "linear",
        "--arch",
        "window:conv=0",
        *TINY,
    ]
    outcome = command("compare", TASK, "--json", *wish)
    document = json.loads(outcome.out)
    assert outcome.status == 0 and (tmp_path / "compare-assoc-recall-512.md").is_file()
    for run in document["runs"]:
        assert abs(run["state"]["elements"] - 512) <= 0.05 * 512
    again = command("compare", TASK, *wish)
    assert "done already" in again.err and "floor" in again.out


def test_compare_names_what_cannot_be_matched(command) -> None:
    outcome = command("compare", TASK, "--arch", "window", "--state", "1M", *TINY)
    assert (
        outcome.status == 2
        and "window must come within 5% of 1,000,000 (state); its nearest is window:d_value=8,w=16" in outcome.err
    )


def test_compare_plans_without_running(command, tmp_path) -> None:
    outcome = command("compare", TASK, "-a", "linear", "--state", "512", "--dry-run", *TINY)
    assert outcome.status == 0 and "26 runs before the grid grows" in outcome.out
    assert "in one process for the rest, by a rule of thumb" in outcome.out and not (tmp_path / "icl-runs").exists()
    outcome = command("compare", TASK, "-a", "linear", "--state", "512", "--dry-run", *TINY, "--device", "cuda")
    assert outcome.status == 0 and "on one GPU for the rest" in outcome.out  # also without one


def test_sweep_plans_without_running(command, tmp_path) -> None:
    (tmp_path / "s.yaml").write_text(f"name: s\nquestion: Q?\ntasks: ['{TASK}']\narchs: [linear]\nlr: 1e-3,1e-2\n")
    planned = json.loads(command("sweep", "s.yaml", "--dry-run", "--json").out)
    assert planned["runs"] == 2 * 3 + 5 and planned["done"] == 0 and not (tmp_path / "icl-runs").exists()


def test_sweep_reports_what_a_store_has_finished_without_running(command, tmp_path) -> None:
    (tmp_path / "s.yaml").write_text(f"name: s\nquestion: Q?\ntasks: ['{TASK}']\narchs: [linear]\nlr: 1e-3,1e-2\n")
    outcome = command("sweep", "s.yaml", "--finished")
    assert outcome.status == 2 and "a study needs an architecture that is finished; 1 of 1 architectures" in outcome.err


def test_a_report_can_be_one_page(command, tmp_path) -> None:
    command("run", TASK, "--arch", "linear", "--report", "page.html", *TINY)
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("report", ["x.pdf", "-"])
def test_a_report_of_a_kind_that_is_not_written_is_refused(command, report: str) -> None:
    outcome = command("run", TASK, "--arch", "linear", "--report", report, *TINY)
    assert (
        outcome.status == 2 and f"a report is Markdown or one HTML page; got '{report}'; give it a name" in outcome.err
    )


def test_several_tasks_and_a_list_with_slashes_make_one_table_each(command) -> None:
    tasks = [TASK.replace("[2|4]", "2/4"), "copy:symbols=3"]
    outcome = command("run", *tasks, "-a", "linear", "-s", "0,1", "-q", *TINY)
    assert outcome.status == 0 and outcome.err == ""
    assert "assoc-recall:length=16,pairs=[2|4],vocab=64: test accuracy" in outcome.out
    assert "copy:symbols=3: test accuracy" in outcome.out


def test_a_run_that_fits_no_memory_is_refused_at_once(command) -> None:
    outcome = command("run", "assoc-recall:length=16777216", "--arch", "linear")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "Error: a run must fit into memory; assoc-recall:length=16777216 linear takes about " in outcome.err


@pytest.mark.parametrize("report", ["/dev/null/report.md", "."])
def test_a_report_that_cannot_be_written_is_refused_before_training(command, report: str) -> None:
    outcome = command("run", TASK, "--arch", "linear", "--report", report, *TINY)
    message = f"Error: a report is a file in a folder that exists and can be written; got {report}"
    assert outcome.status == 2 and message in outcome.err and "started" not in outcome.err


def test_an_exception_in_a_layer_of_ones_own_is_the_result_of_its_run(command, tmp_path) -> None:
    (tmp_path / "broken.py").write_text(
        "import torch\n\n\nclass Layer(torch.nn.Linear):\n    def __init__(self, d_model):\n"
        "        super().__init__(d_model, d_model)\n\n    def forward(self, x):\n        return {}['no such key']\n"
    )
    outcome = command("run", TASK, "--arch", "broken:Layer", "--arch", "linear", "--json", *TINY)
    broken, good = json.loads(outcome.out)["runs"]
    assert (
        outcome.status == 3
        and broken["status"] == "error"
        and "KeyError" in broken["detail"]
        and good["status"] == "ok"
    )


def test_a_packaged_study_demands_a_clean_revision(command, monkeypatch) -> None:
    from icl_bench.harness import environment

    monkeypatch.setattr(environment, "git_revision", lambda: "0123456789ab+")
    refused = command("sweep", "suite")
    assert refused.status == 2 and "suite would run at 0123456789ab+, with changes; commit them, or add" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", TASK], "Missing option '--arch' / '-a'"),
        (["run"], "Missing argument 'task'"),
        (["run", TASK, "--arch"], "Option '--arch' requires an argument"),
        (["run", TASK, "--ach", "linear"], "No such option: --ach (Possible options: --arch, --graphs)"),
        (["compare", TASK, "--arch", "linear"], "Missing option '--state'"),
        (["runs", "show"], "Missing argument 'run'"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_a_wrong_usage_is_one_line(command, arguments: list[str], message: str) -> None:
    outcome = command(*arguments)
    assert (outcome.status, outcome.out) == (2, "") and outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"Error: {message}; see `") and outcome.err.endswith(" --help`\n")
