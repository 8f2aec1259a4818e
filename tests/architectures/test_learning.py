"""Every mixer learns a small recall task, and parity where it can: a wrong start shows as chance.

Those without a convolution or a token shift of their own are tried with one, since no layer without either can bind a
value to its key.
"""

import pytest
import torch

from icl_bench.architectures import ARCHITECTURES
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.schema import parse_spec

STEPS = 300
CHECK = 25
"""Steps between looks at the accuracy, which is their mean."""
TASK = "assoc-recall:pairs=4,length=16,vocab=48"
LEARNED = 0.8
"""Accuracy in training; a model that only guesses among the values of its context stays near 0.4."""


RECALLING = [
    "comba",
    "delta-net",
    "delta-net:negative_eigenvalues=true",
    "elastic:degrees=[2|4]",
    "flipped-power",
    "gated-conv+based",
    "gated-conv+differential",
    "gated-conv+fox",
    "gated-conv+gsa:slots=16",
    "gated-conv+hgrn2",
    "gated-conv+mla",
    "gated-conv+nsa",
    "gated-conv+path",
    "gated-conv+re-based",
    "gated-conv+ret-net",
    "gated-conv+ttt-linear",
    "gated-delta-net",
    "gated-delta-product",
    "gdn-2",
    "gla:conv=4",
    "kda",
    "linear",
    "log-linear",
    "log-linear-delta",
    "mamba-2",
    "mamba-3",
    "mesa-net",
    "power",
    "rwkv-6",
    "rwkv-7",
    "softmax:sinks=true",
    "window",
]
SLOW_LEARNERS = {
    "h3", "hgrn", "hyena", "lstm", "m-lstm", "mamba", "min-gru", "min-lstm", "power-retention", "s-lstm", "ttt-mlp"
}  # fmt: skip
"""Mixers that learn it in more updates, or in a narrow window of rates: `benchmarks/learning.py` and `docs/log.md`."""


def test_every_mixer_is_tried() -> None:
    tried = {parse_spec(arch.removeprefix("gated-conv+")).name for arch in RECALLING}
    assert tried | SLOW_LEARNERS | {"gated-conv"} == set(ARCHITECTURES) and not tried & SLOW_LEARNERS


@pytest.mark.slow
@pytest.mark.parametrize("arch", RECALLING)
def test_four_pairs_are_recalled(arch: str) -> None:
    trainer, accuracy = make_trainer(TASK, arch, layers=2, lr=1e-2), 0.0
    for step in range(STEPS):
        trainer.step()
        if step % CHECK == CHECK - 1:
            (accuracy,) = trainer.take_means(CHECK)[1]
            if accuracy >= LEARNED:
                return
    pytest.fail(f"{arch} has an accuracy of {accuracy:.2f} after {STEPS} steps")


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["delta-net", "gated-delta-net"])
@pytest.mark.parametrize("negative", [True, False])
def test_parity_takes_negative_eigenvalues(mixer: str, negative: bool) -> None:
    task = "state-tracking:symbols=16,extrapolate=64"
    trainer = make_trainer(task, f"{mixer}:negative_eigenvalues={str(negative).lower()}", layers=1, lr=3e-3)
    for _ in range(STEPS):
        trainer.step()
    trained, longer = (cell.accuracy for cell in trainer.test([trainer.working_model])[0])
    assert (trained > 0.95 and longer > 0.85) if negative else (trained < 0.85 and longer < 0.65)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["softmax", "delta-net"])
def test_one_layer_takes_a_convolution_to_bind_a_value_to_its_key(mixer: str) -> None:
    trainers = [make_trainer(TASK, f"{mixer}{without}", layers=1, lr=1e-2) for without in ("", ":conv=0")]
    for trainer in trainers:
        for _ in range(STEPS):
            trainer.step()
    with_it, without = (trainer.test([trainer.working_model])[0][0].accuracy for trainer in trainers)
    assert with_it >= LEARNED and without < 0.6, (with_it, without)


def make_trainer(task: str, arch: str, layers: int, lr: float) -> Trainer:
    settings = (
        "model.d_model=32",
        f"model.layers={layers}",
        f"train.steps={STEPS}",
        "train.batch=64",
        f"train.lr={lr}",
    )
    request = Request(task, [arch], seeds=(0,), settings=(*settings, "evaluation.examples=256"))
    return Trainer(expand_request(request), Machine(torch.device("cpu")))
