import math

import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.tasks.continuous import REAL_BITS, nearest_target


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pairs=1", "pairs must be at least 2; got 1; raise pairs"),
        ("pairs=[4|4]", "pairs must differ from each other; got [4, 4]; drop the repeated one"),
        ("pairs=4,extrapolate=4", "pairs and extrapolate must differ from each other; got [4, 4]"),
        ("pairs=17", "length must hold 17 pairs and as many queries; got 48; raise length to 51 or lower pairs"),
        ("extrapolate=32", "length must hold 32 pairs and as many queries; got 48; raise length to 96 or lower pairs"),
        ("dims=3", "dims"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"vector-recall:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rule_by_looking_up(draw):
    _, _, batch = draw("vector-recall:length=24,pairs=5,dims=6", 50)
    for rows, positions, targets in zip(batch.inputs, batch.positions.tolist(), batch.targets, strict=True):
        assert positions == list(range(19, 24))
        table = {tuple(rows[i, :6].tolist()): rows[i + 1, 6:] for i in range(0, 10, 2)}
        assert len(table) == 5 and not rows[:10:2, 6:].any() and not rows[1:10:2, :6].any()
        assert not rows[10:19].any() and not rows[19:, 6:].any()
        for place, target in zip(positions, targets, strict=True):
            assert torch.equal(table.pop(tuple(rows[place, :6].tolist())), target)


def test_vectors_are_uniform_on_the_sphere(draw):
    """Vectors have length sqrt(dims); components have mean 0 and variance 1, and do not correlate."""
    _, _, batch = draw("vector-recall:length=12,pairs=4,dims=8", 4000)
    for vectors in (batch.inputs[:, :8:2, :8], batch.inputs[:, 1:8:2, 8:]):
        flat = vectors.double().flatten(0, 1)
        # eight squares, each off by the rounding of a component to float32, half a unit of 2^-23
        torch.testing.assert_close(flat.square().mean(dim=1), torch.ones(16_000).double(), rtol=0, atol=2 * 2.0**-24)
        assert float(flat.mean(dim=0).abs().max()) < 5 / math.sqrt(16_000)
        assert float((flat.mT @ flat / 16_000 - torch.eye(8)).abs().max()) < 5 * math.sqrt(2 / 16_000)


def test_the_nearest_target_is_found_among_those_of_the_example():
    targets = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    answers = targets.clone()
    answers[:, 1] = targets[:, 2]
    assert nearest_target(answers, targets).tolist() == [[1, 0, 1, 1, 1]] * 3
    assert not nearest_target(targets[:, :1].expand(3, 5, 4) * 0, torch.ones(3, 5, 4)).any()
    noisy = answers + 0.5
    by_distance = torch.cdist(noisy, targets).argmin(dim=-1) == torch.arange(5)
    assert torch.equal(nearest_target(noisy, targets).bool(), by_distance)


def test_what_is_carried_is_every_number(draw):
    task, cell, batch = draw("vector-recall:pairs=4", 2)
    assert task.state_bits(cell) == 4 * 16 * REAL_BITS
    assert pytest.approx(0.01) == 2.0 ** (-2 * REAL_BITS)
    assert batch.groups.min() >= 0


def test_floors_err_as_they_must(draw):
    """Answering 0 errs by 1, the mean of K values by 1 - 1/K, one of them by 2 (K - 1)/K."""
    task, cell, batch = draw("vector-recall:pairs=8", 4000)
    errors = {
        name: task.grade(solve(batch.inputs, batch.positions, cell), batch.targets).errors.double().mean(dim=1)
        for name, solve in task.floors.items()
    }
    assert float(errors["zero"].mean()) == pytest.approx(1, abs=1e-6)
    assert float(errors["mean-value"].mean()) == pytest.approx(7 / 8, abs=5 * float(errors["mean-value"].std()) / 63)
    assert float(errors["one-value"].mean()) == pytest.approx(14 / 8, abs=5 * float(errors["one-value"].std()) / 63)
