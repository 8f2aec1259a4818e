"""Progress on standard error: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from icl_bench.runs.events import Progress as FleetProgress
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec

LINE_EVERY = 5.0
"""Seconds between plain lines."""


def make_reporter(console: Console) -> Reporter:
    """Return a reporter with live bars for a terminal, else one with plain lines."""
    return LiveReporter(console) if console.is_terminal else LineReporter(console)


def fleet_title(specs: Sequence[RunSpec]) -> str:
    """Return the task and architecture of a fleet, and the number of its members."""
    first = specs[0]
    members = f" ({len(specs)} members)" if len(specs) > 1 else f" seed {first.seed} lr {first.train.lr:g}"
    return f"{first.task.label} {first.arch_label}{members}"


def progress_text(progress: FleetProgress) -> str:
    """Return mean loss and accuracy over members, and training examples per second."""
    members = len(progress.loss)
    loss, accuracy = sum(progress.loss) / members, sum(progress.accuracy) / members
    return f"loss {loss:.3f}  accuracy {accuracy:.3f}  {progress.examples_per_second:,.0f} examples/s"


class LineReporter(Reporter):
    """Prints plain lines, one every few seconds for each fleet."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last: dict[str, float] = {}

    def planned(self, runs: int, done: int) -> None:
        """Say how many runs there are, and how many of those the store holds already."""
        held = ", done already" if done == runs else f", {done} of them done already" if done else ""
        self.say(f"{runs} run{'s' if runs > 1 else ''}{held}")

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Say which fleet starts."""
        self.last[specs[0].id] = time.monotonic()
        self.say(f"{fleet_title(specs)}: started")

    def progressed(self, specs: Sequence[RunSpec], progress: FleetProgress) -> None:
        """Say how far the fleet is, at most every five seconds."""
        if time.monotonic() - self.last[specs[0].id] < LINE_EVERY:
            return
        self.last[specs[0].id] = time.monotonic()
        left = (progress.steps - progress.step) / progress.step * progress.seconds
        how_far = f"step {progress.step}/{progress.steps}  {progress_text(progress)}  {left:.0f} s left"
        self.say(f"{fleet_title(specs)}: {how_far}")

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """Say why the fleet lost its worker."""
        self.say(f"{fleet_title(specs)}: lost its worker, {reason}")

    def finished(self, results: Sequence[RunResult]) -> None:
        """Say how each run ended."""
        for result in results:
            ending = f"accuracy {result.accuracy:.3f} in {result.seconds:.0f} s"
            if result.status != "ok":
                ending = f"{result.status}, {(result.detail or '').strip().splitlines()[-1]}"
            self.say(f"{result.arch} seed {result.seed} lr {result.lr:g}: {ending} [{result.id}]")

    def say(self, text: str) -> None:
        """Print a line without markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveReporter:
    """Shows a live bar for each running fleet, and one for all runs if there are several."""

    def __init__(self, console: Console) -> None:
        self.lines = LineReporter(console)
        title = TextColumn("{task.description}", markup=False)
        status = TextColumn("{task.fields[status]}", markup=False)
        columns = (title, BarColumn(bar_width=20), MofNCompleteColumn(), status, TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True)
        self.all: TaskID | None = None
        self.fleets: dict[str, TaskID] = {}

    def planned(self, runs: int, done: int) -> None:
        """Say how many runs there are."""
        self.lines.planned(runs, done)
        if runs - done > 1:
            self.all = self.bar.add_task("all runs", total=runs, completed=done, status="")

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Add a bar for the fleet."""
        self.fleets[specs[0].id] = self.bar.add_task(fleet_title(specs), total=specs[0].train.steps, status="")
        self.bar.start()

    def progressed(self, specs: Sequence[RunSpec], progress: FleetProgress) -> None:
        """Move the bar of the fleet."""
        self.bar.update(self.fleets[specs[0].id], completed=progress.step, status=progress_text(progress))

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """Remove the bar of the fleet and say why."""
        self.bar.remove_task(self.fleets.pop(specs[0].id))
        self.lines.lost(specs, reason)

    def finished(self, results: Sequence[RunResult]) -> None:
        """Remove the bar of the fleet and say how each run ended."""
        for result in results:
            if result.id in self.fleets:
                self.bar.remove_task(self.fleets.pop(result.id))
            if self.all is not None:
                self.bar.advance(self.all)
        self.lines.finished(results)

    def closed(self) -> None:
        """Remove all bars, also after an interruption."""
        self.bar.stop()
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self.all, self.fleets = None, {}
