"""Pace of launches and graphs of steps, without a GPU."""

import pytest
import torch

from icl_bench.harness.training.graphs import STEPS_BETWEEN_WAITS, Pace, StepGraphs


class FakeEvent:
    """An event of a device that does nothing until it is waited for, and then all before the event."""

    launched = done = 0

    def __init__(self, blocking: bool) -> None:
        assert blocking
        self.after = 0

    def record(self, _stream: object) -> None:
        self.after = FakeEvent.launched

    def synchronize(self) -> None:
        FakeEvent.done = max(FakeEvent.done, self.after)


def test_the_host_is_a_bounded_number_of_steps_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    pace, ahead = Pace(torch.device("cuda", 0)), []
    for _ in range(200):
        FakeEvent.launched += 1
        pace.count_step()
        ahead.append(FakeEvent.launched - FakeEvent.done)
        if FakeEvent.launched % 90 == 0:
            pace.wait()
            assert FakeEvent.done == FakeEvent.launched
    assert max(ahead) < 2 * STEPS_BETWEEN_WAITS
    # The device is never left without work but by `wait`.
    assert min(ahead[STEPS_BETWEEN_WAITS:80]) >= STEPS_BETWEEN_WAITS


def test_a_cpu_is_not_waited_for_and_runs_steps_at_once() -> None:
    pace, seen = Pace(torch.device("cpu")), list[int]()
    graphs = StepGraphs(None)
    for cell in (0, 1, 0, 0):
        graphs.run(seen.append, cell)
        pace.count_step()
    pace.wait()
    assert seen == [0, 1, 0, 0]
