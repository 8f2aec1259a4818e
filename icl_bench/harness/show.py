"""One example of a task, for people."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from rich.text import Text

from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.data import Feed

PER_LINE = 16
LONGEST_ROW = 112
"""Characters of a row, where several tokens are in it."""


class Example(NamedTuple):
    """One example, spelled out."""

    task: str
    cell: str
    tokens: list[str]
    targets: dict[int, str]
    """Target at each scored position."""
    groups: dict[int, str]
    """Group of each scored position."""
    state_bits: float

    def document(self) -> dict[str, Any]:
        """The example as `--json` prints it."""
        scored = [{"position": t, "target": self.targets[t], "group": self.groups[t]} for t in sorted(self.targets)]
        plain = {"schema": 1, "task": self.task, "cell": self.cell, "state_bits": self.state_bits}
        return {**plain, "tokens": self.tokens, "scored": scored}


def example(text: str, cell_label: str | None, seed: int) -> Example:
    """The first test example of a cell.

    Raises:
        IclBenchError: where the task or the cell does not exist.
    """
    component = task_component(text)
    task = make_task(component)
    cell = task.eval_cells[0] if cell_label is None else task.cell(cell_label)
    batch = Feed(task, cell, "test", [seed], torch.device("cpu")).batch(torch.arange(1))
    positions = batch.positions[0, 0].tolist()
    return Example(
        task=component.label,
        cell=cell.label,
        tokens=[task.spell(token) for token in batch.inputs[0, 0].tolist()],
        targets=dict(zip(positions, (task.spell(t) for t in batch.targets[0, 0].tolist()), strict=True)),
        groups=dict(zip(positions, (task.group_label(g) for g in batch.groups[0, 0].tolist()), strict=True)),
        state_bits=task.state_bits(cell),
    )


def render(shown: Example) -> Text:
    """Tokens in rows; a scored position is followed by an arrow and its target."""
    width = max(len(token) for token in shown.tokens)
    pieces = [
        f"{token}→{shown.targets[t]} " if t in shown.targets else f"{token:<{width}} "
        for t, token in enumerate(shown.tokens)
    ]
    row = row_length([len(piece) for piece in pieces])
    text = Text(f"{shown.task}  {shown.cell}  {len(shown.tokens)} tokens, {len(shown.targets)} scored, ")
    text.append(f"{shown.state_bits:.0f} bits to carry\n")
    for t, piece in enumerate(pieces):
        if t % row == 0:
            text.append(f"\n{t:>5}  ", style="dim")
        text.append(piece, style="bold reverse" if t in shown.targets else "")
    return text


def row_length(lengths: Sequence[int]) -> int:
    """Tokens in a row, a power of two, at most 16: as many as leave every row short enough."""
    row = PER_LINE
    while row > 1 and max(sum(lengths[i : i + row]) for i in range(0, len(lengths), row)) > LONGEST_ROW:
        row //= 2
    return row
