"""Linear regression in context: predict from examples of an unknown linear function."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers
from icl_bench.tasks.continuous import REAL_BITS, ContinuousTask
from icl_bench.tasks.sampling import octave
from icl_bench.tasks.vocabulary import spell_components

DEPENDENT = 1e-9
"""Fraction of a point's squared length outside the span of earlier points, below which the point adds nothing."""


@TASKS.register("linear-regression")
class LinearRegression(ContinuousTask):
    """Predict y = w·x of each new point from the points before it.

    Every example has weights w of its own. Its sequence is x_1, y_1, x_2, y_2, ..., each written as a vector: x in the
    first coordinates, of which those beyond `dims` are 0, and y in the last one. Components of x are standard normal,
    those of w are normal with variance 1/dims, so y has variance 1. `noise` is added to every y that is shown, but not
    to the targets. Every x is scored but the first, about which nothing is known. `dims` points determine w. The state
    needed for any number of points is the dims(dims + 1)/2 + dims sums of least squares, whatever the architecture, so
    the task is a control for the recall of vectors, where the state grows with what is shown. Accuracy is the fraction
    of the variance explained, relative to the Bayes estimate. This is ridge regression; without noise, it is the least
    squares solution of least norm, whose squared error is 1 - i/dims after i < dims points. Groups are the number of
    points seen, in octaves of its ratio to `dims`.

    Full size: `linear-regression:dims=[8|16|32],points=48,extrapolate=96`. The published law at the end of its
    curriculum, with y not scaled and in the first coordinate: `linear-regression:variant=garg,dims=20,points=41`.

    Source: Garg et al., "What can transformers learn in-context?" (arXiv 2208.01066). Chance: 0, by answering 0.

    >>> task = LinearRegression(dims=(2,), points=4)
    >>> batch = task.sample(random.row_keys(torch.tensor(2), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(vector) for vector in batch.inputs[0].tolist())
    'x(1.2,-0.5) y=0.56 x(-0.2,0.8) y=0.26 x(0.2,-0.7) y=-0.18 x(1.3,1.2) y=1.36'
    >>> batch.positions.tolist(), " ".join(task.spell(vector) for vector in batch.targets[0].tolist())
    ([[2, 4, 6]], 'y=0.26 y=-0.18 y=1.36')
    """

    axes = (Axis("dims", lowest=2), Axis("points", lowest=2, extrapolated=True))
    load_name = "dims"
    budget = TrainingBudget(steps=1000, lr=3e-3, params="dims=2")
    picture = "dims=2,points=5"
    criterion = "explained"

    dims: IntegerList = (2, 4, 8)
    """Dimensions of x, each a cell that is trained and evaluated."""
    points: int = Field(default=24, ge=2)
    """Number of points in a training sequence."""
    extrapolate: OptionalIntegers = ()
    """Numbers of points that are evaluated but not trained."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the noise of every y that is shown."""
    variant: Literal["default", "garg"] = "default"
    """Law: `default`, or `garg` for the published one, in which y has variance dims and shares a coordinate with x."""

    def check(self) -> None:
        if self.variant == "garg" and len(self.dims) > 1:
            raise ValueError(f"variant=garg takes one value of dims, not a list; got {list(self.dims)}; choose one")

    @property
    def width_in(self) -> int:
        return max(self.dims) + (self.variant == "default")

    @property
    def width_out(self) -> int:
        return 1

    @property
    def variance(self) -> float:
        return float(self.dims[0]) if self.variant == "garg" else 1.0

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        dims, points = sizes
        return ExampleShape(length=2 * points, load=dims, scored=points - 1)

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        """The cells evaluated; those with the number of points of training are labelled by `dims` alone."""
        cells = super().eval_cells
        return tuple(cell.model_copy(update={"label": f"dims={cell.load}"}) if cell.weight else cell for cell in cells)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        dims, points = cell.load, cell.length // 2
        x = random.gaussian(keys, "x", points * dims).view(-1, points, dims)
        w = random.gaussian(keys, "w", dims)[:, None]
        # an exact sum, then roundings to the nearest, so that devices agree in every bit; CUDA divides by no scalar so
        y = (x * w).sum(dim=-1) * self._scale(cell)
        shown = y + self.noise * random.gaussian(keys, "noise", points) if self.noise else y
        inputs = torch.zeros(len(keys), points, 2, self.width_in, device=keys.device)
        inputs[:, :, 0, :dims] = x.float()
        inputs[:, :, 1, self._place] = shown.float()
        seen = torch.arange(1, points, device=keys.device)
        positions = (2 * seen).expand(len(keys), -1)
        halves = 2 * seen // dims
        groups = torch.where(halves < 1, 0, 1 + octave(halves.clamp(min=1)))
        return Batch(inputs.flatten(1, 2), positions, y[:, 1:, None].float(), groups.expand_as(positions))

    @property
    def _place(self) -> int:
        """Coordinate of y."""
        return -1 if self.variant == "default" else 0

    def _scale(self, cell: Cell) -> float:
        """Return the standard deviation of a component of the weights."""
        return 1 / math.sqrt(cell.load) if self.variant == "default" else 1.0

    def _points(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        """Return the points shown: x [N, n, dims] and y [N, n], float64."""
        pairs = inputs.double().unflatten(1, (-1, 2))
        return pairs[:, :, 0, : cell.load], pairs[:, :, 1, self._place]

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Return the Bayes estimates, by recursive least squares.

        m and P are the mean and the covariance of the weights, given the points so far. A point adds g (y - m·x) to m
        and subtracts g (P x)^T from P, with g = P x / (x·P x + noise^2). Without noise, a point in the span of the
        earlier points adds nothing.
        """
        x, y = self._points(inputs, cell)
        dims, spread = cell.load, self._scale(cell) ** 2
        mean = x.new_zeros(len(x), dims, 1)
        covariance = torch.eye(dims, dtype=x.dtype, device=x.device).mul(spread).repeat(len(x), 1, 1)
        answers = []
        for t in range(x.shape[1]):
            point = x[:, t, :, None]
            answers.append((mean * point).sum(dim=1))
            reduced = covariance @ point
            unknown = (point * reduced).sum(dim=1, keepdim=True)
            known = unknown + self.noise**2
            gain = torch.where(known > DEPENDENT * spread * point.square().sum(1, keepdim=True), reduced / known, 0.0)
            mean = mean + gain * (y[:, t, None] - answers[-1])[:, None]
            covariance = covariance - gain @ reduced.mT
        return torch.stack(answers, dim=1).gather(1, (positions // 2)[..., None])

    def floor_zero(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Answer 0, the mean of y."""
        return inputs.new_zeros(*positions.shape, 1)

    def floor_nearest_point(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Answer the y of the earlier point whose x is nearest."""
        x, y = self._points(inputs, cell)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu()
        nearest = torch.cdist(x, x).masked_fill(later, math.inf).argmin(dim=-1)
        return y.gather(1, nearest.gather(1, positions // 2))[..., None]

    def floor_correlation(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Answer w·x with w = i/(i + dims + 1) times the mean of y x over the i earlier points.

        The first factor is the shrinkage of least squared error.
        """
        x, y = self._points(inputs, cell)
        products = y[..., None] * x
        before = products.cumsum(dim=1) - products
        seen = torch.arange(x.shape[1], device=x.device)
        answers = (before * x).sum(dim=-1) / (seen + cell.load + 1)
        return answers.gather(1, positions // 2)[..., None]

    def state_bits(self, cell: Cell) -> float:
        """Return the bits of the sums of x x^T and of y x, each to a relative squared error of 0.01."""
        return (cell.load * (cell.load + 1) / 2 + cell.load) * REAL_BITS

    def group_label(self, group: int) -> str:
        """Name a range of points seen, relative to dims: below 1/2, below 1, below 2, below 4, and so on."""
        low = 0 if group == 0 else 2.0 ** (group - 2)
        return f"points/dims {low:g}-{2.0 ** (group - 1):g}"

    def spell_vector(self, vector: Sequence[float]) -> str:
        if self.variant == "garg":
            return super().spell_vector(vector)
        if vector[-1]:
            return f"y={vector[-1]:.2f}"
        return f"x({spell_components([value for value in vector if value])})"
