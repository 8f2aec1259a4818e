"""Batches made for many steps at once are the batches that each step would have made."""

import pytest
import torch

from icl_bench.harness.training.data import Feed
from icl_bench.harness.training.supply import MOST_STEPS, Supply, steps_at_once
from icl_bench.kernels.fleet.places import find_places
from icl_bench.tasks import AssocRecall


@pytest.mark.parametrize("seeds", [(0, 1), (3, 3)])
@pytest.mark.parametrize(("size", "steps"), [(None, 3), (None, 1), (10, 4)])
def test_batches_are_those_of_their_indices(seeds, size, steps):
    task = AssocRecall(length=16, pairs=(2,), vocab=64)
    feed = Feed(task, task.train_cells[0], "train", seeds, torch.device("cpu"))
    supply = Supply(feed, 4, 2, size, steps)
    for step in range(7):
        if supply.due():
            supply.refill()
        index = torch.arange(4 * step, 4 * step + 4)
        wanted = feed.batch(index if size is None else index % size)
        for found, right in zip(supply.take()[:3], wanted[:3], strict=True):
            assert torch.equal(found, right)


def test_sorted_batches_have_the_places_of_their_words():
    task = AssocRecall(length=16, pairs=(2,), vocab=64)
    feed = Feed(task, task.train_cells[0], "train", (0, 1, 2), torch.device("cpu"))
    supply = Supply(feed, 4, 3, None, 2, sort=True)
    supply.refill()
    for _ in range(2):
        batch = supply.take()
        wanted = find_places(batch.inputs, 64)
        assert torch.equal(batch.places.order, wanted.order) and torch.equal(batch.places.starts, wanted.starts)


def test_no_more_steps_than_needed_or_fit():
    assert steps_at_once(64, 10_000) == MOST_STEPS and steps_at_once(64, 5) == 5
    assert steps_at_once(1 << 21, 10) == 2 and steps_at_once(1 << 24, 10) == 1
