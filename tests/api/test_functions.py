"""The Python face does what the commands do; a script of it runs as a user would write it."""

import functools
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import icl_bench as icl
from icl_bench.api.functions import spec_of
from icl_bench.errors import SpecError, StateBudgetError, UnknownNameError
from icl_bench.runs.store import Store

TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
TINY = {
    "model.d_model": 16,
    "train.steps": 6,
    "train.batch": 4,
    "evaluation.examples": 8,
    "evaluation.validation": 4,
    "evaluation.points": 2,
}
CPU = icl.Session(device="cpu")


class Gate(torch.nn.Linear):
    """A layer of one's own."""

    def __init__(self, d_model: int, bias: bool = True) -> None:
        super().__init__(d_model, d_model, bias)


class Held(Gate):
    """A layer with a drawn buffer, a frozen parameter and dropout, which a kept model must hold or leave out."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.scale = torch.nn.Parameter(torch.randn(d_model), requires_grad=False)
        self.register_buffer("shift", torch.randn(d_model))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(super().forward(x), 0.5, self.training) * self.scale + self.shift


def make_gate(d_model: int) -> Gate:
    return Gate(d_model, bias=False)


def test_runs_are_those_of_the_command(tmp_path, command) -> None:
    runs = icl.run(TASK, ["linear", "softmax"], seeds=range(2), settings=TINY, store=tmp_path / "a", session=CPU)
    sets = [word for field, value in TINY.items() for word in ("--set", f"{field}={value}")]
    done = command(
        "run",
        TASK,
        "--arch",
        "linear",
        "--arch",
        "softmax",
        "--seeds",
        "0..1",
        "--device",
        "cpu",
        "--store",
        "b",
        *sets,
    )
    assert done.status == 0
    theirs = {run_id: Store(tmp_path / "b").load(run_id).result for run_id in Store(tmp_path / "b").ids()}
    assert [run.result.arch for run in runs] == ["linear", "linear", "softmax", "softmax"]
    assert {run.id: run.result.cells for run in runs} == {run_id: result.cells for run_id, result in theirs.items()}


def test_a_class_and_a_partial_are_architectures(tmp_path) -> None:
    runs = icl.run(TASK, Gate, settings=TINY, store=tmp_path, session=CPU)
    assert runs[0].result.status == "ok" and runs[0].result.arch.endswith(":Gate")
    assert runs[0].measured.spec["arch"][0]["name"] == f"{__name__}:Gate"
    assert spec_of(functools.partial(Gate, bias=False)) == f"{__name__}:Gate:bias=false"
    assert spec_of(make_gate) == f"{__name__}:make_gate"
    assert spec_of("linear+softmax") == "linear+softmax"


def test_the_model_that_comes_back_is_the_one_that_was_tested(tmp_path) -> None:
    session = CPU._replace(fleet=2, quiet=True)
    for run in icl.run(TASK, Held, seeds=range(2), settings=TINY, store=tmp_path, session=session):
        model = run.model()
        for cell in run.result.cells:
            batch = icl.task(TASK).batch(8, cell=cell.label, seed=run.result.seed, split="test")
            with torch.no_grad():
                logits = model(batch.inputs, batch.positions)
            assert (logits.argmax(-1) == batch.targets).float().mean().item() == pytest.approx(cell.accuracy)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
            assert loss.item() == pytest.approx(cell.loss, rel=1e-5)  # sums of float32 in another order


@pytest.mark.parametrize(
    ("arch", "named"),
    [
        (lambda d_model: Gate(d_model), "<lambda>"),
        (Gate(4), "an object of Gate"),
        (functools.partial(Gate, 4), r"a partial architecture has keywords alone; got \(4,\)"),
    ],
)
def test_what_no_run_can_name_is_refused(arch, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        spec_of(arch)


@pytest.mark.parametrize(
    "wrong", [{"seeds": ()}, {"seeds": -1}, {"lr": 0.0}, {"lr": ()}, {"preset": "fast"}, {"keep": "all"}]
)
def test_wrong_values_are_refused_as_those_of_options_are(tmp_path, wrong) -> None:
    with pytest.raises((SpecError, UnknownNameError)):
        icl.run(TASK, "linear", store=tmp_path, session=CPU, settings=TINY, **wrong)
    assert not (tmp_path / "runs").exists() or not list(Store(tmp_path).ids())


def test_a_comparison_matches_tunes_and_measures(tmp_path) -> None:
    runs = icl.compare(
        TASK, ["linear", "window"], 1024, lr=[1e-3, 1e-2], tune_seeds=[1000], seeds=[0, 1],
        settings={**TINY, "train.steps": 2}, store=tmp_path, session=CPU,
    )  # fmt: skip
    assert {run.result.arch.partition(":")[0] for run in runs} == {"linear", "window"}
    assert list(runs.left_out) == []
    assert {run.result.seed for run in runs} == {0, 1, 1000}
    assert all(abs(run.result.state.elements - 1024) < 0.1 * 1024 for run in runs)
    text = runs.report(tmp_path / "report.md").read_text()
    assert "which architecture recalls more at 1024 of state?" in text
    with pytest.raises(StateBudgetError):
        icl.compare(TASK, ["softmax"], 16, store=tmp_path, session=CPU, settings=TINY)


def test_a_study_is_a_mapping_a_file_or_a_name(tmp_path) -> None:
    fields = {
        "tasks": (TASK,),
        "archs": ("linear",),
        "lr": "1e-2",
        "seeds": "0",
        "settings": tuple(f"{field}={value}" for field, value in TINY.items()),
    }
    runs = icl.sweep(fields, store=tmp_path, session=CPU)
    assert [run.result.seed for run in runs] == [0]
    with pytest.raises(UnknownNameError, match="no study is named 'power-vs-windows'; did you mean"):
        icl.sweep("power-vs-windows", store=tmp_path)
    with pytest.raises(SpecError, match="study has no parameter 'task'"):
        icl.sweep({"task": TASK, "tasks": (TASK,), "archs": ("linear",)}, store=tmp_path)


def test_runs_without_what_is_asked_for_are_named(tmp_path, caplog) -> None:
    icl.run(TASK, "linear", settings=TINY, store=tmp_path, session=CPU, keep=())
    with caplog.at_level(logging.WARNING):
        run = icl.run(TASK, "linear", settings=TINY, store=tmp_path, session=CPU)[0]
    assert caplog.messages == [
        f"{run.id} was finished before without its model and samples; to keep them, run `icl-bench runs rm {run.id}`, "
        "then this again"
    ]
    with pytest.raises(SpecError, match=rf"{run.id} has no model; remove it with .* run it again with --keep model"):
        run.model()


SCRIPT = """
import icl_bench as icl, sys
assert not {"torch", "pydantic", "numpy"} & set(sys.modules)
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, d_model, heads=1):
        super().__init__()
        self.project = nn.Linear(d_model, d_model)

    def forward(self, x):
        return self.project(x).cumsum(1)

