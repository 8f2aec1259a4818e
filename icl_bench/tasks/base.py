"""What a task is: a frozen class that makes examples, knows the right answers, and says what guessing reaches."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from icl_bench import random
from icl_bench.errors import UnknownNameError
from icl_bench.registry import Registry
from icl_bench.schema import Frozen, nearest

PAD, BOS, SEP, QUERY, EOS = range(5)
RESERVED = 16
"""Token ids below this are special; alphabets begin here."""
NOISE = 16
"""Size of the noise alphabet, which comes first where a task has one."""


def one_or_many(value: object) -> object:
    """A lone number where a list is meant is a list of one."""
    return (value,) if isinstance(value, int | float) else value


Many = Annotated[tuple[int, ...], BeforeValidator(one_or_many), Field(min_length=1)]
"""A parameter that lists loads, each a cell: `pairs=4` or `pairs=[4|8]`."""
Extra = Annotated[tuple[int, ...], BeforeValidator(one_or_many)]
"""A parameter that lists loads evaluated but not trained; may be empty."""


class Cell(Frozen):
    """One load and one length of a task: all examples of a cell have the same shapes."""

    label: str
    """Name of the cell, such as `pairs=16`, unique in its task."""
    length: int
    """Positions in a sequence, T."""
    load: int
    """How much has to be carried, in the unit of the task: pairs, symbols, hops."""
    scored: int
    """Scored positions in an example, S."""
    share: float = 1.0
    """Part of the training steps spent on this cell, relative to the others; 0 where it is only evaluated."""


class Batch(NamedTuple):
    """N examples of one cell; all tensors are int64, inputs and targets of a `ContinuousTask` float32."""

    inputs: Tensor
    """Token ids, [N, T]; of a `ContinuousTask` vectors, [N, T, I]."""
    positions: Tensor
    """Where the model is scored, [N, S]: at position t it must name the target having read tokens 0..t."""
    targets: Tensor
    """The right token at each scored position, [N, S]; of a `ContinuousTask` the right vector, [N, S, O]."""
    groups: Tensor
    """A tag of each scored position, [N, S], by which accuracy is reported as well; `group_label` names it."""


class Answers(NamedTuple):
    """What a context holds, for the bits that recalling it takes."""

    number: int
    """Independent answers, each as likely to be asked as any other."""
    alphabet: int
    """Words of which each answer is one, all equally likely."""


Solver = Callable[[Tensor, Tensor, Cell], Tensor]
"""(inputs [N, T], positions [N, S], cell) -> answers [N, S]."""


class Grade(NamedTuple):
    """What answers came to, [..., S] each."""

    errors: Tensor
    """Mean squared error over the components, relative to that of answering 0: 1 for it, on average. 0 for tokens."""
    hits: Tensor
    """How right the answer is, 1 for the target itself, for vectors on average; not differentiable."""


class Task(Frozen):
    """Base of all tasks. The fields of a task are its parameters; one that cannot be met is refused when it is made.

    `sample` is a pure function of the row keys (`icl_bench.random.row_keys`), vectorised over rows, equal on every
    device; it keeps no state and needs no step count.
    """

    data_version: ClassVar[int] = 1
    """Raised when the same parameters give other data than before; part of every data key."""
    load_name: ClassVar[str] = "load"
    """What `Cell.load` counts, for the axis of a figure."""
    generative: ClassVar[bool] = False
    """Whether answers are shown, each as the token after its scored position, so that a model can read its own."""

    many_right: ClassVar[bool] = False
    """Whether other tokens than the target may be right, which `right` then tells from the inputs."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of token ids, special ones included."""

    @property
    @abstractmethod
    def eval_cells(self) -> tuple[Cell, ...]:
        """The cells evaluated, in the order reported."""

    @property
    def train_cells(self) -> tuple[Cell, ...]:
        """The cells trained on: those evaluated that have a share of the steps, unless a task says otherwise."""
        return tuple(cell for cell in self.eval_cells if cell.share > 0)

    @abstractmethod
    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        """One example for each key: keys [N] int64."""

    @abstractmethod
    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The right answer at each scored position, from the inputs alone: [N, S]."""

    @property
    @abstractmethod
    def floors(self) -> Mapping[str, Solver]:
        """Trivial solvers by name; the best of them, measured on held-out data, is the floor of a cell."""

    @abstractmethod
    def state_bits(self, cell: Cell) -> float:
        """Bits that must be carried from the context to the scored positions."""

    def answers(self, cell: Cell) -> Answers | None:
        """What the context of a cell holds; None where its answers are no independent draws from one alphabet."""
        return None

    def controls(self, batch: Batch, cell: Cell) -> Mapping[str, Batch]:
        """Changed examples that tell how answers come about: all but `no keys` keep the accuracy of one who recalls."""
        return {}

    @property
    def slack(self) -> float:
        """Share of the oracle's hits that an example which counts as right throughout may lack."""
        return 0.0

    def hits(self, answers: Tensor, targets: Tensor) -> Tensor:
        """How right answers are, 1 where all the way: [..., S] float64."""
        return (answers == targets).double()

    def right(self, answers: Tensor, batch: Batch, cell: Cell) -> Tensor:
        """How right answers to these examples are: [N, S] float64; `hits` unless the task is `many_right`."""
        return self.hits(answers, batch.targets)

    def best(self, batch: Batch, cell: Cell) -> Grade:
        """What the oracle comes to, float64; accuracy is the share of the sum of its hits that is hit."""
        errors = torch.zeros(batch.positions.shape, dtype=torch.float64, device=batch.positions.device)
        return Grade(errors, torch.ones_like(errors))

    def group_label(self, group: int) -> str:
        """Name of a group tag."""
        return str(group)

    def spell(self, token: int) -> str:
        """A short name of a token for `icl-bench show`."""
        return {PAD: "·", BOS: "^", SEP: "|", QUERY: "?", EOS: "$"}.get(token, str(token))

    def cell(self, label: str) -> Cell:
        """The cell of that label, evaluated or trained.

        Raises:
            UnknownNameError: where there is none.
        """
        cells = {cell.label: cell for cell in (*self.train_cells, *self.eval_cells)}
        if label not in cells:
            hint = nearest(label, cells)
            raise UnknownNameError(f"no cell is labelled {label!r}; {hint}cells: {', '.join(cells)}")
        return cells[label]


