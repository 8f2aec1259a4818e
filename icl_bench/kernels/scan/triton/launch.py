"""Launches of both scans: block sizes and outputs; the caller makes the device of the tensors current."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.scan.triton.linear import LinearConstants, linear_backward_kernel, linear_forward_kernel
from icl_bench.kernels.scan.triton.selective import (
    SelectiveConstants,
    selective_backward_kernel,
    selective_forward_kernel,
)
from icl_bench.kernels.scan.triton.tiles import token_stride, tokens_of
from icl_bench.kernels.triton.common import padded, precision_of

SPAN = 8
"""Tokens between two states that the selective scan keeps."""
TOKENS = 4
"""Tokens of which the backward pass holds states and decays in registers."""
FORWARD_ELEMENTS, BACKWARD_ELEMENTS = 16, 8
"""Elements of the state in one thread: 4 places of each of its channels. Wide states have the fewer in both passes."""
WIDE_STATE = 32
"""Places of the state from which on it is wide."""
TILE = 512
"""Elements of the state in one program."""
MOST_REGISTERS = 168
"""Registers of a thread with which a processor of Hopper holds three programs of 4 warps."""
LINEAR_TOKENS = 16
LINEAR_CHANNELS = 128


def span_length(t: int) -> int:
    """Return the tokens between two kept states, fewer in sequences that have no more."""
    return padded(t, most=SPAN)


def count_spans(t: int) -> int:
    """Return the spans of a sequence of t tokens."""
    return -(-t // span_length(t))


class SelectiveCall(NamedTuple):
    """The tensors of a call; those with tokens have unit stride in the last axis, the others are contiguous."""

    x: Tensor
    dt: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None
    state: Tensor | None

    @property
    def block_s(self) -> int:
        """Return the places of the state in a tile."""
        return padded(self.a.shape[2], 4)

    @property
    def block_c(self) -> int:
        """Return the channels of a program: those that give a warp at least its elements."""
        least = 32 * max(FORWARD_ELEMENTS, BACKWARD_ELEMENTS) // self.block_s
        return padded(self.a.shape[1], max(16, least), max(16, TILE // self.block_s))

    @property
    def parts(self) -> int:
        """Return the programs that share the channels of a sequence."""
        return -(-self.a.shape[1] // self.block_c)

    def options(self, dy: Tensor | None, keep: bool = True) -> dict[str, Any]:
        """Return the constants and the launch options of a kernel; without dy, of the forward pass."""
        span = span_length(self.x.shape[1])
        tokens = span if dy is None else min(span, TOKENS)
        elements = FORWARD_ELEMENTS if dy is None and self.block_s < WIDE_STATE else BACKWARD_ELEMENTS
        warps = self.block_c * self.block_s // (32 * elements)
        constants = SelectiveConstants(
            C=self.a.shape[1],
            S=self.a.shape[2],
            BLOCK_C=self.block_c,
            BLOCK_S=self.block_s,
            SPAN=span,
            TOKENS=tokens,
            LEVELS=tokens.bit_length() - 1,
            GROUPS=self.block_c // max(16, 128 * warps // self.block_s),
            WHOLE=self.x.shape[1] % span == 0,
            DIRECT=self.d is not None,
            INITIAL=self.state is not None,
            KEEP=keep,
            PREFETCH=self.x.is_cuda,
            PRECISION=precision_of(self.x),
            X_STRIDE=token_stride(self.x),
            DT_STRIDE=token_stride(self.dt),
            B_STRIDE=token_stride(self.b),
            C_STRIDE=token_stride(self.c),
            DY_STRIDE=token_stride(self.x if dy is None else dy),
        )
        # Triton 3.10 turns multiply-adds off unless they are asked for.
        options = {"C": constants, "num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
        return options if dy is None else options | {"maxnreg": MOST_REGISTERS}


def launch_selective_forward(call: SelectiveCall, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y [N, T, C], the last state [N, C, S], and the states before spans [N, spans, C, S] (none if not kept)."""
    n, t, c = call.x.shape
    s, each = call.a.shape[2], n // call.a.shape[0]
    y = torch.empty(n, t, c, device=call.x.device, dtype=call.x.dtype)
    final = torch.empty(n, c, s, device=call.x.device, dtype=torch.float32)
    kept = torch.empty(n, count_spans(t) if keep else 0, c, s, device=call.x.device, dtype=torch.float32)
    selective_forward_kernel[(n * call.parts,)](
        tokens_of(call.x), tokens_of(call.dt), call.a, tokens_of(call.b), tokens_of(call.c),
        final if call.d is None else call.d, final if call.state is None else call.state, y, kept, final, t, each,
        **call.options(None, keep),
    )  # fmt: skip
    return y, final, kept


