"""Progress on standard error: live bars on a terminal of any width, plain lines elsewhere."""

import time
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from icl_bench.escapes import plain
from icl_bench.harness.advice import advice
from icl_bench.harness.estimate import Forecast, in_words
from icl_bench.runs.events import Progress as FleetProgress
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec

LINE_EVERY = 5.0
"""Seconds between plain lines."""
WORTH_SAYING = 20.0
"""Seconds of work from which an estimate is printed before it begins."""
LEAST_BAR = 8
"""Narrowest bar, in characters."""
NARROW, WIDE = 70, 100
"""Columns below which the accuracy is left out, and from which the loss stands beside it."""


def make_reporter(console: Console, forecast: Forecast) -> "LineReporter":
    """Return a reporter with live bars for a terminal, else one with plain lines."""
    return LiveReporter(console, forecast) if console.is_terminal else LineReporter(console, forecast)


def fleet_title(specs: Sequence[RunSpec]) -> str:
    """Return the task and architecture of a fleet, and the number of its members."""
    first = specs[0]
    members = f" ({len(specs)} members)" if len(specs) > 1 else f" seed {first.seed} lr {first.train.lr:g}"
    return f"{first.task.label} {first.arch_label}{members}"


def fleet_means(progress: FleetProgress) -> tuple[float, float]:
    """Return mean loss and accuracy over members."""
    members = len(progress.loss)
    return sum(progress.loss) / members, sum(progress.accuracy) / members


def fleet_seconds_left(progress: FleetProgress) -> float:
    """Return the seconds until the last step of a fleet, at its rate so far."""
    return (progress.steps - progress.step) / progress.step * progress.seconds


