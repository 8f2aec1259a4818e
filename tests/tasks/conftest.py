from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from icl_bench import random
from icl_bench.schema import build, parse_spec
from icl_bench.tasks import TASKS, Batch, Cell, Task

Make = Callable[[str], Task]
Rows = Callable[..., Tensor]
Draw = Callable[..., tuple[Task, Cell, Batch]]


def make_task(text: str) -> Task:
    spec = parse_spec(text)
    return build(TASKS[spec.name], spec.params, spec.name)


def keys_of(task: Task, split: str, count: int) -> Tensor:
    stream = random.stream(TASKS.name_of(type(task)), task.data_version, 0, split)
    return random.row_keys(torch.tensor(stream), torch.arange(count))


@pytest.fixture(scope="session")
def make() -> Make:
    """Make a task from its spec."""
    return make_task


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Return row keys of a task: rows(task, split, count)."""
    return keys_of


@pytest.fixture(scope="session")
def draw() -> Draw:
    """Return a task, one of its cells (by default the first) and examples: draw(spec, count, label=None)."""

    def drawn(text: str, count: int, label: str | None = None) -> tuple[Task, Cell, Batch]:
        task = make_task(text)
        cell = task.eval_cells[0] if label is None else task.cell(label)
        return task, cell, task.sample(keys_of(task, "test", count), cell)

    return drawn
