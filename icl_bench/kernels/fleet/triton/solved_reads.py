"""Reads of a matrix of sums by solved queries in Triton: one launch forward, two backward, a program for each head.

A program walks the chunks of a head with both sums in registers and solves the systems of a chunk's tokens together. A
step of conjugate gradients is three small products: of directions and the sum before the chunk, of directions and keys,
and of weighted scores and keys. Products are in tf32, which holds keys in half precision exactly; the sum of products
of keys is added up and multiplied in two parts, since its rounding would be a change of the system. Gradients are those
of the exact solution.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import SOLVER_STEPS
from icl_bench.kernels.fleet.triton.block_attention import load_head_rows, store_head_rows
from icl_bench.kernels.fleet.triton.reflected_attention import load_wide_rows, token_places
from icl_bench.kernels.triton.common import in_two_parts, padded, tf32_product

CHUNK = 16
"""Tokens of a chunk."""
SOLVER_WARPS = {16: 1, 32: 1, 64: 2}
"""Warps of a program that takes steps, by the wider of both padded widths: rows are then added up by few threads."""
KEY_WARPS = {16: 1, 32: 2, 64: 4}
"""Warps of a program for gradients of keys."""
RESIDUAL = 1 / 16
"""Relative residual of a token that takes no further step, in units of its type."""
TINY = tl.constexpr(1.2e-38)
"""Least divisor."""


class ReadSizes(NamedTuple):
    """Sequences of a member, tokens, heads, widths of keys and values, and squared relative residual of a solution."""

    batch: Any
    time: Any
    heads: Any
    key_width: Any
    value_width: Any
    residual: Any


class ReadChunk(NamedTuple):
    """The tokens of a chunk of a head: a read weighs key j by exp(sums_i - sums_j) rate_j."""

    key: Any
    value: Any
    rate: Any
    sums: Any
    """Sums of log gates from the start of the chunk."""
    last: Any
    """Sum of all log gates of the chunk."""
    places: Any
    """Offsets of tokens in [N, T, H]."""
    inside: Any


class ReadSystem(NamedTuple):
    """The systems of the tokens of a chunk."""

    key: Any
    weights: Any
    """Weights of the chunk's own keys, zeros of later ones."""
    decay: Any
    """Decays of the sum before the chunk."""
    high: Any
    low: Any
    """The sum before the chunk, in two parts."""
    ridge: Any


@triton.jit
def load_read_chunk(
    k, v, log_g, rate, head, start, sizes, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr
):
    """Load the tokens of a chunk; those outside have neither keys nor a decay."""
    places, inside = token_places(head, start, sizes, BLOCK_T)
    gates = tl.load(log_g + places, mask=inside, other=0.0)
    return ReadChunk(
        load_wide_rows(k, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K),
        load_wide_rows(v, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V),
        tl.load(rate + places, mask=inside, other=0.0),
        tl.cumsum(gates, 0),
        tl.sum(gates, 0),
        places,
        inside,
    )


@triton.jit
def load_ridge(ridge, head, sizes, BLOCK_K: tl.constexpr):
    """Load the ridge of a head of a sequence [1, BLOCK_K], ones outside."""
    columns, member = tl.arange(0, BLOCK_K), head // (sizes.batch * sizes.heads)
    place = (member * sizes.heads + head % sizes.heads) * sizes.key_width
    return tl.load(ridge + place + columns, mask=columns < sizes.key_width, other=1.0)[None, :]


@triton.jit
def own_weights(chunk, BLOCK_T: tl.constexpr):
    """Return the weights of reads of the chunk's own keys [queries, keys]."""
    places = tl.arange(0, BLOCK_T)
    causal = places[:, None] >= places[None, :]
    return tl.exp(tl.where(causal, chunk.sums[:, None] - chunk.sums[None, :], -float("inf"))) * chunk.rate[None, :]


@triton.jit
def system_of(chunk, weights, keys, ridge):
    """Return the systems of a chunk behind a sum of products of keys."""
    high, low = in_two_parts(keys)
    return ReadSystem(chunk.key, weights, tl.exp(chunk.sums), high, low, ridge)


