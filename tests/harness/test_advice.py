"""Notes before training, on runs that will show little."""

import pytest

from icl_bench.harness.advice import advice
from icl_bench.harness.resolve import Request, expand_request


def notes(*archs: str, task: str = "assoc-recall", settings=()) -> list[str]:
    return advice(expand_request(Request(task, archs, seeds=(0, 1), settings=settings)))


def test_a_window_that_sees_nearly_all_is_named_with_its_tokens() -> None:
    (line,) = notes("window:w=59", "window:w=100")
    assert line.startswith("window:w=59 sees 59 of 64 tokens, window:w=100 sees 64 of 64 tokens: little can be lost")
    (hybrid,) = notes("gated-conv+window:w=48")
    assert hybrid.startswith("gated-conv+window:w=48 sees 48 of 64 tokens")


def test_a_state_as_large_as_the_context_is_named_with_both_counts() -> None:
    (line,) = notes("power:p=2", "linear")
    softmax = 2 * (64 * 4 * 32 + 3 * 192)
    assert line.startswith(
        f"power:p=2 carries 19,648 state elements: softmax attention keeps all 64 tokens in {softmax:,}"
    )


def test_many_architectures_are_counted() -> None:
    (line,) = notes(*(f"power:p=2,conv={conv}" for conv in (1, 2, 3, 5, 6)))
    assert "power:p=2,conv=3 carries" in line and ", and 2 more: softmax attention keeps" in line


@pytest.mark.parametrize("arch", ["softmax", "window:w=8", "linear", "gated-conv", "gated-conv+linear", "lstm"])
def test_nothing_is_said_of_runs_that_can_differ(arch: str) -> None:
    assert notes(arch) == []


def test_a_longer_task_or_a_smaller_state_ends_the_note() -> None:
    assert notes("power:p=2", task="assoc-recall:length=256") == notes("power:p=2,d_key=8,d_value=8") == []
