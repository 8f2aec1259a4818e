"""Vector recall: pairs of vectors, then the keys alone."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_length
from icl_bench.tasks.continuous import REAL_BITS, ContinuousTask
from icl_bench.tasks.sampling import last_positions, octave
from icl_bench.tasks.vocabulary import spell_components


@TASKS.register("vector-recall")
class VectorRecall(ContinuousTask):
    """Recall values that are vectors of real numbers, by keys that are vectors.

    A sequence begins with `pairs` keys, each followed by its value, and ends with the same keys in random order.
    Between them are blanks, vectors of 0, so that all loads have the same length. Keys and values are independent and
    uniform on the sphere of radius sqrt(dims). They have separate coordinates: an input has a part for the key and a
    part for the value, one of which is 0. The keys at the end are scored: the target is the value, which is not shown.
    Every number of every value must be carried, unlike the weights of `linear-regression`. Accuracy is the fraction of
    answers that are nearer to their own value than to any other value of the context; groups are the octave of the
    distance.

    Full size: `vector-recall:length=768,dims=16,pairs=[8|16|32|64|128|256]`; beyond it,
    `vector-recall:length=1536,dims=16,pairs=[8|16|32|64|128|256],extrapolate=512`.

    Source: the vector-valued multi-query associative recall of MambaFormer (Park et al., arXiv 2402.04248), with
    separate coordinates for keys and values. Chance: 1/pairs.

    >>> task = VectorRecall(length=8, pairs=(2,), dims=4)
    >>> batch = task.sample(random.row_keys(torch.tensor(2), torch.arange(1)), task.eval_cells[0])
    >>> for vector in batch.inputs[0].tolist():
    ...     print(task.spell(vector))
    k(0.9,1.4,-0.6,…)
    v(-1.2,1.5,-0.5,…)
    k(-1.4,-0.5,0.1,…)
    v(0.8,0.2,-1.8,…)
    ·
    ·
    k(-1.4,-0.5,0.1,…)
    k(0.9,1.4,-0.6,…)
    >>> batch.positions.tolist(), " ".join(task.spell(vector) for vector in batch.targets[0].tolist())
    ([[6, 7]], '0.8,0.2,-1.8,… -1.2,1.5,-0.5,…')
    """

    axes = (Axis("pairs", lowest=2, extrapolated=True),)
    load_name = "pairs"
    budget = TrainingBudget(steps=250, lr=1e-2, params="pairs=4")
    picture = "length=10,pairs=2,dims=4"
    criterion = "nearest"
    stride: ClassVar[int] = 2
    """Positions of a pair."""

    length: int = Field(default=48, ge=2)
    """Positions in a sequence, T."""
    pairs: IntegerList = (4, 8, 16)
    """Numbers of pairs, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = ()
    """Numbers of pairs that are evaluated but not trained."""
    dims: int = Field(default=16, ge=4)
    """Components of a key, and of a value; with fewer than 4, keys would often be close to each other."""

    def check(self) -> None:
        most = max(*self.pairs, *self.extrapolate, 0)
        check_length(self.length, (self.stride + 1) * most, f"{most} pairs and as many queries", "pairs")

    @property
    def width_in(self) -> int:
        return 2 * self.dims

    @property
    def width_out(self) -> int:
        return self.dims

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=self.length, load=sizes[0], scored=sizes[0])

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, length = cell.load, cell.length
        names, values = self._sphere(keys, "keys", pairs), self._sphere(keys, "values", pairs)
        asked = random.permutation(keys, "queries", pairs)
        inputs = torch.zeros(len(keys), length, 2, self.dims, device=keys.device)
        # with a stride of 1, key and value share a position
        inputs[:, : self.stride * pairs : self.stride, 0] = names
        inputs[:, self.stride - 1 : self.stride * pairs : self.stride, 1] = values
        chosen = asked[..., None].expand_as(names)
        inputs[:, length - pairs :, 0] = names.gather(1, chosen)
        positions = last_positions(keys, cell.scored, length)
        return Batch(inputs.flatten(2), positions, values.gather(1, chosen), octave(positions - self.stride * asked))

    def _sphere(self, keys: Tensor, purpose: str, count: int) -> Tensor:
        """Draw vectors uniformly on the sphere of radius sqrt(dims): [N, count, dims] float32."""
        normal = random.gaussian(keys, purpose, count * self.dims).view(-1, count, self.dims)
        # an exact sum, then roundings to the nearest, so that devices agree in every bit; CUDA divides by no scalar so
        return (normal / (normal.square().sum(dim=-1, keepdim=True) * (1 / self.dims)).sqrt()).float()

    def _pairs(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        """Return keys and values of the context, [N, pairs, dims] each."""
        context = inputs[:, : self.stride * cell.load].unflatten(2, (2, -1))
        return context[:, :: self.stride, 0], context[:, self.stride - 1 :: self.stride, 1]

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        names, values = self._pairs(inputs, cell)
        asked = inputs[:, -cell.scored :, None, : self.dims]
        found = (asked == names[:, None]).all(dim=-1).int().argmax(dim=-1)
        return values.gather(1, found[..., None].expand_as(values))

    def floor_one_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Answer the last value of the context."""
        return self._pairs(inputs, cell)[1][:, -1:].expand(-1, cell.scored, -1)

    def floor_mean_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Answer the mean of the values of the context."""
        return self._pairs(inputs, cell)[1].mean(dim=1, keepdim=True).expand(-1, cell.scored, -1)

    def floor_zero(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Answer 0, the mean of all values."""
        return inputs.new_zeros(*positions.shape, self.dims)

    def reference_hebbian_sum(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Read one sum over pairs of value times key, as an untrained linear memory does: answer its product with q."""
        names, values = self._pairs(inputs, cell)
        asked = inputs[:, -cell.scored :, : self.dims]
        return asked @ (names.mT @ values) / self.dims

    def state_bits(self, cell: Cell) -> float:
        """Return the bits of all numbers of all values, each to a relative squared error of 0.01."""
        return cell.load * self.dims * REAL_BITS

    def spell_vector(self, vector: Sequence[float]) -> str:
        if len(vector) == self.dims:
            return super().spell_vector(vector)
        parts = {"k": vector[: self.dims], "v": vector[self.dims :]}
        return "".join(f"{name}({spell_components(part)})" for name, part in parts.items() if any(part)) or "·"