@triton.jit
def take_steps(system, target, sizes, STEPS: tl.constexpr):
    """Return the solutions for a tile of targets, and what remains of the targets, by conjugate gradients from 0."""
    solution, residual, direction = tl.zeros_like(target), target, target
    size = tl.sum(target * target, 1)
    done = size * sizes.residual
    step = 0
    while (step < STEPS) & (tl.max(tl.where(size > done, 1, 0), 0) > 0):
        before = tf32_product(direction, system.high) + tf32_product(direction, system.low)
        scores = system.weights * tf32_product(direction, tl.trans(system.key))
        image = system.decay[:, None] * before + tf32_product(scores, system.key) + system.ridge * direction
        along = tl.maximum(tl.sum(direction * image, 1), TINY)
        length = tl.where(size > done, size / along, 0.0)[:, None]
        solution += length * direction
        residual -= length * image
        now = tl.sum(residual * residual, 1)
        direction = residual + (now / tl.maximum(size, TINY))[:, None] * direction
        size = now
        step += 1
    return solution, residual


@triton.jit
def extended(sums, chunk, tile):
    """Return the sums of products of keys and a tile [tokens, columns] after a chunk."""
    written = (tl.exp(chunk.last - chunk.sums) * chunk.rate)[:, None] * chunk.key
    high, low = in_two_parts(written)
    return tl.exp(chunk.last) * sums + tf32_product(tl.trans(high), tile) + tf32_product(tl.trans(low), tile)


