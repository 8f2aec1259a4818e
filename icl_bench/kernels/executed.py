"""Operations that attention, power attention and the last product execute in a forward and a backward pass.

Counted are matrix products, two operations for each multiplication with its addition, in the form that a call takes,
with what it computes twice and what it computes and discards: weights above the diagonal, padding of channels. Sums,
exponentials and powers of single elements are left out. A pair is a query and a key; products over pairs are named by
the width that they sum over or write, K of keys or V of values:

    form                     forward    backward
    all weights are kept     q k, A v   dA = dy v, dv = A dy, dq = ds k, dk = ds q           K + V,  2 K + 2 V
    weights are made again   q k, A v   the same, and q k once (torch's own attention)       K + V,  3 K + 2 V
    Triton, two kernels      q k, A v   for dq: q k, dy v, ds k; for dk and dv: q k and all  K + V,  4 K + 3 V

Forms of torch have all pairs of a block or a chunk; kernels leave out tiles in which every key is hidden. Torch's own
attention on a GPU is counted with the pairs that are seen, the least that it can execute.

The state of power attention has D rows of V columns, V + 1 in the plain form with a normaliser. A row of keys or of
queries takes D V products to be written, D V to be read, and two times D V for the gradients of each. Kernels keep the
state in D' >= D rows, and for p = 2 differentiate by q and k with q (x) dy and k (x) v as expanded rows of K V entries,
K^2 V products each; for p >= 3 with factors of U and W entries, D' = U W, twice U W V. The first chunk reads no state,
and nothing reads the one after the last.
"""

from typing import NamedTuple

from torch import Tensor

from icl_bench.kernels.attention.api import auto_attention_form
from icl_bench.kernels.attention.blocked import attention_form_costs, default_block
from icl_bench.kernels.attention.records import AttentionInputs, AttentionOptions
from icl_bench.kernels.backends import has_triton
from icl_bench.kernels.fleet.cross_entropy import LOGITS_AT_ONCE, WIDEST_FUSED_ROW
from icl_bench.kernels.power.api import auto_power_form
from icl_bench.kernels.power.chunked import cheapest_chunk
from icl_bench.kernels.power.expansion import expanded_width
from icl_bench.kernels.power.records import PowerInputs, PowerOptions


class Widths(NamedTuple):
    """Widths of keys and values that products have."""

    key: int
    value: int

    def products(self, keys: int, values: int) -> int:
        """Return the multiplications of so many products over the key width, and over the value width."""
        return keys * self.key + values * self.value