def clock_time(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds.

    >>> [clock_time(seconds) for seconds in (7.2, 95, 5400)]
    ['0:07', '1:35', '1:30:00']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class LineReporter(Reporter):
    """Prints plain lines, one every few seconds for each fleet."""

    def __init__(self, console: Console, forecast: Forecast) -> None:
        self.console, self.forecast = console, forecast
        self.last: dict[str, float] = {}
        self.members: dict[str, int] = {}
        self.advised: set[str] = set()

    def expected(self, later: Sequence[RunSpec]) -> None:
        """Count the runs that follow."""
        self.forecast.expect(later)

    def planned(self, specs: Sequence[RunSpec], missing: Sequence[RunSpec]) -> None:
        """Say how many runs there are, how many of those the store holds already, and about how long they take."""
        is_first = not self.forecast.left
        self.forecast.plan(specs, missing)
        if is_first:  # else runs of one contender among others, which go on
            self.say_plan(specs, missing)
        for line in advice(missing):
            if line not in self.advised:
                self.advised.add(line)
                self.say(f"note: {line}")

    def say_plan(self, specs: Sequence[RunSpec], missing: Sequence[RunSpec]) -> None:
        """Say how many runs of a plan there are and are left."""
        runs, done = len(specs), len(specs) - len(missing)
        held = ", done already" if done == runs else f", {done} of them done already" if done else ""
        self.say(f"{runs} run{'s' if runs > 1 else ''}{held}{self.outlook() if missing else ''}")

    def outlook(self) -> str:
        """Return the estimated time of what is left, where it is long enough to be worth a word."""
        seconds, later = self.forecast.seconds_left(), len(self.forecast.later)
        after = f"; {later} more follow" if later else ""
        if seconds < WORTH_SAYING:
            return after
        basis = "by the runs so far" if self.forecast.seconds else "by a rule of thumb, in one process"
        return f"{after}; about {in_words(seconds)} ({basis})"

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Say which fleet starts."""
        self.begin(specs)
        self.say(f"{fleet_title(specs)}: started")

    def begin(self, specs: Sequence[RunSpec]) -> None:
        """Note the start of a fleet."""
        self.forecast.start()
        self.last[specs[0].id] = time.monotonic()
        self.members |= dict.fromkeys((spec.id for spec in specs), len(specs))

    def progressed(self, specs: Sequence[RunSpec], progress: FleetProgress) -> None:
        """Say how far the fleet is, at most every five seconds."""
        self.note(specs, progress)
        if time.monotonic() - self.last[specs[0].id] < LINE_EVERY:
            return
        self.last[specs[0].id] = time.monotonic()
        loss, accuracy = fleet_means(progress)
        self.say(
            f"{fleet_title(specs)}: step {progress.step}/{progress.steps}  loss {loss:.3f}  accuracy {accuracy:.3f}  "
            f"{progress.examples_per_second:,.0f} examples/s  {fleet_seconds_left(progress):.0f} s left"
        )

    def note(self, specs: Sequence[RunSpec], progress: FleetProgress) -> None:
        """Note how far a fleet is, and say once if it goes on where it was interrupted."""
        if progress.began and specs[0].id not in self.forecast.shares:
            self.say(f"{fleet_title(specs)}: continues at step {progress.began}")
        self.forecast.progress(specs, progress)

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """Say why the fleet lost its worker."""
        self.say(f"{fleet_title(specs)}: lost its worker, {reason}")

    def finished(self, results: Sequence[RunResult]) -> None:
        """Say how each run ended."""
        for result in results:
            self.forecast.finish(result.id, result.seconds / self.members.get(result.id, 1))
            ending = f"accuracy {result.accuracy:.3f} in {result.seconds:.0f} s"
            if result.status != "ok":
                ending = f"{result.status}, {(result.detail or '').strip().splitlines()[-1]}"
            self.say(f"{result.arch} seed {result.seed} lr {result.lr:g}: {ending} [{result.id}]")

    def say(self, text: str) -> None:
        """Print a line without markup; a terminal breaks it between words."""
        self.console.print(Text(plain(text)), highlight=False, soft_wrap=not self.console.is_terminal)


class FleetBar:
    """A fleet under way: its name on a line, and below it a bar, steps, accuracy, rate and time left."""

    def __init__(self, specs: Sequence[RunSpec]) -> None:
        self.title, self.steps = fleet_title(specs), specs[0].train.steps
        self.progress: FleetProgress | None = None

    def lines(self, width: int) -> Iterable[RenderableType]:
        """Return both lines at a width in columns."""
        yield Text(self.title, no_wrap=True, overflow="ellipsis")
        if self.progress is None:
            yield Text("  starts", style="dim")
            return
        loss, accuracy = fleet_means(self.progress)
        parts = [
            f"{self.progress.step}/{self.steps}",
            *([f"loss {loss:.3f}"] if width >= WIDE else []),
            *([f"accuracy {accuracy:.3f}"] if width >= NARROW else []),
            f"{self.progress.examples_per_second:,.0f} examples/s",
            f"{clock_time(fleet_seconds_left(self.progress))} left",
        ]
        yield bar_line(self.progress.step, self.steps, parts, width)


def bar_line(done: float, total: float, parts: Sequence[str], width: int) -> RenderableType:
    """Return a bar with texts to its right; it takes the columns that they leave."""
    text = "  ".join(parts)
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_row(Text(), ProgressBar(total, done, width=max(LEAST_BAR, width - len(text) - 5)), Text(text, no_wrap=True))
    return row


class LiveReporter(LineReporter):
    """Shows two lines for each running fleet, and two for all runs if there are several; lines of ends stay above."""

    def __init__(self, console: Console, forecast: Forecast) -> None:
        super().__init__(console, forecast)
        self.fleets: dict[str, FleetBar] = {}
        self.live = Live(console=console, get_renderable=self.render, transient=True, refresh_per_second=4)

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Add a bar for the fleet."""
        self.begin(specs)
        self.fleets[specs[0].id] = FleetBar(specs)
        self.live.start()

    def progressed(self, specs: Sequence[RunSpec], progress: FleetProgress) -> None:
        """Move the bar of the fleet."""
        self.note(specs, progress)
        self.fleets[specs[0].id].progress = progress

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """Remove the bar of the fleet and say why."""
        del self.fleets[specs[0].id]
        super().lost(specs, reason)

    def finished(self, results: Sequence[RunResult]) -> None:
        """Remove the bar of the fleet and say how each run ended."""
        for result in results:
            self.fleets.pop(result.id, None)
        super().finished(results)

    def closed(self) -> None:
        """Remove all bars, also after an interruption."""
        self.fleets.clear()
        self.live.stop()

    def render(self) -> RenderableType:
        """Return all bars, as many as the terminal has room for, and that of all runs below them."""
        width, room = self.console.width, max(1, (self.console.height - 4) // 2)
        shown = [line for fleet in list(self.fleets.values())[:room] for line in fleet.lines(width)]
        if len(self.fleets) > room:
            shown.append(Text(f"and {len(self.fleets) - room} more", style="dim"))
        return Group(*shown, *(self.total_lines(width) if self.forecast.total > 1 else ()))

    def total_lines(self, width: int) -> Iterable[RenderableType]:
        """Return the lines of all runs: those done, those known to come, and the time that they still take."""
        done, total = self.forecast.finished, self.forecast.total
        yield Text(f"all runs{', tuning and measuring' if self.forecast.later else ''}", style="bold")
        parts = [f"{done}/{total}", f"about {in_words(self.forecast.seconds_left())} left"]
        yield bar_line(done + self.forecast.under_way, total, parts, width)
