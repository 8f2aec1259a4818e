"""Progress: lines where nobody watches; on a terminal two lines a fleet, whatever its width."""

import io

import pytest
from rich.console import Console

from icl_bench.commands import progress
from icl_bench.commands.progress import LineReporter, LiveReporter, make_reporter
from icl_bench.harness.estimate import Forecast
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.runs.events import Progress

RUNS = expand_request(Request("assoc-recall", ["linear"], seeds=range(3)))
LONG = expand_request(
    Request("assoc-recall:pairs=[4|8],length=64", ["gated-conv+power:p=2,heads=8,d_value=16,gate=true"])
)
HALF = Progress(150, 300, [0.5], [0.25], 1000.0, 3.0)


class Result:
    """As much of a result as is shown."""

    def __init__(self, run, status: str = "ok", detail: str | None = None) -> None:
        self.id, self.arch, self.seed, self.lr = run.id, "linear", run.seed, run.train.lr
        self.status, self.detail, self.accuracy, self.seconds = status, detail, 0.5, 2.0


@pytest.fixture
def course():
    """Two fleets under way at once, one of which loses its worker; returns what was shown."""

    def tell(reporter, console: Console) -> str:
        reporter.planned(RUNS, RUNS[:2])
        reporter.started(RUNS[:1])
        reporter.started(RUNS[1:2])
        reporter.progressed(RUNS[:1], HALF)
        reporter.lost(RUNS[:1], "ended by SIGKILL")
        reporter.started(RUNS[:1])
        reporter.finished([Result(RUNS[1])])
        reporter.progressed(RUNS[:1], HALF)
        reporter.finished([Result(RUNS[0], "crashed", "lost 3 workers, the last: ended by SIGKILL")])
        reporter.closed()
        return console.file.getvalue()

    return tell


def reporter_on(width: int, terminal: bool = False, height: int = 24) -> tuple[LineReporter, Console]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=terminal)
    return make_reporter(console, Forecast("cpu")), console


def test_lines_name_their_fleet(course, monkeypatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    reporter, console = reporter_on(200)
    lines = course(reporter, console).splitlines()
    assert lines[0].startswith("3 runs, 1 of them done already; about ")
    assert lines[0].endswith("(by a rule of thumb, in one process)")
    assert lines[1].endswith("linear seed 0 lr 0.01: started") and lines[2].endswith("seed 1 lr 0.01: started")
    assert "seed 0 lr 0.01: step 150/300  loss 0.500  accuracy 0.250  1,000 examples/s  3 s left" in lines[3]
    assert lines[4].endswith("linear seed 0 lr 0.01: lost its worker, ended by SIGKILL")
    assert lines[6] == f"linear seed 1 lr 0.01: accuracy 0.500 in 2 s [{RUNS[1].id}]"
    assert lines[8] == (f"linear seed 0 lr 0.01: crashed, lost 3 workers, the last: ended by SIGKILL [{RUNS[0].id}]")
    assert not isinstance(reporter, LiveReporter)


def test_a_run_that_was_interrupted_is_said_to_continue_once() -> None:
    reporter, console = reporter_on(200)
    reporter.planned(RUNS[:1], RUNS[:1])
    reporter.started(RUNS[:1])
    for step in (150, 160):
        reporter.progressed(RUNS[:1], HALF._replace(step=step, began=60))
    assert console.file.getvalue().count("assoc-recall linear seed 0 lr 0.01: continues at step 60\n") == 1


def test_work_of_seconds_gets_no_estimate_and_what_follows_is_counted() -> None:
    reporter, console = reporter_on(200)
    short = expand_request(Request("assoc-recall", ["linear"], settings=("train.steps=3", "evaluation.examples=8")))
    reporter.expected(RUNS)
    reporter.planned(short, short)
    reporter.planned(RUNS[:1], RUNS[:1])  # of another contender, beside the runs that go on
    again, held = reporter_on(200)
    again.planned(short, [])
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("1 run; 3 more follow; about ") and held.file.getvalue() == "1 run, done already\n"


@pytest.mark.parametrize(
    ("width", "means"), [(60, ""), (80, "accuracy 0.250  "), (130, "loss 0.500  accuracy 0.250  ")]
)
def test_a_terminal_shows_name_bar_steps_rate_and_time_at_any_width(width: int, means: str) -> None:
    reporter, console = reporter_on(width, terminal=True)
    assert isinstance(reporter, LiveReporter)
    reporter.expected(RUNS)
    reporter.planned([*LONG, RUNS[0]], LONG)
    reporter.started(LONG)
    reporter.progressed(LONG, HALF)
    lines = console.render_lines(reporter.render(), console.options, pad=False)
    texts = ["".join(segment.text for segment in line) for line in lines]
    reporter.closed()
    assert len(texts) == 4 and all(len(text) <= width for text in texts)
    assert texts[0].startswith("assoc-recall:pairs=[4|8],length=64 gated-conv+power:p=2")
    assert "━" in texts[1] and texts[1].rstrip().endswith(f"150/300  {means}1,000 examples/s  0:03 left")
    assert texts[2] == "all runs, tuning and measuring"
    assert "━" in texts[3] and "1/5  about " in texts[3]


def test_fleets_come_and_go_and_their_ends_stay(course) -> None:
    reporter, console = reporter_on(200, terminal=True)
    reporter.planned(RUNS, RUNS[:2])
    for one in (RUNS[:1], RUNS[1:2]):
        reporter.started(one)
    reporter.finished([Result(RUNS[1])])
    assert list(reporter.fleets) == [RUNS[0].id] and (reporter.forecast.finished, reporter.forecast.total) == (2, 3)
    reporter.closed()
    other, console = reporter_on(200, terminal=True)
    shown = course(other, console)
    assert "lost its worker, ended by SIGKILL" in shown and "crashed" in shown
    assert reporter.fleets == other.fleets == {} and not other.live.is_started


def test_more_fleets_than_the_terminal_has_room_for_are_counted() -> None:
    reporter, console = reporter_on(80, terminal=True, height=8)
    reporter.planned(RUNS, RUNS)
    for run in RUNS:
        reporter.started([run])
    with console.capture() as capture:
        console.print(reporter.render())
    reporter.closed()
    assert "and 1 more" in capture.get()