class SelectiveGradients(NamedTuple):
    """Gradients of sequences, those of parameters by sequence, those of b and c by block of channels."""

    x: Tensor
    dt: Tensor
    vectors: Tensor
    """[blocks, N, T, 2, S], of b and c."""
    a: Tensor
    """[N, C, S]."""
    d: Tensor
    """[N, C]; empty without a direct path."""
    state: Tensor
    """[N, C, S]; empty without an initial state."""


def launch_selective_backward(call: SelectiveCall, kept: Tensor, dy: Tensor, dfinal: Tensor) -> SelectiveGradients:
    """Return the gradients, from the states that the forward pass kept."""
    n, t, c = call.x.shape
    s, each = call.a.shape[2], n // call.a.shape[0]

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, device=dy.device, dtype=dtype)

    made = SelectiveGradients(
        empty(n, t, c, dtype=call.x.dtype), empty(n, t, c, dtype=call.dt.dtype), empty(call.parts, n, t, 2, s),
        empty(n, c, s), empty(n if call.d is not None else 0, c), empty(n if call.state is not None else 0, c, s),
    )  # fmt: skip
    selective_backward_kernel[(n * call.parts,)](
        tokens_of(call.x), tokens_of(call.dt), call.a, tokens_of(call.b), tokens_of(call.c),
        dfinal if call.d is None else call.d, tokens_of(dy), dfinal, kept, *made, n, t, each,
        **call.options(dy),
    )  # fmt: skip
    return made


def _linear_options(a: Tensor, b: Tensor, initial: bool, final: bool) -> tuple[LinearConstants, int, int]:
    """Return the constants of a kernel, its programs and their warps."""
    n, t, c = a.shape
    block = padded(c, 32, LINEAR_CHANNELS)
    constants = LinearConstants(
        c, block, LINEAR_TOKENS, t % LINEAR_TOKENS == 0, initial, final, token_stride(a), token_stride(b)
    )
    return constants, n * -(-c // block), block // 32


def launch_linear_forward(a: Tensor, b: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return all h [N, T, C] in the type of b, and the last one [N, C] in float32."""
    n, t, c = a.shape
    y = torch.empty(n, t, c, device=b.device, dtype=b.dtype)
    final = torch.empty(n, c, device=b.device, dtype=torch.float32)
    constants, programs, warps = _linear_options(a, b, state is not None, False)
    linear_forward_kernel[(programs,)](
        tokens_of(a), tokens_of(b), final if state is None else state, y, final, t,
        C=constants, num_warps=warps, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return y, final


def launch_linear_backward(
    a: Tensor, y: Tensor, state: Tensor | None, dy: Tensor, dfinal: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return da in the type of a, db in the type of dy, and the gradient of the initial state (empty without one)."""
    n, t, c = a.shape
    da, db = (torch.empty(n, t, c, device=a.device, dtype=x.dtype) for x in (a, dy))
    dstate = torch.empty(0 if state is None else n, c, device=a.device, dtype=torch.float32)
    constants, programs, warps = _linear_options(a, dy, state is not None, dfinal is not None)
    linear_backward_kernel[(programs,)](
        tokens_of(a), y, dstate if state is None else state, tokens_of(dy), dstate if dfinal is None else dfinal,
        da, db, dstate, t, C=constants, num_warps=warps, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return da, db, dstate
