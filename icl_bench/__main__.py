"""`python -m icl_bench` is `icl-bench`."""

from icl_bench.cli import main

main()
