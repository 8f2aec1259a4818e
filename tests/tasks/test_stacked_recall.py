import pytest
import torch

from icl_bench.errors import SpecError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pairs=17", "length must hold 17 pairs and as many queries; got 32; raise length to 34 or lower pairs"),
        ("pairs=1", "pairs must be at least 2; got 1; raise pairs"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"stacked-recall:{spec}")
    assert message in str(error.value)


def test_rule_by_looking_up(draw):
    _, _, batch = draw("stacked-recall:length=14,pairs=5,dims=6", 50)
    for rows, positions, targets in zip(batch.inputs, batch.positions.tolist(), batch.targets, strict=True):
        assert positions == list(range(9, 14))
        table = {tuple(row[:6].tolist()): row[6:] for row in rows[:5]}
        assert len(table) == 5 and not rows[5:9].any() and not rows[9:, 6:].any()
        for place, target in zip(positions, targets, strict=True):
            assert torch.equal(table.pop(tuple(rows[place, :6].tolist())), target)


def test_one_layer_without_a_convolution_can_do_it(draw):
    """Sharp attention on the raw inputs reads the right value, so nothing has to be moved."""
    _, _, batch = draw("stacked-recall:pairs=16", 200)
    names, values = batch.inputs[:, :16, :16], batch.inputs[:, :16, 16:]
    asked = batch.inputs[:, -16:, :16]
    answers = torch.softmax(8 * asked @ names.mT, dim=-1) @ values
    assert float((answers - batch.targets).square().mean()) < 1e-3


@pytest.mark.parametrize(("pairs", "accuracy"), [(4, 0.999), (8, 0.990), (16, 0.897)])
def test_one_untrained_sum_over_the_raw_keys_starts_near_solved(draw, pairs, accuracy):
    """A solver outside this package has these accuracies on 2,000 examples."""
    task, cell, batch = draw("stacked-recall", 2000, f"pairs={pairs}")
    found = task.hits(task.references["hebbian-sum"](batch.inputs, batch.positions, cell), batch, cell).mean(dim=1)
    assert abs(float(found.mean()) - accuracy) < 4 * float(found.std()) * (2 / 2000) ** 0.5 + 0.0005
