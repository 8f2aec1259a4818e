"""The contract of a task: a frozen class that makes examples, answers them, and measures trivial solvers."""

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Self, final

import torch
from pydantic import model_validator
from torch import Tensor

from icl_bench.architectures.interface import Interface, Tokens
from icl_bench.corpus.tokens import Split
from icl_bench.errors import UnknownNameError
from icl_bench.schema import Parameters, nearest
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, Sizes, check_values, format_size, one_or_many
from icl_bench.tasks.sampling import octave_label
from icl_bench.tasks.versions import VersionedRegistry
from icl_bench.tasks.vocabulary import Vocabulary, spell_components

MOST_CELLS = 1000
"""Largest number of cells of a task."""


class Batch(NamedTuple):
    """N examples of one cell; all tensors are int64, inputs and targets of a `ContinuousTask` float32."""

    inputs: Tensor
    """Token ids, [N, T]; of a `ContinuousTask` vectors, [N, T, I]."""
    positions: Tensor
    """Scored positions, [N, S]: at position t the model names the target after it has read tokens 0..t."""
    targets: Tensor
    """Right token at each scored position, [N, S]; of a `ContinuousTask` the right vector, [N, S, O]."""
    groups: Tensor
    """Number of the group of each scored position, [N, S]; accuracy is also reported for each group."""


class ContextContents(NamedTuple):
    """Independent answers that a context holds, from which a report counts the bits that a model recalled."""

    answers: int
    """Independent answers, each as likely to be asked as any other."""
    alphabet: int
    """Number of equally likely values of an answer."""

    @property
    def bits(self) -> float:
        """Bits of all answers together."""
        return self.answers * math.log2(self.alphabet)


class TrainingBudget(NamedTuple):
    """A training run in which the smallest default cell of a task is learned."""

    steps: int
    """Training steps."""
    lr: float
    """Peak learning rate."""
    params: str
    """Parameters of the task that leave only its smallest default cell, such as `pairs=4`."""
    arch: str = "softmax"
    """Architecture that learns the cell in these steps."""


Solver = Callable[[Tensor, Tensor, Cell], Tensor]
"""A function of inputs [N, T], positions [N, S] and cell that returns answers [N, S]."""


class Grade(NamedTuple):
    """Errors and hits of answers, [..., S] each."""

    errors: Tensor
    """Squared error, the mean over components, relative to that of answering 0; 0 for tokens."""
    hits: Tensor
    """Hit of each answer, 1 for the target itself, for vectors on average; not differentiable."""


