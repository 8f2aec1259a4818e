"""Shallow solvers on examples whose answers are worked out by hand, and the tokens that they may see."""

import pytest
import torch

from icl_bench.harness.validation.gate import draw
from icl_bench.harness.validation.shallow import FOR_TOKENS, FOR_VECTORS, LOOK_UPS, SMALL, Rule
from icl_bench.tasks import TASKS, Batch, ContinuousTask

A, B, X, Y, Z, PAD = range(6)
"""Two keys, three values, and a token that is neither."""


def batch(rows: list[list[int]], positions: list[list[int]], targets: list[list[int]]) -> Batch:
    asked = torch.tensor(positions)
    return Batch(torch.tensor(rows), asked, torch.tensor(targets), torch.zeros_like(asked))


SEEN = batch(
    [[A, X, B, Y, A, PAD, B], [A, Z, B, X, A, PAD, B], [B, Y, A, X, A, PAD, B]],
    [[4, 6], [4, 6], [4, 6]],
    [[X, Y], [Z, X], [X, Y]],
)
ASKED = torch.tensor([[A, Y, A, X, B, Z, A, Y]])


def answer_of(rule: Rule, position: int) -> int:
    return int(rule(ASKED, torch.tensor([[position]])))


@pytest.mark.parametrize(
    ("name", "position", "answer"),
    [
        ("majority", 6, X),
        ("positional", 4, X),
        ("positional", 6, Y),
        ("copy-last", 6, A),
        ("copy-distance", 6, X),  # of the targets three stand three places back, as many as at no other distance
        ("latest", 6, Z),
        ("latest", 1, X),  # no value before: the most frequent target
        ("second-latest", 6, X),
        ("first", 6, Y),
        ("frequent", 7, Y),
        ("rare", 4, Z),
        ("n-gram", 6, X),
        ("look-up-latest", 6, X),
        ("look-up-first", 6, Y),
        ("look-up-latest", 4, X),  # b occurs for the first time: the latest value
    ],
)
def test_answers_by_hand(name: str, position: int, answer: int) -> None:
    assert answer_of(FOR_TOKENS[name](SEEN, 6), position) == answer


def test_the_most_frequent_value_of_a_key_is_looked_up() -> None:
    rule = LOOK_UPS["look-up-frequent"](SEEN, 6)
    inputs = torch.tensor([[A, X, A, Y, B, Z, A, Y, B, Z, B, Z, A]])
    assert int(rule(inputs, torch.tensor([[12]]))) == Y


def test_places_are_of_the_question_in_order() -> None:
    rule = SMALL["copy-place"](SEEN, 6)
    assert rule(ASKED, torch.tensor([[4, 6]])).tolist() == [[Y, X]]  # places 1 and 3, where two of three targets stand


def test_longer_contexts_that_occur_once_are_not_used() -> None:
    seen = batch([[A, X], [B, X], [B, X]], [[1], [1], [1]], [[Z], [Y], [Y]])
    rule = SMALL["n-gram"](seen, 6)
    assert rule(torch.tensor([[A, X], [B, X], [Z, Z]]), torch.tensor([[1], [1], [1]])).flatten().tolist() == [Y, Y, Y]


@pytest.mark.parametrize("name", ["assoc-recall", "flip-flop", "k-hop", "multi-stack", "linear-regression"])
def test_no_rule_sees_what_comes_after_the_position(name: str) -> None:
    task = TASKS[name]()
    cell = task.eval_cells[0]
    seen, asked = draw(task, cell, "train", 200), draw(task, cell, "test", 20)
    vectors = isinstance(task, ContinuousTask)
    first = asked.positions[:, :1]
    after = torch.arange(cell.length) > first
    other = torch.where(after.view(*after.shape, *(1,) * vectors), asked.inputs.flip(0), asked.inputs)
    for solver, fit in (FOR_VECTORS if vectors else FOR_TOKENS).items():
        rule = fit(seen, task.vocabulary)
        answers = [rule(inputs, asked.positions)[:, 0] for inputs in (asked.inputs, other)]
        assert torch.equal(*answers), solver
