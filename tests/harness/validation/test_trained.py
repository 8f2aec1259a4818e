"""Trained shallow solvers: they learn what needs no context, and see nothing else."""

import torch

from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.validation.gate import draw
from icl_bench.harness.validation.trained import TRAINED, BagOfTokens, train_solver, train_solvers
from icl_bench.tasks import TASKS


def test_a_bag_knows_no_order_and_no_later_token() -> None:
    bag, x = BagOfTokens(4), torch.arange(20.0).view(1, 5, 4)
    out = bag(x)
    torch.testing.assert_close(bag(x.flip(1))[:, -1], out[:, -1])
    torch.testing.assert_close(bag(x[:, :3]), out[:, :3])


def test_rules_of_tokens_and_of_vectors_have_the_shape_of_answers() -> None:
    for name in ("copy:symbols=8", "vector-recall:pairs=4", "memorization:exposures=1,keys=10"):
        task = make_task(task_component(name))
        asked = draw(task, task.eval_cells[0], "test", 3)
        for rule in train_solvers(name, steps=1).values():
            assert rule(asked.inputs, asked.positions).shape == asked.targets.shape


def test_a_window_of_one_learns_the_last_token_alone() -> None:
    """Parity of the first bit is the bit, and that of two bits a coin toss to who sees the second."""
    task = TASKS["state-tracking"](group="parity", symbols=(2,))
    asked = draw(task, task.eval_cells[0], "test", 400)
    rule = train_solver("state-tracking:group=parity,symbols=2", *TRAINED["window of 1"], steps=60)
    right = (rule(asked.inputs, asked.positions) == asked.targets).double().mean(dim=0)
    assert right[0] == 1 and abs(right[1] - 0.5) < 4 * (0.25 / 400) ** 0.5
