"""A run alone in a process of its own, which standard input tells what to do.

    python -m icl_bench.harness.training.alone

After a fault of a kernel nothing works any more in the process where it happened. The run commits itself to the store.
"""

import json
import sys
from pathlib import Path

import torch

from icl_bench.harness.interruption import Interrupted, deferred, listen
from icl_bench.harness.training.fleet import Machine, finish_fleet
from icl_bench.registry import load_plugins
from icl_bench.runs.events import Progress
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store


class Silent:
    """Tells nobody."""

    def progressed(self, progress: Progress) -> None:
        """Say nothing."""


def main() -> None:
    """Carry out the run that standard input asks for."""
    order = json.load(sys.stdin)
    spec, store = RunSpec.model_validate(order["spec"]), Store(Path(order["store"]))
    machine = Machine(torch.device(order["device"]), order["impl"], order["graphs"])
    listen()
    load_plugins()
    with deferred():
        finish_fleet([spec], store, machine, Silent(), last=True)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as cut:
        sys.exit(cut.status)
