"""The sweep behind the README figure of zoology, by its count and its budget."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "benchmarks" / "readme_sweep.py"


def test_the_models_of_the_figure_have_four_rates_and_the_published_budget() -> None:
    spec = importlib.util.spec_from_file_location("readme_sweep", PATH)
    readme_sweep = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme_sweep)
    runs = readme_sweep.specs(readme_sweep.EPOCHS, readme_sweep.UPDATES, [])
    kinds = {(spec.arch_label, spec.model.d_model) for spec in runs}
    assert len(kinds) == 49 and len(runs) == 4 * 49
    assert {(spec.train.steps, spec.train.batch, spec.evaluation.points) for spec in runs} == {(22_624, 256, 32)}
    windows = readme_sweep.specs(1, 10, ["window", "softmax"])
    assert len(windows) == 4 * (8 + 2) and {spec.train.steps for spec in windows} == {10}
