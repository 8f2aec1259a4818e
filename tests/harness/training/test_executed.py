"""Operations that a training step executes, against those that torch counts."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from icl_bench.harness.training.executed import executed_operations
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs

LENGTH = 64
TEXT = f"text:corpus=example,length={LENGTH}"
SIZES = ("model.d_model=32", "model.layers=2", "train.batch=4")


@pytest.mark.parametrize("arch", ["power:p=2,conv=0,gate=true", "power:p=3,conv=0", "window:w=8,conv=0,gate=true"])
def test_a_step_executes_what_torch_counts(arch: str) -> None:
    """Of the last layer, what follows the mixing is computed for scored rows alone, all but one of a row."""
    (run,) = specs(arch, task=TEXT, extra=SIZES)
    trainer = Trainer([run], Machine(CPU))
    trainer.run_refill(0)
    with FlopCounterMode(display=False) as counter:
        trainer.update(0)
    found = executed_operations(run, Machine(CPU))
    assert found is not None
    counted = counter.get_total_flops() / (4 * LENGTH)
    assert counted <= found <= counted * (1 + 1 / (LENGTH - 1))


@pytest.mark.parametrize("arch", ["power:p=2,spectrum=learned,normalizer=rms", "mamba-2", "softmax:heads=4,kv_heads=2"])
def test_what_is_not_counted_is_not_guessed(arch: str) -> None:
    (run,) = specs(arch, task=TEXT, extra=SIZES)
    assert executed_operations(run, Machine(CPU)) is None


def test_runs_without_bits_and_computed_twice_have_no_count() -> None:
    (text,), (recall,) = specs("softmax", task=TEXT, extra=SIZES), specs("softmax")
    assert executed_operations(text, Machine(CPU)) is not None
    assert executed_operations(text, Machine(CPU, recompute=True)) is None
    assert executed_operations(recall, Machine(CPU)) is None
