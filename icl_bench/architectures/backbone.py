"""The model around the mixers, the same for every architecture.

x = embedding(ids)
x = x + mixer_i(norm(x));  x = x + mlp(norm(x))     for each layer; no mlp where its width is 0
logits = norm(x)[scored positions] head             head: the embedding's transpose where tied
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from icl_bench.architectures.base import Architecture, Mixer
from icl_bench.architectures.layers import Embedding, GatedMLP, Linear, RMSNorm, initialise
from icl_bench.architectures.plain import PlainMixer


class Block(nn.Module):
    """One layer: a mixer and, where `mlp_width` is not 0, a gated MLP, each behind a norm and a residual."""

    def __init__(self, members: int, d_model: int, mixer: Mixer, mlp_width: int, gain: float) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(members, d_model)
        self.mixer = mixer
        self.mlp_norm = RMSNorm(members, d_model) if mlp_width else None
        self.mlp = GatedMLP(members, d_model, mlp_width, gain) if mlp_width else None

    def forward(self, x: Tensor) -> Tensor:
        """[M, B, T, C] -> the same."""
        return self.widen(x + self.mixer(self.mixer_norm(x)))

    def widen(self, x: Tensor) -> Tensor:
        """The second half, which does not mix positions."""
        if self.mlp is None or self.mlp_norm is None:
            return x
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out

    def step(self, x: Tensor, state: Any, position: int) -> tuple[Tensor, Any]:
        """One token: x [M, B, C]."""
        mixed, state = self.mixer.step(self.mixer_norm(x), state, position)
        return self.widen(x + mixed), state


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
    ) -> None:
        super().__init__()
        members = len(seeds)
        gain = 1 / math.sqrt(2 * len(layers))
        self.embedding = Embedding(members, vocabulary, d_model)
        self.blocks = [
            Block(members, d_model, layer.build(members, d_model, gain, impl), mlp_width, gain) for layer in layers
        ]
        for i, block in enumerate(self.blocks):
            self.add_module(f"block{i}", block)
        self.norm = RMSNorm(members, d_model)
        self.head = None if tied else Linear(members, d_model, vocabulary)
        initialise(self, seeds)
        for path, module in self.named_modules():
            if isinstance(module, PlainMixer):
                module.initialise(seeds, path)

    def forward(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Logits at the scored positions alone: inputs [M, B, T], positions [M, B, S] -> [M, B, S, W]."""
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x)
        scored = x.gather(2, positions[..., None].expand(*positions.shape, x.shape[-1]))
        return self.logits(scored)

    def logits(self, x: Tensor) -> Tensor:
        """[M, ..., C] -> [M, ..., W]."""
        x = self.norm(x)
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
        x = self.embedding(inputs[..., None])[..., 0, :]
        states = []
        for block, own in zip(self.blocks, state, strict=True):
            x, after = block.step(x, own, position)
            states.append(after)
        return self.logits(x[:, :, None])[:, :, 0], states

    def parameters_per_member(self) -> int:
        """Parameters of one model."""
        return sum(parameter[0].numel() for parameter in self.parameters())
