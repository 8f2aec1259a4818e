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
    """The reporter that suits a console."""
    return LiveReporter(console) if console.is_terminal else LineReporter(console)


def fleet_name(specs: Sequence[RunSpec]) -> str:
    """Task and architecture of a fleet, and how many members it has."""
    first = specs[0]
    members = f" ({len(specs)} members)" if len(specs) > 1 else f" seed {first.seed} lr {first.train.lr:g}"
    return f"{first.task.label} {first.arch_label}{members}"


def describe(progress: FleetProgress) -> str:
    """Loss and accuracy, averaged over members, and the rate."""
    members = len(progress.loss)
    loss, accuracy = sum(progress.loss) / members, sum(progress.accuracy) / members
    return f"loss {loss:.3f}  accuracy {accuracy:.3f}  {progress.examples_per_second:,.0f} examples/s"


def plan_line(runs: int, done: int) -> str:
    """What is to be done."""
    if done == runs:
        return f"{runs} run{'s' if runs > 1 else ''}, done already"
    return f"{runs} run{'s' if runs > 1 else ''}" + (f", {done} of them done already" if done else "")


def result_line(result: RunResult) -> str:
    """One finished run."""
    name = f"{result.arch} seed {result.seed} lr {result.lr:g}"
    if result.status != "ok":
        return f"{name}: {result.status}, {(result.detail or '').strip().splitlines()[-1]} [{result.id}]"
    return f"{name}: accuracy {result.accuracy:.3f} in {result.seconds:.0f} s [{result.id}]"


class LineReporter:
    """Plain lines, one every few seconds for each fleet."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last: dict[str, float] = {}

    def planned(self, runs: int, done: int) -> None:
        """Say what is to be done."""
        self.say(plan_line(runs, done))

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Say which fleet starts."""
        self.last[specs[0].id] = time.monotonic()
        self.say(f"{fleet_name(specs)}: started")

    def progressed(self, specs: Sequence[RunSpec], progress: FleetProgress) -> None:
        """Say how far it is, now and then."""
        if time.monotonic() - self.last[specs[0].id] < LINE_EVERY:
            return
        self.last[specs[0].id] = time.monotonic()
        left = (progress.steps - progress.step) / progress.step * progress.seconds
        how_far = f"step {progress.step}/{progress.steps}  {describe(progress)}  {left:.0f} s left"
        self.say(f"{fleet_name(specs)}: {how_far}")

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """Say what happened to its worker."""
        self.say(f"{fleet_name(specs)}: lost its worker, {reason}")

    def finished(self, results: Sequence[RunResult]) -> None:
        """Say what came out."""
        for result in results:
            self.say(result_line(result))

    def closed(self) -> None:
        """Nothing to put away."""

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveReporter:
    """Bars that move: one for each fleet under way, and one for all runs where there are several."""

    def __init__(self, console: Console) -> None:
        self.lines = LineReporter(console)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.all: TaskID | None = None
        self.fleets: dict[str, TaskID] = {}

    def planned(self, runs: int, done: int) -> None:
        """Say what is to be done."""
        self.lines.planned(runs, done)
        if runs - done > 1:
            self.all = self.bar.add_task("all runs", total=runs, completed=done, status="")

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Show a new bar."""
        self.fleets[specs[0].id] = self.bar.add_task(fleet_name(specs), total=specs[0].train.steps, status="")
        self.bar.start()

    def progressed(self, specs: Sequence[RunSpec], progress: FleetProgress) -> None:
        """Move its bar."""
        self.bar.update(self.fleets[specs[0].id], completed=progress.step, status=describe(progress))

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """Take its bar away and say why."""
        self.bar.remove_task(self.fleets.pop(specs[0].id))
        self.lines.lost(specs, reason)

    def finished(self, results: Sequence[RunResult]) -> None:
        """Take its bar away and say what came out."""
        for result in results:
            if result.id in self.fleets:
                self.bar.remove_task(self.fleets.pop(result.id))
            if self.all is not None:
                self.bar.advance(self.all)
        self.lines.finished(results)

    def closed(self) -> None:
        """Take the bars away, also after an interruption."""
        self.bar.stop()
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self.all, self.fleets = None, {}
