"""AdamW and Muon over a fleet against plain forms, clipping by member, what decays, the schedule."""

import math

import pytest
import torch

from icl_bench.harness.training import optimiser
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs

STEADY = ("train.clip=none", "train.warmup=0.0", "train.final_lr=1.0")


def test_clipping_is_each_members_own() -> None:
    runs = specs("power:p=2", seeds=(0, 1))
    trainer = Trainer(runs, Machine(CPU))
    first = trainer.optimiser.gradients[0]
    first[0, 0, 0], first[1, 0, 0] = 1e6, 1e-3
    trainer.optimiser.step(torch.zeros(2))
    assert trainer.optimiser.means[0][:, 0, 0].tolist() == pytest.approx([0.1 * 1.0, 0.1 * 1e-3], rel=1e-4)


def test_each_tensor_can_be_clipped_by_its_own_norm() -> None:
    trainer = Trainer(specs("power:p=2", seeds=(0, 1), extra=("train.clip_by=tensor",)), Machine(CPU))
    first, second = trainer.optimiser.gradients[:2]
    first[0].view(-1)[0], second[0].view(-1)[0], second[1].view(-1)[0] = 1e6, 0.5, math.inf
    trainer.optimiser.step(torch.zeros(2))
    means = [float(mean[0].view(-1)[0]) for mean in trainer.optimiser.means[:2]]
    assert means == pytest.approx([0.1 * 1.0, 0.1 * 0.5], rel=1e-4)
    assert trainer.diverged_at == [0, 1] and float(first[0].view(-1)[0]) == 1e6


def test_adamw_follows_torch() -> None:
    run = specs("softmax", extra=("train.recipe=1", *STEADY))[0]
    ours = Trainer([run], Machine(CPU))
    copies = [parameter.detach().clone().requires_grad_() for parameter in ours.model.parameters()]
    train = run.train
    theirs = torch.optim.AdamW(copies, lr=train.lr, betas=(train.beta1, train.beta2), weight_decay=train.weight_decay)
    for _ in range(4):
        ours.step()
        for copy, gradient in zip(copies, ours.optimiser.gradients, strict=True):
            copy.grad = gradient.clone()
        theirs.step()
    for copy, parameter in zip(copies, ours.optimiser.parameters, strict=True):
        torch.testing.assert_close(parameter.detach(), copy.detach(), rtol=1e-5, atol=1e-6)


def test_large_gradients_that_are_copied_alone_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for least in (optimiser.LARGE_GRADIENT, 300):  # the larger of these matrices
        monkeypatch.setattr(optimiser, "LARGE_GRADIENT", least)
        trainer = Trainer(specs("softmax"), Machine(CPU))
        assert 0 < sum(part.numel() >= 300 for part in trainer.optimiser.gradients) < len(trainer.optimiser.gradients)
        trainer.step()
        made.append(trainer.optimiser.buffers.gradients)
    assert torch.equal(*made) and bool(made[0].any())


def test_gradients_below_eps_move_nothing() -> None:
    moved = []
    for eps in (1e-8, 1e-15):
        trainer = Trainer(specs("softmax", extra=("train.weight_decay=0", f"train.eps={eps:g}"))[:1], Machine(CPU))
        trainer.optimiser.gradients[0].fill_(1e-11)
        before = trainer.optimiser.parameters[0].detach().clone()
        trainer.optimiser.step(torch.zeros(1))
        moved.append(float((trainer.optimiser.parameters[0] - before).norm().detach()))
    assert moved[0] < 0.01 * moved[1] and moved[1] > 0


def test_the_schedule_rises_and_falls_as_a_cosine() -> None:
    run = specs("softmax", extra=("train.steps=10", "train.warmup=0.2", "train.final_lr=0.1"))[0]
    rates = Trainer([run], Machine(CPU)).optimiser.state.table[1:, 0].tolist()
    expected = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(1, 9)]
    assert rates == pytest.approx(expected, abs=1e-6)


def after_decay(recipe: int) -> dict[str, float]:
    """Return the share that is left of each parameter after 20 steps without any gradient, by name."""
    run = specs("power:gate=true,conv=2", extra=(f"train.recipe={recipe}", *STEADY, "train.lr=0.1"))[0]
    trainer = Trainer([run], Machine(CPU))
    before = {name: own.detach().clone() for name, own in trainer.model.named_parameters()}
    for _ in range(20):
        trainer.optimiser.step(torch.zeros(1))
    return {name: float(own.detach().norm() / before[name].norm()) for name, own in trainer.model.named_parameters()}


def test_recipe_1_decays_everything_and_recipe_2_matrices_and_tables_alone() -> None:
    left, shrunk = after_decay(2), (1 - 0.1 * 0.1) ** 20
    assert all(share == pytest.approx(shrunk, rel=1e-5) for share in after_decay(1).values())
    gates = [name for name in left if name.endswith("gate.bias")]
    assert len(gates) == 2 and all(left[name] == 1.0 for name in gates)
    kept = {name for name, share in left.items() if share == 1.0}
    decayed = {name for name, share in left.items() if share == pytest.approx(shrunk, rel=1e-5)}
    assert kept | decayed == set(left)
    owner = {name: name.split(".")[-2] for name in left}
    assert {owner[name] for name in decayed} == {"embedding", "project", "output", "gate", "up", "down"}
    assert {owner[name] for name in kept} == {"mixer_norm", "mlp_norm", "norm", "conv", "gate"}


