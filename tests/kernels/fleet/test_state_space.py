"""State-space sums with shared keys against their recurrence in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.state_space import state_space, takes_state_space
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw


def problem(members, batch, time, heads, key, value, dtype):
    """Inputs with steps near 0.3 and rates near 1: states forget over several chunks."""
    vectors = [draw(members, batch, time, key, dtype=dtype, seed=seed) for seed in (0, 1)]
    vectors += [draw(members, batch, time, heads, value, dtype=dtype, seed=2)]
    vectors += [draw(members, batch, time, heads, dtype=dtype, seed=3)]
    shift = torch.tensor([-1.0, -2.0, 1.0], device=DEVICE)
    return vectors + [draw(members, heads, seed=4 + i) * 0.3 + shift[i] for i in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(2, 2, 37, 2, 5, 7), (1, 1, 150, 1, 16, 20), (1, 2, 1, 3, 16, 16)], ids=str)
def test_state_space(sizes, dtype, monkeypatch):
    """Chunks of 16 tokens, the last of them a part of one."""
    monkeypatch.setattr("icl_bench.kernels.fleet.triton.state_space.CHUNK", 16)
    _, batch, time, _, key, value = sizes
    # A gradient of a parameter adds, over all tokens, products of a dot product of keys and one of values.
    assert_forms_match_reference(
        lambda *inputs, impl: state_space(*inputs, impl=impl),
        problem(*sizes, dtype),
        walk=16 * (batch * time * key * value) ** 0.5,
    )


def test_the_triton_form_is_for_states_that_fit_and_sequences_that_fill_a_device(monkeypatch):
    monkeypatch.setattr("icl_bench.kernels.fleet.state_space.takes_triton", lambda impl, x: True)

    def taken(batch, time, heads, key, value):
        like = torch.empty(0, device="meta")
        return takes_state_space(like.new_empty(1, batch, time, 1, key), like.new_empty(1, batch, time, heads, value))

    assert taken(1, 1024, 1, 16, 64) and taken(128, 65_536, 4, 16, 64) and taken(1, 8, 2, 64, 32)
    assert not taken(1, 1025, 4, 16, 64) and not taken(64, 256, 4, 64, 64) and not taken(64, 256, 4, 16, 129)


def test_shapes_are_checked():
    q, v, numbers = draw(1, 2, 3, 4), draw(1, 2, 3, 5, 6), draw(1, 5)
    with pytest.raises(ArgumentError, match="raw must be"):
        state_space(q, q, v, draw(1, 2, 3, 4), numbers, numbers, numbers)
    with pytest.raises(ArgumentError, match="skip must be"):
        state_space(q, q, v, draw(1, 2, 3, 5), numbers, numbers, draw(1, 4))
