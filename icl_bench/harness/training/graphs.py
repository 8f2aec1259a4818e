"""CUDA graphs of training steps, and the pace at which the host launches them; on a CPU everything runs at once."""

import threading
from collections.abc import Callable

import torch

WARM_STEPS = 2
"""Eager steps of a cell before its capture, in which libraries and kernels initialise."""
STEPS_BETWEEN_WAITS = 16
"""Steps that are launched between two waits for the device."""
CAPTURING = threading.RLock()
"""Held while a thread captures a graph: one at a time, and nothing waits for the whole device meanwhile."""


class StepGraphs:
    """Run work on a cell by replaying its graph; the first steps of a cell run eagerly and count like any other.

    If the device is None, everything runs eagerly.
    """

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self.warm_steps: dict[int, int] = {}
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.stream = None if device is None else capture_stream(device)

    def run(self, work: Callable[[int], None], cell: int) -> None:
        """Do the work on the cell of this index; the work is the same in every call and never waits for the device."""
        if self.stream is None:
            work(cell)
            return
        warm_steps = self.warm_steps.get(cell, 0)
        if warm_steps < WARM_STEPS:
            self.warm_steps[cell] = warm_steps + 1
            # Eagerly, on the stream that will capture the work, in order with the current stream.
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                work(cell)
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
            return
        if cell not in self.graphs:
            self.graphs[cell] = self.capture(work, cell)
        self.graphs[cell].replay()

    def capture(self, work: Callable[[int], None], cell: int) -> torch.cuda.CUDAGraph:
        """Record the work without running it; all graphs share one memory pool, since no two run at once.

        Other threads, those of libraries such as NCCL too, may use the device meanwhile.
        """
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        with CAPTURING, torch.cuda.stream(self.stream):
            if torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > torch.cuda.mem_get_info()[0]:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()  # what eager steps left behind, which a pool of graphs cannot use
            graph.capture_begin(pool, "thread_local")
            try:
                work(cell)
            finally:
                graph.capture_end()
        return graph


def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the current stream, or another one where that is the default stream, which captures nothing."""
    current = torch.cuda.current_stream(device)
    return torch.cuda.Stream(device) if current == torch.cuda.default_stream(device) else current


class Pace:
    """Keep the host at most 32 steps ahead of a CUDA device, on the current stream; the waiting thread sleeps.

    A launch into a full queue waits inside the driver, which then admits no other thread, while the wait for an event
    holds up nobody.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.steps = device, 0
        self.events = [torch.cuda.Event(blocking=True) for _ in range(2)] if device.type == "cuda" else []

    def count_step(self) -> None:
        """Count a launched step; every 16 steps, wait for those that had been launched 16 steps before."""
        self.steps += 1
        if self.events and self.steps % STEPS_BETWEEN_WAITS == 0:
            self.events.reverse()
            self.events[0].record(torch.cuda.current_stream(self.device))
            self.events[1].synchronize()

    def wait(self) -> None:
        """Wait until the device has done all that was launched on the current stream."""
        if self.events:
            self.events[0].record(torch.cuda.current_stream(self.device))
            self.events[0].synchronize()