def test_muon_is_alone_what_it_is_in_a_fleet_and_leaves_a_diverged_member() -> None:
    runs = specs("power:p=2", seeds=(0, 1, 2), lrs=(1e-3,), extra=("train.optimiser=muon",))
    fleet, alone = Trainer(runs, Machine(CPU)), Trainer(runs[1:2], Machine(CPU))
    for _ in range(3):
        fleet.step()
        alone.step()
    for whole, own in zip(fleet.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(whole[1:2], own, rtol=1e-4, atol=1e-5)
    before = [own.detach().clone() for own in fleet.model.parameters()]
    fleet.optimiser.gradients[-1][0, 0, 0] = float("nan")  # of a matrix, which AdamW does not see
    fleet.optimiser.step(torch.zeros(3))
    assert fleet.diverged_at == [4, 0, 0]
    for old, new in zip(before, fleet.model.parameters(), strict=True):
        assert torch.equal(old[0], new[0]) and not torch.equal(old[1], new[1]) and bool(new.isfinite().all())


def test_muon_takes_the_matrices_between_activations_alone() -> None:
    run = specs("softmax", extra=("train.optimiser=muon",))[0]
    trainer = Trainer([run], Machine(CPU))
    names = {id(own): name for name, own in trainer.model.named_parameters()}
    optimiser = trainer.optimiser
    matrices = {
        names[id(own)].rpartition(".")[0].rpartition(".")[2] for own in optimiser.parameters[optimiser.first_matrix :]
    }
    assert matrices == {"project", "output", "up", "down"}
    assert [id(own) for own in optimiser.given_order] == [id(own) for own in trainer.model.parameters()]


def test_muon_clips_by_the_norm_of_all_parameters() -> None:
    run = specs("softmax", extra=("train.optimiser=muon", "train.clip=0.5"))[0]
    trainer = Trainer([run], Machine(CPU))
    for gradient in trainer.optimiser.gradients:
        gradient.fill_(1.0)
    clipped = trainer.optimiser.clipped_gradients()
    assert float(clipped.norm()) == pytest.approx(0.5, rel=1e-5)


def test_losses_of_rows_have_the_gradients_of_their_means() -> None:
    """A member's gradient is that of its mean: each row counts for the quotient that a division in float32 gives."""
    first, other = (Trainer(specs("softmax"), Machine(CPU)) for _ in range(2))
    for trainer, differentiated in ((first, lambda losses: losses), (other, lambda losses: losses.mean(1))):
        batch = trainer.queues[0].refill() or trainer.queues[0].take()
        trainer.optimiser.differentiate(differentiated(trainer.working_model.scores(*batch).losses.flatten(1)))
    for one, wanted in zip(first.optimiser.gradients, other.optimiser.gradients, strict=True):
        assert wanted.any() and torch.equal(one, wanted)


def test_a_factor_on_the_loss_keeps_small_gradients_in_float16() -> None:
    """Half of the least positive float16 is 2^-25: a gradient of 2^-28 is rounded to 0 in it."""
    for scale, wanted in ((1, 0.0), (1024, 2.0**-28)):
        run = specs("softmax", extra=(f"train.loss_scale={scale}",), precision="float16")[0]
        optimiser = Trainer([run], Machine(CPU)).optimiser
        place = next(i for i, working in enumerate(optimiser.working) if working.dtype == torch.float16)
        optimiser.differentiate((optimiser.working[place].sum() * torch.tensor(2.0**-28))[None])
        found = optimiser.gradients[place]
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.full_like(found, wanted)), scale


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_factor_on_the_loss_changes_no_gradient_in_range(precision: str) -> None:
    """Powers of two change exponents alone; float16 has numbers below 2^-14, which a factor of 8 makes exact."""
    first, scaled = (
        Trainer(specs("softmax", extra=(f"train.loss_scale={scale}",), precision=precision), Machine(CPU))
        for scale in (1, 8)
    )
    for trainer in (first, scaled):
        trainer.step()
        assert trainer.diverged_at == [0]
    for one, other in zip(first.optimiser.gradients, scaled.optimiser.gradients, strict=True):
        bound = 2.0**-14 if precision == "float16" else 0.0
        torch.testing.assert_close(one, other, rtol=0.0 if precision != "float16" else 2.0**-10, atol=bound)


@pytest.mark.parametrize(("arch", "scale"), [("softmax", 16), ("power:p=2", 1)])
def test_runs_in_float16_learn_as_in_float32(arch: str, scale: int) -> None:
    task = "assoc-recall:length=16,pairs=2,vocab=64"
    losses = []
    for precision in ("float32", "float16"):
        extra = ("train.steps=60", "train.lr=0.01", f"train.loss_scale={scale}")
        trainer = Trainer(specs(arch, extra=extra, task=task, precision=precision), Machine(CPU))
        for _ in range(60):
            trainer.step()
        losses.append(trainer.take_means(60)[0][0])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