@triton.jit
def solved_reads_kernel(
    q, k, v, log_g, rate, ridge, out, solved, sizes,
    STEPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write y and the solved queries u [N, T, H, K] of a head of a sequence. Grid (M B H)."""
    head = tl.program_id(0).to(tl.int64)
    added = load_ridge(ridge, head, sizes, BLOCK_K)
    keys, values = tl.zeros([BLOCK_K, BLOCK_K], tl.float32), tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    for start in range(0, sizes.time, BLOCK_T):
        chunk = load_read_chunk(k, v, log_g, rate, head, start, sizes, BLOCK_T, BLOCK_K, BLOCK_V)
        query = load_wide_rows(q, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        system = system_of(chunk, own_weights(chunk, BLOCK_T), keys, added)
        u, _ = take_steps(system, query, sizes, STEPS)
        scores = system.weights * tf32_product(u, tl.trans(chunk.key))
        y = system.decay[:, None] * tf32_product(u, values) + tf32_product(scores, chunk.value)
        store_head_rows(out, y, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        store_head_rows(solved, u, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        keys, values = extended(keys, chunk, chunk.key), extended(values, chunk, chunk.value)


@triton.jit
def solved_query_gradient_kernel(
    k, v, log_g, rate, ridge, solved, gradient, dq, slopes, sums, dridge, sizes,
    STEPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write dq, in float32 too, and the gradients of sums of log gates at queries and of the ridge. Grid (M B H)."""
    head = tl.program_id(0).to(tl.int64)
    added = load_ridge(ridge, head, sizes, BLOCK_K)
    keys, values = tl.zeros([BLOCK_K, BLOCK_K], tl.float32), tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    onto_ridge = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    for start in range(0, sizes.time, BLOCK_T):
        chunk = load_read_chunk(k, v, log_g, rate, head, start, sizes, BLOCK_T, BLOCK_K, BLOCK_V)
        upstream = load_wide_rows(gradient, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        u = load_head_rows(solved, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        system = system_of(chunk, own_weights(chunk, BLOCK_T), keys, added)
        scores = system.weights * tf32_product(upstream, tl.trans(chunk.value))
        target = system.decay[:, None] * tf32_product(upstream, tl.trans(values)) + tf32_product(scores, chunk.key)
        slope, remains = take_steps(system, target, sizes, STEPS)
        onto_ridge -= slope * u
        tl.store(sums + chunk.places, tl.sum(u * (added * slope + remains), 1), mask=chunk.inside)
        store_head_rows(dq, slope, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        store_head_rows(slopes, slope, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        keys, values = extended(keys, chunk, chunk.key), extended(values, chunk, chunk.value)
    columns = tl.arange(0, BLOCK_K)
    tl.store(dridge + head * sizes.key_width + columns, tl.sum(onto_ridge, 0), mask=columns < sizes.key_width)


@triton.jit
def solved_key_gradient_kernel(
    k, v, log_g, rate, solved, gradient, slopes, sums, dk, dv, dlog_g, drate, sizes,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write dk, dv and the gradients of log gates and rates, from the last chunk to the first. Grid (M B H)."""
    head, places = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_T)
    later = places[:, None] <= places[None, :]
    onto_values, onto_keys = tl.zeros([BLOCK_K, BLOCK_V], tl.float32), tl.zeros([BLOCK_K, BLOCK_K], tl.float32)
    after = 0.0
    count = tl.cdiv(sizes.time, BLOCK_T)
    for index in range(count):
        start = (count - 1 - index) * BLOCK_T
        chunk = load_read_chunk(k, v, log_g, rate, head, start, sizes, BLOCK_T, BLOCK_K, BLOCK_V)
        upstream = load_wide_rows(gradient, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        u = load_head_rows(solved, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        slope = load_head_rows(slopes, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        decays = tl.exp(tl.where(later, chunk.sums[None, :] - chunk.sums[:, None], -float("inf")))
        tail = tl.exp(chunk.last - chunk.sums)[:, None]
        scores = decays * tf32_product(chunk.key, tl.trans(u))
        errors = decays * (tf32_product(chunk.value, tl.trans(upstream)) - tf32_product(chunk.key, tl.trans(slope)))
        onto_scores = tf32_product(errors, u) + tail * (
            tf32_product(chunk.value, tl.trans(onto_values)) - tf32_product(chunk.key, tl.trans(onto_keys))
        )
        onto_images = tf32_product(scores, slope) + tail * tf32_product(chunk.key, onto_keys)
        onto_value = tf32_product(scores, upstream) + tail * tf32_product(chunk.key, onto_values)
        from_rate = tl.sum(chunk.key * onto_scores, 1)
        store_head_rows(
            dk, chunk.rate[:, None] * (onto_scores - onto_images), head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K
        )
        store_head_rows(dv, chunk.rate[:, None] * onto_value, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        tl.store(drate + chunk.places, from_rate, mask=chunk.inside)
        onto_sums = tl.load(sums + chunk.places, mask=chunk.inside, other=0.0) - chunk.rate * from_rate
        tl.store(dlog_g + chunk.places, after + tl.cumsum(onto_sums, 0, reverse=True), mask=chunk.inside)
        after += tl.sum(onto_sums, 0)
        seen = tl.trans(tl.exp(chunk.sums)[:, None] * u)
        onto_values = tl.exp(chunk.last) * onto_values + tf32_product(seen, upstream)
        onto_keys = tl.exp(chunk.last) * onto_keys + tf32_product(seen, slope)


class FusedSolvedReads(torch.autograd.Function):
    """`solved_reads` for ridges [M, H, K]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, rate: Tensor, ridge: Tensor) -> Tensor:
        q, k, v, log_g, rate, ridge = (x.contiguous() for x in (q, k, v, log_g, rate, ridge))
        out, solved = torch.empty_like(v), torch.empty_like(q, dtype=torch.float32)
        _launch(solved_reads_kernel, (q, k, v, log_g, rate, ridge, out, solved), k, v, SOLVER_WARPS, STEPS=SOLVER_STEPS)
        ctx.save_for_backward(k, v, log_g, rate, ridge, solved)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        k, v, log_g, rate, ridge, solved = ctx.saved_tensors
        gradient = gradient.contiguous()
        dq, dk, dv, dlog_g, drate = (torch.empty_like(x) for x in (k, k, v, log_g, rate))
        slopes, sums = torch.empty_like(solved), torch.empty_like(log_g)
        dridge = ridge.new_empty(*k.shape[:2], *ridge.shape[1:])
        common = (k, v, log_g, rate)
        _launch(
            solved_query_gradient_kernel, (*common, ridge, solved, gradient, dq, slopes, sums, dridge), k, v,
            SOLVER_WARPS, STEPS=SOLVER_STEPS,
        )  # fmt: skip
        tensors = (*common, solved, gradient, slopes, sums, dk, dv, dlog_g, drate)
        _launch(solved_key_gradient_kernel, tensors, k, v, KEY_WARPS)
        return dq, dk, dv, dlog_g, drate, dridge.sum(1)


def _launch(
    kernel: Any, tensors: tuple[Tensor, ...], k: Tensor, v: Tensor, warps: dict[int, int], **constants: int
) -> None:
    """Launch a kernel on the heads of keys and values [M, B, T, H, .], with warps by width."""
    members, batch, time, heads, width = k.shape
    columns = padded(width, 16), padded(v.shape[-1], 16)
    sizes = ReadSizes(batch, time, heads, width, v.shape[-1], (torch.finfo(v.dtype).eps * RESIDUAL) ** 2)
    with launch_on(k):
        kernel[(members * batch * heads,)](
            *tensors, sizes, **constants, BLOCK_T=CHUNK, BLOCK_K=columns[0], BLOCK_V=columns[1],
            num_warps=warps[max(columns)],
        )  # fmt: skip
