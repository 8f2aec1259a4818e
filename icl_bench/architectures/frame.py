"""The frame of multi-head mixers: projections, convolution, norms, rotation and gates around a core; see `heads`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from icl_bench.architectures.base import FirstLayer, LayerContext, Mixer
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.filling import filled_norm, filled_width, folds_taps, project_filled, project_from_filled
from icl_bench.architectures.initialisation import Init
from icl_bench.architectures.layers import CanonConv, RMSNorm, ShortConv, StackedLinear, widen
from icl_bench.architectures.outputs import make_output_gate, make_output_norm
from icl_bench.architectures.rotation import RotationSpeed, angles_of, rotate
from icl_bench.kernels.backends import takes_triton
from icl_bench.kernels.columns import split_heads
from icl_bench.kernels.fleet.chosen_queries import attend_at, takes_chosen
from icl_bench.kernels.fleet.norm import unit_norm
from icl_bench.kernels.fleet.products import gated_product
from icl_bench.kernels.fleet.projection import project, project_beside
from icl_bench.kernels.fleet.records import Groups, HeadColumns, ScoreRule
from icl_bench.kernels.fleet.residual import fold_gains, project_onto
from icl_bench.kernels.fleet.rotation import split_rotated
from icl_bench.kernels.fleet.rows import take_rows, take_rows_beside
from icl_bench.schema import READS_NONE

KeyNorm = Annotated[Literal["none", "l2", "rms"], READS_NONE]
"""Norm of queries and keys, for each head: none, length 1 (`l2`), or RMS norm with a learned gain (`rms`)."""
OutputNorm = Literal["none", "head", "all", "layer"]
"""Norm of the output: none, RMS of each `head`, RMS of `all` heads together, or `layer` norm of each head."""
OutputGate = Annotated[Literal["none", "silu", "sigmoid"], READS_NONE]
"""Activation of the projection of x that the output is multiplied by; `none` for no gate."""


class HeadsLayout(NamedTuple):
    """The sizes of a multi-head mixer, and the parts that it puts around its core."""

    query_heads: int
    """Query heads, H."""
    key_heads: int
    """Key heads, J."""
    value_heads: int
    """Value heads, G."""
    key_width: int
    value_width: int
    writes: int = 1
    """Keys and values to a token and head."""
    conv: int = 0
    """Width of the short convolution on queries, keys and values; 0 for none."""
    conv_bias: Init | None = None
    """Initial value of the bias of the convolution; None for no bias."""
    silu: bool = False
    """Apply SiLU to queries, keys and values, after the convolution."""
    mixes_values: bool = True
    """Apply convolution and SiLU to values too."""
    key_norm: KeyNorm = "none"
    rope: bool = False
    """Rotate queries and keys by position."""
    learned_rope: bool = False
    """Let the speed of the rotation depend on the token and the key head."""
    output_norm: OutputNorm = "none"
    output_gate: OutputGate = "none"
    gate_rank: int | None = None
    """Columns between the two factors of the output gate's projection, the second with a bias; None for one factor."""
    gate_first: bool = False
    """Multiply by the output gate before the norm."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMS norms."""
    decay_norms: bool = False
    """Let weight decay apply to the gains of norms."""

    @property
    def channels(self) -> int:
        """Width of queries, keys and values together."""
        return sum(heads * width for heads, width in self.shapes)

    @property
    def mixed(self) -> int:
        """Width of all that passes through the convolution and SiLU."""
        return self.channels if self.mixes_values else self.channels - self.writes * self.value_heads * self.value_width

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Heads and widths of queries, keys and values."""
        keys, values = self.writes * self.key_heads, self.writes * self.value_heads
        return [(self.query_heads, self.key_width), (keys, self.key_width), (values, self.value_width)]

    @property
    def filled(self) -> "HeadsLayout":
        """The layout with zero channels at the end of each head; see `filling`."""
        return self._replace(key_width=filled_width(self.key_width), value_width=filled_width(self.value_width))

    @property
    def filled_blocks(self) -> list[Groups]:
        """Queries and keys, and values, with the zeros of each head."""
        (queries, width), (keys, _), (values, value_width) = self.shapes
        filled = self.filled
        first = Groups(queries + keys, width, filled.key_width)
        return [first, Groups(values, value_width, filled.value_width)]

    @property
    def has_plain_heads(self) -> bool:
        """Leave queries, keys, values and outputs to the convolution, the core and the RMS norm of a head alone."""
        parts = self.silu or self.rope or self.key_norm != "none" or self.conv_bias is not None
        return not parts and self.output_gate == "none" and self.output_norm in ("none", "head")

    @property
    def output_shape(self) -> tuple[int, int]:
        """Heads and width of the output of the core."""
        return max(self.query_heads, self.value_heads), self.value_width

    @property
    def output_width(self) -> int:
        """Width of the output of all heads."""
        heads, width = self.output_shape
        return heads * width

    @property
    def rotated_heads(self) -> int:
        """Key heads with a speed of rotation of their own; 0 where the speed is fixed."""
        return self.key_heads if self.learned_rope else 0

    def gate_weights(self, d_model: int) -> int:
        """Return the number of weights of the output gate."""
        if self.output_gate == "none":
            return 0
        rank = self.gate_rank
        return d_model * self.output_width if rank is None else rank * (d_model + self.output_width)


class Core(nn.Module, ABC):
    """The recurrence of a multi-head mixer: it owns its parameters, reads its gates from x, and carries its state.

    Queries are [M, B, T, H, K], keys [M, B, T, G, K], values [M, B, T, G, V], and x, the input of the layer,
    [M, B, T, C]. The decay gate, None where `gate` is off, is registered by the layer and read by the core.
    """

    __call__: Callable[..., Tensor]
    reads_input = True
    """Read x beside queries, keys, values and the shared gate."""
    ignores_zeros = False
    """Give the same outputs, and zeros behind them, where queries, keys and values have zeros behind their channels."""

    def __init__(self, gate: DecayGate | None = None) -> None:
        super().__init__()
        self.gates = (gate,)  # a tuple, so that it is not registered twice, which `functional_call` cannot undo

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """Compute the parallel form, causal in T: [M, B, T, H, V]."""

    @abstractmethod
    def initial_state(self, batch: int, like: Tensor) -> Any:
        """Return the state before the first token, for `like` [M, ...] and its device and dtype."""

    @property
    def score_rule(self) -> ScoreRule | None:
        """Weights of scores where the core does nothing else; None for other cores, and where a form is set."""
        return None

    def at(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, positions: Tensor | None) -> Tensor:
        """Compute the parallel form, at positions [M, B, S] only where there are any: [M, B, T or S, H, V]."""
        rule = None if self._forward_hooks else self.score_rule  # hooks see the outputs of all tokens
        if positions is not None and rule is not None and takes_chosen(q, k, v, positions.shape[-1]):
            return attend_at(fold(q), fold(k), fold(v), fold(positions), rule).view(*positions.shape, *v.shape[-2:])
        y: Tensor = self(q, k, v, x)
        return y if positions is None else take_rows(y.flatten(-2), positions).unflatten(-1, y.shape[-2:])

    @abstractmethod
    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Compute one token: arguments without the axis T -> [M, B, H, V] and the next state."""

    def step_at(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: Any, position: int) -> tuple[Tensor, Any]:
        """Compute one token as `step` does, at a position, on which few cores depend."""
        return self.step(q, k, v, x, state)

    def log_gate(self, x: Tensor) -> Tensor | None:
        """Return the logarithm of the shared decay gate, [M, B, (T,) G]; None without a gate."""
        (gate,) = self.gates
        return None if gate is None else gate(x)


