"""Launches of the kernels of the delta rule; the caller makes the device of the tensors current."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.delta.triton.backward import DeltaGradients, delta_backward_kernel
from icl_bench.kernels.delta.triton.channels import channel_backward_kernel, channel_forward_kernel
from icl_bench.kernels.delta.triton.forward import delta_forward_kernel
from icl_bench.kernels.delta.triton.segments import (
    delta_inverse_kernel,
    delta_join_kernel,
    delta_segment_kernel,
    delta_state_gradient_kernel,
)
from icl_bench.kernels.delta.triton.table import (
    CHUNK,
    SYSTEMS,
    DeltaLaunch,
    DeltaShape,
    join_launch,
    segment_length,
)
from icl_bench.kernels.delta.triton.tied import tied_backward_kernel, tied_forward_kernel
from icl_bench.kernels.delta.triton.tiles import BOUNDED, DeltaConstants, DeltaViews
from icl_bench.kernels.triton.common import add_neighbours, padded, view_of

WIDEST_TIED, WIDEST_CHANNELS = 64, 32
"""Widest keys of the kernels of `tied` and of `channels`."""
BOUND, UNTIED_BOUND = -5.0, -2.5
"""Least log decays of a channel at which exp of the sums over 16 tokens stays in the range of float32 (e^88), and at
which gradients of states do so times the decay of a whole chunk, as the untied rule of `channels` has them."""


class DeltaCall(NamedTuple):
    """The inputs of a call (`DeltaInputs`) with unit strides in the last axis, and its options."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    log_decay: Tensor | None
    read: Tensor | None
    erase: Tensor | None
    log_value_decay: Tensor | None
    state: Tensor | None
    rule: str
    undecayed: bool
    ahead: bool
    scale: float
    least: float
    """Least log decay of a channel that the caller guarantees; -inf for none."""

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Return N, the number of sub-steps nT, H, G and K."""
        n, tokens, groups, _ = self.v.shape
        return n, tokens, self.q.shape[2], groups, self.q.shape[3]

    @property
    def chunks(self) -> int:
        """Chunks of a sequence."""
        return -(-self.v.shape[1] // CHUNK)

    @property
    def segment(self) -> int:
        """Sub-steps to a segment; those of a whole sequence where segments are not taken in parallel."""
        n, tokens, _, groups, key_width = self.sizes
        if self.log_value_decay is not None:  # its maps of states are no products with matrices [K, K]
            return tokens
        return segment_length(tokens, n * groups, key_width, self.v.shape[3])

    @property
    def segments(self) -> int:
        """Segments of a sequence, that are taken in parallel."""
        return -(-self.v.shape[1] // self.segment)

    @property
    def own_reads(self) -> bool:
        """Reads have vectors of their own, or a time of their own: before the decay of their token."""
        return self.read is not None or self.undecayed

    @property
    def tied(self) -> bool:
        """The kernels of `tied` take the call."""
        one_decay = self.log_decay is None or self.log_decay.ndim == 3
        narrow = self.q.shape[3] <= WIDEST_TIED
        return self.rule == "delta" and not self.own_reads and one_decay and narrow and self.whole

    @property
    def channels(self) -> bool:
        """The kernels of `channels` take the call."""
        known = self.undecayed if self.rule == "untied" else self.rule == "delta" and not self.own_reads
        of_channels = self.log_decay is not None and self.log_decay.ndim == 4
        bounded = self.least >= (UNTIED_BOUND if self.rule == "untied" else BOUND)
        return known and of_channels and bounded and self.q.shape[3] <= WIDEST_CHANNELS and self.whole

    @property
    def keeps_rows(self) -> bool:
        """The rows that chunks write are kept: to make those of an untied rule again takes less time."""
        return self.tied or (self.channels and self.rule == "delta")

    @property
    def whole(self) -> bool:
        """A program has a whole sequence of tokens of one step, and the range of float32 for gradients of states."""
        one_step = self.k.shape[1] == self.q.shape[1]
        return one_step and self.q.dtype != torch.float16 and self.segments == 1

    @property
    def precision(self) -> str:
        """Type of the operands of products, but for bfloat16 three parts of tf32, which keep the digits of float32.

        One part is not enough beside float16: equal keys at a rate of 2 add up the same rounding error at every chunk.
        """
        return "bf16" if self.q.dtype == torch.bfloat16 else "tf32x3"

    @property
    def shape(self) -> DeltaShape:
        """Widths, rule and gates, on which the launches of the table depend."""
        gate = self.log_decay
        kind = "none" if gate is None else "heads" if gate.ndim == 3 else "channels"
        kind = kind if self.log_value_decay is None else "values"
        own = self.tied or self.channels
        return DeltaShape(self.q.shape[3], self.v.shape[3], self.rule, kind, self.segments > 1, own)

    def views(self) -> DeltaViews:
        """Return views of the inputs; those that are not given are views of q, which no kernel reads through them."""
        numbers = (x if x is None or x.ndim == 4 else x[..., None] for x in self[:8])
        return DeltaViews(*(view_of(self.q if x is None else x) for x in numbers))

    def options(self, launch: DeltaLaunch, save: bool, single: bool = False) -> dict[str, Any]:
        """Return the constants and the options of a launch; `single` takes chunks for segments."""
        _, tokens, _, _, key_width = self.sizes
        channels = 2 if self.least >= BOUND else 3
        constants = DeltaConstants(
            K=key_width,
            V=self.v.shape[3],
            BLOCK_K=padded(key_width, 16),
            BLOCK_V=launch.block_v,
            ROWS=CHUNK,
            SUB=tokens // self.q.shape[1],
            TIED=self.rule == "delta",
            UNTIED=self.rule == "untied",
            READ=self.read is not None,
            UNDECAYED=self.undecayed,
            AHEAD=self.ahead,
            RATED=self.beta is not None,
            GATE=0 if self.log_decay is None else 1 if self.log_decay.ndim == 3 else channels,
            VALUE_GATE=0 if self.log_value_decay is None else channels,
            INITIAL=self.state is not None,
            SAVE=save,
            SEGMENTED=single or self.segments > 1,
            SINGLE=single,
            PRECISION=self.precision,
        )
        # Triton 3.10 turns multiply-adds off unless they are asked for.
        return {
            "C": constants, "num_warps": launch.warps, "num_stages": launch.stages, "maxnreg": launch.registers,
            "enable_fp_fusion": True,
        }  # fmt: skip

    def forms(self, launch: DeltaLaunch, save: bool, single: bool = False) -> dict[str, Any]:
        """Return the options of a launch that takes decays without a bound as bounded where they are mild."""
        options, bounded = self.options(launch, save, single), BOUNDED.value
        gates = options["C"]
        mild = gates._replace(GATE=min(gates.GATE, bounded), VALUE_GATE=min(gates.VALUE_GATE, bounded))
        return options | {"MILD": mild}

    def grid(self, launch: DeltaLaunch) -> tuple[int]:
        """Return the grid of one program for each block of values of each segment of each head."""
        n, _, _, groups, _ = self.sizes
        return (n * groups * self.segments * -(-self.v.shape[3] // launch.block_v),)


class DeltaKept(NamedTuple):
    """Results that the backward pass reads, in float32; without elements where it is not kept or not needed."""

    states: Tensor
    """States before chunks, transposed [N, G, chunks, V, K]; in bfloat16 where that is the type of operands."""
    inverses: Tensor
    """Inverses of the systems of chunks [N, G, chunks, C, C], of `tied` (times the rates) and `channels` transposed."""
    maps: Tensor
    """Maps of segments [N, G, segments, V + K, K], as `segments` has them."""
    rows: Tensor
    """Rows that chunks write, transposed [N, G, chunks, V, C], where `keeps_rows`; in the type of states."""


def empty_outputs(call: DeltaCall, save: bool) -> tuple[Tensor, Tensor, DeltaKept]:
    """Return empty tensors for y [N, T, G, V], the last state, and for what the backward pass reads."""
    n, _, _, groups, key_width = call.sizes
    value_width, device = call.v.shape[3], call.v.device
    y = torch.empty(n, call.q.shape[1], groups, value_width, device=device, dtype=call.v.dtype)
    last = torch.empty(n, groups, key_width, value_width, device=device, dtype=torch.float32)
    segmented = call.segments > 1
    states = (n, groups, call.chunks, value_width, key_width) if save else (0,)
    inverses = (n, groups, call.chunks, CHUNK, CHUNK) if (save or segmented) and call.rule != "linear" else (0,)
    maps = (n, groups, call.segments, value_width + key_width, key_width) if segmented else (0,)
    rows = (n, groups, call.chunks, value_width, CHUNK) if save and call.keeps_rows else (0,)
    operand = torch.bfloat16 if call.precision == "bf16" else torch.float32
    sizes = (states, operand), (inverses, torch.float32), (maps, torch.float32), (rows, operand)
    return y, last, DeltaKept(*(torch.empty(shape, device=device, dtype=kind) for shape, kind in sizes))


def launch_delta_forward(call: DeltaCall, save: bool, launch: DeltaLaunch) -> tuple[Tensor, Tensor, DeltaKept]:
    """Return y, the last state and what the backward pass reads: where `save` all of it."""
    y, last, kept = empty_outputs(call, save)
    if call.tied or call.channels:
        return launch_own_forward(call, save, launch, y, last, kept)
    first = call.state
    if call.segments > 1:
        launch_delta_maps(call, kept, launch)
        first = join_segments(call, kept.maps, kept.maps, call.state, reverse=False)
    _, tokens, heads, groups, _ = call.sizes
    delta_forward_kernel[call.grid(launch)](
        call.views(), y, last if first is None else first, last, kept.states, kept.inverses, tokens, heads, groups,
        call.segment, call.scale, **call.forms(launch, save),
    )  # fmt: skip
    return y, last, kept


def launch_own_forward(
    call: DeltaCall, save: bool, launch: DeltaLaunch, y: Tensor, last: Tensor, kept: DeltaKept
) -> tuple[Tensor, Tensor, DeltaKept]:
    """Fill the outputs of a call that `tied` or `channels` takes, and return them."""
    _, tokens, heads, groups, _ = call.sizes
    kernel = tied_forward_kernel if call.tied else channel_forward_kernel
    kernel[call.grid(launch)](
        call.views(), y, last if call.state is None else call.state, last, kept, tokens, heads, groups, call.scale,
        **call.options(launch, save),
    )  # fmt: skip
    return y, last, kept


def launch_delta_maps(call: DeltaCall, kept: DeltaKept, launch: DeltaLaunch) -> None:
    """Write the inverses of all systems, and the maps of all segments."""
    n, tokens, heads, groups, key_width = call.sizes
    if call.rule != "linear":
        delta_inverse_kernel[(n * groups * call.chunks,)](
            call.views(), kept.inverses, tokens, heads, groups, **call.options(SYSTEMS, save=False)
        )
    blocks = sum(-(-width // launch.block_v) for width in (key_width, call.v.shape[3]))
    delta_segment_kernel[(n * groups * call.segments * blocks,)](
        call.views(), kept.inverses, kept.maps, tokens, heads, groups, call.segment, **call.options(launch, save=False)
    )


def join_segments(call: DeltaCall, maps: Tensor, sums: Tensor, edge: Tensor | None, *, reverse: bool) -> Tensor:
    """Return the states before segments [N, G, segments, V, K], or the gradients of those after them."""
    n, _, _, groups, key_width = call.sizes
    value_width = call.v.shape[3]
    states = maps.new_empty(n, groups, call.segments, value_width, key_width)
    launch = join_launch(key_width)
    delta_join_kernel[(n * groups * -(-value_width // launch.block_v),)](
        maps, sums, states if edge is None else edge, states, call.segments, SUM_ROWS=sums.shape[3],
        EDGE=edge is not None, REVERSE=reverse, **call.options(launch, save=False),
    )  # fmt: skip
    return states


def empty_gradients(call: DeltaCall, parts: int) -> DeltaGradients:
    """Return empty tensors for the gradients, of no elements for what is not given.

    Inputs that programs share have `parts` heads, in float32 where these are summed later.
    """
    n, tokens, heads, groups, key_width = call.sizes
    shared = call.q.dtype if parts == heads else torch.float32

    def empty(x: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape if x is not None else (0,), device=call.q.device, dtype=dtype)

    gate = () if call.log_decay is None or call.log_decay.ndim == 3 else (key_width,)
    decays = torch.float32 if call.log_decay is None or parts != groups else call.log_decay.dtype
    return DeltaGradients(
        q=empty(call.q, n, call.q.shape[1], parts, key_width, dtype=shared),
        k=empty(call.k, n, tokens, parts, key_width, dtype=shared),
        v=empty(call.v, *call.v.shape, dtype=call.v.dtype),
        beta=empty(call.beta, n, tokens, parts),
        log_decay=empty(call.log_decay, n, call.q.shape[1], parts, *gate, dtype=decays),
        read=empty(call.read, n, tokens, parts, key_width, dtype=shared),
        erase=empty(call.erase, n, tokens, parts, key_width, dtype=shared),
        log_value_decay=empty(call.log_value_decay, n, call.q.shape[1], groups, call.v.shape[3]),
        state=empty(call.state, n, groups, key_width, call.v.shape[3]),
    )


def launch_delta_gradient(
    call: DeltaCall, dy: Tensor, dlast: Tensor | None, kept: DeltaKept, launch: DeltaLaunch, walk: DeltaLaunch
) -> tuple[Tensor, ...]:
    """Return the gradients of the inputs, as they are shaped (empty for those not given).

    `walk` is the launch of the kernel that finds gradients of states alone.
    """
    n, tokens, heads, groups, _ = call.sizes
    blocks = -(-call.v.shape[3] // launch.block_v)
    out = empty_gradients(call, groups * blocks)
    ends, grid, length = dlast, call.grid(launch), call.segment
    if call.tied:
        tied_backward_kernel[grid](
            call.views(), view_of(dy), dy if ends is None else ends, kept, out, tokens, heads, groups, call.scale,
            LAST=ends is not None, **call.options(launch, True),
        )  # fmt: skip
        return add_parts_of_programs(call, out)
    if call.channels:
        launch_channel_gradient(call, dy, dlast, kept, out, launch)
        return add_parts_of_programs(call, out)
    if call.segments > 1:
        sums = state_gradients(call, dy, None, kept, out.state, walk, each=False)
        ends = join_segments(call, kept.maps, sums, dlast, reverse=True)
    if launch.single:
        ends = state_gradients(call, dy, ends, kept, out.state, walk, each=True)
        grid, length = (n * groups * call.chunks * blocks,), CHUNK
    delta_backward_kernel[grid](
        call.views(), view_of(dy), kept.states if ends is None else ends, kept.states, kept.inverses, out, tokens,
        heads, groups, length, call.scale, LAST=ends is not None, **call.forms(launch, True, launch.single),
    )  # fmt: skip
    return add_parts_of_programs(call, out)


def launch_channel_gradient(
    call: DeltaCall,
    dy: Tensor,
    dlast: Tensor | None,
    kept: DeltaKept,
    out: DeltaGradients,
    launch: DeltaLaunch,
    offered: Tensor | None = None,
    *,
    sloped: bool = False,
) -> None:
    """Fill the gradients of a call that `channels` takes; that of v includes the one offered, [N, T, G, V].

    Where `sloped`, log decays are `least` sigmoid(z) for the bound `least` of the call, and theirs is that of z.
    """
    _, tokens, heads, groups, _ = call.sizes
    channel_backward_kernel[call.grid(launch)](
        call.views(), view_of(dy), dy if dlast is None else dlast, kept, out,
        dy if offered is None else offered, tokens, heads, groups, out.q.stride(1), out.v.stride(1), call.scale,
        call.least, LAST=dlast is not None, OFFERED=offered is not None, SLOPED=sloped, **call.options(launch, True),
    )  # fmt: skip


def add_parts_of_programs(call: DeltaCall, out: DeltaGradients) -> tuple[Tensor, ...]:
    """Return the gradients as the inputs are shaped: the parts of programs that share an input added up."""
    return tuple(
        part if x is None or part.shape == x.shape else add_neighbours(part, x, axis=2)
        for part, x in zip(out, call[:9], strict=True)
    )


def state_gradients(
    call: DeltaCall, dy: Tensor, ends: Tensor | None, kept: DeltaKept, first: Tensor, walk: DeltaLaunch, *, each: bool
) -> Tensor:
    """Return gradients of states: where `each`, those after chunks [N, G, chunks, V, K] and in `first` of the first.

    Else those before segments [N, G, segments, V, K], from the outputs of each segment alone.
    """
    n, tokens, heads, groups, key_width = call.sizes
    count = call.chunks if each else call.segments
    kind = kept.states.dtype if each else torch.float32
    gradients = kept.states.new_empty(n, groups, count, call.v.shape[3], key_width, dtype=kind)
    delta_state_gradient_kernel[call.grid(walk)](
        call.views(), view_of(dy), gradients if ends is None else ends, kept.inverses, gradients, first, tokens, heads,
        groups, call.segment, call.scale, LAST=ends is not None, EACH=each, **call.options(walk, save=False),
    )  # fmt: skip
    return gradients
