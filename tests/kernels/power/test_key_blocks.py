"""Wide keys in blocks: sums over more heads of narrower keys, put together again."""

import pytest
import torch

from icl_bench.kernels.power.api import power_attention_with_state
from icl_bench.kernels.power.key_blocks import WIDEST_KEY, join_keys, split_keys
from icl_bench.kernels.power.records import PowerInputs, PowerState


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("repeat", [1, 2])
def test_blocks_of_keys_are_the_whole(gated: bool, repeat: int) -> None:
    drawn = torch.Generator().manual_seed(repeat)
    n, t, groups, width, columns = 2, 5, 2, 2 * WIDEST_KEY + 3, 3

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=drawn, dtype=torch.float64)

    q, k, v = draw(n, t, groups * repeat, width), draw(n, t, groups, width), draw(n, t, groups, columns)
    log_g = -draw(n, t, groups).exp() if gated else None
    state = PowerState(draw(n, groups, width, columns), None)
    options = {"p": 1, "scale": 0.1, "normalize": "none", "impl": "quadratic"}
    whole, last = power_attention_with_state(q, k, v, log_g, initial_state=state, **options)
    parts = split_keys(PowerInputs(q, k, v, log_g, state))
    y, sums = power_attention_with_state(parts.q, parts.k, parts.v, parts.log_g, initial_state=parts.state, **options)
    out, joined = join_keys(y, sums, groups, width)
    rounding = 5 * torch.finfo(torch.float32).eps * float(y.abs().max())  # of three outputs, and of two additions
    assert torch.allclose(out, whole, rtol=0, atol=rounding)
    assert joined is not None and torch.allclose(joined.s, last.s, rtol=1e-12, atol=1e-12)
