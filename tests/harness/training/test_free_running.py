"""Free running: by steps as by the parallel form, for every architecture; what is right shown is right free."""

import pytest
import torch
from torch import Tensor

from icl_bench.architectures import ARCHITECTURES
from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.interface import Tokens
from icl_bench.harness.resolve import arch_components, make_arch, make_task, task_component
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.evaluate import (
    MOST_EXAMPLES,
    evaluate,
    generate,
    judge_answers,
    read_own_answers,
    run_freely,
)
from icl_bench.harness.training.precision import WorkingModel
from icl_bench.runs.spec import ModelSpec, Precision
from icl_bench.tasks import TASKS, Batch, Task

D_MODEL = 16
TASK = "phonebook:entries=3,digits=2,queries=2,names=3"
SPECS = [
    "gated-conv", "linear", "linear:feature_map=elu", "power:p=1", "power:p=2,gate=true,rope=true", "power:p=3",
    "power:p=4,d_key=2", "softmax", "softmax:gate=true,kv_heads=1", "window:w=5", "gated-conv+power:p=2",
]  # fmt: skip
VECTORS = ("min-gru", "min-lstm")
"""Alone, they give nearly the same answer at every token before they are trained."""
SPECS += [name for name in ARCHITECTURES if name not in (*SPECS, *VECTORS)] + [f"gated-conv+{name}" for name in VECTORS]
COPIES = ["copy:symbols=5,alphabet=3", "phonebook:entries=3", "ngram-lookup:symbols=9", "ngram-lookup:side=prefix"]


def model_of(arch: str, task: Task, precision: Precision = "float32", members: int = 2) -> WorkingModel:
    """An untrained fleet; float64 parameters for float32, so that a rounding decides no answer."""
    layers = [make_arch(component) for component in arch_components(arch, D_MODEL)] * 2
    model = Backbone(list(range(members)), task.interface, layers[:2], ModelSpec(d_model=D_MODEL, tied=False), "auto")
    model.eval()
    kind = torch.float64 if precision == "float32" else torch.bfloat16
    return WorkingModel(model, [parameter.to(kind) for parameter in model.parameters()], precision)


def stream_of(text: str) -> ExampleStream:
    task = make_task(task_component(text))
    return ExampleStream(task, task.eval_cells[0], "test", [0, 1], torch.device("cpu"))


def rerun(model: WorkingModel, inputs: Tensor, positions: Tensor) -> Tensor:
    """Greedy answers by the parallel form over all tokens, once for each answer; positions [S] alike in all rows."""
    tokens, answers = inputs.clone(), []
    for t in positions.tolist():
        at = torch.full_like(tokens[:, :, :1], t)
        logits = model.call(model.model, tokens, at)
        answers.append(logits[:, :, 0].argmax(-1))
        if t + 1 < tokens.shape[2]:
            tokens[:, :, t + 1] = answers[-1]
    return torch.stack(answers, dim=-1)


def test_the_tasks_that_show_each_answer_next_say_so() -> None:
    assert {"copy", "phonebook", "ngram-lookup"} <= {name for name in TASKS if TASKS[name].generative}


@pytest.mark.parametrize("text", COPIES)
def test_an_answer_is_the_next_input(text: str) -> None:
    stream = stream_of(text)
    batch = stream.batch(torch.arange(50))
    inside = batch.positions < stream.cell.length - 1
    following = batch.inputs.gather(2, (batch.positions + 1).clamp(max=stream.cell.length - 1))
    assert torch.equal(following[inside], batch.targets[inside])


@pytest.mark.parametrize("arch", SPECS)
def test_steps_answer_as_the_parallel_form_does(arch: str) -> None:
    stream = stream_of(TASK)
    model = model_of(arch, stream.task)
    batch = stream.batch(torch.arange(8))
    answers = generate(model, batch.inputs, batch.positions)
    assert torch.equal(answers, rerun(model, batch.inputs, batch.positions[0, 0]))
    assert answers.unique().numel() > 3  # a model that always says the same would prove little


@pytest.mark.parametrize("text", COPIES)
def test_the_shown_answers_are_never_read(text: str) -> None:
    stream = stream_of(text)
    model, batch = model_of("power:p=2", stream.task), stream.batch(torch.arange(4))
    shown = (batch.positions + 1).clamp(max=stream.cell.length - 1)
    last = batch.inputs[:, :, -1:].clone()
    hidden = batch.inputs.scatter(2, shown, 0)
    if int(batch.positions.max()) < stream.cell.length - 1 and int(shown.max()) < stream.cell.length - 1:
        hidden[:, :, -1:] = last
    assert torch.equal(generate(model, hidden, batch.positions), generate(model, batch.inputs, batch.positions))


