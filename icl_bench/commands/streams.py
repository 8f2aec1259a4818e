"""Standard streams that may be closed, full, without a reader, or unable to encode what is printed.

Results that cannot be printed are an error; a note that cannot be printed is lost, since no run may end for it.
"""

import codecs
import io
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, TextIO

from icl_bench.errors import OutputError
from icl_bench.harness.interruption import Interrupted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ENCODING_ERRORS = "icl-bench"
"""Name of the handler of characters that an encoding lacks."""
SUBSTITUTES = {"█": "#", "▉": "#", "▊": "#", "▋": "#", "▌": "#", "→": ">", "\u2013": "-", "…": "~", "\u00d7": "x"}
"""Characters of tables and bars, each with one of ASCII that stands for it."""


class ResultStream(io.FileIO):
    """Standard output: the first failure to write raises, and what is written later is dropped."""

    failed = False

    def write(self, data: "ReadableBuffer") -> int:
        """Write some of the data; raise OutputError, or Interrupted where the reader of a pipe is gone."""
        try:
            while not self.failed:
                written = super().write(data)
                if written is not None:
                    return written
                select.select([], [self], [])  # a stream that does not block, and is full
        except BrokenPipeError:
            self.failed = True
            raise Interrupted(signal.SIGPIPE) from None
        except OSError as error:
            self.failed = True
            raise OutputError(
                f"standard output must take the results; {error.strerror}; print them elsewhere: finished runs are kept"
            ) from None
        return memoryview(data).nbytes


class NoteStream(io.FileIO):
    """Standard error: what cannot be written is dropped."""

    def write(self, data: "ReadableBuffer") -> int:
        """Write some of the data, or drop it."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written


def open_streams() -> None:
    """Replace the standard streams of this process by such as fail in the promised ways."""
    codecs.register_error(ENCODING_ERRORS, substitute)
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would take its place
            os.open(os.devnull, mode)
    sys.stdout = text_stream(ResultStream(1, "w", closefd=False), sys.stdout)
    sys.stderr = text_stream(NoteStream(2, "w", closefd=False), sys.stderr)


def text_stream(raw: io.FileIO, former: TextIO | None) -> TextIO:
    """Return a text stream over a file, in the encoding of the former stream; UTF-8 where that was closed."""
    encoding = former.encoding if former else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, ENCODING_ERRORS, line_buffering=True)


def substitute(error: UnicodeError) -> tuple[str, int]:
    """Write a character that an encoding lacks as one of ASCII, or as its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    written = "".join(
        SUBSTITUTES.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in lacking
    )
    return written, error.end
