"""The delta rule chunk by chunk in operators of torch: products inside a chunk, the state between chunks.

With Gam the inclusive sums of the log decays in a chunk of C tokens, E_ij = exp(Gam_i - Gam_j), S the state before it:

    M = I - tril(A E, -1),   R = M^{-1} (a~ S + X),   a~_i = a_i exp(Gam_i)   (Gam_{i-1} for undecayed reads)
    Y = q~ S + tril(q b^T E) R + Y_k,   S' = D(exp(Gam_C)) S + b~^T R + S_k,   b~_j = b_j exp(Gam_C - Gam_j)

where A = a b^T; for "delta" a = -read, b = beta k and X = v, without Y_k and S_k; for "untied" a = read, b = erase,
X = tril(a k^T E, -1) v, Y_k = tril(q k^T E) v and S_k = k~^T v; for "linear" only Y_k and S_k are left (arXiv
2406.06484, section 3; 2412.06464, section 3.3). M is unit lower triangular, and is solved by substitution.

Decays of channels stand inside the product over channels. exp(Gam_i - Gam_j) is then a product of two factors on either
side of a token between i and j, the last of the lower half of the smallest block of 2, 4, ... C tokens that holds both:
no exponent is positive whatever the decays are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.delta.reference import current_weights

DEFAULT_CHUNK = 32


class _Gates(NamedTuple):
    """Log decays of the tokens of chunks, [B, L, C] or [B, L, C, K], and their sums."""

    logs: Tensor
    upto: Tensor
    """Sums from the start of the chunk to a token, the token included."""
    before: Tensor
    """The same without the token."""
    after: Tensor
    """Sums from the next token to the end of the chunk."""

    @property
    def total(self) -> Tensor:
        """Sums over the chunk, [B, L, 1] or [B, L, K]."""
        return self.upto[:, :, -1:] if self.logs.ndim == 3 else self.upto[:, :, -1]


class _Parts(NamedTuple):
    """Results of chunks before the state is known: R = r + at S, Y = qt S + scores R + y, S' = decay S + bt^T R + s."""

    qt: Tensor
    at: Tensor | None
    r: Tensor | None
    scores: Tensor | None
    bt: Tensor | None
    y: Tensor | None
    s: Tensor | None


def delta_by_chunks(inputs: DeltaInputs, options: DeltaOptions) -> tuple[Tensor, Tensor]:
    """Return y [N, T, G, V] in the type of v, and the last state [N, G, K, V]; differentiable."""
    assert options.scale is not None
    n, tokens, groups, _ = inputs.v.shape
    cut = _cut_inputs(inputs, min(options.chunk or DEFAULT_CHUNK, 1 << (tokens - 1).bit_length()))
    if cut.log_value_decay is not None:
        y, state = _by_value_decay(cut.q, cut.k, cut.v, _gates(cut.log_value_decay), _first_state(cut))
    else:
        gates = None if cut.log_decay is None else _gates(cut.log_decay)
        y, state = _over_chunks(_parts(cut, options, gates), gates, _first_state(cut))
    y = y.flatten(1, 2)[:, :tokens].unflatten(0, (n, groups)).transpose(1, 2)
    y = y[:, inputs.substeps - 1 :: inputs.substeps]
    if inputs.bonus is not None:
        shared = groups // inputs.q.shape[2]
        queries, keys = (x.to(y.dtype).repeat_interleave(shared, dim=2) for x in inputs[:2])
        y = y + current_weights(queries, keys, inputs.bonus.to(y.dtype), shared) * inputs.v
    kind = accumulation_dtype(inputs.v.dtype)
    return (options.scale * y).to(inputs.v.dtype), state.unflatten(0, (n, groups)).to(kind)


