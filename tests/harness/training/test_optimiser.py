"""AdamW over a fleet against torch, clipping by member, the schedule."""

import math

import pytest
import torch

from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs


def test_clipping_is_each_members_own() -> None:
    runs = specs("power:p=2", seeds=(0, 1))
    trainer = Trainer(runs, Machine(CPU))
    first = trainer.optimiser.gradients[0]
    first[0, 0, 0], first[1, 0, 0] = 1e6, 1e-3
    trainer.optimiser.step(torch.zeros(2))
    assert trainer.optimiser.means[0][:, 0, 0].tolist() == pytest.approx([0.1 * 1.0, 0.1 * 1e-3], rel=1e-4)


def test_adamw_follows_torch() -> None:
    run = specs("softmax", extra=("train.clip=none", "train.warmup=0.0", "train.final_lr=1.0"))[0]
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


def test_the_schedule_rises_and_falls_as_a_cosine() -> None:
    run = specs("softmax", extra=("train.steps=10", "train.warmup=0.2", "train.final_lr=0.1"))[0]
    rates = Trainer([run], Machine(CPU)).optimiser.state.table[1:, 0].tolist()
    expected = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(1, 9)]
    assert rates == pytest.approx(expected, abs=1e-6)
