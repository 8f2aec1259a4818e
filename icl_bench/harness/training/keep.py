"""Keep what the members of a trained fleet learnt, as files of their runs, and make a model of such a file again."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from icl_bench.architectures.backbone import Backbone
from icl_bench.errors import RecordError
from icl_bench.harness.resolve import make_arch, make_task
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.evaluate import read_own_answers, score_piece
from icl_bench.harness.training.precision import WORKING_TYPES, WorkingModel
from icl_bench.harness.training.trainer import Trainer
from icl_bench.runs.kept import KEPT_FILES, SAMPLES_PER_CELL, AnsweredExample, CellSamples, Samples
from icl_bench.runs.probes import ProbePoint, Probes
from icl_bench.runs.spec import RunSpec
from icl_bench.schema import canonical_json
from icl_bench.tasks import Batch, Task, WholeAnswerTask

OUTPUTS_PER_PIECE = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Most logits of a piece by device, over all members."""
MOST_TOKENS = 1 << 21
"""Most tokens of kept examples of a run, over all cells: about 40 MB of text."""
DIGITS = 4
"""Decimal places of kept probabilities and hits."""


def kept_files(trainer: Trainer) -> list[dict[str, bytes]]:
    """Return the files that `trainer.machine.keep` asks of each member, by file name; none of a diverged member."""
    keep, files = trainer.machine.keep, [dict[str, bytes]() for _ in trainer.specs]
    if not keep:
        return files
    active = [member for member, step in enumerate(trainer.diverged_at) if not step]
    if "model" in keep:
        for member in active:
            files[member][KEPT_FILES["model"]] = weights_of(trainer, member)
    if "samples" in keep and active:
        cells = [cell_samples(trainer, cell.label) for cell in trainer.task.eval_cells]
        for member in active:
            spec, own = trainer.specs[member], tuple(cell[member] for cell in cells)
            samples = Samples(id=spec.id, task=spec.task.label, arch=spec.arch_label, cells=own)
            files[member][KEPT_FILES["samples"]] = (canonical_json(samples.model_dump(mode="json")) + "\n").encode()
    return files


def probes_file(spec: RunSpec, names: Sequence[str], points: Sequence[ProbePoint]) -> bytes:
    """Return the file of the probes of a member."""
    probes = Probes(id=spec.id, task=spec.task.label, arch=spec.arch_label, names=tuple(names), points=tuple(points))
    return (canonical_json(probes.model_dump(mode="json")) + "\n").encode()


def weights_of(trainer: Trainer, member: int) -> bytes:
    """Return the parameters and buffers of a member, float32 and without the member axis, as safetensors."""
    named = [*trainer.model.named_parameters(), *trainer.model.named_buffers()]
    tensors = {name: tensor.detach()[member].cpu().contiguous() for name, tensor in named}
    spec = trainer.specs[member]
    return safetensors.save(tensors, {"id": spec.id, "task": spec.task.label, "arch": spec.arch_label})


@torch.no_grad()
def cell_samples(trainer: Trainer, label: str) -> list[CellSamples]:
    """Answer the first test examples of a cell with every member."""
    stream = trainer.make_stream(label, "test")
    outputs = stream.members * stream.cell.scored * max(1, trainer.task.vocabulary)
    most = MOST_TOKENS // sum(cell.length for cell in trainer.task.eval_cells)
    count = max(1, min(SAMPLES_PER_CELL, trainer.spec.evaluation.examples, most))
    pieces = stream.pieces(count, OUTPUTS_PER_PIECE[stream.device.type] // outputs)
    found: list[list[AnsweredExample]] = [[] for _ in range(stream.members)]
    for batch in pieces:
        for member, examples in enumerate(answered(trainer, stream, batch)):
            found[member] += examples
    return [CellSamples(label=label, load=stream.cell.load, examples=tuple(examples)) for examples in found]


def answered(trainer: Trainer, stream: ExampleStream, batch: Batch) -> list[list[AnsweredExample]]:
    """Return the examples of a piece, [M, B, ...], with the answers of each member."""
    model, task = trainer.working_model, trainer.task
    if isinstance(task, WholeAnswerTask):
        batch = batch._replace(inputs=read_own_answers(model, batch))
    outputs: Tensor = model.call(model.model, batch.inputs, batch.positions).float()  # [M, B, S, O]
    hits = score_piece(model, batch, stream).hits
    if task.interface.squared_error:
        answers, likely, right = outputs, None, None
    else:
        probabilities = outputs.softmax(-1)
        best, answers = probabilities.max(-1)
        likely, right = best, probabilities.gather(-1, batch.targets[..., None])[..., 0]
    lists = [part.cpu().tolist() for part in (*batch, answers, hits)]
    chances = [None if part is None else part.cpu().tolist() for part in (likely, right)]
    members, examples = batch.positions.shape[:2]
    return [
        [
            example_of(task, [part[m][b] for part in lists], [part and part[m][b] for part in chances])
            for b in range(examples)
        ]
        for m in range(members)
    ]


def example_of(task: Task, parts: Sequence[list[Any]], chances: Sequence[list[float] | None]) -> AnsweredExample:
    """Spell one example: inputs, positions, targets, groups, answers, hits; probabilities of answers and targets."""
    inputs, positions, targets, groups, answers, hits = parts
    likely, right = (None if part is None else round_all(part) for part in chances)
    return AnsweredExample(
        inputs=tuple(map(task.spell, inputs)),
        positions=tuple(positions),
        targets=tuple(map(task.spell, targets)),
        answers=tuple(map(task.spell, answers)),
        hits=round_all(hits),
        groups=tuple(map(task.group_label, groups)),
        answer_probabilities=likely,
        target_probabilities=right,
    )


def round_all(values: Sequence[float]) -> tuple[float, ...]:
    """Round numbers for a file that people read; one that is not finite becomes 0."""
    return tuple(round(value, DIGITS) if abs(value) < float("inf") else 0.0 for value in values)


class TrainedModel(nn.Module):
    """The model that a run trained, on the CPU, from the file model.safetensors of the run.

    Raise RecordError if the file does not hold the tensors that the run's specification describes.
    """

    def __init__(self, spec: RunSpec, weights: bytes) -> None:
        super().__init__()
        self.spec, self.task = spec, make_task(spec.task)
        layers = [make_arch(component) for component in spec.layer_components]
        self.backbone = Backbone([spec.seed], self.task.interface, layers, spec.model, "auto")
        try:
            self.backbone.load_state_dict(with_member_axis(safetensors.load(weights)))
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RecordError(
                f"weights fit the specification of their run; those of {spec.id} do not: {reason}; train the run again"
            ) from None
        self.eval()

    def forward(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return logits, or vectors of a `ContinuousTask`, at the positions [B, S], by default at all of them.

        Inputs are token ids [B, T] or vectors [B, T, I]; outputs are [B, S, O], O the vocabulary for tokens. The
        arithmetic is that of the run.
        """
        if positions is None:
            positions = torch.arange(inputs.shape[1], device=inputs.device).expand(inputs.shape[:2])
        lower = WORKING_TYPES[self.spec.precision]  # matrices are then rounded, as in training
        working = [own.to(lower) if lower and own.dim() > 2 else own for own in self.backbone.parameters()]
        model = WorkingModel(self.backbone, working, self.spec.precision)
        outputs: Tensor = model.call(self.backbone, inputs[None], positions[None])[0]
        return outputs


def with_member_axis(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one member as those of a fleet of one."""
    return {name: tensor[None] for name, tensor in tensors.items()}