def _parts(cut: DeltaInputs, options: DeltaOptions, gates: _Gates | None) -> _Parts:
    """Return the results of all chunks before the state is known."""
    queries = _Scores(cut.q, gates, exclusive=options.ahead, diagonal=not options.ahead)
    if options.rule == "linear":
        return _read_nothing(queries, cut.k, cut.v)
    vectors = cut.read if cut.read is not None else cut.k
    rows = vectors if options.rule == "untied" else -vectors
    reading = _Scores(rows, gates, exclusive=options.reads == "undecayed", diagonal=False)
    if options.rule == "delta":
        return _solve(reading, queries, cut.k if cut.beta is None else cut.k * cut.beta[..., None], cut.v)
    assert cut.erase is not None
    written = _read_nothing(queries, cut.k, cut.v)
    return _solve(reading, queries, cut.erase, reading.of(cut.k) @ cut.v)._replace(y=written.y, s=written.s)


def _cut_inputs(inputs: DeltaInputs, chunk: int) -> DeltaInputs:
    """Return the inputs as [N*G, chunks, C, ...], in the type of accumulation; bonus and state stay as they are."""
    tokens, groups = inputs.v.shape[1:3]
    last = inputs.substeps - 1

    def cut(x: Tensor | None, place: int) -> Tensor | None:
        """Cut one tensor; rows of whole tokens stand at sub-step `place`, with zeros at the others."""
        if x is None:
            return None
        x = x.to(accumulation_dtype(inputs.v.dtype))
        if x.shape[1] < tokens:
            rows = x.new_zeros(x.shape[0], tokens, *x.shape[2:])
            rows[:, place :: inputs.substeps] = x
            x = rows
        x = x.repeat_interleave(groups // x.shape[2], dim=2).transpose(1, 2).flatten(0, 1)
        missing = -tokens % chunk
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1) if missing else x
        pieces: Tensor = x.unflatten(1, (-1, chunk))
        return pieces

    q, k, v, beta, log_decay, read, erase, log_value_decay = (
        cut(x, place) for x, place in zip(inputs[:8], (last, *7 * (0,)), strict=True)
    )
    assert q is not None and k is not None and v is not None
    return DeltaInputs(q, k, v, beta, log_decay, read, erase, log_value_decay, inputs.bonus, inputs.state)


def _first_state(cut: DeltaInputs) -> Tensor:
    if cut.state is None:
        return cut.v.new_zeros(cut.v.shape[0], cut.k.shape[3], cut.v.shape[3])
    return cut.state.to(cut.v.dtype).flatten(0, 1)


def _gates(logs: Tensor) -> _Gates:
    upto, after = logs.cumsum(dim=2), logs.flip(2).cumsum(dim=2).flip(2)
    zeros = torch.zeros_like(logs[:, :, :1])
    return _Gates(logs, upto, torch.cat([zeros, upto[:, :, :-1]], dim=2), torch.cat([after[:, :, 1:], zeros], dim=2))


def _times(x: Tensor, log_factor: Tensor) -> Tensor:
    """Return rows [B, L, C, K] times exp of logs [B, L, C] or [B, L, C, K]."""
    return x * (log_factor if log_factor.ndim == 4 else log_factor[..., None]).exp()


class _Scores(NamedTuple):
    """Rows [B, L, C, K] that read what earlier tokens of their chunk, and the state before it, hold."""

    rows: Tensor
    gates: _Gates | None
    exclusive: bool
    """A row is not decayed by the gate of its own token."""
    diagonal: bool
    """A row reads its own token too."""

    def of(self, keys: Tensor) -> Tensor:
        """Return the scores of keys [B, L, C, K], sum_c rows_ic keys_jc exp(Gam_ic - Gam_jc), [B, L, C, C]."""
        chunk, offset = keys.shape[2], 0 if self.diagonal else -1
        if self.gates is None:
            return (self.rows @ keys.mT).tril(offset)
        if self.gates.logs.ndim == 4:
            return self._of_channels(keys, self.gates.logs)
        later = torch.ones(chunk, chunk, dtype=torch.bool, device=keys.device).tril(offset)
        start = self.gates.before if self.exclusive else self.gates.upto
        exponent = start[..., None] - self.gates.upto[:, :, None]
        return (self.rows @ keys.mT) * exponent.masked_fill(~later, -torch.inf).exp()

    def _of_channels(self, keys: Tensor, logs: Tensor) -> Tensor:
        scores = torch.diag_embed((self.rows * keys).sum(3) * float(self.diagonal))
        size = 1
        while size < keys.shape[2]:
            to_middle, from_middle, pairs = _middles(keys.shape[2], size, self.exclusive, keys)
            near = keys * (to_middle @ logs).exp()
            far = self.rows * (from_middle @ logs).exp()
            scores = scores + pairs * (far @ near.mT)
            size *= 2
        return scores

    def of_state(self) -> Tensor:
        """Return the rows that the state before the chunk meets, [B, L, C, K]."""
        if self.gates is None:
            return self.rows
        return _times(self.rows, self.gates.before if self.exclusive else self.gates.upto)


