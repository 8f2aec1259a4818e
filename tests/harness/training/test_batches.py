"""Examples of a fleet: their digests, and batches made for many steps at once."""

import pytest
import torch

from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.batches import MOST_STEPS, BatchQueue, ExampleStream, cell_order, steps_per_refill
from icl_bench.kernels.fleet.embedding import find_occurrences
from icl_bench.tasks import AssocRecall, LinearRegression

CPU = torch.device("cpu")
SMALL = AssocRecall(length=16, pairs=(2,), vocab=64)


def test_digests_tell_data_apart_and_members_of_one_seed_share_theirs() -> None:
    task = make_task(task_component("assoc-recall"))
    stream = ExampleStream(task, task.train_cells[0], "train", [3, 4, 3], CPU)
    first, other, again = stream.digests(8)
    assert first == again != other
    alone = ExampleStream(task, task.train_cells[0], "train", [4], CPU)
    assert alone.digests(8) == [other] != alone.digests(9)


@pytest.mark.parametrize("task", [SMALL, LinearRegression(dims=(2, 3), points=5)])
@pytest.mark.parametrize("seeds", [(0, 1), (3, 3)])
@pytest.mark.parametrize(("size", "steps"), [(None, 3), (None, 1), (10, 4)])
def test_batches_are_those_of_their_indices(task, seeds, size, steps):
    stream = ExampleStream(task, task.train_cells[0], "train", seeds, CPU)
    queue = BatchQueue(stream, 4, size, steps)
    for step in range(7):
        if queue.count_step():
            queue.refill()
        index = torch.arange(4 * step, 4 * step + 4)
        wanted = stream.batch(index if size is None else index % size)
        for found, right in zip(queue.take()[:3], wanted[:3], strict=True):
            assert found.dtype == right.dtype and torch.equal(found, right)


@pytest.mark.parametrize("skipped", [0, 3])
def test_batches_made_beside_steps_are_those_of_their_indices(skipped):
    """A batch is taken, and the next one made before the step ends, also where a run goes on from a later step."""
    stream = ExampleStream(SMALL, SMALL.train_cells[0], "train", (0, 1), CPU)
    queue, filled = BatchQueue(stream, 4, None, 1), 0
    queue.beside = True
    queue.skip_to(skipped)
    for step in range(skipped, 7):
        if queue.count_step():
            queue.refill()
            filled += 1
        found = queue.take()
        queue.refill()
        wanted = stream.batch(torch.arange(4 * step, 4 * step + 4))
        assert all(torch.equal(*pair) for pair in zip(found[:3], wanted[:3], strict=True))
    assert filled == 1


def test_sorted_batches_have_the_occurrences_of_their_tokens():
    stream = ExampleStream(SMALL, SMALL.train_cells[0], "train", (0, 1, 2), CPU)
    queue = BatchQueue(stream, 4, None, 2, sort=True)
    queue.refill()
    for _ in range(2):
        batch = queue.take()
        wanted = find_occurrences(batch.inputs, 64)
        assert torch.equal(batch.occurrences.order, wanted.order) and torch.equal(
            batch.occurrences.starts, wanted.starts
        )


def test_no_more_steps_than_needed_or_fit():
    assert steps_per_refill(64, 10_000) == MOST_STEPS and steps_per_refill(64, 5) == 5
    assert steps_per_refill(1 << 21, 10) == 2 and steps_per_refill(1 << 24, 10) == 1


@pytest.mark.parametrize("steps", [1, 7, 90])
def test_cells_get_their_shares_evenly(steps: int) -> None:
    cells = AssocRecall(variant="zoology").train_cells
    order = cell_order(cells, steps)
    for i, cell in enumerate(cells):
        for end in range(1, steps + 1):
            assert abs(order[:end].count(i) - end * cell.weight / 180) < 1.5
    assert len(order) == steps


def test_pieces_hold_every_example_once() -> None:
    stream = ExampleStream(SMALL, SMALL.train_cells[0], "val", (0, 1), CPU)
    pieces = list(stream.pieces(100, 9))
    assert [piece.inputs.shape[1] for piece in pieces] == [9] * 11 + [1]
    assert torch.equal(torch.cat([piece.inputs for piece in pieces], dim=1), stream.first(100).inputs)