class Own(ExampleStream):
    """Examples whose right answers are those that a model gives when it runs freely."""

    def __init__(self, stream: ExampleStream, model: WorkingModel) -> None:
        self.task, self.cell, self.members, self.device = stream.task, stream.cell, stream.members, stream.device
        self.source, self.model = stream, model

    def batch(self, index: Tensor) -> Batch:
        drawn = self.source.batch(index)
        answers = generate(self.model, drawn.inputs, drawn.positions)
        after = torch.cat([drawn.inputs, drawn.inputs[:, :, :1]], dim=2).scatter(2, drawn.positions + 1, answers)
        return drawn._replace(inputs=after[:, :, :-1], targets=answers)


@pytest.mark.parametrize("text", COPIES)
def test_a_model_that_is_perfect_when_shown_is_perfect_when_free(text: str) -> None:
    stream = stream_of(text)
    model = model_of("power:p=2", stream.task)
    own = Own(stream, model)
    shown = evaluate(model, own, [own.batch(torch.arange(20))])
    free = run_freely(model, own, 20, 100)
    assert shown.accuracy == shown.exact_match == [1.0, 1.0]
    assert free.accuracy == free.exact_match == [1.0, 1.0]


@pytest.mark.parametrize("arch", ["softmax", "power:p=2"])
def test_a_task_that_judges_whole_answers_scores_those_of_a_model_that_reads_its_own(arch: str) -> None:
    """By the parallel form as by steps; an answer shown in the inputs is not read, and no position is right alone."""
    stream = stream_of("brevo:vertices=5,vocab=5")
    model, batch = model_of(arch, stream.task), stream.batch(torch.arange(64))
    answers = model.answers(read_own_answers(model, batch), batch.positions)
    assert torch.equal(answers, generate(model, batch.inputs, batch.positions))
    verdicts = judge_answers(answers, batch, stream)
    scored = evaluate(model, stream, [batch])
    assert scored.accuracy == scored.exact_match == verdicts.mean((1, 2)).tolist()
    assert run_freely(model, stream, 64, 1).exact_match == scored.accuracy
    assert torch.equal(judge_answers(batch.targets, batch, stream), torch.ones_like(verdicts))


def test_one_slip_is_read_back() -> None:
    """A model that always answers the token it just read, plus one: its own answers count up from the first."""

    class Counting:
        def step(self, inputs: Tensor, state: object, position: int) -> tuple[Tensor, object]:
            return torch.nn.functional.one_hot(inputs + 1, 100).float(), state

    inputs = torch.tensor([[[7, 50, 3, 3, 3, 60]]])
    answers = generate(Counting(), inputs, torch.tensor([[[1, 2, 3, 5]]]))  # type: ignore[arg-type]
    assert answers.tolist() == [[[51, 52, 53, 61]]]


def test_pieces_do_not_change_the_scores() -> None:
    stream = stream_of(TASK)
    model = model_of("linear", stream.task)
    assert run_freely(model, stream, 9, 1) == run_freely(model, stream, 9, 1 << 22)
    assert run_freely(model, stream, MOST_EXAMPLES + 5, 1) == run_freely(model, stream, MOST_EXAMPLES, 1)


def test_bfloat16_keeps_sums_in_float32_and_copies_in_bfloat16() -> None:
    stream = stream_of(TASK)
    batch = stream.batch(torch.arange(2))
    for arch, kind in (("power:p=2", torch.float32), ("softmax", torch.bfloat16)):
        model = model_of(arch, stream.task, "bfloat16")
        _, state = model.step(batch.inputs[:, :, 0], None, 0)
        assert state[0].mixer.core[0].dtype == kind


@pytest.mark.parametrize(
    ("arch", "recurrent"), [("linear", True), ("torch.nn.modules.linear:Linear:out_features=16", False)]
)
def test_a_layer_of_ones_own_has_no_recurrent_form(arch: str, recurrent: bool) -> None:
    layers = [make_arch(component) for component in arch_components(f"softmax+{arch}", D_MODEL)]
    assert Backbone([0], Tokens(40), layers, ModelSpec(d_model=D_MODEL, mlp=0), "auto").recurrent == recurrent
