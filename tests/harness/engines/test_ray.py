"""Connections to a Ray cluster; the contract suite runs fleets on one."""

import pytest

from icl_bench.errors import EngineError
from icl_bench.harness.engines.ray import check_reachable, connect_to_cluster


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