class HeadsState(NamedTuple):
    """State of a `HeadsMixer`."""

    core: Any
    tail: Tensor | None
    """Last inputs of the convolution, [M, B, conv - 1, mixed]."""
    canon: Tensor | None
    """Last inputs of the canon layer, [M, B, 3, channels]."""
    place: Tensor | None
    """Sum of the speeds of the rotation, where they are learned, [M, B, J] in float32."""


class HeadsMixer(Mixer):
    """Projections, convolution, norms, rotation and gates around a core; see the module."""

    def __init__(
        self, members: int, d_model: int, layout: HeadsLayout, core: Core, gate: DecayGate | None, layer: LayerContext
    ) -> None:
        super().__init__()
        self.layout, self.layer = layout, layer
        self.project = StackedLinear(members, d_model, layout.channels)
        self.canon = CanonConv(members, layer.canon_width) if layer.canon_width else None
        taps = layout.conv
        self.conv = ShortConv(members, layout.mixed, taps, layout.silu, layout.conv_bias) if taps else None
        sides = range(2 if layout.key_norm == "rms" else 0)
        norms = [RMSNorm(members, layout.key_width, layout.norm_eps, layout.decay_norms) for _ in sides]
        self.key_norms = nn.ModuleList(norms) if norms else None
        self.speed = RotationSpeed(members, d_model, layout.key_heads) if layout.learned_rope else None
        self.gate, self.core = gate, core
        self.norm = make_output_norm(members, layout)
        self.output_gate = make_output_gate(members, d_model, layout)
        self.output = StackedLinear(members, layout.output_width, d_model, layer.output_gain)
        plain = layout.has_plain_heads and core.ignores_zeros and self.canon is None
        self.can_fill = plain and layout.filled != layout
        self.can_pair = plain and layout.conv == 2 and core.score_rule is not None

    @property
    def value_shape(self) -> tuple[int, int]:
        return self.layout.shapes[-1]

    @property
    def takes_pairs(self) -> bool:
        return self.can_pair and folds_taps(self.project.weight)

    @torch.no_grad()
    def scale_scores(self, gains: Tensor) -> bool:
        columns = sum(heads * width for heads, width in self.layout.shapes[:2])
        self.project.weight[..., :columns].mul_(gains[:, None, None])
        return True

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        if self.fills(x, first):
            return self.output_of_filled(self.mix_filled(x, first))
        x, qkv, gate = self.projections(x)
        y = self.mix(x, first, qkv)
        return self.output(self.finish(y, None if gate is None else gate.view(y.shape)))

    @property
    def reads_one_product(self) -> bool:
        gated = self.gate is not None or self.output_gate is not None or self.speed is not None
        return not (gated or self.core.reads_input or self.can_fill)

    def added_onto(self, total: Tensor, rows: Tensor, gain: Tensor, first: FirstLayer | None) -> Tensor:
        qkv = project(rows.flatten(1, -2), fold_gains(self.project.weight, gain)).view(*rows.shape[:-1], -1)
        y = self.finish(self.mix(rows, first, qkv), None)
        return project_onto(total.flatten(1, -2), y.flatten(1, -2), self.output.weight).view(total.shape)

    def fills(self, x: Tensor, first: FirstLayer | None) -> bool:
        """Return whether the heads get zero channels: on a GPU, where no other layer reads the values, and of pairs."""
        paired = x.shape[-1] != self.project.weight.shape[1]
        return paired or (self.can_fill and first is None and takes_triton("auto", x))

    def mix_filled(self, x: Tensor, first: FirstLayer | None, positions: Tensor | None = None) -> Tensor:
        """Compute `mix` with zeros at the end of each head, of pairs too: [M, B, T or S, H, filled V]."""
        taps = None if self.conv is None else self.conv.weight
        rows = project_filled(x, self.project.weight, taps, self.layout.filled_blocks)
        q, k, v = split_heads(rows, self.layout.filled.shapes)
        self.offer(v[..., : self.layout.value_width], first)
        return self.core.at(q, k, v, x, positions)

    def output_of_filled(self, y: Tensor) -> Tensor:
        """Apply the norm of heads, where there is one, and the output projection to rows of `mix_filled`."""
        y = filled_norm(y, self.norm.weight, self.norm.eps) if isinstance(self.norm, RMSNorm) else y
        return project_from_filled(y, self.output.weight, self.layout.value_width)

    def projections(self, x: Tensor, gated: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x for its other uses, q, k and v [M, B, T, channels], and the output gate, None where not `gated`.

        Where Triton runs, one operator makes all, so that their gradients of x are added inside of a product.
        """
        gate, weights = self.output_gate if gated else None, [self.project.weight]
        joint = isinstance(gate, StackedLinear) and takes_triton("auto", x)
        if isinstance(gate, StackedLinear) and joint:
            weights.append(gate.weight)
        weight = torch.cat(weights, dim=-1) if joint else weights[0]
        rows, blocks = project_beside(x.flatten(1, -2), weight, [part.shape[-1] for part in weights])
        x, (qkv, *rest) = rows.view(x.shape), (block.view(*x.shape[:-1], -1) for block in blocks)
        return x, qkv, rest[0] if joint else None if gate is None else gate(x)

    def forward_at(self, x: Tensor, positions: Tensor, first: FirstLayer | None = None) -> Tensor:
        filled, rows_of_x = self.fills(x, first), x
        if self.output_gate is not None:
            x, rows_of_x = take_rows_beside(x, positions)
        rows = self.mix_filled(x, first, positions) if filled else self.mix(x, first, positions=positions)
        return self.output_of_filled(rows) if filled else self.project_out(rows, rows_of_x)

    def mix(
        self, x: Tensor, first: FirstLayer | None, qkv: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Compute the output of the core, [M, B, T or S, H, V]; `qkv` is the projection of x where it is made."""
        if qkv is None:
            x, qkv, _ = self.projections(x, gated=False)
        q, k, v = self.rotated(qkv if self.canon is None else self.canon(qkv), x)
        return self.core.at(q, k, self.offer(v, first), x, positions)

    def rotated(self, qkv: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the operands of the core, rotated by position where the layout says so; arguments as for `mix`."""
        layout = self.layout
        if not layout.rope:
            return self.operands(qkv)
        places = torch.arange(x.shape[2], device=x.device)[:, None] if self.speed is None else self.speed(x).cumsum(2)
        if self.speed is None and not layout.silu and layout.key_norm == "none":
            convolved = qkv if self.conv is None else self.conv(qkv)
            return split_rotated(convolved, layout.shapes, *angles_of(places, layout.key_width))
        q, k, v = self.operands(qkv)
        return *rotate(q, k, places), v

    def operands(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply convolution, SiLU and norms: [M, B, T, channels] -> q [.., H, K], k [.., J, K] and v [.., G, V]."""
        layout = self.layout
        if self.conv is None or not (layout.silu or layout.key_norm == "l2"):
            return self.split(qkv if self.conv is None else self.conv(qkv))
        mixed, values = self.parted(qkv)
        parts = [HeadColumns(*shape, layout.key_norm == "l2") for shape in layout.shapes[:2]]
        q, k, *convolved = self.conv.heads(mixed, parts + [HeadColumns(*layout.shapes[2])] * layout.mixes_values)
        return *self.apply_gains(q, k), convolved[0] if convolved else values.unflatten(-1, layout.shapes[2])

    def parted(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Split [..., channels] into what passes through the convolution and SiLU, and what does not."""
        if self.layout.mixes_values:
            return qkv, qkv[..., self.layout.mixed :]  # a slice that nothing reads gets no gradient
        mixed, values = qkv.split([self.layout.mixed, self.layout.channels - self.layout.mixed], dim=-1)
        return mixed, values

    def offer(self, v: Tensor, first: FirstLayer | None) -> Tensor:
        """Return the values [M, B, (T,) G, V]; the first layer offers them to later ones."""
        if first is not None and self.layer.index == 0:
            first.values = v
        return v

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split [..., channels] into q [..., H, K], k [..., J, K] and v [..., G, V], and normalise q and k."""
        layout, shapes = self.layout, self.layout.shapes
        if self.conv is None and layout.silu:
            mixed, values = self.parted(qkv)
            active = functional.silu(mixed)
            qkv = active if layout.mixes_values else torch.cat([active, values], dim=-1)
        q, k, v = split_heads(qkv, shapes)
        if layout.key_norm == "l2":
            q, k = unit_norm(q), unit_norm(k)
        return *self.apply_gains(q, k), v

    def apply_gains(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the RMS norms with learned gains, where there are any."""
        return (q, k) if self.key_norms is None else (self.key_norms[0](q), self.key_norms[1](k))

    def project_out(self, y: Tensor, x: Tensor) -> Tensor:
        """Apply norm, output gate and output projection: y [M, ..., H, V], x [M, ..., C] -> [M, ..., C]."""
        gate = None if self.output_gate is None else self.output_gate(x).view(y.shape)
        return self.output(self.finish(y, gate))

    def finish(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """Apply norm and output gate, where there are any: [M, ..., H, V] each -> [M, ..., H V]."""
        activation = self.layout.output_gate
        if self.layout.output_norm == "all":
            y, gate = y.flatten(-2), None if gate is None else gate.flatten(-2)
        if self.norm is not None and gate is not None:
            y = self.norm.gated(y, gate, activation, self.layout.gate_first)
        elif self.norm is not None:
            y = self.norm(y)
        elif gate is not None:
            y = gated_product(y, gate, activation)
        return y if self.layout.output_norm == "all" else y.flatten(-2)

    def initial_state(self, batch: int) -> HeadsState:
        tail, canon = (None if part is None else part.initial_tail(batch) for part in (self.conv, self.canon))
        weight = self.project.weight
        place = None if self.speed is None else widen(weight.new_zeros(weight.shape[0], batch, self.layout.key_heads))
        return HeadsState(self.core.initial_state(batch, weight), tail, canon, place)

    def step(
        self, x: Tensor, state: HeadsState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, HeadsState]:
        qkv, (_, tail, canon, place) = self.project(x), state
        if self.canon is not None and canon is not None:
            qkv, canon = self.canon.step(qkv, canon)
        if self.conv is not None and tail is not None:
            mixed, values = self.parted(qkv)
            mixed, tail = self.conv.step(mixed, tail)
            qkv = torch.cat([mixed, values], dim=-1)
        q, k, v = self.split(qkv)
        if self.layout.rope:
            place = None if self.speed is None or place is None else place + self.speed(x)
            q, k = rotate(q, k, torch.tensor([position], device=x.device) if place is None else place)
        y, core = self.core.step_at(q, k, self.offer(v, first), x, state.core, position)
        return self.project_out(y, x), HeadsState(core, tail, canon, place)


def fold(x: Tensor) -> Tensor:
    """Join members and batch, as the operators take them: [M, B, ...] -> [M·B, ...]."""
    return x.reshape(-1, *x.shape[2:])
