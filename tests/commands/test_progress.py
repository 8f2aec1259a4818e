"""What progress looks like: lines where nobody watches, a bar for each fleet under way on a terminal."""

import io

import pytest
from rich.console import Console

from icl_bench.commands import progress
from icl_bench.commands.progress import LineReporter, LiveReporter, make_reporter
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.runs.events import Progress

RUNS = expand_request(Request("assoc-recall", ["linear"], seeds=range(3)))
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
        reporter.planned(3, 1)
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


def test_lines_name_their_fleet(course, monkeypatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    console = Console(file=io.StringIO(), width=200)
    lines = course(make_reporter(console), console).splitlines()
    assert lines[0] == "3 runs, 1 of them done already"
    assert lines[1].endswith("linear seed 0 lr 0.01: started") and lines[2].endswith("seed 1 lr 0.01: started")
    assert "seed 0 lr 0.01: step 150/300  loss 0.500  accuracy 0.250  1,000 examples/s  3 s left" in lines[3]
    assert lines[4].endswith("linear seed 0 lr 0.01: lost its worker, ended by SIGKILL")
    assert lines[6] == f"linear seed 1 lr 0.01: accuracy 0.500 in 2 s [{RUNS[1].id}]"
    assert lines[8] == (f"linear seed 0 lr 0.01: crashed, lost 3 workers, the last: ended by SIGKILL [{RUNS[0].id}]")
    assert isinstance(make_reporter(console), LineReporter)


def test_a_terminal_has_a_bar_for_each_fleet_and_one_for_all(course) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    reporter = make_reporter(console)
    assert isinstance(reporter, LiveReporter)
    reporter.planned(3, 1)
    reporter.started(RUNS[:1])
    reporter.started(RUNS[1:2])
    reporter.progressed(RUNS[1:2], HALF)
    assert [(task.description.split()[0], task.completed, task.total) for task in reporter.bar.tasks] == [
        ("all", 1, 3), ("assoc-recall", 0, 300), ("assoc-recall", 150, 300),
    ]  # fmt: skip
    reporter.finished([Result(RUNS[1])])
    assert [task.completed for task in reporter.bar.tasks] == [2, 0]
    reporter.closed()
    shown = course(make_reporter(console), console)
    assert "lost its worker, ended by SIGKILL" in shown and "crashed" in shown
    assert reporter.bar.tasks == []
