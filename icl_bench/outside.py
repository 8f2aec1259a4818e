"""Code from outside the package: the digest of its source, and a guard around its calls.

A layer of one's own, a plug-in or its task may raise anything, end the process, print, fork, or change settings of
torch. Inside `guarded` none of this reaches the code around it.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import os
import signal
import site
import sys
import sysconfig
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from icl_bench.errors import IclBenchError, OutsideCodeError

PACKAGE = Path(__file__).resolve().parent
KNOWN_BY_VERSION = {PACKAGE.name, "torch"}
"""Packages whose modules do not count as sources where they are imported: every record names their versions."""
DIGEST_LENGTH = 16
"""Number of hexadecimal digits of the digest of a source."""
EXIT_PROCESS = os._exit
"""The function that ends a process at once, which `exits_refused` replaces."""


class StopRequest(BaseException):
    """The base of requests to stop the process: no error of code that runs, and caught by no `except Exception`."""


def is_outside(entry: object) -> bool:
    """Return True for a class or a function that is not defined in the package."""
    return str(getattr(entry, "__module__", "")).partition(".")[0] != PACKAGE.name


class OuterCall:
    """The call of code from outside that this process is in."""

    def __init__(self) -> None:
        self.since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the call began; 0 outside of calls."""
        since = self.since
        return 0.0 if since is None else time.monotonic() - since


CURRENT = OuterCall()


@contextmanager
def guarded(action: str, way_out: str = "mend it") -> Iterator[None]:
    """Call code from outside: what it prints goes to standard error, settings of torch are restored afterwards.

    Raise OutsideCodeError for whatever the code raises, an exit or an interrupt of its own included, with a message
    that begins with `action` and names file and line; errors of the package are raised as they are. A fork of the code
    ends here, in the copy of the process.
    """
    process, settings, outermost = os.getpid(), torch_settings(), CURRENT.since is None
    if outermost:
        CURRENT.since = time.monotonic()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (StopRequest, IclBenchError):
        raise
    except BaseException as error:
        if is_request_of_the_user(error):
            raise
        raise failure(action, error, way_out) from error
    finally:
        if os.getpid() != process:
            EXIT_PROCESS(1)
        restore(settings)
        if outermost:
            CURRENT.since = None


def guarding(entry: object, name: str) -> AbstractContextManager[None]:
    """Return the guard for calls of a registered class from outside the package; no guard for a built-in class."""
    return guarded(f"{name} failed") if is_outside(entry) else nullcontext()


def is_request_of_the_user(error: BaseException) -> bool:
    """Return True for a KeyboardInterrupt that Python raises at Ctrl-C; where signals are handled, it raises none."""
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def failure(action: str, error: BaseException, way_out: str = "mend it") -> OutsideCodeError:
    """Return the error of one line for what code from outside raised, with its traceback."""
    trace = "".join(traceback.format_exception(error))
    return OutsideCodeError(f"{action}: {first_line(error)}{place_of(error)}; {way_out}", trace)


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    # A TracebackException reads the text of an error whose own __str__ fails.
    text = error.msg if isinstance(error, SyntaxError) else str(traceback.TracebackException(type(error), error, None))
    return ": ".join([type(error).__name__, *text.strip().splitlines()[:1]])


def place_of(error: BaseException) -> str:
    """Return ` (FILE, line N)`, the innermost place in a file of the user's; an empty text where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({shown_path(error.filename)}, line {error.lineno})"
    places = list(frames(error.__traceback__))
    own = [place for place in places if not is_library(place[0])]
    return f" ({shown_path(own[-1][0])}, line {own[-1][1]})" if own else ""


def shown_path(name: str) -> str:
    """Return a path relative to the current folder where it lies in it."""
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name


def frames(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    """Yield file and line of each frame of a traceback, outermost first."""
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


@functools.cache
def is_library(name: str) -> bool:
    """Return True for a file of this package, of the standard library or of an installed package, and for no file."""
    path = Path(name)
    return not path.is_file() or any(path.is_relative_to(folder) for folder in (PACKAGE, *library_folders()))


@functools.cache
def library_folders() -> tuple[Path, ...]:
    """Return the folders of the standard library and of installed packages."""
    paths = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return tuple(Path(path).resolve() for path in (*paths, *site.getsitepackages(), site.getusersitepackages()))


def torch_settings() -> tuple[Any, ...]:
    """Return the settings of torch that code from outside could change; nothing before torch is imported."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_float32_matmul_precision"):  # not imported, or not yet whole
        return ()
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_anomaly_enabled(),
        torch.get_default_device(),
    )


