"""Kept weights are the trained model, and kept answers are those that were scored."""

import math

import pytest
import torch
from safetensors import torch as safetensors

from icl_bench.errors import RecordError
from icl_bench.harness.training.keep import TrainedModel, kept_files
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.kept import Samples
from tests.harness.training.small_runs import CPU, specs

BOTH = Machine(CPU, keep=("model", "samples"))


def stepped(runs, machine: Machine = BOTH, steps: int = 3) -> Trainer:
    trainer = Trainer(runs, machine)
    for _ in range(steps):
        trainer.step()
    return trainer


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ["linear", "gated-conv+softmax"])
def test_a_model_made_again_answers_as_it_did(arch: str, precision) -> None:
    trainer = stepped(specs(arch, seeds=(0, 1), precision=precision))
    label = trainer.task.eval_cells[-1].label
    batch = trainer.make_stream(label, "test").first(8)
    with torch.no_grad():
        wanted = trainer.working_model.call(trainer.model, batch.inputs, batch.positions)
    for member, files in enumerate(kept_files(trainer)):
        model = TrainedModel(trainer.specs[member], files["model.safetensors"])
        with torch.no_grad():
            got = model(batch.inputs[member], batch.positions[member])
            everywhere = model(batch.inputs[member])
        # A product over two members sums in another order than one over a single member.
        error = 2.0**-7 if precision == "bfloat16" else 2.0**-18
        assert torch.allclose(got, wanted[member].to(got.dtype), rtol=error, atol=error * float(wanted.abs().max()))
        rows = batch.positions[member][..., None].expand(-1, -1, everywhere.shape[-1])
        assert torch.allclose(everywhere.gather(1, rows), got, rtol=error, atol=error * float(wanted.abs().max()))


def test_samples_say_what_was_scored() -> None:
    trainer = stepped(specs("softmax", seeds=(0, 1)))
    scores = [{cell.label: cell for cell in cells} for cells in trainer.test([trainer.working_model])]
    for member, files in enumerate(kept_files(trainer)):
        samples = Samples.model_validate_json(files["samples.json"])
        assert samples.id == trainer.specs[member].id and [cell.load for cell in samples.cells] == [2, 4]
        for cell in samples.cells:
            assert len(cell.examples) == 16  # as many as are tested
            hits = [hit for example in cell.examples for hit in example.hits]
            assert sum(hits) / len(hits) == pytest.approx(scores[member][cell.label].accuracy)
            losses = [-math.log(p) for example in cell.examples for p in example.target_probabilities]
            # probabilities are rounded to 4 places: their logarithms to half of that over the smallest
            smallest = min(p for example in cell.examples for p in example.target_probabilities)
            assert sum(losses) / len(losses) == pytest.approx(scores[member][cell.label].loss, abs=5e-5 / smallest)
            for example in cell.examples:
                assert len(example.inputs) == 16 and len(example.targets) == len(example.positions)
                right = [answer == target for answer, target in zip(example.answers, example.targets, strict=True)]
                assert right == [hit == 1.0 for hit in example.hits]
                likeliest, own = example.answer_probabilities, example.target_probabilities
                assert all(0 <= p <= best <= 1 for p, best in zip(own, likeliest, strict=True))


def test_whole_answers_are_those_that_a_model_reads_back() -> None:
    trainer = stepped(specs("softmax", task="brevo:vertices=5,vocab=5"), steps=1)
    for example in Samples.model_validate_json(kept_files(trainer)[0]["samples.json"]).cells[0].examples:
        assert example.inputs[example.positions[0] + 1 :] == example.answers[:-1]
        assert len(set(example.hits)) == 1


def test_answers_that_are_vectors_have_no_probability() -> None:
    trainer = stepped(specs("linear", task="vector-recall:length=16,pairs=2"))
    samples = Samples.model_validate_json(kept_files(trainer)[0]["samples.json"])
    example = samples.cells[0].examples[0]
    assert example.answer_probabilities is None and example.target_probabilities is None
    assert len(example.answers) == len(example.hits) and set(example.hits) <= {0.0, 1.0}


def test_a_diverged_member_and_a_run_that_was_not_asked_keep_nothing() -> None:
    runs = specs("linear", seeds=(0, 1))
    assert kept_files(stepped(runs, Machine(CPU))) == [{}, {}]
    trainer = Trainer(runs, BOTH)
    with torch.no_grad():
        trainer.model.embedding.weight[1] = math.inf
    trainer.step()
    assert [sorted(files) for files in kept_files(trainer)] == [["model.safetensors", "samples.json"], []]


def test_weights_of_another_run_are_refused() -> None:
    run = specs("linear")[0]
    weights = kept_files(stepped([run]))[0]["model.safetensors"]
    narrow = {name: tensor[..., :1].contiguous() for name, tensor in safetensors.load(weights).items()}
    for wrong in (safetensors.save(narrow), weights[:100], safetensors.save({})):
        with pytest.raises(RecordError, match=rf"weights fit .*; those of {run.id} do not: .*; train the run again"):
            TrainedModel(run, wrong)
