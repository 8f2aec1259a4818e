"""Linear regression in context: predict from examples of an unknown linear function."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    REAL_BITS,
    TASKS,
    Batch,
    Cell,
    ContinuousTask,
    Extra,
    Many,
    Solver,
    check_loads,
    components,
    octave,
)

DEPENDENT = 1e-9
"""Share of a point's squared length outside the span of those before, under which it adds nothing."""


@TASKS.register("linear-regression")
class LinearRegression(ContinuousTask):
    """Predict y = w·x of each new point from the points before it.

    Every example has weights w of its own. Its sequence is x_1, y_1, x_2, y_2, ..., each a vector: x in the first
    coordinates, those beyond `dims` being 0, and y in the last. Components of x are standard normal, those of w normal
    with variance 1/dims, so that y has variance 1; `noise` is added to every y that is shown, not to the targets.
    Scored is every x but the first, about which nothing is known. `dims` points determine w, and what has to be carried
    of any number of points are the dims(dims + 1)/2 + dims sums of least squares, whatever the architecture: a control
    for the recall of vectors, whose state grows with what is shown. Accuracy is the share of the variance explained,
    relative to the Bayes estimate (ridge regression; without noise the least squares of least norm, whose squared error
    is 1 - i/dims after i < dims points). It is tagged by the points seen, in octaves of their ratio to `dims`.

    Full size: `linear-regression:dims=[8|16|32],points=48,extrapolate=96`. The published law at the end of its
    curriculum, with y not scaled and in the first coordinate: `linear-regression:variant=garg,dims=20,points=41`.

    Budget: 1000 steps at 3e-3 on `linear-regression:dims=2`, with softmax.

    Source: Garg et al., "What can transformers learn in-context?" (arXiv 2208.01066). Chance: 0, by answering 0.

    >>> task = LinearRegression(dims=(2,), points=4)
    >>> batch = task.sample(random.row_keys(torch.tensor(2), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(vector) for vector in batch.inputs[0].tolist())
    'x(1.2,-0.5) y=0.56 x(-0.2,0.8) y=0.26 x(0.2,-0.7) y=-0.18 x(1.3,1.2) y=1.36'
    >>> batch.positions.tolist(), " ".join(task.spell(vector) for vector in batch.targets[0].tolist())
    ([[2, 4, 6]], 'y=0.26 y=-0.18 y=1.36')
    """

    load_name = "dims"
    criterion = "explained"

    dims: Many = (2, 4, 8)
    """Dimensions of x, each a cell trained and evaluated."""
    points: int = Field(default=24, ge=2)
    """Points in a sequence of training."""
    extrapolate: Extra = ()
    """Numbers of points evaluated besides, not trained."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the noise of the y that are shown."""
    variant: Literal["default", "garg"] = "default"
    """The published law: y has variance dims, and shares a coordinate with x."""

    @model_validator(mode="after")
    def _check(self) -> "LinearRegression":
        check_loads("dims", self.dims, lowest=2)
        check_loads("extrapolate", self.extrapolate, lowest=2)
        if self.variant == "garg" and len(self.dims) > 1:
            raise ValueError(
                f"dims must be one number with variant=garg, whose errors have one scale; got {list(self.dims)}; "
                f"choose one"
            )
        if self.points in self.extrapolate:
            raise ValueError(f"extrapolate must differ from points; got {self.points} in both; drop it")
        return self

    @property
    def width_in(self) -> int:
        return max(self.dims) + (self.variant == "default")

    @property
    def width_out(self) -> int:
        return 1

    @property
    def variance(self) -> float:
        return float(self.dims[0]) if self.variant == "garg" else 1.0

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(dims, points) for points in (self.points, *self.extrapolate) for dims in self.dims)

    def _cell(self, dims: int, points: int) -> Cell:
        label, share = (f"dims={dims}", 1.0) if points == self.points else (f"dims={dims},points={points}", 0.0)
        return Cell(label=label, length=2 * points, load=dims, scored=points - 1, share=share)

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
        groups = ratio_bucket(seen, dims)
        return Batch(inputs.flatten(1, 2), positions, y[:, 1:, None].float(), groups.expand_as(positions))

    @property
    def _place(self) -> int:
        """Coordinate of y."""
        return -1 if self.variant == "default" else 0

    def _scale(self, cell: Cell) -> float:
        """Standard deviation of a component of the weights."""
        return 1 / math.sqrt(cell.load) if self.variant == "default" else 1.0

    def _points(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        """What is shown: x [N, n, dims] and y [N, n], float64."""
        pairs = inputs.double().unflatten(1, (-1, 2))
        return pairs[:, :, 0, : cell.load], pairs[:, :, 1, self._place]

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Bayes, by recursive least squares: mean m and covariance P of the weights given the points so far.

        A point adds g (y - m·x) to m and takes g (P x)^T from P, with g = P x / (x·P x + noise^2). Without noise, one
        in the span of those before it adds nothing.
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
            gain = torch.where(
                known > DEPENDENT * spread * point.square().sum(dim=1, keepdim=True), reduced / known, 0.0
            )
            mean = mean + gain * (y[:, t, None] - answers[-1])[:, None]
            covariance = covariance - gain @ reduced.mT
        return torch.stack(answers, dim=1).gather(1, (positions // 2)[..., None])

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"zero": self._zero, "nearest-point": self._nearest_point, "correlation": self._correlation}

    def _zero(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """0, the mean of every y."""
        return inputs.new_zeros(*positions.shape, 1)

    def _nearest_point(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The y of the point before with the nearest x."""
        x, y = self._points(inputs, cell)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu()
        nearest = torch.cdist(x, x).masked_fill(later, math.inf).argmin(dim=-1)
        return y.gather(1, nearest.gather(1, positions // 2))[..., None]

    def _correlation(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The mean of y x over the i points before, times x and i/(i + dims + 1), the shrinkage that serves best."""
        x, y = self._points(inputs, cell)
        products = y[..., None] * x
        before = products.cumsum(dim=1) - products
        seen = torch.arange(x.shape[1], device=x.device)
        answers = (before * x).sum(dim=-1) / (seen + cell.load + 1)
        return answers.gather(1, positions // 2)[..., None]

    def state_bits(self, cell: Cell) -> float:
        """The sums of x x^T and of y x, each to a relative squared error of 0.01."""
        return (cell.load * (cell.load + 1) / 2 + cell.load) * REAL_BITS

    def group_label(self, group: int) -> str:
        return ratio_label(group)

    def spell(self, token: int | Sequence[float]) -> str:
        """x or y, that which is not 0."""
        if isinstance(token, int) or self.variant == "garg":
            return super().spell(token)
        return f"y={token[-1]:.2f}" if token[-1] else f"x({components([value for value in token if value])})"


def ratio_bucket(seen: Tensor, dims: int) -> Tensor:
    """Bucket of seen/dims: 0 below 1/2, 1 below 1, 2 below 2, 3 below 4, and so on."""
    halves = 2 * seen // dims
    return torch.where(halves < 1, 0, 1 + octave(halves.clamp(min=1)))


def ratio_label(bucket: int) -> str:
    """The ratios that a bucket holds."""
    low = 0 if bucket == 0 else 2.0 ** (bucket - 2)
    return f"points/dims {low:g}-{2.0 ** (bucket - 1):g}"