class Task(Parameters):
    """Base class of all tasks; its fields are the parameters of the task.

    `sample` is a pure function of the row keys (`icl_bench.random.row_keys`), vectorised over rows and equal on every
    device. A task keeps no state and does not know the training step. Impossible parameters are refused when the task
    is made.
    """

    axes: ClassVar[tuple[Axis, ...]]
    """Parameters that span the cells; a label names them in this order."""
    load_name: ClassVar[str]
    """Unit of `Cell.load`, which labels the axis of a figure."""
    budget: ClassVar[TrainingBudget]
    """Training run in which the smallest default cell is learned."""
    picture: ClassVar[str] = ""
    """Parameters of an example small enough for a picture, as in a spec."""
    answer_alphabet: ClassVar[str | None] = None
    """Parameter that counts the values of an answer, where the context holds `Cell.load` independent answers."""
    group_unit: ClassVar[str] = "gap"
    """Distance whose octaves are the groups, unless `group_label` names them otherwise."""
    data_version: ClassVar[int] = 1
    """Version of the data, part of every row key; raised when the same parameters give other data than before."""
    retired: ClassVar[str] = ""
    """Reason why this version of the data is retired, of a class kept for it; empty for the present version."""
    generative: ClassVar[bool] = False
    """Show each answer as the token after its scored position, so that a model can read its own answers instead."""
    repeats: ClassVar[bool] = False
    """Have cells of so few different examples that some test examples occur in training; a run then counts them."""
    scores_leading: ClassVar[bool] = False
    """Score positions 0 to S - 1 of every training example, so that no rows need to be gathered."""
    several_correct: ClassVar[bool] = False
    """Accept other tokens than the target as correct; `hits` then decides from the inputs."""
    by_rule: ClassVar[tuple[str, ...]] = ()
    """Shallow solvers of `icl-bench validate` that do what the task asks for, and so are no shortcut."""

    @model_validator(mode="after")
    def _check(self) -> "Task":
        cells = math.prod(len(self._axis_values(axis)[1]) for axis in self.axes)
        if cells > MOST_CELLS:
            raise ValueError(f"a task has at most {MOST_CELLS} cells; got {cells}; list fewer values")
        for axis in self.axes:
            trained, values = self._axis_values(axis)
            check_values(axis.name if trained == values else f"{axis.name} and extrapolate", values, axis.lowest)
        self.check()
        return self

    def check(self) -> None:
        """Refuse parameters that contradict each other; raise ValueError with rule, value and way out on one line."""

    def _axis_values(self, axis: Axis) -> tuple[Sizes, Sizes]:
        """Return the values of an axis that are trained, and all values."""
        trained = one_or_many(getattr(self, axis.name) or ())
        return trained, (*trained, *one_or_many(getattr(self, "extrapolate", ()))) if axis.extrapolated else trained

    @property
    @abstractmethod
    def words(self) -> Vocabulary:
        """The token ids of the task."""

    @abstractmethod
    def shape(self, sizes: Sizes) -> ExampleShape:
        """Return length, load and scored positions of the cell at these values of the axes."""

    @abstractmethod
    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        """Make one example for each key: keys [N] int64."""

    def sample_split(self, keys: Tensor, cell: Cell, split: Split) -> Batch:
        """Make one example of a split for each key; a task that holds data out tells splits apart, others do not."""
        return self.sample(keys, cell)

    def resolved(self) -> Self:
        """Return the task with names of data replaced by the ids of their content; raise IclBenchError if unfit."""
        return self

    @abstractmethod
    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Return the right answer at each scored position, from the inputs alone: [N, S]."""

    @property
    def floors(self) -> Mapping[str, Solver]:
        """The trivial solvers by name: the methods `floor_...`, in the order in which the class defines them.

        The best of them, measured on held-out data, is the floor of a cell.
        """
        if not (found := self._solvers("floor_")):
            raise NotImplementedError(f"a task has a trivial solver; {type(self).__name__} has no method floor_...")
        return found

    @property
    def references(self) -> Mapping[str, Solver]:
        """Solvers that learn nothing but keep the whole context, by name: the methods `reference_...`.

        They are no floor for a state, which may be too small for them; they tell what a perfect state would be worth
        without the rule that the task asks for.
        """
        return self._solvers("reference_")

    def _solvers(self, prefix: str) -> Mapping[str, Solver]:
        """Return the methods whose names begin with a prefix, by the rest of the name."""
        methods = [name for cls in reversed(type(self).mro()) for name in vars(cls) if name.startswith(prefix)]
        return {name.removeprefix(prefix).replace("_", "-"): getattr(self, name) for name in methods}

    def contents(self, cell: Cell) -> ContextContents | None:
        """Return the answers that the context of a cell holds; None where they are not independent and uniform."""
        return ContextContents(cell.load, getattr(self, self.answer_alphabet)) if self.answer_alphabet else None

    def state_bits(self, cell: Cell) -> float:
        """Return the bits that must be carried from the context to the scored positions: those of `contents`."""
        contents = self.contents(cell)
        if contents is None:
            raise NotImplementedError(f"{type(self).__name__} gives neither contents nor state_bits of {cell.label}")
        return contents.bits

    def canonical(self, inputs: Tensor, cell: Cell) -> Tensor:
        """Return inputs [N, T] in a form [N, ...] that is equal for examples of equal content: the inputs themselves.

        A task leaves out what makes no difference, such as the order of a set, so that repeats are found.
        """
        return inputs

    def controls(self, batch: Batch, cell: Cell) -> Mapping[str, Batch]:
        """Return changed examples by name, which show how a model answers.

        A model that recalls keeps its accuracy on all of them but `no keys`.
        """
        return {}

    def hits(self, answers: Tensor, batch: Batch, cell: Cell) -> Tensor:
        """Return the hit of each answer, 1 for a right one: [N, S] float64."""
        return (answers == batch.targets).double()

    def oracle_grade(self, batch: Batch, cell: Cell) -> Grade:
        """Return errors and hits of the oracle, float64; accuracy is relative to the sum of these hits."""
        errors = torch.zeros(batch.positions.shape, dtype=torch.float64, device=batch.positions.device)
        return Grade(errors, torch.ones_like(errors))

    @property
    def tolerance(self) -> float:
        """Fraction of the oracle's hits that an example may lack and still count as an exact match."""
        return 0.0

    def group_label(self, group: int) -> str:
        """Name a group."""
        return octave_label(group, self.group_unit)

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        """The cells evaluated, in the order reported: values of the axis that is extrapolated vary slowest."""
        slowest_first = sorted(self.axes, key=lambda axis: not axis.extrapolated)
        cells = []
        for values in itertools.product(*(self._axis_values(axis)[1] for axis in slowest_first)):
            at = dict(zip(slowest_first, values, strict=True))
            sizes = tuple(at[axis] for axis in self.axes)
            label = ",".join(f"{axis.name}={format_size(at[axis])}" for axis in self.axes)
            trained = all(at[axis] in self._axis_values(axis)[0] for axis in self.axes)
            cells.append(Cell(label=label, **self.shape(sizes)._asdict(), sizes=sizes, weight=float(trained)))
        return tuple(cells)

    @property
    def train_cells(self) -> tuple[Cell, ...]:
        """The cells trained on: those evaluated that have a weight above 0, unless a task says otherwise."""
        return tuple(cell for cell in self.eval_cells if cell.weight > 0)

    @property
    def training_examples(self) -> int | None:
        """Number of training examples, over all cells, that the parameters ask for; None if `train.steps` decides."""
        return None

    @property
    def interface(self) -> Interface:
        """Inputs and outputs of a model of this task: the tokens of its vocabulary, unless a task says otherwise."""
        return Tokens(self.vocabulary)

    @final
    @property
    def vocabulary(self) -> int:
        """Number of token ids, special ones included; 0 for vectors."""
        return self.words.size

    @final
    def spell(self, entry: int | Sequence[float]) -> str:
        """Return a short text for a token, or for a vector of a `ContinuousTask`."""
        return self.words.spell(entry) if isinstance(entry, int) else self.spell_vector(entry)

    def spell_vector(self, vector: Sequence[float]) -> str:
        """Return a short text for a vector: its first components."""
        return spell_components(vector)

    @final
    def cell(self, label: str) -> Cell:
        """Return the cell with that label, evaluated or trained; raise UnknownNameError if there is none."""
        cells = cells_by_label(self)
        if label not in cells:
            hint = nearest(label, cells)
            raise UnknownNameError(f"no cell is labelled {label!r}; {hint}cells: {', '.join(cells)}")
        return cells[label]