def restore(settings: tuple[Any, ...]) -> None:
    """Set the settings of torch that differ from these."""
    if not settings or settings == (now := torch_settings()):
        return
    torch: Any = sys.modules["torch"]
    setters = (
        torch.set_grad_enabled,
        torch.set_default_dtype,
        torch.set_num_threads,
        torch.use_deterministic_algorithms,
        torch.set_float32_matmul_precision,
        torch.autograd.set_detect_anomaly,
        torch.set_default_device,
    )
    for setter, before, after in zip(setters, settings, now, strict=True):
        if before != after:
            setter(before)


@contextmanager
def exits_refused() -> Iterator[None]:
    """Raise SystemExit where code in the block ends the process at once, which nothing else could report."""

    def refuse(status: int) -> None:
        raise SystemExit(status)

    before = os._exit
    os._exit = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = before


DIGESTS: dict[str, tuple[object, str]] = {}
"""Specification and digest of each module from outside, of the time when it was first asked for: of its code here."""


def source_digest(name: str, entry: object) -> str:
    """Return the digest of the source of an imported module: its file, and the files that it imports beside it.

    Files beside it are the other modules of its package; of a module that is not installed, also those next to it. The
    modules of torch import some 1,700 files, and count by their own.
    What is imported by a computed name, and data files, do not count. A module without a file, as in a notebook, is
    told by the source of the `entry` alone; raise OutsideCodeError if there is none.
    """
    module = sys.modules[name]
    spec, digest = DIGESTS.get(name, (None, ""))
    if not digest or spec is not module.__spec__:  # imported again since
        path = getattr(module, "__file__", None)
        contents = module_sources(name, Path(path)) if path else {name: entry_source(name, entry)}
        text = "".join(f"{key}\0{hashlib.sha256(contents[key]).hexdigest()}\n" for key in sorted(contents))
        digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
        DIGESTS[name] = module.__spec__, digest
    return digest


def entry_source(name: str, entry: object) -> bytes:
    """Return the source of a class or a function that was defined without a file."""
    try:
        return inspect.getsource(entry).encode()  # type: ignore[arg-type]
    except (OSError, TypeError) as error:
        raise OutsideCodeError(
            f"the id of a run holds the source of its layer; {name} has neither a file nor a source ({error}); write "
            "it to a file"
        ) from None


def module_sources(name: str, path: Path) -> dict[str, bytes]:
    """Return the contents of a module's file and of those that it imports beside it, by path, with plain line ends."""
    path = path.resolve()
    inside = () if name == "__main__" else name.split(".")[: -1 if path.name != "__init__.py" else None]
    root = path.parents[len(inside)] if inside else path.parent
    installed = any(root.is_relative_to(folder) for folder in library_folders())
    found: dict[Path, bytes] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found[file] = file.read_bytes().replace(b"\r\n", b"\n")
        for imported in imported_names(found[file], file.parent.relative_to(root).parts):
            own = not installed or imported[0] == (inside or (path.stem,))[0]
            if own and imported[0] not in KNOWN_BY_VERSION:
                waiting += files_of(root, imported)
    return {file.relative_to(root).as_posix(): content for file, content in found.items()}


def imported_names(source: bytes, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the dotted names that a source in a package imports, whole; none of a source with errors."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # compiled, or no module
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = (*above, *(node.module.split(".") if node.module else ()))
            yield from ((*base, alias.name) for alias in node.names)


def files_of(root: Path, name: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files that the import of a dotted name reads below a folder: packages, and the module itself."""
    folder = root
    for part in name:
        candidates = (folder / f"{part}.py", folder / part / "__init__.py")
        yield from (file for file in candidates if file.is_file())
        folder = folder / part
