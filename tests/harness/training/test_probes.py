"""Probes against plain computations, and runs that they leave as they are."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from icl_bench.architectures.sums import Sums
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.probes import Pass, Probe, pass_statistics, probe_marks
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.kernels.power.expansion import expand
from icl_bench.runs.probes import Probes
from tests.harness.training.small_runs import CPU, specs, with_rate

PROBED = Machine(CPU, keep=("probes",))


def finished(runs, machine: Machine) -> TrainingLoop:
    loop = TrainingLoop(Trainer(runs, machine), lambda progress: None, lambda member, point: None)
    loop.scores = loop.run()
    return loop


def test_statistics_of_a_pass_are_those_of_each_sequence() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, y = (torch.randn(1, 1, 7, 1, width, generator=generator) for width in (3, 3, 5))
    log_g = -torch.rand(1, 1, 7, 1, generator=generator)
    found = pass_statistics(Pass(q, k, log_g, y), Sums(1, 3, 5, p=3, scale=0.5), norm_eps=1e-6)
    rows, keys, gates = q[0, 0, :, 0], k[0, 0, :, 0], log_g[0, 0, :, 0]
    weights = torch.zeros(7, 7)
    for i in range(7):
        for j in range(i + 1):
            weights[i, j] = (0.5 * rows[i] @ keys[j]).abs() ** 3 * gates[j + 1 : i + 1].sum().exp()
    shares = weights / weights.sum(1, keepdim=True)
    sink = shares.sum(0).argmax()
    expanded = expand(keys, 3)
    spectrum = torch.linalg.eigvalsh(expanded.T @ expanded)
    wanted = {
        "denominator": weights.sum(1).median(),
        "least_denominator": weights.sum(1).min(),
        "key_share": shares.amax(1).mean(),
        "sink_share": (shares[:, sink] > 0.5).float().mean(),
        "participation": (1 / shares.square().sum(1) / torch.arange(1, 8)).mean(),
        "mass_share": (keys.norm(dim=1) ** 3).max() / (keys.norm(dim=1) ** 3).sum(),
        "key_rank": spectrum.sum() ** 2 / spectrum.square().sum() / 7,
        "output_rms": y.square().mean().sqrt(),
        "horizon": (-1 / gates).mean(),
        "eps_share": torch.tensor(0.0),
        "largest_score": 0.5 * (rows @ keys.T).tril().abs().max(),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(found[name][0]) == pytest.approx(float(value), rel=1e-4), name


def test_columns_of_zeros_beside_narrow_keys_change_no_statistic() -> None:
    q, k, y = torch.randn(3, 1, 1, 30, 1, 2, generator=torch.Generator().manual_seed(1))
    sums = Sums(1, 2, 2, p=2)
    found = pass_statistics(Pass(q, k, None, y), sums, norm_eps=1e-6)
    filled = pass_statistics(Pass(*(functional.pad(x, (0, 6)) for x in (q, k)), None, y), sums, norm_eps=1e-6)
    assert 1 / 3 < float(found["key_rank"][0]) <= 1  # of the three products of two coordinates
    for name, value in found.items():
        assert float(filled[name][0]) == pytest.approx(float(value[0]), rel=1e-5), name


def test_scores_that_vanish_are_at_eps() -> None:
    q = torch.full((1, 1, 5, 1, 4), 1e-2)
    for normalize, y in (("sum", torch.ones_like(q)), ("none", 1e-4 * q)):
        found = pass_statistics(Pass(q, q, None, y), Sums(1, 4, 4, p=4, normalize=normalize), norm_eps=1e-6)
        assert float(found["eps_share"][0]) == 1.0
    assert "eps_share" not in pass_statistics(Pass(q, q, None, q), Sums(1, 4, 4, p=4), norm_eps=None)


@pytest.mark.parametrize("arch", ["power:p=3,gate=true,spectrum=learned", "gated-conv+power:p=2,kv_heads=2", "lstm"])
def test_probes_change_no_number_and_are_kept_by_every_member(arch: str) -> None:
    runs = specs(arch, seeds=(0, 1, 2), extra=("train.steps=60",))
    runs[1] = with_rate(runs[1], 1e38)
    plain, probed = finished(runs, Machine(CPU)), finished(runs, PROBED)
    for one, other in zip(plain.trainer.model.parameters(), probed.trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert plain.scores.members == probed.scores.members and plain.scores.kept == [{}, {}, {}]
    for run, files in zip(runs, probed.scores.kept, strict=True):
        probes = Probes.model_validate_json(files["probes.json"])
        assert probes.id == run.id and [point.step for point in probes.points] == sorted(probe_marks(60))
        assert all(len(point.values) == len(probes.names) for point in probes.points)
    healthy = Probes.model_validate_json(probed.scores.kept[0]["probes.json"])
    assert all(value is not None for point in healthy.points for value in point.values)
    if "power" in arch:
        assert {"block1.gradient.q", "block1.largest_score", "block1.key_rank"} <= set(healthy.names)
    assert ("block0.theta0" in healthy.names) == ("spectrum" in arch)


def test_the_gradient_is_that_before_clipping() -> None:
    trainer = Trainer(specs("power:p=2", seeds=(0, 1), extra=("train.clip=0.001",)), PROBED)
    probe = Probe(trainer)
    trainer.step()
    found = probe.measure()
    gradients = [view.flatten(1) for view in trainer.optimiser.gradients]
    total = torch.cat(gradients, dim=1).norm(dim=1)
    assert torch.allclose(found["gradient"], total) and bool((total > 0.001).all())
    parts = sum(value.square() for name, value in found.items() if ".gradient." in f".{name}" and name != "gradient")
    assert torch.allclose(parts.sqrt(), total)
    width = 3 * 16  # queries, keys and values of the model width
    place = probe.parameters.index("block0.mixer.project.weight")
    own = trainer.optimiser.gradients[place][..., : width // 3]
    assert torch.allclose(found["block0.gradient.q"], own.flatten(1).norm(dim=1))
    weights = trainer.model.blocks[1].mixer.project.weight
    assert torch.equal(found["block1.weight.q"], weights[..., : width // 3].flatten(1).norm(dim=1))
    assert torch.equal(found["block1.weight.k"], weights[..., width // 3 : 2 * width // 3].flatten(1).norm(dim=1))
    assert math.isfinite(float(found["block0.largest_score"][0]))


class Recorder(TorchDispatchMode):
    """Names of the operators that run in its block, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_step_launches_the_same_operators_with_probes_and_without() -> None:
    """Off, a loop has no probe at all; on, the steps between two probes are those of a loop without."""
    runs = specs("power:p=3,gate=true,spectrum=learned", seeds=(0, 1))
    plain, probed = (
        TrainingLoop(Trainer(runs, m), lambda progress: None, lambda *_: None) for m in (Machine(CPU), PROBED)
    )
    assert plain.probe is None and plain.marks == set() and probed.probe is not None
    launched = []
    for loop in (plain, probed):
        loop.trainer.step()
        if loop.probe is not None:
            loop.probe.record()
        with Recorder() as recorder:
            loop.trainer.step()
        launched.append(recorder.names)
    assert launched[0] == launched[1] and len(launched[0]) > 100
