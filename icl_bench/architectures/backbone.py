"""The model around the mixers, the same for every architecture.

x = embedding(ids)
x = x + mixer_i(norm(x));  x = x + mlp(norm(x))     for each layer; no mlp where its width is 0
                                                    where `canon`, norm(x) + conv(norm(x)) in place of norm(x)
logits = norm(x)[scored positions] head             head: the embedding's transpose where tied
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from icl_bench.architectures.base import (
    Architecture,
    DealsExamples,
    DegreeRise,
    FirstLayer,
    LayerContext,
    Mixer,
    Rising,
)  # fmt: skip
from icl_bench.architectures.initialisation import initialise
from icl_bench.architectures.interface import Interface, Scores
from icl_bench.architectures.layers import CanonConv, GatedMLP, RMSNorm, start_as_published
from icl_bench.errors import SpecError
from icl_bench.kernels.backends import has_triton
from icl_bench.kernels.fleet.embedding import TokenOccurrences
from icl_bench.kernels.fleet.residual import stands_alone
from icl_bench.kernels.fleet.rows import take_rows
from icl_bench.runs.spec import ModelSpec


class BlockState(NamedTuple):
    """State of a `Block`: that of its mixer, and the last three inputs of each canon layer, [M, B, 3, channels]."""

    mixer: Any
    before_mixer: Tensor | None
    before_mlp: Tensor | None
    in_mlp: Tensor | None


class Block(nn.Module):
    """One layer: a mixer and, where `mlp_width` is not 0, a gated MLP, each behind a norm and a residual.

    Canon layers are where `model.canon` has them; that on queries, keys and values belongs to the mixer.
    """

    def __init__(self, members: int, mixer: Mixer, model: ModelSpec, gain: float) -> None:
        super().__init__()
        width, hidden, canon = model.d_model, model.mlp_width, model.canon
        self.mixer_norm = RMSNorm(members, width)
        self.mixer_canon = CanonConv(members, width) if "a" in canon else None
        self.mixer = mixer
        self.mlp_norm = RMSNorm(members, width) if hidden else None
        self.mlp_canon = CanonConv(members, width) if "c" in canon else None
        self.mlp = GatedMLP(members, width, hidden, gain, "d" in canon) if hidden else None

    def forward(
        self, x: Tensor, y: Tensor | None, first: FirstLayer | None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the layer to x + y, [M, B, T, C], or for some positions only, [M, B, S].

        The two tensors returned are summed with the next norm, None for 0; then x has been written over.
        """
        if positions is not None:
            return self.forward_at(x, y, positions, first)
        if y is None and self.adds_in_place and stands_alone(x):
            return self.add_in_place(x, first), None
        x, normed = self.mixer_input(x, y)
        return self.apply_mlp(x, self.mixer(normed, first))

    def forward_at(
        self, x: Tensor, y: Tensor | None, positions: Tensor, first: FirstLayer | None
    ) -> tuple[Tensor, Tensor]:
        """Apply the layer for some positions only, [M, B, S]: output projection and MLP skip all others."""
        if self.mlp_canon is not None or (self.mlp is not None and self.mlp.canon is not None):
            x, y = self(x, y, first)  # such an MLP reads the tokens before a position too
            return take_rows(x, positions), take_rows(y, positions)
        x, normed = self.mixer_input(x, y)
        return self.apply_mlp(take_rows(x, positions), self.mixer.forward_at(normed, positions, first))

    @property
    def adds_in_place(self) -> bool:
        """Have a mixer and an MLP that read nothing of a norm but one product each."""
        plain = self.mixer_canon is None and self.mlp_canon is None
        return plain and self.mlp is not None and self.mlp.canon is None and self.mixer.reads_one_product

    def add_in_place(self, x: Tensor, first: FirstLayer | None) -> Tensor:
        """Return the stream x with the outputs of both layers added, written over it."""
        assert self.mlp is not None and self.mlp_norm is not None
        x, rows = self.mixer_norm.unit(x)
        x = self.mixer.added_onto(x, rows, self.mixer_norm.weight, first)
        x, rows = self.mlp_norm.unit(x)
        return self.mlp.added_onto(x, rows, self.mlp_norm.weight)

    def mixer_input(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the residual sum x + y and the input of the mixer."""
        if self.mixer.takes_pairs and self.mixer_canon is None:
            return self.mixer_norm.pairs_after(x, y)
        x, normed = self.mixer_norm.after(x, y)
        return x, normed if self.mixer_canon is None else self.mixer_canon(normed)

    def apply_mlp(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the MLP, where there is one, after the mixer's output y."""
        if self.mlp is None or self.mlp_norm is None:
            return x, y
        x, normed = self.mlp_norm.after(x, y)
        return x, self.mlp(normed if self.mlp_canon is None else self.mlp_canon(normed))

    def initial_state(self, batch: int) -> BlockState:
        """Return the state before the first token."""
        convs = [self.mixer_canon, self.mlp_canon, None if self.mlp is None else self.mlp.canon]
        tails = [None if conv is None else conv.initial_tail(batch) for conv in convs]
        return BlockState(self.mixer.initial_state(batch), *tails)

    def step(self, x: Tensor, state: BlockState, position: int, first: FirstLayer | None) -> tuple[Tensor, BlockState]:
        """Apply the layer to one token: x [M, B, C]."""
        _, before_mixer, before_mlp, in_mlp = state
        normed = self.mixer_norm(x)
        if self.mixer_canon is not None and before_mixer is not None:
            normed, before_mixer = self.mixer_canon.step(normed, before_mixer)
        mixed, mixer = self.mixer.step(normed, state.mixer, position, first)
        x = x + mixed
        if self.mlp is not None and self.mlp_norm is not None:
            normed = self.mlp_norm(x)
            if self.mlp_canon is not None and before_mlp is not None:
                normed, before_mlp = self.mlp_canon.step(normed, before_mlp)
            y, in_mlp = self.mlp.step(normed, in_mlp)
            x = x + y
        return x, BlockState(mixer, before_mixer, before_mlp, in_mlp)


def recomputed(
    block: Block, x: Tensor, y: Tensor | None, first: FirstLayer | None, positions: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Apply a block without keeping its activations, which the backward pass computes again; `first` must be None.

    The parameters in use, which may stand in for those of the module, are arguments: the second pass needs them too.
    """
    names, parameters = zip(*block.named_parameters(), strict=True)

    def apply(x: Tensor, y: Tensor | None, *parameters: Tensor) -> Any:
        kept = x.clone() if y is None and block.adds_in_place and stands_alone(x) else x  # the second pass needs x too
        return functional_call(block, dict(zip(names, parameters, strict=True)), (kept, y, first, positions))

    out: tuple[Tensor, Tensor | None] = checkpoint(
        apply, x, y, *parameters, use_reentrant=False, preserve_rng_state=False
    )
    return out


class Backbone(nn.Module):
    """M models of the same shape, with parameters drawn on the CPU.

    The initial parameters of a member depend on its seed and its gain alone, that of `model` where no `gains` are
    given. There is a block for each architecture of `layers`; `model` gives the sizes around the mixers, and `impl` the
    kernel implementation, `auto` for the best available. With `recompute` set, a training step keeps the inputs of each
    block alone, and computes its activations twice.
    """

    def __init__(
        self,
        seeds: list[int],
        interface: Interface,
        layers: list[Architecture],
        model: ModelSpec,
        impl: str,
        gains: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        members, width = len(seeds), model.d_model
        self.interface, self.recompute = interface, False
        self.embedding = interface.make_embedding(members, width, model.embedding_scale)
        self.head = interface.make_head(members, width, model.tied)
        canon_widths = [layer.canon_width(width) if "b" in model.canon else 0 for layer in layers]
        places = [LayerContext(i, len(layers), impl, canon) for i, canon in enumerate(canon_widths)]
        self.blocks = [
            Block(members, layer.build(members, width, place), model, place.output_gain)
            for layer, place in zip(layers, places, strict=True)
        ]
        for i, block in enumerate(self.blocks):
            self.add_module(f"block{i}", block)
        self.norm = RMSNorm(members, width)
        self.shares_first_layer = any(block.mixer.asks_first_layer for block in self.blocks[1:])
        self.check_shared_values()
        if model.init == "published":
            for block, layer in zip(self.blocks, layers, strict=True):
                start_as_published(block.mixer, places[0].output_gain, layer.published_init)
        if model.init != "fan-in":
            start_as_published(self, places[0].output_gain, "gpt-2")
        initialise(self, seeds)
        self.apply_gains([model.gain] * members if gains is None else gains)

    def apply_gains(self, gains: Sequence[float]) -> None:
        """Multiply the initial queries and keys of each member by its gain; raise SpecError if no layer has any."""
        if all(gain == 1 for gain in gains):
            return
        scaled = [block.mixer.scale_scores(torch.tensor(gains)) for block in self.blocks]
        if not any(scaled):
            raise SpecError(
                "model.gain scales the queries and keys of multi-head mixers; got "
                f"{max(gains):g} for layers that have none; leave it at 1"
            )

    def raise_degree(self, rise: DegreeRise) -> None:
        """Let the degree of every layer that has one rise in training."""
        for module in self.modules():
            if isinstance(module, Rising):
                module.raise_degree(rise)

    @property
    def deals_examples(self) -> bool:
        """Have a layer that treats the examples of a training batch by their places in it."""
        return any(isinstance(module, DealsExamples) for module in self.modules())

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
        return self.outputs(self.scored_rows(inputs, positions)[0])

    def scores(
        self,
        inputs: Tensor,
        positions: Tensor,
        targets: Tensor,
        occurrences: TokenOccurrences | None = None,
        leading: bool = False,
    ) -> Scores:
        """Return losses and hits against targets [M, B, S]; `occurrences` of input tokens save the gradient a sort.

        With `leading`, the positions are 0 to S - 1, and rows are cut off instead of gathered.
        """
        rows, table = self.scored_rows(inputs, positions, occurrences, leading)
        if not (leading and has_triton(rows)):
            return self.interface.score(rows[:, :, : positions.shape[2]], table, self.head, targets)
        # Rows of the last positions are scored for nothing, which costs less than a copy of the others.
        missing = rows.shape[2] - positions.shape[2]
        scores = self.interface.score(rows, table, self.head, functional.pad(targets, (0, missing)))
        return Scores(*(part[:, :, : positions.shape[2]] for part in scores))

    def scored_rows(
        self, inputs: Tensor, positions: Tensor, occurrences: TokenOccurrences | None = None, leading: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the last hidden state at the scored positions, after the last norm: [M, B, S, C].

        With `leading` it is that of all positions, [M, B, T, C]. Returned too is the table for a tied head.
        """
        (x, table), y = self.interface.embed(self.embedding, inputs, occurrences), None
        first = FirstLayer() if self.shares_first_layer else None
        apply = recomputed if self.recompute and torch.is_grad_enabled() else Block.__call__
        for block in self.blocks[:-1]:
            x, y = apply(block, x, y, first)
        rows: Tensor = self.norm.after(*apply(self.blocks[-1], x, y, first, None if leading else positions))[1]
        return rows, table

    def outputs(self, rows: Tensor) -> Tensor:
        """Apply the head, after the last norm: [M, ..., C] -> [M, ..., O]."""
        return self.interface.outputs(rows, self.embedding, self.head)

    def initial_state(self, batch: int) -> list[Any]:
        """Return the states of all layers before the first token."""
        return [block.initial_state(batch) for block in self.blocks]

    def step(self, inputs: Tensor, state: list[Any], position: int) -> tuple[Tensor, list[Any]]:
        """Run one token of the recurrent form: inputs [M, B] -> outputs [M, B, O] and the next states."""
        x = self.interface.embed(self.embedding, inputs[:, :, None], None)[0][:, :, 0]
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
