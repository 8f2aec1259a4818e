import math

import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.continuous import REAL_BITS


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dims=1", "dims must be at least 2; got 1; raise dims"),
        ("dims=[4|4]", "dims must differ from each other; got [4, 4]; drop the repeated one"),
        ("points=1", "points"),
        ("extrapolate=24", "points and extrapolate must differ from each other; got [24, 24]; drop the repeated one"),
        ("noise=-0.1", "noise"),
        ("variant=garg", "variant=garg takes one value of dims, not a list; got [2, 4, 8]; choose one"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"linear-regression:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variant", ["default", "garg"])
def test_rule_by_solving_for_the_weights(draw, variant):
    """The first points determine w, and w determines the targets of all others."""
    dims = 5
    _, _, batch = draw(f"linear-regression:variant={variant},dims={dims},points=12", 50)
    width = dims + (variant == "default")
    assert batch.inputs.shape == (50, 24, width) and batch.positions[0].tolist() == list(range(2, 24, 2))
    for row, targets in zip(batch.inputs.double(), batch.targets.double(), strict=True):
        x, y = row[::2, :dims], row[1::2, 0 if variant == "garg" else -1]
        w = torch.linalg.lstsq(x, y).solution
        # y is rounded to float32, half a unit of 2^-23 relative, which the condition of x may multiply
        tolerance = 2.0**-24 * float(y.abs().max()) * math.sqrt(len(y)) * float(torch.linalg.cond(x))
        torch.testing.assert_close(x @ w, y, rtol=0, atol=tolerance)
        torch.testing.assert_close(targets[:, 0], y[1:], rtol=0, atol=0)
    if variant == "default":
        assert (batch.inputs[:, ::2, -1] == 0).all() and (batch.inputs[:, 1::2, :-1] == 0).all()
    else:
        assert (batch.inputs[:, 1::2, 1:] == 0).all()


@pytest.mark.parametrize(("variant", "variance"), [("default", 1.0), ("garg", 3.0)])
def test_y_has_the_variance_that_errors_are_divided_by(draw, variant, variance):
    """The mean of (w·x)^2 is s·dims, where s is the variance of w, within about 3/sqrt(n) of it over n rows."""
    task, _, batch = draw(f"linear-regression:variant={variant},dims=3,points=2", 20_000)
    assert task.variance == variance
    assert float(batch.targets.double().square().mean()) == pytest.approx(variance, rel=5 * 3 / math.sqrt(20_000))


def test_smaller_dims_leave_coordinates_empty(draw):
    _, _, batch = draw("linear-regression", 8, "dims=2")
    assert batch.inputs.shape[2] == 9
    assert (batch.inputs[:, ::2, 2:] == 0).all() and (batch.inputs[:, ::2, :2] != 0).all()


def test_oracle_is_the_least_squares_of_least_norm(draw):
    task, cell, batch = draw("linear-regression:dims=4,points=9", 40)
    answers = task.oracle(batch.inputs, batch.positions, cell)
    for row, own in zip(batch.inputs.double(), answers, strict=True):
        x, y = row[::2, :4], row[1::2, -1]
        for i in range(1, 9):
            seen = min(i, 4)  # all that come later agree with them, but for the rounding of y to float32
            w = torch.linalg.pinv(x[:seen]) @ y[:seen]
            scale = float(torch.linalg.cond(x[:seen])) * float(x[i].norm() * y.abs().max())
            assert abs(float(x[i] @ w - own[i - 1])) < 2.0**-22 * scale


def test_oracle_with_noise_is_ridge_regression(draw):
    task, cell, batch = draw("linear-regression:dims=3,points=7,noise=0.5", 40)
    answers = task.oracle(batch.inputs, batch.positions, cell)
    x, y = batch.inputs.double()[:, ::2, :3], batch.inputs.double()[:, 1::2, -1]
    for i in range(1, 7):
        seen, shown = x[:, :i], y[:, :i, None]
        # posterior mean of weights of variance 1/3 under noise of variance 1/4
        w = torch.linalg.solve(seen.mT @ seen + 0.25 * 3 * torch.eye(3).double(), seen.mT @ shown)
        torch.testing.assert_close((x[:, i : i + 1] @ w)[:, 0], answers[:, i - 1], rtol=1e-9, atol=1e-9)


def test_error_of_the_oracle_falls_as_it_must(draw):
    """The error is 1 - i/dims after i < dims points, the part of w outside their span, then 0 (arXiv 2208.01066)."""
    task, cell, batch = draw("linear-regression:dims=8,points=24", 20_000)
    errors = task.grade(task.oracle(batch.inputs, batch.positions, cell), batch.targets.double()).errors
    expected = torch.tensor([max(0.0, 1 - i / 8) for i in range(1, 24)], dtype=torch.float64)
    spread = errors.std(dim=0) / math.sqrt(len(errors))
    assert ((errors.mean(dim=0) - expected).abs()[:7] < 5 * spread[:7]).all()
    assert (errors.mean(dim=0)[8:] < 1e-6).all()


def test_floors_are_those_of_theory(draw):
    """Answering 0 explains nothing; the shrunk correlation errs by (d + 1)/(i + d + 1)."""
    task, cell, batch = draw("linear-regression:dims=4,points=24", 20_000)
    answers = task.floors["correlation"](batch.inputs, batch.positions, cell)
    errors = task.grade(answers, batch.targets.double()).errors
    expected = 5 / (torch.arange(1, 24) + 5)
    assert ((errors.mean(dim=0) - expected).abs() < 5 * errors.std(dim=0) / math.sqrt(len(errors))).all()
    floors = measured_floors(task, cell, batch)
    assert floors["zero"] == 0 < floors["nearest-point"] < floors["correlation"] < 1


def test_noise_is_on_what_is_shown_alone(draw):
    _, _, clean = draw("linear-regression:dims=3,points=6", 4000)
    _, _, noisy = draw("linear-regression:dims=3,points=6,noise=0.5", 4000)
    assert torch.equal(clean.targets, noisy.targets) and torch.equal(clean.inputs[:, ::2], noisy.inputs[:, ::2])
    difference = (noisy.inputs - clean.inputs)[:, 1::2, -1].double()
    assert float(difference.std()) == pytest.approx(0.5, rel=5 / math.sqrt(2 * difference.numel()))


def test_groups_are_ratios_of_points_to_dims(draw):
    task, cell, batch = draw("linear-regression:dims=4,points=18", 1)
    labels = [task.group_label(group).split()[1] for group in batch.groups[0].tolist()]
    assert labels == ["0-0.5"] * 1 + ["0.5-1"] * 2 + ["1-2"] * 4 + ["2-4"] * 8 + ["4-8"] * 2
    assert task.state_bits(cell) == 14 * REAL_BITS


def test_cells_beyond_training(make):
    task = make("linear-regression:dims=[2|4],points=8,extrapolate=16")
    assert [cell.label for cell in task.eval_cells] == ["dims=2", "dims=4", "dims=2,points=16", "dims=4,points=16"]
    assert [cell.label for cell in task.train_cells] == ["dims=2", "dims=4"]
