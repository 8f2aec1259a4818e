"""The model around the mixers, the same for every architecture.

x = embedding(ids)
x = x + mixer_i(norm(x));  x = x + mlp(norm(x))     for each layer; no mlp where its width is 0
logits = norm(x)[scored positions] head             head: the embedding's transpose where tied
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from icl_bench.architectures.base import Architecture, Mixer
from icl_bench.architectures.layers import Embedding, GatedMLP, InputProjection, Linear, RMSNorm, initialise
from icl_bench.architectures.plain import PlainMixer
from icl_bench.kernels.fleet.cross_entropy import cross_entropy
from icl_bench.kernels.fleet.places import Places
from icl_bench.kernels.fleet.rows import take_rows


class Block(nn.Module):
    """One layer: a mixer and, where `mlp_width` is not 0, a gated MLP, each behind a norm and a residual."""

    def __init__(self, members: int, d_model: int, mixer: Mixer, mlp_width: int, gain: float) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(members, d_model)
        self.mixer = mixer
        self.mlp_norm = RMSNorm(members, d_model) if mlp_width else None
        self.mlp = GatedMLP(members, d_model, mlp_width, gain) if mlp_width else None

    def forward(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """[M, B, T, C] -> the same; the input is x + y, and so is the output, to be summed with the next norm."""
        x, normed = self.mixer_norm.after(x, y)
        return self.finish(x, self.mixer(normed))

    def at(self, x: Tensor, y: Tensor | None, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The same at these positions alone, [M, B, S]: what need not mix is done for them only."""
        x, normed = self.mixer_norm.after(x, y)
        return self.finish(take_rows(x, positions), self.mixer.at(normed, positions))

    def finish(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The MLP, where there is one, after the mixer's output y."""
        if self.mlp is None or self.mlp_norm is None:
            return x, y
        x, normed = self.mlp_norm.after(x, y)
        return x, self.mlp(normed)

    def step(self, x: Tensor, state: Any, position: int) -> tuple[Tensor, Any]:
        """One token: x [M, B, C]."""
        mixed, state = self.mixer.step(self.mixer_norm(x), state, position)
        x = x + mixed
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.mlp(self.mlp_norm(x))
        return x, state


class Vectors(NamedTuple):
    """Inputs and targets that are vectors of real numbers."""

    width_in: int
    """Components of an input, I."""
    width_out: int
    """Components of a target, O."""
    grade: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Losses and hits, [M, B, S], of answers and targets [M, B, S, O]."""


class Scores(NamedTuple):
    """What scored positions came to, [M, B, S] float32 each (float64 for float64)."""

    losses: Tensor
    """Cross-entropy with the target; for vectors the squared error."""
    hits: Tensor
    """1 where the target's logit is above all others, else 0; for vectors as their task has it; not differentiable."""


class Backbone(nn.Module):
    """M models of the same shape. Made with parameters drawn, on the CPU, from the seeds of its members."""

    def __init__(
        self,
        seeds: list[int],
        vocabulary: int,
        d_model: int,
        layers: list[Architecture],
        mlp_width: int,
        tied: bool,
        impl: str,
        embedding_scale: float = 1.0,
        vectors: Vectors | None = None,
    ) -> None:
        super().__init__()
        members = len(seeds)
        gain = 1 / math.sqrt(2 * len(layers))
        self.embedding: Embedding | InputProjection
        if vectors is None:
            self.embedding = Embedding(members, vocabulary, d_model, embedding_scale)
            self.head = None if tied else Linear(members, d_model, vocabulary)
        else:
            self.embedding = InputProjection(members, vectors.width_in, d_model)
            self.head = Linear(members, d_model, vectors.width_out)
        self.blocks = [
            Block(members, d_model, layer.build(members, d_model, gain, impl), mlp_width, gain) for layer in layers
        ]
        for i, block in enumerate(self.blocks):
            self.add_module(f"block{i}", block)
        self.norm = RMSNorm(members, d_model)
        initialise(self, seeds)
        for path, module in self.named_modules():
            if isinstance(module, PlainMixer):
                module.initialise(seeds, path)

    def forward(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Logits at the scored positions alone: inputs [M, B, T], positions [M, B, S] -> [M, B, S, W]."""
        return self.logits(self.scored_rows(inputs, positions))

    def scores(self, inputs: Tensor, positions: Tensor, targets: Tensor, places: Places | None = None) -> Scores:
        """Losses and hits at the scored positions, targets [M, B, S], without the logits in memory.

        `places` of the inputs, where known, spare the gradient a sort.
        """
        rows = self.scored_rows(inputs, positions, places).flatten(1, -2)
        words = self.embedding.weight if self.head is None else self.head.weight.transpose(1, 2)
        losses, hits = cross_entropy(rows, words.to(rows.dtype), targets.flatten(1))
        return Scores(losses.view(targets.shape), hits.view(targets.shape))

    def scored_rows(self, inputs: Tensor, positions: Tensor, places: Places | None = None) -> Tensor:
        """What the head sees at the scored positions, [M, B, S, C]."""
        x, y = self.embedding(inputs, places), None
        for block in self.blocks[:-1]:
            x, y = block(x, y)
        rows: Tensor = self.norm.after(*self.blocks[-1].at(x, y, positions))[1]
        return rows

    def logits(self, x: Tensor) -> Tensor:
        """After the last norm: [M, ..., C] -> [M, ..., W]."""
        if self.head is not None:
            out: Tensor = self.head(x)
            return out
        flat = torch.bmm(x.flatten(1, -2), self.embedding.weight.transpose(1, 2))
        return flat.view(*x.shape[:-1], -1)

    def initial_state(self, batch: int) -> list[Any]:
        """States of all layers before the first token."""
        return [block.mixer.initial_state(batch) for block in self.blocks]

    def step(self, inputs: Tensor, state: list[Any], position: int) -> tuple[Tensor, list[Any]]:
        """One token of the recurrent form: inputs [M, B] -> logits [M, B, W] and the next states."""
        x = self.embedding(inputs[:, :, None])[:, :, 0]
        states = []
        for block, own in zip(self.blocks, state, strict=True):
            x, after = block.step(x, own, position)
            states.append(after)
        return self.logits(self.norm(x)[:, :, None])[:, :, 0], states

    def parameters_per_member(self) -> int:
        """Parameters of one model."""
        return sum(parameter[0].numel() for parameter in self.parameters())


class VectorBackbone(Backbone):
    """The same for vectors of real numbers: a projection takes the place of the embedding, a head ends in vectors."""

    def __init__(
        self, seeds: list[int], vectors: Vectors, d_model: int, layers: list[Architecture], mlp_width: int, impl: str
    ) -> None:
        super().__init__(seeds, 0, d_model, layers, mlp_width, False, impl, vectors=vectors)
        self.grade = vectors.grade

    def scores(self, inputs: Tensor, positions: Tensor, targets: Tensor, places: Places | None = None) -> Scores:
        answers = self(inputs, positions)
        with torch.autocast(answers.device.type, enabled=False):  # distances are compared in float32
            return Scores(*self.grade(answers.to(torch.promote_types(answers.dtype, torch.float32)), targets))
