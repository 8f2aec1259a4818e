"""Counter-based random bits on a GPU, equal to those of `icl_bench.random`."""