REAL_BITS = math.log2(100) / 2
"""Bits that a normal number known to a relative squared error of 0.01 takes (Shannon's rate-distortion function)."""
SHOWN = 3
"""Components of a vector that are printed."""


class ContinuousTask(Task):
    """Base of tasks whose inputs and targets are vectors of real numbers, scored by their squared error.

    Accuracy is made in one of two ways. `nearest`: the share of answers that are nearer to their own target than to any
    other of the example. `explained`: by how much the squared error is below that of answering 0, as a share of the
    same for the oracle; 0 where it is above.
    """

    criterion: ClassVar[Literal["nearest", "explained"]]
    """How accuracy is made from errors."""

    @property
    @abstractmethod
    def width_in(self) -> int:
        """Components of an input, I."""

    @property
    @abstractmethod
    def width_out(self) -> int:
        """Components of a target, O."""

    @property
    def variance(self) -> float:
        """Mean square of a component of a target, by which squared errors are divided."""
        return 1.0

    @property
    def vocabulary(self) -> int:
        return 0

    @property
    def slack(self) -> float:
        return 0.0 if self.criterion == "nearest" else 0.01

    def grade(self, answers: Tensor, targets: Tensor) -> Grade:
        """Errors and hits of answers [..., S, O]."""
        errors = (answers - targets).square().mean(dim=-1) / self.variance
        if self.criterion == "nearest":
            return Grade(errors, nearest_target(answers, targets))
        return Grade(errors, targets.square().mean(dim=-1) / self.variance - errors.detach())

    def hits(self, answers: Tensor, targets: Tensor) -> Tensor:
        return self.grade(answers.double(), targets.double()).hits

    def best(self, batch: Batch, cell: Cell) -> Grade:
        answers = self.oracle(batch.inputs, batch.positions, cell)
        return self.grade(answers.double(), batch.targets.double())

    def spell(self, token: int | Sequence[float]) -> str:
        """The first components of a vector."""
        return super().spell(token) if isinstance(token, int) else components(token)


TASKS: Registry[type[Task]] = Registry("task")


def components(vector: Sequence[float]) -> str:
    """The first components of a vector, for `icl-bench show`."""
    return ",".join(f"{value:.1f}" for value in vector[:SHOWN]) + (",…" if len(vector) > SHOWN else "")


@torch.no_grad()
def nearest_target(answers: Tensor, targets: Tensor) -> Tensor:
    """1 where an answer is nearer to its own target than to any other of the example: [..., S, O] -> [..., S]."""
    # |a - t|^2 less |a|^2, which is the same for all targets
    distances = targets.square().sum(dim=-1)[..., None, :] - 2 * answers.to(targets.dtype) @ targets.mT
    own = distances.diagonal(dim1=-2, dim2=-1)
    others = distances.masked_fill(torch.eye(own.shape[-1], dtype=torch.bool, device=own.device), math.inf)
    return (own < others.amin(dim=-1)).to(answers.dtype)


def octave(distance: Tensor) -> Tensor:
    """Bucket of a distance >= 1: 0 for 1, 1 for 2-3, 2 for 4-7, ..., exactly, by comparison with powers of two."""
    powers = 2 ** torch.arange(1, 31, device=distance.device)
    return torch.bucketize(distance, powers, right=True)


