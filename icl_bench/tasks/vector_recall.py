"""Vector recall: pairs of vectors, then the keys alone."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

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
    octave_label,
)


@TASKS.register("vector-recall")
class VectorRecall(ContinuousTask):
    """Recall values that are vectors of real numbers, by keys that are vectors.

    A sequence begins with `pairs` keys, each followed by its value, and ends with the same keys in random order;
    between are blanks, vectors of 0, so that all loads have one length. Keys and values are independent and uniform on
    the sphere of radius sqrt(dims), and have coordinates of their own: an input is key and value, one of them 0. Scored
    are the keys at the end: the target is the value, which is not shown. Every number of every value has to be carried,
    unlike the weights of `linear-regression`. Accuracy is the share of answers nearer to their own value than to any
    other of the context; it is tagged by the octave of the distance.

    Full size: `vector-recall:length=768,dims=16,pairs=[8|16|32|64|128|256]`; beyond it,
    `vector-recall:length=1536,dims=16,pairs=[8|16|32|64|128|256],extrapolate=512`.

    Budget: 250 steps at 1e-2 on `vector-recall:pairs=4`, with softmax.

    Source: the vector-valued multi-query associative recall of MambaFormer (Park et al., arXiv 2402.04248), with
    coordinates of their own for keys and values. Chance: 1/pairs.

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

    load_name = "pairs"
    criterion = "nearest"
    stride: ClassVar[int] = 2
    """Positions of a pair."""

    length: int = Field(default=48, ge=2)
    """Positions in a sequence, T."""
    pairs: Many = (4, 8, 16)
    """Loads, each a cell trained and evaluated."""
    extrapolate: Extra = ()
    """Loads evaluated besides, not trained."""
    dims: int = Field(default=16, ge=4)
    """Components of a key and of a value; fewer than 4 would make keys fall together."""

    @model_validator(mode="after")
    def _check(self) -> "VectorRecall":
        loads = (*self.pairs, *self.extrapolate)
        check_loads("pairs and extrapolate" if self.extrapolate else "pairs", loads, lowest=2)
        needed = (self.stride + 1) * max(loads)
        if needed > self.length:
            raise ValueError(
                f"length must hold {max(loads)} pairs and as many queries; got {self.length}; "
                f"raise length to {needed} or lower pairs"
            )
        return self

    @property
    def width_in(self) -> int:
        return 2 * self.dims

    @property
    def width_out(self) -> int:
        return self.dims

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(pairs) for pairs in (*self.pairs, *self.extrapolate))

    def _cell(self, pairs: int) -> Cell:
        share = 1.0 if pairs in self.pairs else 0.0
        return Cell(label=f"pairs={pairs}", length=self.length, load=pairs, scored=pairs, share=share)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, length = cell.load, cell.length
        names = self._sphere(keys, "keys", pairs)
        values = self._sphere(keys, "values", pairs)
        asked = random.permutation(keys, "queries", pairs)
        inputs = torch.zeros(len(keys), length, 2, self.dims, device=keys.device)
        # where a pair has one position, both are at the same
        inputs[:, : self.stride * pairs : self.stride, 0] = names
        inputs[:, self.stride - 1 : self.stride * pairs : self.stride, 1] = values
        chosen = asked[..., None].expand_as(names)
        inputs[:, length - pairs :, 0] = names.gather(1, chosen)
        positions = torch.arange(length - pairs, length, device=keys.device).expand_as(asked)
        return Batch(inputs.flatten(2), positions, values.gather(1, chosen), octave(positions - self.stride * asked))

    def _sphere(self, keys: Tensor, purpose: str, count: int) -> Tensor:
        """Uniform on the sphere of radius sqrt(dims): [N, count, dims] float32."""
        normal = random.gaussian(keys, purpose, count * self.dims).view(-1, count, self.dims)
        # an exact sum, then roundings to the nearest, so that devices agree in every bit; CUDA divides by no scalar so
        return (normal / (normal.square().sum(dim=-1, keepdim=True) * (1 / self.dims)).sqrt()).float()

    def _pairs(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        """Keys and values of the context, [N, K, dims] each."""
        context = inputs[:, : self.stride * cell.load].unflatten(2, (2, -1))
        return context[:, :: self.stride, 0], context[:, self.stride - 1 :: self.stride, 1]

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        names, values = self._pairs(inputs, cell)
        asked = inputs[:, -cell.scored :, None, : self.dims]
        found = (asked == names[:, None]).all(dim=-1).int().argmax(dim=-1)
        return values.gather(1, found[..., None].expand_as(values))

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"one-value": self._one_value, "mean-value": self._mean_value, "zero": self._zero}

    def _one_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The last value of the context."""
        return self._pairs(inputs, cell)[1][:, -1:].expand(-1, cell.scored, -1)

    def _mean_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The mean of the values of the context."""
        return self._pairs(inputs, cell)[1].mean(dim=1, keepdim=True).expand(-1, cell.scored, -1)

    def _zero(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """0, the mean of all values."""
        return inputs.new_zeros(*positions.shape, self.dims)

    def state_bits(self, cell: Cell) -> float:
        """All numbers of all values, each to a relative squared error of 0.01."""
        return cell.load * self.dims * REAL_BITS

    def group_label(self, group: int) -> str:
        return octave_label(group)

    def spell(self, token: int | Sequence[float]) -> str:
        """Key and value, those that are not 0."""
        if isinstance(token, int) or len(token) == self.dims:
            return super().spell(token)
        parts = {"k": token[: self.dims], "v": token[self.dims :]}
        return "".join(f"{name}({components(part)})" for name, part in parts.items() if any(part)) or "·"