def visited_pairs(t: int, reach: int, rows: int, columns: int) -> int:
    """Return the pairs in the tiles of `rows` queries and `columns` keys in which any query sees any key.

    A query i of t sees the keys max(0, i - reach + 1) to i.

    >>> visited_pairs(4, 4, 1, 1), visited_pairs(4, 4, 2, 2), visited_pairs(4, 2, 1, 1)
    (10, 12, 7)
    """
    pairs = 0
    for start in range(0, t, rows):
        end, first = min(start + rows, t), max(0, start - reach + 1)
        pairs += rows * (-(-end // columns) - first // columns) * columns
    return pairs


def attention_operations(inputs: AttentionInputs, options: AttentionOptions, impl: str) -> float:
    """Return the operations of a call of `attention` with its backward pass; only shapes, type and device are read."""
    q, _, v, _ = inputs
    n, t, heads, width = q.shape
    widths, form = Widths(width, v.shape[3]), auto_attention_form(inputs, options) if impl == "auto" else impl
    reach = min(t, options.window or t)
    if form == "triton":
        return 2.0 * n * heads * _attention_by_kernels(q, widths, t, reach)
    if form == "sdpa":
        return 2.0 * n * heads * widths.products(4, 3) * (t * t if options.hides(t) else visited_pairs(t, t, 1, 1))
    return 2.0 * n * heads * widths.products(3, 3) * _pairs_of_blocks(widths, t, reach)


def _attention_by_kernels(q: Tensor, widths: Widths, t: int, reach: int) -> int:
    from icl_bench.kernels.attention.triton.table import short_tile, tile_of
    from icl_bench.kernels.triton.common import padded

    sizes, whole = (q.element_size(), *widths), Widths(padded(widths.key, 16), padded(widths.value, 16))
    forward, query, key = (tile_of(side, *sizes, reach) for side in ("forward", "query", "key_value"))
    pairs = visited_pairs(t, reach, forward.queries, forward.keys) * whole.products(1, 1)
    if (short := short_tile(*sizes, t)) is not None:
        return pairs + short.queries * short.keys * whole.products(4, 3)
    of_queries = visited_pairs(t, reach, query.queries, query.keys) * whole.products(2, 1)
    return pairs + of_queries + visited_pairs(t, reach, key.keys, key.queries) * whole.products(2, 2)


def _pairs_of_blocks(widths: Widths, t: int, reach: int) -> int:
    """Return the pairs of the plain form, of all keys or in blocks of queries, as `attention_torch` chooses."""
    if reach == t:
        return t * t
    block = default_block(t, *widths, reach)
    whole, blocks = attention_form_costs(t, *widths, reach, block)
    return t * t if whole <= blocks else -(-t // block) * block * (block + reach - 1)


def power_operations(inputs: PowerInputs, options: PowerOptions, impl: str) -> float:
    """Return the operations of a call of `power_attention` with its backward pass, as `attention_operations` does.

    There is no initial state, no last one is kept, and as many heads of queries as of values.
    """
    q, v, p = inputs.q, inputs.v, options.p
    n, t, heads, width = q.shape
    form, widths = auto_power_form(inputs, options) if impl == "auto" else impl, Widths(width, v.shape[3])
    if form == "triton":
        return 2.0 * n * heads * _power_by_kernels(inputs, options)
    chunk = t if form == "quadratic" else options.chunk or cheapest_chunk(*widths, p)
    pairs = sum(min(chunk, t - start) ** 2 for start in range(0, t, chunk))
    last = t - t % chunk if t % chunk else t - chunk
    state = expanded_width(width, p) * (widths.value + (options.normalize == "sum"))
    tokens = 3 * (last + max(0, t - chunk))  # written before the last chunk, read after the first
    return 2.0 * n * heads * (widths.products(3, 3) * pairs + tokens * state)


def _power_by_kernels(inputs: PowerInputs, options: PowerOptions) -> int:
    from icl_bench.kernels.power.triton import table
    from icl_bench.kernels.power.triton.ops import whole_chunk
    from icl_bench.kernels.power.triton.problem import make_problem
    from icl_bench.kernels.triton.common import padded

    q, k, v, chunk = *inputs[:3], whole_chunk(inputs, options, keep_state=False)
    normalize = options.normalize == "sum"
    problem = make_problem(q, k, v, options.p, options.scale, normalize, options.eps, chunk, edge=False)
    t, layout = problem.t, problem.layout
    whole = Widths(padded(layout.key_width, 16), padded(problem.v, 16))
    tiled = problem.chunks > 1
    forward, query, key = (problem.blocks(name, tiled=tiled) for name in ("forward", "query_gradient", "key_gradient"))

    def pairs(rows: int, columns: int) -> int:
        return sum(visited_pairs(min(chunk, t - start), chunk, rows, columns) for start in range(0, t, chunk))

    form = problem.form("key_gradient", tiled=tiled)
    split = layout.p <= 2 and table.splits_keys(form, problem.arithmetic, problem.width)
    total = pairs(forward.m, forward.n) * whole.products(1, 1) + pairs(query.m, query.n) * whole.products(2, 1)
    total += pairs(key.n, key.m) * (whole.products(3, 2) if split else whole.products(2, 2))
    if not tiled:
        return total
    rows = whole.key if layout.linear else layout.expanded
    by_factors = layout.u * layout.w * whole.value * (1 if layout.symmetric else 2)
    of_key = {1: rows * whole.value, 2: whole.key**2 * whole.value}.get(layout.p, by_factors)
    written, read = min(chunk * (problem.chunks - 1), t), t - chunk
    # Sums of keys, read by queries; sums of queries, read by keys; and the two gradients.
    return total + (written + read) * (2 * rows * whole.value + of_key)


def last_product_operations(x: Tensor, words: int) -> float:
    """Return the operations of `cross_entropy` on rows x [M, R, C] and a vocabulary, with its backward pass.

    Logits, and the two gradients; logits are made again in kernels, and where they do not all fit into one chunk.
    """
    members, rows, width = x.shape
    fused = has_triton(x) and x.element_size() < 4 and width <= WIDEST_FUSED_ROW
    again = fused or rows > max(1, LOGITS_AT_ONCE // (members * words))
    return 2.0 * (4 if again else 3) * members * rows * width * words
