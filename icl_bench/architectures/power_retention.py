"""Power retention: the layer that the authors of power attention train, `power` with other defaults.

    S_t = g_t S_(t-1) + phi(k_t) v_t^T,   z_t = g_t z_(t-1) + phi(k_t),   phi(q)·phi(k) = (q·k)^p
    q, k, v = silu(conv(x W_qkv)), then q and k rotated;   log g = log sigmoid(x W_g) / 16
    out = (rms_norm(y) * silu(x W_s)) W_o,   y_t = S_t^T phi(q_t) / z_t·phi(q_t)

State: D V sums a head, and D more for z, as in `power`. Source: "Scaling Context Requires Rethinking Attention" (arXiv
2507.04239) and its training code. Their model of 14 billion parameters takes
`key_norm=rms,gate_divisor=1,silu=false,conv=0` instead.
"""

from icl_bench.architectures.base import ARCHITECTURES
from icl_bench.architectures.frame import OutputGate
from icl_bench.architectures.power import Power


@ARCHITECTURES.register("power-retention")
class PowerRetention(Power):
    """Power attention in its authors' layer: SiLU, rotation, a fast gate, a norm and an output gate."""

    rope: bool = True
    """Rotate queries and keys by position; needs an even key width."""
    gate: bool = True
    """Let scores decay by a learned gate for each token and key-value head."""
    silu: bool = True
    """Apply SiLU to queries, keys and values, after the convolution."""
    output_norm: bool = True
    """Apply an RMS norm to the output of each head, after the division by the sum of scores."""
    output_gate: OutputGate = "silu"
    """Multiply the output by the `silu` or the `sigmoid` of x W."""
    gate_bias: float = 0.0
    """Bias of the decay gate at the start."""
    gate_divisor: float = 16.0
    """Divisor of the logarithm of the decay gate."""
