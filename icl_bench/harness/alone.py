"""A run alone in a process of its own, `python -m icl_bench.harness.alone`, which standard input tells what to do.

After a fault of a kernel nothing works any more in the process where it happened. The run commits itself to the store.
"""

import pickle
import sys

from icl_bench.harness.fleet import finish_fleet
from icl_bench.harness.interruption import Interrupted, deferred, listen
from icl_bench.harness.reporter import Progress
from icl_bench.harness.store import Store
from icl_bench.registry import load_plugins


class Silent:
    """Tells nobody."""

    def progressed(self, progress: Progress) -> None:
        """Say nothing."""


def main() -> None:
    """Carry out the run that standard input asks for."""
    spec, root, machine = pickle.load(sys.stdin.buffer)
    listen()
    load_plugins()
    with deferred():
        finish_fleet([spec], Store(root), machine, Silent(), last=True)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as cut:
        sys.exit(cut.status)
