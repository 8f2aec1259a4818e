"""What a fleet sees: the digest of its first examples."""

import torch

from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.data import Feed, first_digests


def test_digests_tell_data_apart_and_members_of_one_seed_share_theirs() -> None:
    task = make_task(task_component("assoc-recall"))
    feed = Feed(task, task.train_cells[0], "train", [3, 4, 3], torch.device("cpu"))
    first, other, again = first_digests(feed, 8)
    assert first == again != other
    alone = Feed(task, task.train_cells[0], "train", [4], torch.device("cpu"))
    assert first_digests(alone, 8) == [other] != first_digests(alone, 9)
