"""Whole training steps as CUDA graphs: one a cell, captured once and replayed."""

from collections.abc import Callable

import torch

WARM_STEPS = 2
"""Eager steps of a cell before its capture: libraries and kernels set themselves up in them."""


class StepGraphs:
    """Runs a step by replaying its graph; the first steps of a cell run eagerly and count like any other.

    Args:
        step: One update on the cell of that index, free of host synchronisation.
        device: A CUDA device.
    """

    def __init__(self, step: Callable[[int], None], device: torch.device) -> None:
        self.step, self.device = step, device
        self.warm: dict[int, int] = {}
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.stream = torch.cuda.Stream(device)

    def run(self, cell: int) -> None:
        """One update on this cell."""
        if cell in self.graphs:
            self.graphs[cell].replay()
            return
        done = self.warm.get(cell, 0)
        if done < WARM_STEPS:
            self.warm[cell] = done + 1
            self.beside(lambda: self.step(cell))
            return
        self.graphs[cell] = self.capture(cell)
        self.graphs[cell].replay()

    def beside(self, work: Callable[[], None]) -> None:
        """Do work on the stream that will capture, in order with the current one."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def capture(self, cell: int) -> torch.cuda.CUDAGraph:
        """Record a step without running it; graphs share one pool, since no two run at once."""
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool, stream=self.stream):
            self.step(cell)
        return graph
