"""The store of runs: one folder per finished run, checkpoints of unfinished fleets, and an index."""

from icl_bench.runs.store.store import Store as Store