def _middles(chunk: int, size: int, exclusive: bool, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return three [C, C] matrices of 0 and 1 for blocks of two halves of `size` tokens.

    Row j of the first adds the logs after token j to the end of its half, if that is a lower half; row i of the second
    those from the start of an upper half to token i (or to the token before); the third marks (i, j) that lie in the
    upper and the lower half of one block.
    """
    token = torch.arange(chunk, device=like.device)
    row, column = token[:, None], token[None, :]
    upper = (row // size) % 2 == 1
    same_half, same_block = row // size == column // size, row // (2 * size) == column // (2 * size)
    to_middle = ~upper & same_half & (column > row)
    from_middle = upper & same_half & (column < row if exclusive else column <= row)
    pairs = upper & ~upper.T & same_block
    return to_middle.to(like), from_middle.to(like), pairs.to(like)


def _read_nothing(scores: _Scores, k: Tensor, v: Tensor) -> _Parts:
    """Return the parts of a chunk in which nothing is read before it is written: y and s alone."""
    kt = k if scores.gates is None else _times(k, scores.gates.after)
    return _Parts(scores.of_state(), None, None, None, None, scores.of(k) @ v, kt.mT @ v)


def _solve(reading: _Scores, scores: _Scores, writing: Tensor, values: Tensor) -> _Parts:
    """Return the parts for R = M^{-1} (a~ S + values), M = I - A; y and s are None."""
    both = torch.cat([values, reading.of_state()], dim=3)
    solved = torch.linalg.solve_triangular(-reading.of(writing), both, upper=False, unitriangular=True)
    r, at = solved.split([values.shape[3], writing.shape[3]], dim=3)
    bt = writing if scores.gates is None else _times(writing, scores.gates.after)
    return _Parts(scores.of_state(), at, r, scores.of(writing), bt, None, None)


def _over_chunks(parts: _Parts, gates: _Gates | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return Y [B, L, C, V] and the last state [B, K, V] from the first one."""
    outputs = []
    for i in range(parts.qt.shape[1]):
        qt, at, r, scores, bt, y, s = (None if x is None else x[:, i] for x in parts)
        assert qt is not None
        out = qt @ state if y is None else torch.baddbmm(y, qt, state)
        new = state if gates is None else state * gates.total[:, i, :, None].exp()
        if s is not None:
            new = new + s
        if r is not None:
            assert at is not None and scores is not None and bt is not None
            found = torch.baddbmm(r, at, state)
            out, new = torch.baddbmm(out, scores, found), torch.baddbmm(new, bt.mT, found)
        outputs.append(out)
        state = new
    return torch.stack(outputs, dim=1), state


def _by_value_decay(q: Tensor, k: Tensor, v: Tensor, gates: _Gates, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return Y and the last state of S_t = S_{t-1} D(alpha_t) + k_t v_t^T, alpha_t in R^V."""
    scores = q @ k.mT
    inside = torch.diagonal(scores, dim1=2, dim2=3)[..., None] * v
    size = 1
    while size < k.shape[2]:
        to_middle, from_middle, pairs = _middles(k.shape[2], size, False, k)
        near = v * (to_middle @ gates.logs).exp()
        inside = inside + (from_middle @ gates.logs).exp() * ((pairs * scores) @ near)
        size *= 2
    decay, written, outputs = gates.upto.exp(), k.mT @ _times(v, gates.after), []
    for i in range(q.shape[1]):
        outputs.append(inside[:, i] + decay[:, i] * (q[:, i] @ state))
        state = state * decay[:, i, -1:] + written[:, i]
    return torch.stack(outputs, dim=1), state
