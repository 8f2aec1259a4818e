"""The store of runs: folders that appear whole, their checkpoints, and an index."""

from icl_bench.runs.store.store import Store

__all__ = ["Store"]
