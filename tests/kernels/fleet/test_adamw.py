"""The fused AdamW against the plain one, and against torch's own for a lone member."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when the kernels are defined: it must be set before anything imports them.
    os.environ["TRITON_INTERPRET"] = "1"

from icl_bench.errors import ArgumentError  # noqa: E402
from icl_bench.kernels.fleet.adamw import adamw_step  # noqa: E402
from icl_bench.kernels.fleet.layout import TILE, Fleet, Layout, Slots  # noqa: E402

BETAS = {"beta1": 0.9, "beta2": 0.999}
STEPS = 3


def make_fleet(members: int) -> Fleet:
    steps = torch.arange(STEPS + 1, dtype=torch.float64)
    table = torch.stack([0.5 + steps / 10, 1 - 0.9**steps, 1 - 0.999**steps], dim=1).float()
    fates = torch.ones(members, dtype=torch.bool), torch.zeros(members, dtype=torch.int64)
    rates = torch.logspace(-3, -2, members), torch.linspace(0.0, 0.1, members)
    parts = torch.zeros(members), torch.zeros((), dtype=torch.int64), table, *rates, *fates
    return Fleet(*(part.to(DEVICE) for part in parts))


def trained(layout: Layout, impl: str, working: torch.dtype | None = None, spoil: bool = False, **options):
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(layout.elements, generator=generator).to(DEVICE)
    copy = None if working is None else flat.to(working)
    kind = working or torch.float32
    slots = Slots(flat, torch.zeros_like(flat, dtype=kind), torch.zeros_like(flat), torch.zeros_like(flat), copy)
    fleet = make_fleet(layout.members)
    for step in range(STEPS):
        slots.gradients.copy_(torch.randn(layout.elements, generator=generator))
        if spoil and step == 1:
            layout.blocks(slots.gradients)[0][1, 0] = torch.nan
        adamw_step(slots, fleet, layout, impl=impl, **BETAS, **options)
    return slots, fleet


def assert_close(found, wanted) -> None:
    """Equal up to some roundings of the update, whose parts are of the order of the parameters."""
    torch.testing.assert_close(found, wanted, rtol=8 * torch.finfo(found.dtype).eps, atol=1e-7)


@pytest.mark.parametrize("sizes", [(5,), (64, 16, 48), (TILE + 16, 8), (TILE, 3, 2 * TILE + 1)], ids=str)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_fused_equals_plain(sizes, clip):
    layout = Layout(2, sizes)
    (fused, fates), (plain, _) = (trained(layout, impl, clip=clip) for impl in ("triton", "torch"))
    for found, wanted in zip(fused[:4], plain[:4], strict=True):
        assert_close(found, wanted)
    assert int(fates.steps) == STEPS and fates.alive.all()


def test_more_tiles_than_a_program_sums_at_once(monkeypatch):
    monkeypatch.setattr("icl_bench.kernels.fleet.triton.adamw.SUMS", 4)
    layout = Layout(1, (1,) * 11)
    fused, plain = (trained(layout, impl, clip=1.0)[0] for impl in ("triton", "torch"))
    assert_close(fused.parameters, plain.parameters)


def test_the_working_copy_is_the_rounded_parameters():
    for impl in ("triton", "torch"):
        slots, _ = trained(Layout(2, (40, 16)), impl, working=torch.float16)
        assert torch.equal(slots.working, slots.parameters.half())


def test_a_member_that_dies_is_frozen_and_the_others_go_on():
    layout = Layout(3, (64, 16))
    for impl in ("triton", "torch"):
        whole, broken = trained(layout, impl), trained(layout, impl, spoil=True)
        assert broken[1].died_at.tolist() == [0, 2, 0] and broken[1].alive.tolist() == [True, False, True]
        for a, b in zip(layout.blocks(whole[0].parameters), layout.blocks(broken[0].parameters), strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[2], b[2])
            assert b[1].isfinite().all() and not torch.equal(a[1], b[1])


def test_a_lone_member_follows_torch():
    layout = Layout(1, (30, 7))
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(layout.elements, generator=generator).to(DEVICE).requires_grad_()
    fleet = make_fleet(1)
    theirs = torch.optim.AdamW([leaf], lr=1.0, betas=(0.9, 0.999), weight_decay=0.0)
    for step in range(1, STEPS + 1):
        leaf.grad = torch.randn(layout.elements, generator=generator).to(DEVICE)
        theirs.param_groups[0]["lr"] = float(fleet.peak[0] * fleet.table[step, 0])
        theirs.step()
    for impl in ("triton", "torch"):
        assert_close(trained(layout, impl)[0].parameters, leaf.detach())


def test_buffers_are_checked():
    layout = Layout(2, (8,))
    with pytest.raises(ArgumentError, match="gradients must be"):
        adamw_step(
            Slots(*torch.zeros(2, 16)[:1], torch.zeros(8), *torch.zeros(2, 16), None), make_fleet(2), layout, **BETAS
        )