tiny = {"model.d_model": 16, "train.steps": 6, "train.batch": 4, "evaluation.examples": 8, "evaluation.validation": 4}
runs = icl.run("copy:symbols=8", [Mine, "softmax"], seeds=range(2), settings=tiny, session=icl.Session(device="cpu"))
print(runs)
model = runs[0].model()
batch = icl.task("copy:symbols=8").batch(3)
print(tuple(model(batch.inputs).shape), tuple(model(batch.inputs, batch.positions).shape))
example = runs[-1].samples().cells[0].examples[0]
print(len(example.targets) == len(example.answer_probabilities))
again = icl.load("icl-runs")
print(len(again), sorted(run.id for run in again) == sorted(run.id for run in runs))
print(next(again.rows())["arch"] in ("__main__:Mine", "softmax"))
"""


def test_a_script_as_in_a_notebook(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "study.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "<4 runs in icl-runs>" and "__main__:Mine seed 1: accuracy" in lines[2]
    shapes = [tuple(icl.task("copy:symbols=8").batch(3).inputs.shape)]
    size = icl.task("copy:symbols=8").task.vocabulary
    scored = icl.task("copy:symbols=8").batch(3).positions.shape[1]
    assert lines[5] == f"{(*shapes[0], size)} {(3, scored, size)}"
    assert lines[6:] == ["True", "4 True", "True"]


def test_the_face_lists_its_parts() -> None:
    assert {"run", "compare", "sweep", "load", "task", "Session", "Run", "Runs"} <= set(dir(icl))
    assert all(getattr(icl, name).__doc__ for name in ("run", "compare", "sweep", "load", "task"))
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        _ = icl.train
