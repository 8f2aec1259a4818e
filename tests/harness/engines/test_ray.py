"""Connections to a Ray cluster; the contract suite runs fleets on one."""

import time
from types import SimpleNamespace

import pytest
import torch

from icl_bench.errors import EngineError
from icl_bench.harness.engines import ray as own
from icl_bench.harness.engines.ray import ActorWorker, Ray, check_reachable, connect_to_cluster
from icl_bench.harness.training.trainer import Machine


def test_a_cluster_that_does_not_answer_is_named_at_once() -> None:
    with pytest.raises(EngineError, match=r"needs a Ray cluster that can be reached; 127\.0\.0\.1:1: .*; check its ad"):
        check_reachable("127.0.0.1:1")


@pytest.mark.parametrize(("address", "dashboard"), [(None, False), ("auto", None)])
def test_a_cluster_of_ones_own_opens_no_page_of_its_state(monkeypatch, address, dashboard) -> None:
    ray, asked = pytest.importorskip("ray"), {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **named: asked.update(named))
    assert connect_to_cluster(address) is True
    assert asked == {"address": address, "include_dashboard": dashboard, "log_to_driver": False}


@pytest.mark.parametrize(("device", "resource"), [("cpu", "CPU"), ("cuda", "GPU")])
def test_a_cluster_has_the_resource_of_the_device(monkeypatch, device: str, resource: str) -> None:
    ray, there = pytest.importorskip("ray"), {"CPU": 3.0, "GPU": 2.0}
    monkeypatch.setattr(own, "connect_to_cluster", lambda address: False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    machine = Machine(torch.device(device))
    assert Ray().start(machine).size == there.pop(resource)
    with pytest.raises(EngineError, match=f"the Ray cluster must have a {resource}; it has none"):
        Ray().start(machine)


def test_progress_is_asked_for_once_a_second_and_not_while_an_answer_is_due() -> None:
    asked: list[str] = []
    worker = object.__new__(ActorWorker)
    worker.actor = SimpleNamespace(
        latest_progress=SimpleNamespace(remote=lambda: asked.append("progress") or "question")
    )
    worker.task, worker.question, worker.asked_at = "task", None, time.monotonic()
    assert worker.open_calls() == ["task"]
    for _ in range(2):
        worker.asked_at -= 10.0
        assert worker.open_calls() == ["task", "question"]
    assert asked == ["progress"]
