"""Standard streams that are closed, full, without a reader, or too narrow for the characters that are printed."""

import codecs
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from icl_bench.commands.streams import ENCODING_ERRORS, NoteStream, ResultStream, substitute, text_stream
from icl_bench.errors import OutputError
from icl_bench.harness.interruption import Interrupted
from tests.runs.records import filled, spec

RUN = ["run", "assoc-recall", "--arch", "linear", "--store", "store"]
"""A command of which the store of `filled` holds every run."""

UNUSABLE = [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]


def shell(folder: Path, arguments: list[str], redirection: str = "", **variables: str) -> tuple[int, str, str]:
    """Run a command of icl-bench in a shell; return its status, standard output and standard error."""
    command = f'"$@" {redirection}'
    words = ["bash", "-o", "pipefail", "-c", command, "bash", sys.executable, "-m", "icl_bench", *arguments]
    done = subprocess.run(words, cwd=folder, capture_output=True, env={**os.environ, **variables})
    return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")


@pytest.mark.parametrize(("place", "reason"), UNUSABLE)
@pytest.mark.parametrize("arguments", [["--version"], ["runs", "list", "--store", "store"]])
def test_results_that_cannot_be_printed_are_one_line(tmp_path, place: str, reason: str, arguments: list[str]) -> None:
    filled(tmp_path / "store", 0)
    status, out, err = shell(tmp_path, arguments, place)
    message = f"standard output must take the results; {reason}; print them elsewhere: finished runs are kept"
    assert (status, out, err) == (2, "", f"Error: {message}\n")


def test_a_reader_that_goes_ends_a_command_in_silence(tmp_path) -> None:
    filled(tmp_path / "store", *range(3))
    assert shell(tmp_path, ["runs", "list", "--store", "store"], "| true") == (128 + signal.SIGPIPE, "", "")


@pytest.mark.parametrize("place", ["2>/dev/full", "2>&-", "2> >(true)", ">out 2>/dev/full <&-"])
def test_notes_that_cannot_be_printed_end_nothing(tmp_path, place: str) -> None:
    filled(tmp_path / "store", 0)
    assert shell(tmp_path, ["runs", "list", "--store", "store"], place)[0] == 0


def test_a_report_is_written_and_runs_go_on_where_nothing_can_be_printed(command, tmp_path, monkeypatch) -> None:
    sizes = ("train.steps=2", "train.batch=2", "evaluation.examples=2", "model.layers=1")
    tiny = [word for size in sizes for word in ("--set", size)]
    with Path("/dev/full").open("wb") as full:
        for name, kind in (("stdout", ResultStream), ("stderr", NoteStream)):
            monkeypatch.setattr(sys, name, text_stream(kind(full.fileno(), "w", closefd=False), None))
        assert command(*RUN, "--seeds", "0,1", *tiny, "--report", "r.md").status == 2
        sys.stdout.close()
        sys.stderr.close()
    assert (tmp_path / "r.md").exists() and len(list(tmp_path.glob("store/runs/*/*/result.json"))) == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_characters_that_an_encoding_lacks_are_written_in_others(command, tmp_path, monkeypatch, encoding: str) -> None:
    filled(tmp_path / "store", 0)
    written = io.BytesIO()
    codecs.register_error(ENCODING_ERRORS, substitute)
    for arguments in (RUN, ["show", "copy"], ["archs"], ["runs", "show", spec(0).id, "--store", "store"]):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, ENCODING_ERRORS))
        assert command(*arguments).status == 0
        sys.stdout.detach()
    assert "floor" in written.getvalue().decode(encoding) and "|>" in written.getvalue().decode(encoding)


def test_a_substitute_has_one_character_and_others_their_number() -> None:
    codecs.register_error(ENCODING_ERRORS, substitute)
    assert "█→\u20ac\ud800".encode("ascii", ENCODING_ERRORS) == b"#>\\u20ac\\ud800"


def test_a_failed_stream_of_results_fails_once() -> None:
    with Path("/dev/full").open("wb") as full:
        stream = ResultStream(full.fileno(), "w", closefd=False)
        with pytest.raises(OutputError, match="standard output must take the results; No space left on device"):
            stream.write(b"abc")
        assert stream.write(b"abc") == 3  # as when the interpreter flushes it at its end


def test_a_pipe_without_a_reader_is_an_interruption() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with ResultStream(writer, "w") as results, pytest.raises(Interrupted) as raised:
        results.write(b"abc")
    assert raised.value.status == 128 + signal.SIGPIPE


def test_a_stream_of_notes_drops_what_it_cannot_write() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with NoteStream(writer, "w") as notes:
        assert all(notes.write(b"x" * 65536) for _ in range(40))  # more than a pipe holds
        os.close(reader)
        assert notes.write(b"abc") == 3
