"""Four layers learn as in a plain loop of PyTorch; saving memory changes nothing that a model learns."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from icl_bench import random
from icl_bench.errors import SpecError
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs

STEPS, BATCH, LENGTH, WIDTH, HEADS, LAYERS = 50, 8, 64, 32, 2, 4
LR, DECAY, WARMUP, FINAL = 3e-3, 0.1, 5, 0.1
TEXT = f"text:corpus=example,length={LENGTH}"
SETTINGS = (
    *(f"model.d_model={WIDTH}", f"model.layers={LAYERS}", f"train.steps={STEPS}", f"train.batch={BATCH}"),
    *(f"train.lr={LR}", f"train.weight_decay={DECAY}", f"train.warmup={WARMUP / STEPS}", f"train.final_lr={FINAL}"),
)


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(WIDTH, 1e-6), nn.RMSNorm(WIDTH, 1e-6)
        self.project, self.output = nn.Linear(WIDTH, 3 * WIDTH, False), nn.Linear(WIDTH, WIDTH, False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, False), nn.Linear(2 * WIDTH, WIDTH, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.project(self.attention_norm(x)).chunk(3, dim=-1)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).flatten(2))
        gate, up = self.up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class PlainModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(256, WIDTH), nn.RMSNorm(WIDTH, 1e-6)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(LAYERS))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T

    def start_as(self, trainer: Trainer) -> None:
        """Copy the initial parameters; the two lists have one order, and linear layers are stored transposed."""
        given = {name: own[0].detach() for name, own in trainer.model.named_parameters()}
        self.embedding.weight.data.copy_(given["embedding.weight"])
        for i, block in enumerate(self.blocks):
            names = {"project": "mixer.project", "output": "mixer.output", "up": "mlp.up", "down": "mlp.down"}
            for name, theirs in names.items():
                getattr(block, name).weight.data.copy_(given[f"block{i}.{theirs}.weight"].T)


def plain_losses(trainer: Trainer) -> list[float]:
    """Train a plain model on the rows of the task, from the parameters of the trainer."""
    model = PlainModel()
    model.start_as(trainer)
    matrices = [own for own in model.parameters() if own.dim() > 1]
    vectors = [own for own in model.parameters() if own.dim() == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, LR, betas=(0.9, 0.95), eps=1e-8)
    task, cell, losses = trainer.task, trainer.cells[0], []
    stream = torch.tensor(random.stream("text", task.data_version, cell.label, 0, "train"))
    for step in range(1, STEPS + 1):
        cosine = FINAL + (1 - FINAL) * (1 + math.cos(math.pi * max(0, step - WARMUP) / (STEPS - WARMUP))) / 2
        for group in optimiser.param_groups:
            group["lr"] = LR * min(step / WARMUP, cosine)
        index = torch.arange((step - 1) * BATCH, step * BATCH)
        tokens = task.sample_split(random.row_keys(stream, index), cell, "train").inputs
        logits = model(tokens)[:, :-1].flatten(0, 1)
        loss = functional.cross_entropy(logits, tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def losses_of(trainer: Trainer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        trainer.step()
        losses.append(trainer.take_means(1)[0][0])
    return losses


def test_the_losses_are_those_of_a_plain_loop() -> None:
    (run,) = specs(f"softmax:heads={HEADS},conv=0", task=TEXT, extra=SETTINGS)
    trainer = Trainer([run], Machine(CPU))
    expected = plain_losses(trainer)
    found = losses_of(trainer, STEPS)
    assert expected[-1] < 0.7 * expected[0]
    assert found == pytest.approx(expected, rel=0, abs=1e-4)


MEMORY = [Machine(CPU, accumulate=4), Machine(CPU, accumulate=3), Machine(CPU, recompute=True)]


@pytest.mark.parametrize("machine", MEMORY, ids=["four parts", "three parts", "recomputed"])
@pytest.mark.parametrize("arch", ["power:p=2", "softmax:rope=true", "gated-conv+gated-delta-net", "mamba-2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_is_saved_without_other_numbers(arch: str, precision: str, machine: Machine) -> None:
    """One gradient, so that rounding is not multiplied by steps; parts come as close to float32 as a whole batch."""
    runs, exact = (specs(arch, seeds=(0, 1), task=TEXT, precision=own) for own in (precision, "float32"))
    whole, saving, wanted = (Trainer(*own) for own in ((runs, Machine(CPU)), (runs, machine), (exact, Machine(CPU))))
    for trainer in (whole, saving, wanted):
        trainer.step()
    assert saving.take_means(1)[0] == pytest.approx(whole.take_means(1)[0], rel=1e-5)
    theirs, ours, best = (own.optimiser.buffers.gradients.float() for own in (whole, saving, wanted))
    if machine.recompute:
        assert torch.equal(ours, theirs)
    else:
        assert (ours - best).norm() < 1e-5 * best.norm() + 1.1 * (theirs - best).norm()


def test_rows_that_are_cut_off_score_as_rows_that_are_gathered() -> None:
    (run,) = specs("power:p=2", task=TEXT)
    trainer = Trainer([run], Machine(CPU))
    trainer.run_refill(0)
    batch = trainer.queues[0].take()
    assert batch.leading and torch.equal(batch.positions[0, 0], torch.arange(LENGTH - 1))
    cut, gathered = (trainer.working_model.scores(*batch[:3], None, leading).losses for leading in (True, False))
    assert torch.allclose(cut, gathered, rtol=1e-5, atol=0)


def test_layers_that_share_values_are_not_recomputed() -> None:
    with pytest.raises(SpecError, match="--recompute is for built-in layers that share no values; got rwkv-7"):
        Trainer(specs("rwkv-7"), Machine(CPU, recompute=True))
