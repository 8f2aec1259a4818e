"""The core of RWKV-7 as one operator against its parts one after the other, in float64."""

import pytest
import torch

from icl_bench.kernels.delta.api import delta_rule
from icl_bench.kernels.delta.erasing import erasing_delta, takes_erasing_delta
from icl_bench.kernels.delta.records import (
    DeltaInputs,
    DeltaOptions,
    ErasingOptions,
    ErasingWeights,
)
from icl_bench.kernels.fleet.decays import channel_decays
from icl_bench.kernels.fleet.erasing_keys import erasing_keys
from icl_bench.kernels.fleet.projection import project
from tests.kernels.numerics import DEVICE, draw

LEAST, RANK = -0.6, 8


def parts_in_turn(rows, values, weights, options, sparse):
    """Return what `erasing_delta` returns, by the definitions of its parts."""
    heads, keys = options.heads, options.heads * options.key_width
    r, k = (rows[..., first : first + keys].unflatten(-1, (heads, -1)) for first in (0, keys))
    wide = heads * options.value_width
    v = rows[..., 2 * keys : 2 * keys + wide].unflatten(-1, (heads, -1)) if values is None else values
    low = (
        rows[..., options.rate_at : options.rate_at + RANK],
        rows[..., options.decay_at : options.decay_at + RANK].tanh(),
    )
    rate, decay = (
        project(part.flatten(1, -2), weight).view(*rows.shape[:3], -1)
        for part, weight in zip(low, (weights.rate_adapter, weights.decay_adapter), strict=True)
    )
    vectors = erasing_keys(k, rate.view(k.shape), *weights[:3], impl="reference")
    logs = channel_decays(decay, "sigmoid", options.least, weights.decay, impl="reference").view(k.shape)
    written, read, erase, logs, q, v_rows = (x.flatten(0, 1) for x in (*vectors, logs, r, v))
    inputs = DeltaInputs(q, written, v_rows, log_decay=logs, read=read, erase=erase)
    rule = DeltaOptions(rule="untied", reads="undecayed", scale=1.0, least_log_decay=options.least)
    y = delta_rule(inputs, rule, "reference")[0].view(v.shape)
    sums = (r.double() * vectors[0] * weights.bonus.double()[:, None, None]).sum(-1)
    return rows, y, v, sums


@pytest.mark.parametrize("own_values", [False, True])
@pytest.mark.parametrize(
    ("time", "key", "value", "others", "sparse"),
    [(18, 16, 12, 5, False), (20, 32, 32, 64, False), (18, 16, 12, 5, True)],
)
def test_outputs_and_gradients(time, key, value, others, sparse, own_values):
    """In bfloat16 on a GPU, as fleets run, and in float32 elsewhere; a given gradient joins that of the values.

    Where sparse, the sums of some heads and tokens alone have gradients.
    The bounds are those of the rule, in float32 three times 1e-5 for what is rounded before and after it.
    """
    dtype, bound = (torch.bfloat16, 2e-2) if DEVICE == "cuda" else (torch.float32, 3e-5)
    members, batch, heads = 2, 2, 32 // key
    shape = (members, batch, time)
    own = heads * (2 * key + (0 if own_values else value))
    used = own + 2 * RANK
    leaves = [draw(*shape, used + others, dtype=dtype)]
    leaves += [draw(*shape, heads, value, dtype=dtype, seed=3)] * own_values
    numbers = [draw(members, heads, key, seed=4 + i) * 0.5 for i in range(2)]
    numbers = [numbers[0], numbers[1] + 1.5, draw(members, heads, key, seed=6) * 0.3 + 1]
    numbers += [draw(members, heads * key, seed=7)]
    numbers += [draw(members, RANK, heads * key, dtype=dtype, seed=i) / RANK**0.5 for i in (1, 2)]
    numbers += [draw(members, heads, key, seed=8)]
    options = ErasingOptions(heads, key, value, LEAST, own, own + RANK)
    along = [draw(*shape, heads, value, seed=11), draw(*shape, heads, value, seed=12), draw(*shape, heads, seed=13)]
    along.append(draw(*shape, others, seed=14))

    if sparse:
        along[2] *= draw(*shape, heads, seed=15) > 1

    def results(form, kind):
        given = [leaf.detach().to(kind(leaf)).requires_grad_() for leaf in [*leaves, *numbers]]
        rows, *rest = given
        values = rest.pop(0) if own_values else None
        rows, *out = form(rows, values, ErasingWeights(*rest), options, sparse=sparse)
        out.append(rows[..., used:])
        found = torch.autograd.grad(out, given, [part.to(y.dtype) for part, y in zip(along, out, strict=True)])
        return [*out, *found]

    wanted = results(parts_in_turn, lambda leaf: torch.float64)
    found = results(erasing_delta, lambda leaf: leaf.dtype)
    for i, (actual, exact) in enumerate(zip(found, wanted, strict=True)):
        error = ((actual.double() - exact).norm() / exact.norm()).item()
        assert error < bound, f"result {i}: {error:.1e}"


def test_calls_that_it_takes(monkeypatch):
    rows, options = torch.zeros(1, 2, 4, 128, device=DEVICE), ErasingOptions(1, 32, 32, LEAST, 96, 112)
    monkeypatch.setattr("icl_bench.kernels.delta.erasing.takes_triton", lambda impl, x: True)
    assert takes_erasing_delta(rows, options)
    assert not takes_erasing_delta(rows, options._replace(key_width=64))
    assert not takes_erasing_delta(rows, options._replace(least=-5.0))
    assert not takes_erasing_delta(rows.half(), options)
