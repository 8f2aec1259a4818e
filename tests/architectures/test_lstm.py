"""The LSTM is that of torch, by copied weights; the sLSTM is its published recurrence without stabilisation."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import LayerContext
from icl_bench.architectures.initialisation import initialise
from icl_bench.errors import SpecError
from tests.architectures.test_contract import architecture, inputs, mixer, varied
from tests.architectures.test_recurrences import convolve, layer_norm


def parameters(made: torch.nn.Module, member: int) -> dict[str, Tensor]:
    return {name: parameter[member].detach() for name, parameter in made.named_parameters()}


def test_the_lstm_is_that_of_torch() -> None:
    made, x = varied(mixer("lstm:d_inner=7")), inputs()
    got = made(x)
    for m in range(2):
        p = parameters(made, m)
        theirs = torch.nn.LSTM(12, 7, batch_first=True).double()
        with torch.no_grad():
            theirs.weight_ih_l0.copy_(p["project.weight"].T)
            theirs.weight_hh_l0.copy_(p["recur.weight"].T)
            theirs.bias_ih_l0.copy_(p["project.bias"])
            theirs.bias_hh_l0.zero_()
            expected = theirs(x[m])[0] @ p["output.weight"]
        torch.testing.assert_close(got[m], expected, rtol=1e-9, atol=1e-9)


def test_the_s_lstm_is_its_published_recurrence() -> None:
    made, x = varied(mixer("s-lstm:heads=2,d_inner=6", index=1)), inputs()
    got = made(x)
    for m in range(2):
        p, sequence = parameters(made, m), x[m, 1]
        mixed = functional.silu(convolve(sequence, p["conv.weight"]))
        fed = [mixed @ p["gate.weight"] + p["gate.bias"], sequence @ p["project.weight"] + p["project.bias"]]
        c, n, y = (torch.zeros(2, 3, dtype=torch.float64) for _ in range(3))
        rows = []
        for t in range(len(sequence)):
            own = torch.cat([part[t] for part in fed]).view(4, 2, 3)
            i, f, z, o = own + torch.einsum("hj,hjk->hk", y, p["recur.weight"]).view(2, 4, 3).transpose(0, 1)
            c = torch.sigmoid(f) * c + i.exp() * z.tanh()
            n = torch.sigmoid(f) * n + i.exp()
            y = torch.sigmoid(o) * c / n
            rows.append(y)
        expected = (layer_norm(torch.stack(rows), 1e-5) * p["norm.weight"]).flatten(1) @ p["output.weight"]
        torch.testing.assert_close(got[m, 1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_the_s_lstm_does_not_depend_on_a_shift_of_its_input_gates(shift: float) -> None:
    made, x = mixer("s-lstm:heads=2,d_inner=6"), inputs()
    before = made(x)
    with torch.no_grad():
        made.gate.bias[:, :6] += shift
    torch.testing.assert_close(made(x), before, rtol=1e-9, atol=1e-9)


def test_forget_biases_of_the_s_lstm_start_as_published() -> None:
    made = architecture("s-lstm:heads=2").build(1, 16, LayerContext(1, 3))
    initialise(made, [0])
    ramp = 5 - 12 * (torch.arange(8) / 7) ** (0.3 + 1.3 * 0.5)
    torch.testing.assert_close(made.gate.bias[0, 16:], ramp.repeat(2))


def test_channels_that_heads_do_not_share_evenly_are_refused() -> None:
    with pytest.raises(SpecError, match="d_inner must be a multiple of heads = 4; got 6; change either"):
        architecture("s-lstm:d_inner=6").resolved(12)