class WholeAnswerTask(Task):
    """Base class of tasks whose answer is a string of tokens that has several right forms, and is judged as a whole.

    The scored positions are the last one of the question and those of the answer, in a row. A solver, and a model that
    reads its own answers, name the whole string; `accepts` judges it, and the verdict holds at every scored position,
    so that accuracy is the share of right strings. The loss is that of the string shown.
    """

    generative = True
    several_correct = True

    @abstractmethod
    def accepts(self, inputs: Tensor, answers: Tensor, cell: Cell) -> Tensor:
        """Judge whole answers [N, S] by the question in the inputs [N, T], whose answer is not looked at: [N] bool."""

    @final
    def hits(self, answers: Tensor, batch: Batch, cell: Cell) -> Tensor:
        return self.accepts(batch.inputs, answers, cell).double()[:, None].expand(answers.shape)


class DistributionTask(Task):
    """Base class of tasks whose next token is random, with a distribution that is known exactly.

    The target is the token that came, which training takes. An answer counts by its probability, relative to that of
    the most probable token, so that nearly equal tokens are nearly equal in worth. A record has also the divergence of
    a model's distribution from the exact one, and its mass on tokens that are possible.
    """

    several_correct = True

    @abstractmethod
    def distribution(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Return the exact probability of each token at each scored position: [N, S, vocabulary] float64."""

    @final
    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self.distribution(inputs, positions, cell).argmax(dim=-1)

    @final
    def hits(self, answers: Tensor, batch: Batch, cell: Cell) -> Tensor:
        return relative_probability(answers, self.distribution(batch.inputs, batch.positions, cell))

    @property
    def tolerance(self) -> float:
        return 0.01


def relative_probability(answers: Tensor, probabilities: Tensor) -> Tensor:
    """Return the probability of answers relative to the most probable token: [..., S], [..., S, V] -> [..., S]."""
    own = probabilities.gather(-1, answers[..., None])[..., 0]
    return own / probabilities.amax(dim=-1)


@functools.lru_cache
def cells_by_label(task: Task) -> Mapping[str, Cell]:
    """Return all cells of a task; of a label that is both trained and evaluated, the evaluated cell."""
    return {cell.label: cell for cell in (*task.train_cells, *task.eval_cells)}


TASKS_ELSEWHERE = {
    **dict.fromkeys(("mqar", "ar", "associative-recall", "multi-query-associative-recall", "recall"), "assoc-recall"),
    **dict.fromkeys(("copying", "selective-copying"), "selective-copy"),
    **dict.fromkeys(("needle", "niah", "needle-in-a-haystack", "passkey"), "haystack-recall"),
    **dict.fromkeys(("induction", "induction-heads", "ngram"), "ngram-lookup"),
    **dict.fromkeys(("parity", "s5", "group"), "state-tracking"),
    **dict.fromkeys(("icl-regression", "regression"), "linear-regression"),
    **dict.fromkeys(("multi-hop", "khop"), "k-hop"),
    **dict.fromkeys(("language-modelling", "language-modeling", "lm", "longcrawl64", "fineweb"), "text"),
    **dict.fromkeys(("markov", "markov-chain"), "markov-icl"),
    **dict.fromkeys(("topological-sort", "ancestors"), "brevo"),
    **dict.fromkeys(("mano", "arithmetic"), "modular-arithmetic"),
    **dict.fromkeys(("lano", "cfg", "context-free"), "grammar"),
    **dict.fromkeys(("capo", "facts"), "memorization"),
}
"""Names that others give to tasks, with ours."""
TASKS: VersionedRegistry[type[Task]] = VersionedRegistry("task", Task, TASKS_ELSEWHERE)


def measured_floors(
    task: Task, cell: Cell, batch: Batch, solvers: Mapping[str, Solver] | None = None
) -> dict[str, float]:
    """Measure the accuracy of solvers on a batch of held-out examples, by name; by default the trivial ones."""
    best = float(task.oracle_grade(batch, cell).hits.sum())
    chosen = task.floors if solvers is None else solvers
    answers = {name: solve(batch.inputs, batch.positions, cell) for name, solve in chosen.items()}
    return {name: max(0.0, float(task.hits(own, batch, cell).sum()) / best) for name, own in answers.items()}
