"""The sweep behind the README figure of zoology, by its count and its budget."""

import torch

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine
from tests.benchmarks.scripts import load_script

readme_sweep = load_script("readme_sweep")


def test_the_models_of_the_figure_have_four_rates_and_the_published_budget() -> None:
    runs = readme_sweep.specs(readme_sweep.EPOCHS, readme_sweep.UPDATES, [])
    kinds = {(spec.arch_label, spec.model.d_model) for spec in runs}
    assert len(kinds) == 49 and len(runs) == 4 * 49
    assert {(spec.train.steps, spec.train.batch, spec.evaluation.points) for spec in runs} == {(22_624, 256, 32)}
    assert [len(fleet) for fleet in readme_sweep.fleets_of(runs)] == [4] * 49
    assert all(len({spec.fleet_key() for spec in fleet}) == 1 for fleet in readme_sweep.fleets_of(runs))
    windows = readme_sweep.specs(1, 10, ["window", "softmax"])
    assert len(windows) == 4 * (8 + 2) and {spec.train.steps for spec in windows} == {10}


def test_an_estimate_counts_the_steps_of_each_length(monkeypatch) -> None:
    timed: list[tuple[int, int]] = []

    def take(trainer, cell: int, count: int) -> float:
        timed.append((cell, count))
        return 0.5 * count

    monkeypatch.setattr(readme_sweep, "take_steps", take)
    settings = ("model.d_model=16", "train.steps=21", "train.batch=4")
    runs = expand_request(Request("assoc-recall:length=16,pairs=[2|4],vocab=64", ["linear"], settings=settings))
    assert readme_sweep.training_seconds(runs, Machine(torch.device("cpu"))) == 0.5 * 21
    assert [cell for cell, _ in timed] == [0, 0, 1, 1]  # steps of half a second: few are timed, after the first ones
