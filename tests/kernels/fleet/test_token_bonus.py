"""The bonus of the current token against its definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.token_bonus import token_bonus, weighted_bonus
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "values"), [((2, 3, 7, 3, 12), 5), ((1, 2, 60, 1, 32), 32)], ids=str)
def test_token_bonus(shape, values, dtype):
    """Queries and values are columns of a wider tensor, as in the mixer."""
    members, heads, width = shape[0], *shape[-2:]
    joint = draw(*shape[:-2], heads * (width + values), dtype=dtype)
    inputs = [joint, draw(*shape, dtype=dtype, seed=1), draw(members, heads, width, seed=2)]
    inputs.append(draw(*shape[:-1], values, dtype=dtype, seed=3))
    inputs += [draw(members, heads, values, seed=4 + i) for i in range(2)]

    def run(wide, k, bonus, y, gain, shift, impl):
        q, v = (part.unflatten(-1, (heads, -1)) for part in wide.split([heads * width, heads * values], dim=-1))
        return token_bonus(q, k, v, bonus, y, (gain, shift), eps=1e-3, impl=impl)

    rows = int(torch.tensor(shape[1:-2]).prod())
    # The gradient of the bonus adds, over all rows, products of two normal numbers and of a sum of `values` such.
    assert_forms_match_reference(run, inputs, walk=8 * (rows * width * values) ** 0.5)


@pytest.mark.parametrize("gated", [False, True], ids=["open", "gated"])
@pytest.mark.parametrize("offered", [False, True], ids=["alone", "offered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7, 3, 12), (1, 2, 60, 1, 32)], ids=str)
def test_weighted_bonus(shape, dtype, offered, gated):
    """Values are columns of a wider tensor; other uses of them give a gradient, or none."""
    members, heads, width = shape[0], *shape[-2:]
    inputs = [draw(*shape, dtype=dtype), draw(*shape[:-2], heads * width + 4, dtype=dtype, seed=1)]
    inputs += [draw(*shape[:-1], seed=2), draw(members, heads, width, seed=3), draw(members, heads, width, seed=4)]
    inputs += [draw(*shape, dtype=dtype, seed=5)] * gated

    def run(y, wide, weights, gain, shift, *gate, impl):
        v = wide[..., 4:].unflatten(-1, (heads, -1))
        given = gate[0] if gate else None
        out, same = weighted_bonus(y, v, weights, (gain, shift), eps=1e-3, gate=given, impl=impl)
        return (out, same) if offered else out

    rows = int(torch.tensor(shape[1:-2]).prod())
    assert_forms_match_reference(run, inputs, walk=8 * max(rows, width) ** 0.5)


@pytest.mark.parametrize("offered", [False, True], ids=["alone", "offered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("time", "taken"), [(7, 3), (70, 66)])
def test_weighted_bonus_at_positions(time, taken, dtype, offered):
    """Some tokens are taken more than once, and one by all."""
    positions = torch.randint(time, (2, 3, taken), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    positions[0, 0] = time - 1
    inputs = [draw(2, 3, time, 3, 12, dtype=dtype), draw(2, 3, time, 3, 12, dtype=dtype, seed=1)]
    inputs += [draw(2, 3, time, 3, seed=2), draw(2, 3, 12, seed=3), draw(2, 3, 12, seed=4)]

    def run(y, v, weights, gain, shift, impl):
        out, same = weighted_bonus(y, v, weights, (gain, shift), eps=1e-3, positions=positions, impl=impl)
        return (out, same) if offered else out

    assert_forms_match_reference(run, inputs, walk=8 * (3 * taken) ** 0.5 * 12)


def test_shapes_are_checked():
    q, v, ones = draw(2, 3, 4, 5), draw(2, 3, 4, 6), torch.ones(2, 4, 6, device=DEVICE)
    with pytest.raises(ArgumentError, match="v must be"):
        token_bonus(q, q, draw(2, 3, 5, 6), draw(2, 4, 5), v, (ones, ones), eps=1e-5)
    with pytest.raises(ArgumentError, match="bonus must be"):
        token_bonus(q, q, v, draw(2, 5), v, (ones, ones), eps=1e-5)
    with pytest.raises(ArgumentError, match="shift must be"):
        token_bonus(q, q, v, draw(2, 4, 5), v, (ones, draw(4, 6)), eps=1e-5)
    with pytest.raises(ArgumentError, match="eps must be positive; got 0"):
        token_bonus(q, q, v, draw(2, 4, 5), v, (ones, ones), eps=0)
    with pytest.raises(ArgumentError, match="weights must be"):
        weighted_bonus(v, v, draw(2, 3, 5), (ones, ones), eps=1e-5)
    positions = torch.zeros(2, 2, 1, dtype=torch.int64)
    with pytest.raises(ArgumentError, match="positions must be"):
        weighted_bonus(v, v, draw(2, 3, 4), (ones, ones), eps=1e-5, positions=positions)
    with pytest.raises(ArgumentError, match="gate must be"):
        weighted_bonus(v, v, draw(2, 3, 4), (ones, ones), eps=1e-5, gate=q)
    with pytest.raises(ArgumentError, match="a gate is for all tokens"):
        weighted_bonus(v, v, draw(2, 3, 4), (ones, ones), eps=1e-5, gate=v, positions=positions)
