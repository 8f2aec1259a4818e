"""Connections to a Ray cluster; the contract suite runs fleets on one."""

import pytest

from icl_bench.errors import EngineError
from icl_bench.harness.engines.ray import check_reachable


def test_a_cluster_that_does_not_answer_is_named_at_once() -> None:
    with pytest.raises(EngineError, match=r"needs a Ray cluster that can be reached; 127\.0\.0\.1:1: .*; check its ad"):
        check_reachable("127.0.0.1:1")
