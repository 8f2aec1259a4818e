"""Launches of the kernels of the delta rule; the caller makes the device of the tensors current."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.delta.triton.backward import DeltaGradients, delta_backward_kernel
from icl_bench.kernels.delta.triton.forward import delta_forward_kernel
from icl_bench.kernels.delta.triton.table import CHUNK, DeltaLaunch, delta_launch
from icl_bench.kernels.delta.triton.tiles import DeltaConstants, DeltaViews
from icl_bench.kernels.triton.common import padded, view_of

BOUND = -5.0
"""Least log decay of a channel at which exp of the sums over 16 tokens stays in the range of float32 (e^88)."""


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
    bounded: bool

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Return N, the number of sub-steps nT, H, G and K."""
        n, tokens, groups, _ = self.v.shape
        return n, tokens, self.q.shape[2], groups, self.q.shape[3]

    @property
    def chunks(self) -> int:
        """Chunks of a sequence."""
        return -(-self.v.shape[1] // CHUNK)

    def best_launch(self, *, backward: bool) -> DeltaLaunch:
        """Return the launch of the table."""
        gated = self.log_decay is not None or self.log_value_decay is not None
        return delta_launch(self.q.shape[3], self.v.shape[3], backward=backward, gated=gated)

    def views(self) -> DeltaViews:
        """Return views of the inputs; those that are not given are views of q, which no kernel reads through them."""
        numbers = (x if x is None or x.ndim == 4 else x[..., None] for x in self[:8])
        return DeltaViews(*(view_of(self.q if x is None else x) for x in numbers))

    def options(self, launch: DeltaLaunch, save: bool) -> dict[str, Any]:
        """Return the constants and the options of a launch."""
        _, tokens, _, _, key_width = self.sizes
        channels = 2 if self.bounded else 3
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
            # One product of float32 by three of tf32 keeps the digits of float32.
            PRECISION="tf32x3" if self.q.dtype == torch.float32 else "tf32",
        )
        # Triton 3.10 turns multiply-adds off unless they are asked for.
        return {
            "C": constants, "num_warps": launch.warps, "num_stages": launch.stages, "maxnreg": launch.registers,
            "enable_fp_fusion": True,
        }  # fmt: skip

    def grid(self, launch: DeltaLaunch) -> tuple[int]:
        """Return the grid of one program for each block of values of each head."""
        n, _, _, groups, _ = self.sizes
        return (n * groups * -(-self.v.shape[3] // launch.block_v),)


def empty_outputs(call: DeltaCall, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors for y [N, T, G, V], the last state, and for what the backward pass reads.

    These are the states before chunks, transposed [N, G, chunks, V, K], and inverses [N, G, chunks, C, C].
    """
    n, _, _, groups, key_width = call.sizes
    value_width, device = call.v.shape[3], call.v.device
    y = torch.empty(n, call.q.shape[1], groups, value_width, device=device, dtype=call.v.dtype)
    last = torch.empty(n, groups, key_width, value_width, device=device, dtype=torch.float32)
    states = (n, groups, call.chunks, value_width, key_width) if save else (0,)
    inverses = (n, groups, call.chunks, CHUNK, CHUNK) if save and call.rule != "linear" else (0,)
    kept = [torch.empty(shape, device=device, dtype=torch.float32) for shape in (states, inverses)]
    return y, last, kept[0], kept[1]


def launch_delta_forward(call: DeltaCall, save: bool, launch: DeltaLaunch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, the last state and, where `save`, the states before chunks and the inverses (else empty)."""
    y, last, states, inverses = empty_outputs(call, save)
    _, tokens, heads, groups, _ = call.sizes
    delta_forward_kernel[call.grid(launch)](
        call.views(), y, last if call.state is None else call.state, last, states, inverses, tokens, heads, groups,
        call.scale, **call.options(launch, save),
    )  # fmt: skip
    return y, last, states, inverses


def empty_gradients(call: DeltaCall, parts: int) -> DeltaGradients:
    """Return empty tensors for the gradients, of no elements for what is not given.

    Inputs that programs share have `parts` heads, in float32 where these are summed later.
    """
    n, tokens, heads, groups, key_width = call.sizes
    shared = call.q.dtype if parts == heads else torch.float32

    def empty(x: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape if x is not None else (0,), device=call.q.device, dtype=dtype)

    gate = () if call.log_decay is None or call.log_decay.ndim == 3 else (key_width,)
    return DeltaGradients(
        q=empty(call.q, n, call.q.shape[1], parts, key_width, dtype=shared),
        k=empty(call.k, n, tokens, parts, key_width, dtype=shared),
        v=empty(call.v, *call.v.shape, dtype=call.v.dtype),
        beta=empty(call.beta, n, tokens, parts),
        log_decay=empty(call.log_decay, n, call.q.shape[1], parts, *gate),
        read=empty(call.read, n, tokens, parts, key_width, dtype=shared),
        erase=empty(call.erase, n, tokens, parts, key_width, dtype=shared),
        log_value_decay=empty(call.log_value_decay, n, call.q.shape[1], groups, call.v.shape[3]),
        state=empty(call.state, n, groups, key_width, call.v.shape[3]),
    )


def launch_delta_gradient(
    call: DeltaCall, dy: Tensor, dlast: Tensor | None, states: Tensor, inverses: Tensor, launch: DeltaLaunch
) -> tuple[Tensor, ...]:
    """Return the gradients of the inputs, as they are shaped (empty for those not given)."""
    _, tokens, heads, groups, _ = call.sizes
    blocks = -(-call.v.shape[3] // launch.block_v)
    out = empty_gradients(call, groups * blocks)
    delta_backward_kernel[call.grid(launch)](
        call.views(), view_of(dy), states if dlast is None else dlast, states, inverses, out, tokens, heads,
        groups, call.scale, LAST=dlast is not None, **call.options(launch, save=True),
    )  # fmt: skip
    return tuple(
        part if x is None or part.shape == x.shape else part.unflatten(2, (x.shape[2], -1)).sum(3).to(x.dtype)
        for part, x in zip(out, call[:9], strict=True)
    )
