"""The model around the mixers, the same for every architecture.

x = embedding(ids)
x = x + mixer_i(norm(x));  x = x + mlp(norm(x))     for each layer; no mlp where its width is 0
logits = norm(x)[scored positions] head             head: the embedding's transpose where tied
"""

from typing import Any

from torch import Tensor, nn

from icl_bench.architectures.base import Architecture, FirstLayer, LayerContext, Mixer
from icl_bench.architectures.initialisation import initialise
from icl_bench.architectures.interface import Interface, Scores
from icl_bench.architectures.layers import GatedMLP, RMSNorm, start_as_gpt_2
from icl_bench.errors import SpecError
from icl_bench.kernels.fleet.embedding import TokenOccurrences
from icl_bench.kernels.fleet.rows import take_rows
from icl_bench.runs.spec import ModelSpec


class Block(nn.Module):
    """One layer: a mixer and, where `mlp_width` is not 0, a gated MLP, each behind a norm and a residual."""

    def __init__(self, members: int, d_model: int, mixer: Mixer, mlp_width: int, gain: float) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(members, d_model)
        self.mixer = mixer
        self.mlp_norm = RMSNorm(members, d_model) if mlp_width else None
        self.mlp = GatedMLP(members, d_model, mlp_width, gain) if mlp_width else None

    def forward(self, x: Tensor, y: Tensor | None, first: FirstLayer | None) -> tuple[Tensor, Tensor]:
        """Apply the layer to x + y, [M, B, T, C]; the two tensors returned are summed with the next norm."""
        x, normed = self.mixer_norm.after(x, y)
        return self.apply_mlp(x, self.mixer(normed, first))

    def forward_at(
        self, x: Tensor, y: Tensor | None, positions: Tensor, first: FirstLayer | None
    ) -> tuple[Tensor, Tensor]:
        """Apply the layer for some positions only, [M, B, S]: output projection and MLP skip all others."""
        x, normed = self.mixer_norm.after(x, y)
        return self.apply_mlp(take_rows(x, positions), self.mixer.forward_at(normed, positions, first))

    def apply_mlp(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the MLP, where there is one, after the mixer's output y."""
        if self.mlp is None or self.mlp_norm is None:
            return x, y
        x, normed = self.mlp_norm.after(x, y)
        return x, self.mlp(normed)

    def step(self, x: Tensor, state: Any, position: int, first: FirstLayer | None) -> tuple[Tensor, Any]:
        """Apply the layer to one token: x [M, B, C]."""
        mixed, state = self.mixer.step(self.mixer_norm(x), state, position, first)
        x = x + mixed
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.mlp(self.mlp_norm(x))
        return x, state


class Backbone(nn.Module):
    """M models of the same shape, with parameters drawn on the CPU.

    The initial parameters of a member depend on its seed alone. There is a block for each architecture of `layers`;
    `model` gives the sizes around the mixers, and `impl` the kernel implementation, `auto` for the best available.
    """

    def __init__(
        self, seeds: list[int], interface: Interface, layers: list[Architecture], model: ModelSpec, impl: str
    ) -> None:
        super().__init__()
        members, width, hidden = len(seeds), model.d_model, round(model.mlp * model.d_model)
        self.interface = interface
        self.embedding = interface.make_embedding(members, width, model.embedding_scale)
        self.head = interface.make_head(members, width, model.tied)
        places = [LayerContext(i, len(layers), impl) for i in range(len(layers))]
        self.blocks = [
            Block(members, width, layer.build(members, width, place), hidden, place.output_gain)
            for layer, place in zip(layers, places, strict=True)
        ]
        for i, block in enumerate(self.blocks):
            self.add_module(f"block{i}", block)
        self.norm = RMSNorm(members, width)
        self.shares_first_layer = any(block.mixer.asks_first_layer for block in self.blocks[1:])
        self.check_shared_values()
        if model.init == "gpt-2":
            start_as_gpt_2(self, places[0].output_gain)
        initialise(self, seeds)

    def check_shared_values(self) -> None:
        """Raise SpecError where a layer asks for values that the first layer does not have in this shape."""
        offered = self.blocks[0].mixer.value_shape
        for block in self.blocks[1:]:
            asked = block.mixer.value_shape
            if block.mixer.asks_first_layer and asked != offered:
                raise SpecError(
                    "a layer that mixes its values with those of the first layer needs them in its own shape, [heads, "
                    f"width] = {asked}; the first layer has {offered or 'none'}; change the first layer, or leave the "
                    "values as they are (rwkv-7:value_residual=false)"
                )

    def forward(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return outputs at the scored positions: inputs [M, B, T], positions [M, B, S] -> [M, B, S, O]."""
        return self.outputs(self.scored_rows(inputs, positions))

    def scores(
        self, inputs: Tensor, positions: Tensor, targets: Tensor, occurrences: TokenOccurrences | None = None
    ) -> Scores:
        """Return losses and hits against targets [M, B, S]; `occurrences` of input tokens save the gradient a sort."""
        rows = self.scored_rows(inputs, positions, occurrences)
        return self.interface.score(rows, self.embedding, self.head, targets)

    def scored_rows(self, inputs: Tensor, positions: Tensor, occurrences: TokenOccurrences | None = None) -> Tensor:
        """Return the last hidden state at the scored positions, after the last norm: [M, B, S, C]."""
        x, y = self.interface.embed(self.embedding, inputs, occurrences), None
        first = FirstLayer() if self.shares_first_layer else None
        for block in self.blocks[:-1]:
            x, y = block(x, y, first)
        rows: Tensor = self.norm.after(*self.blocks[-1].forward_at(x, y, positions, first))[1]
        return rows

    def outputs(self, rows: Tensor) -> Tensor:
        """Apply the head, after the last norm: [M, ..., C] -> [M, ..., O]."""
        return self.interface.outputs(rows, self.embedding, self.head)

    def initial_state(self, batch: int) -> list[Any]:
        """Return the states of all layers before the first token."""
        return [block.mixer.initial_state(batch) for block in self.blocks]

    def step(self, inputs: Tensor, state: list[Any], position: int) -> tuple[Tensor, list[Any]]:
        """Run one token of the recurrent form: inputs [M, B] -> outputs [M, B, O] and the next states."""
        x = self.interface.embed(self.embedding, inputs[:, :, None], None)[:, :, 0]
        first, states = FirstLayer() if self.shares_first_layer else None, []
        for block, before in zip(self.blocks, state, strict=True):
            x, after = block.step(x, before, position, first)
            states.append(after)
        return self.outputs(self.norm(x)[:, :, None])[:, :, 0], states

    @property
    def recurrent(self) -> bool:
        """Have a recurrent form in every layer."""
        return all(block.mixer.recurrent for block in self.blocks)

    def parameters_per_member(self) -> int:
        """Return the number of parameters of one model."""
        return sum(parameter[0].numel() for parameter in self.parameters())