def octave_label(group: int, unit: str = "gap") -> str:
    """The distances that an octave holds."""
    low, high = 2**group, 2 ** (group + 1) - 1
    return f"{unit} {low}" if low == high else f"{unit} {low}-{high}"


def check_loads(name: str, loads: tuple[int, ...], lowest: int = 1) -> None:
    """Refuse loads that repeat or fall below the lowest that has a meaning.

    Raises:
        ValueError: naming the parameter, the rule and the value.
    """
    if loads and min(loads) < lowest:
        raise ValueError(f"{name} must be at least {lowest}; got {min(loads)}; raise {name}")
    if len(set(loads)) != len(loads):
        raise ValueError(f"{name} must differ from each other; got {list(loads)}; drop the repeated one")


def block_starts(keys: Tensor, purpose: str, count: int, width: int, length: int) -> Tensor:
    """Where `count` blocks of `width` tokens begin, in order, uniformly among all ways to fit them in `length` tokens.

    keys [N] -> [N, count] int64.
    """
    slots = random.distinct(keys, purpose, count, length - count * (width - 1)).sort(dim=-1).values
    return slots + (width - 1) * torch.arange(count, device=keys.device)


def noise(keys: Tensor, length: int) -> Tensor:
    """Tokens of the noise alphabet: keys [N] -> [N, length]."""
    return random.integers(keys, "noise", length, NOISE) + RESERVED


def permutations(keys: Tensor, purpose: str, count: int, size: int) -> Tensor:
    """`count` independent permutations of 0..size-1: keys [N] -> [N, count, size] int64."""
    bits = random.random_bits(keys, purpose, count * size).view(*keys.shape, count, size)
    return torch.argsort(bits, dim=-1, stable=True)


def distinct_ranks(draws: Tensor, size: Tensor | int) -> Tensor:
    """Different integers in [0, size), in random order, one for each draw, uniform in (0, 1): [..., E] -> [..., E].

    `size` is a number or has the shape of the draws without their last axis, up to broadcasting.
    """
    picked = torch.empty(draws.shape, dtype=torch.int64, device=draws.device)
    taken = picked[..., :0]
    for i in range(draws.shape[-1]):
        rank = (draws[..., i] * (size - i)).long()[..., None]
        # the rank among integers not taken, moved past those that are, which are in order
        rank = rank + (taken - torch.arange(i, device=draws.device) <= rank).sum(dim=-1, keepdim=True)
        picked[..., i : i + 1] = rank
        above, below = (
            torch.cat([taken, torch.full_like(rank, 1 << 62)], -1),
            torch.cat([torch.full_like(rank, -1), taken], -1),
        )
        taken = torch.minimum(above, torch.maximum(below, rank))
    return picked


def choose(choices: Tensor, positions: Tensor) -> Tensor:
    """For a solver: one of the choices [N, K] at each position [N, S], the same again for the same inputs."""
    return choices.gather(1, positions % choices.shape[1])


def first_true(mask: Tensor, count: int) -> Tensor:
    """Positions of the first `count` true entries, in order; every row must have as many: [N, T] -> [N, count]."""
    return torch.argsort((~mask).to(torch.int8), dim=-1, stable=True)[..., :count]


def latest_true(mask: Tensor) -> Tensor:
    """Position of the latest true entry at or before each position, -1 where there is none; along the last axis."""
    index = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask, index, -1).cummax(dim=-1).values


def latest_same(codes: Tensor) -> Tensor:
    """Position of the latest earlier entry with the same code, -1 where there is none: [N, T] -> [N, T]."""
    ordered, order = codes.sort(dim=1, stable=True)
    before = torch.where(ordered[:, 1:] == ordered[:, :-1], order[:, :-1], -1)
    return torch.full_like(codes, -1).scatter(1, order[:, 1:], before)


def mode_so_far(tokens: Tensor, first: int, size: int) -> Tensor:
    """For a solver: the most frequent of the tokens first..first + size - 1 up to each position, [N, T] -> [N, T]."""
    alphabet = torch.arange(first, first + size, device=tokens.device)
    counts = (tokens[:, :, None] == alphabet).cumsum(dim=1, dtype=torch.int32)
    return counts.argmax(dim=-1) + first


def measured_floors(task: Task, cell: Cell, batch: Batch) -> dict[str, float]:
    """Accuracy of each trivial solver on a batch of held-out examples."""
    best = float(task.best(batch, cell).hits.sum())
    hits = {
        name: task.right(solve(batch.inputs, batch.positions, cell), batch, cell) for name, solve in task.floors.items()
    }
    return {name: max(0.0, float(found.sum()) / best) for name, found in hits.items()}
