"""One example of a task, spelled out in words."""

from typing import Any, NamedTuple

import torch

from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.batches import ExampleStream


class Example(NamedTuple):
    """One example of a task, with each token spelled out."""

    task: str
    cell: str
    tokens: list[str]
    targets: dict[int, str]
    """Target at each scored position, by position."""
    groups: dict[int, str]
    """Group of each scored position, by position."""
    state_bits: float

    def document(self) -> dict[str, Any]:
        """Return the example as plain data for `--json`."""
        scored = [{"position": t, "target": self.targets[t], "group": self.groups[t]} for t in sorted(self.targets)]
        plain = {"task": self.task, "cell": self.cell, "state_bits": self.state_bits}
        return {**plain, "tokens": self.tokens, "scored": scored}


def draw_example(text: str, cell_label: str | None, seed: int) -> Example:
    """Draw the first test example of a cell, by default the first; raise IclBenchError if task or cell is unknown."""
    component = task_component(text)
    task = make_task(component)
    cell = task.eval_cells[0] if cell_label is None else task.cell(cell_label)
    batch = ExampleStream(task, cell, "test", [seed], torch.device("cpu")).batch(torch.arange(1))
    positions = batch.positions[0, 0].tolist()
    return Example(
        task=component.label,
        cell=cell.label,
        tokens=[task.spell(token) for token in batch.inputs[0, 0].tolist()],
        targets=dict(zip(positions, (task.spell(t) for t in batch.targets[0, 0].tolist()), strict=True)),
        groups=dict(zip(positions, (task.group_label(g) for g in batch.groups[0, 0].tolist()), strict=True)),
        state_bits=task.state_bits(cell),
    )
