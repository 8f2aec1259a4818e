"""The tables and bars of results on the terminal."""

from rich.console import Console

from icl_bench.commands.tables import accuracy_bars, results_table
from tests.reports.factory import comparison, make_record


def test_the_terminal_shows_names_as_they_are() -> None:
    console = Console(width=120, color_system=None)
    records = [*comparison(2), make_record("[red]odd[/red]", status="diverged")]
    with console.capture() as capture:
        console.print(results_table(records))
    lines = capture.get().splitlines()
    assert any(line.startswith("[red]odd[/red] (1 failed)") for line in lines)
    floor = next(line.split() for line in lines if line.startswith("floor"))
    assert floor[4:8] == ["0.146", "0.250", "0.125", "0.062"]


def test_a_narrow_terminal_shows_whole_columns_and_names_those_left_out() -> None:
    console = Console(width=64, color_system=None)
    with console.capture() as capture:
        console.print(results_table(comparison(2)))
    lines = capture.get().splitlines()
    assert lines[1].split() == ["architecture", "state", "accuracy", "4", "8", "16", "solved"]
    assert lines[-1].strip() == "without lr, params, exact, which a wider terminal has"
    assert all(len(line.rstrip()) <= 64 for line in lines)


def test_bars_stand_best_first_over_the_floor() -> None:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(accuracy_bars([*comparison(2), make_record(task="copy")]))
    lines = [line.split() for line in capture.get().splitlines()]
    assert [line[0] for line in lines[1:]] == ["softmax", "power:p=2", "linear", "window:w=16", "floor"]
    assert [len(line[1]) for line in lines[1:]] == [40, 40, 35, 14, 6]  # of 40 characters
