"""A member of a fleet and the same run alone; members that diverge; the data of members."""

import math

import pytest
import torch

from icl_bench.architectures import ARCHITECTURES
from icl_bench.errors import SpecError
from icl_bench.harness.training.batches import training_set_size
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import (
    CPU,
    assert_a_diverging_member_harms_no_other,
    assert_a_member_equals_its_run_alone,
    specs,
    trained,
    with_rate,
)

ARCHS = [
    "power:p=2",
    "power:p=3,gate=true",
    "linear:feature_map=elu",
    "softmax:rope=true",
    "window:w=4",
    "gated-conv+softmax",
]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_member_of_eight_equals_the_run_alone(arch: str) -> None:
    runs = [specs(arch, seeds=[seed], lrs=[1e-3 * (1 + seed)])[0] for seed in range(8)]
    assert_a_member_equals_its_run_alone(runs, 5)


@pytest.mark.parametrize("arch", sorted({*ARCHITECTURES} - {text.partition(":")[0] for text in ARCHS}))
def test_a_member_of_three_equals_the_run_alone(arch: str) -> None:
    runs = [specs(arch, seeds=[seed], lrs=[1e-3 * (1 + seed)])[0] for seed in range(3)]
    assert_a_member_equals_its_run_alone(runs, 1, steps=4)


def test_a_layer_that_deals_examples_takes_no_batch_in_parts() -> None:
    with pytest.raises(SpecError, match="leave --accumulate out"):
        Trainer(specs("elastic"), Machine(CPU, accumulate=2))


def test_members_of_different_gains_train_together_as_alone() -> None:
    runs = [specs("power:p=2,normalizer=rms", extra=(f"model.gain={gain}",))[0] for gain in (0.5, 1.0, 4.0)]
    assert len({run.id for run in runs}) == 3 and len({run.fleet_key() for run in runs}) == 1
    for member in range(3):
        assert_a_member_equals_its_run_alone(runs, member, steps=4)


def test_a_member_that_diverges_leaves_the_others_alone() -> None:
    runs = [specs("power:p=2", seeds=[seed])[0] for seed in range(3)]
    assert_a_diverging_member_harms_no_other(runs)


def test_a_member_whose_outputs_are_no_numbers_has_no_scores() -> None:
    """Its loss could not be recorded, and must not cost the others their results."""
    trainer = Trainer([specs("softmax", seeds=[seed])[0] for seed in range(3)], Machine(CPU))
    with torch.no_grad():
        trainer.model.embedding.weight[1] = math.nan
    trainer.step()
    scores = trainer.test([trainer.working_model])
    assert scores[1] == () and len(scores[0]) == len(scores[2]) == len(trainer.task.eval_cells)


def test_one_of_28_that_diverges_leaves_27_exactly_as_they_were() -> None:
    runs = [specs("gated-conv+softmax", seeds=[seed])[0] for seed in range(28)]
    broken = [*runs[:9], with_rate(runs[9], 1e38), *runs[10:]]
    clean, hit = (trained(own).scores.members for own in (runs, broken))
    assert [member.diverged_at > 0 for member in hit] == [index == 9 for index in range(28)]
    assert [*hit[:9], *hit[10:]] == [*clean[:9], *clean[10:]]


def test_training_is_repeated_bit_for_bit() -> None:
    runs = specs("power:p=2", seeds=(0, 1))
    _, first, logged = trained(runs)
    _, second, again = trained(runs)
    assert first.members == second.members and logged == again


def test_members_of_one_data_seed_share_their_batch() -> None:
    runs = specs("softmax", lrs=(1e-3, 1e-2))
    trainer = Trainer(runs, Machine(CPU))
    assert trainer.queues[0].stream.stream_ids.shape == (1,)
    batch = trainer.queues[0].stream.batch(torch.arange(4))
    assert torch.equal(batch.inputs[0], batch.inputs[1])


def test_a_fixed_training_set_repeats() -> None:
    trainer = Trainer(specs("softmax", extra=("train.examples=16",)), Machine(CPU))
    cell = trainer.cells[0]
    assert training_set_size(trainer.cells, cell, 16) == 8
    seen = []
    original = trainer.queues[0].stream.batch
    trainer.queues[0].stream.batch = lambda index: (seen.append(index.tolist()), original(index))[1]
    batches = []
    for _ in range(4):
        trainer.step()
        batches.append(trainer.queues[0].buffer.clone())
    assert seen == [list(range(8)) * 6] and torch.equal(batches[0][0], batches[0][5])
