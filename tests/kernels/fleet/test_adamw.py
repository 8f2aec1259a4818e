"""AdamW in Triton and in operators of torch against its definition, and against torch's own for a lone member."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.adamw import adamw_step
from icl_bench.kernels.fleet.layout import ADAMW_TILE, MemberState, OptimiserBuffers, ParameterLayout
from tests.kernels.numerics import DEVICE

BETAS = {"beta1": 0.9, "beta2": 0.999}
STEPS = 3


def make_members(count: int) -> MemberState:
    steps = torch.arange(STEPS + 1, dtype=torch.float64)
    table = torch.stack([0.5 + steps / 10, 1 - 0.9**steps, 1 - 0.999**steps], dim=1).float()
    state = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64)
    rates = torch.logspace(-3, -2, count), torch.linspace(0.0, 0.1, count)
    parts = torch.zeros(count), torch.zeros((), dtype=torch.int64), table, *rates, *state
    return MemberState(*(part.to(DEVICE) for part in parts))


def trained(layout: ParameterLayout, impl: str, working: torch.dtype | None = None, spoil: bool = False, **options):
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(layout.elements, generator=generator).to(DEVICE)
    copy = None if working is None else flat.to(working)
    kind = working or torch.float32
    buffers = OptimiserBuffers(
        flat, torch.zeros_like(flat, dtype=kind), torch.zeros_like(flat), torch.zeros_like(flat), copy
    )
    members = make_members(layout.members)
    for step in range(STEPS):
        buffers.gradients.copy_(torch.randn(layout.elements, generator=generator))
        if spoil and step == 1:
            layout.blocks(buffers.gradients)[0][1, 0] = torch.nan
        adamw_step(buffers, members, layout, impl=impl, **BETAS, **options)
    return buffers, members


def assert_close(found, wanted) -> None:
    """Equal up to some roundings of the update, whose parts are of the order of the parameters."""
    torch.testing.assert_close(found, wanted, rtol=8 * torch.finfo(found.dtype).eps, atol=1e-7)


@pytest.mark.parametrize(
    "sizes", [(5,), (64, 16, 48), (ADAMW_TILE + 16, 8), (ADAMW_TILE, 3, 2 * ADAMW_TILE + 1)], ids=str
)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_forms_match_the_definition(sizes, clip):
    layout = ParameterLayout(2, sizes)
    exact, _ = trained(layout, "reference", clip=clip)
    for impl in ("triton", "torch"):
        buffers, members = trained(layout, impl, clip=clip)
        for found, wanted in zip(buffers[:4], exact[:4], strict=True):
            assert_close(found, wanted)
        assert int(members.steps) == STEPS and members.active.all()


@pytest.mark.parametrize("count", [1, 3])
def test_zeros_between_blocks_change_no_number(count: int):
    sizes = (59, 64, ADAMW_TILE + 1)
    apart, close = ParameterLayout(count, sizes, unit=8), ParameterLayout(count, sizes)
    assert apart.elements > close.elements and all(start % 8 == 0 for start in apart.starts)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, size, generator=generator) for size in sizes]
    assert all(map(torch.equal, apart.rows(apart.joined(parts)), parts))
    for impl in ("triton", "torch"):
        results = []
        for layout in (apart, close):
            flat = layout.joined(parts).to(DEVICE)
            buffers = OptimiserBuffers(flat, flat / 3, torch.zeros_like(flat), torch.zeros_like(flat), None)
            adamw_step(buffers, make_members(count), layout, impl=impl, clip=1.0, **BETAS)
            results.append(layout.rows(buffers.parameters))
        for one, other in zip(*results, strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("count", [1, 2])
def test_exempt_blocks_do_not_decay(count: int):
    plain, exempt = ParameterLayout(count, (16, 32, 8)), ParameterLayout(count, (16, 32, 8), exempt=(1,))
    exact, _ = trained(exempt, "reference")
    decayed, _ = trained(plain, "reference")
    for impl in ("triton", "torch"):
        assert_close(trained(exempt, impl)[0].parameters, exact.parameters)
    blocks = [torch.equal(*pair) for pair in zip(*(map(plain.rows, (exact[0], decayed[0]))), strict=True)]
    assert blocks == [True, count == 1, True]  # the decay of a lone member is 0 here


def test_more_tiles_than_a_program_sums_at_once(monkeypatch):
    monkeypatch.setattr("icl_bench.kernels.fleet.triton.adamw.SUMS", 4)
    layout = ParameterLayout(1, (1,) * 11)
    fused, plain = (trained(layout, impl, clip=1.0)[0] for impl in ("triton", "torch"))
    assert_close(fused.parameters, plain.parameters)


def test_the_working_copy_is_the_rounded_parameters():
    for impl in ("triton", "torch", "reference"):
        buffers, _ = trained(ParameterLayout(2, (40, 16)), impl, working=torch.float16)
        assert torch.equal(buffers.working, buffers.parameters.half())


def test_a_member_that_diverges_is_frozen_and_the_others_go_on():
    layout = ParameterLayout(3, (64, 16))
    for impl in ("triton", "torch", "reference"):
        whole, broken = trained(layout, impl), trained(layout, impl, spoil=True)
        assert broken[1].diverged_at.tolist() == [0, 2, 0] and broken[1].active.tolist() == [True, False, True]
        for a, b in zip(layout.blocks(whole[0].parameters), layout.blocks(broken[0].parameters), strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[2], b[2])
            assert b[1].isfinite().all() and not torch.equal(a[1], b[1])


def test_a_lone_member_follows_torch():
    layout = ParameterLayout(1, (30, 7))
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(layout.elements, generator=generator).to(DEVICE).requires_grad_()
    members = make_members(1)
    theirs = torch.optim.AdamW([leaf], lr=1.0, betas=(0.9, 0.999), weight_decay=0.0)
    for step in range(1, STEPS + 1):
        leaf.grad = torch.randn(layout.elements, generator=generator).to(DEVICE)
        theirs.param_groups[0]["lr"] = float(members.peak[0] * members.table[step, 0])
        theirs.step()
    for impl in ("triton", "torch", "reference"):
        assert_close(trained(layout, impl)[0].parameters, leaf.detach())


def test_buffers_are_checked():
    layout = ParameterLayout(2, (8,))
    with pytest.raises(ArgumentError, match="gradients must be"):
        adamw_step(
            OptimiserBuffers(*torch.zeros(2, 16)[:1], torch.zeros(8), *torch.zeros(2, 16), None),
            make_members(2),
            layout,
            **BETAS,
        )
