"""The command that shows finished runs as pages to look through: `icl-bench view`, as files or live.

A live page comes from a server on the loopback interface. Its address holds a token, so that no other page in a browser
and no other user of the machine can read it. The main thread reads the stores and publishes texts; the threads of the
server only hand them out.
"""

import hashlib
import hmac
import json
import secrets
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import typer

from icl_bench.commands.options import DEFAULT_STORE
from icl_bench.commands.output import note, note_problems, say
from icl_bench.commands.runs import open_store
from icl_bench.commands.session import context_of, load_plugins_or_warn
from icl_bench.errors import SpecError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from icl_bench.reports.analysis import Section
    from icl_bench.reports.context import StudyContext
    from icl_bench.reports.explorer.document import ViewedStore
    from icl_bench.runs.kept import Samples
    from icl_bench.runs.store import Store

HOST = "127.0.0.1"
SECONDS_BETWEEN_LOOKS = 2.0
"""Pause of a live page between two looks at its stores."""
MOST_SAMPLED = 60
"""Largest number of runs of a store whose kept examples a page has: the first of each architecture."""
MOST_NAMED = 2
"""Largest number of stores that the title of a page names."""
PAGE_NAME = "index.html"


def view(
    stores: Annotated[
        list[Path] | None, typer.Argument(help="One or several stores of finished runs.", show_default="icl-runs")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the page to this folder, for any web host or to open it; else serve it live."
        ),
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(
            help="The study of these runs, packaged or a file: the page quotes its texts and published rows. Of "
            "several stores, one for all of them or one for each, in their order."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the live page; 0 for any free one.")] = 0,
) -> None:
    """Look through finished runs: figures, tables and samples with filters, as one page that needs no network.

    Example: icl-bench view icl-runs -o page
    """
    if output is not None and output.suffix == ".html":
        raise SpecError(
            f"a page is written to a folder, as its {PAGE_NAME}; got {str(output)!r}; give a folder, or write one file "
            f"with `icl-bench report -o {output}`"
        )
    opened = [open_store(path) for path in stores or [DEFAULT_STORE]]
    contexts = study_contexts(study or [], len(opened))
    if output is None:
        serve(opened, contexts, port)
        return
    document = document_of(opened, contexts)
    if not document["runs"]["id"]:
        raise StoreError(
            f"a page needs finished runs; {opened[0].root} has none; make some with `icl-bench run --store "
            f"{opened[0].root}`"
        )
    say(str(write_folder(document, output)))


def study_contexts(names: "Sequence[str]", stores: int) -> "list[StudyContext]":
    """Return the texts of the study of each store: of the one that is named, or of as many as there are stores."""
    from icl_bench.reports.context import NO_STUDY

    if not names:
        return [NO_STUDY] * stores
    if len(names) not in (1, stores):
        raise StoreError(
            f"studies are one for all stores or one for each; {len(names)} studies for {stores} stores; give --study "
            f"once or {stores} times"
        )
    from icl_bench.harness.study.file import load_study

    load_plugins_or_warn()
    contexts = [context_of(load_study(name), []) for name in names]
    return contexts if len(contexts) == stores else contexts * stores


def document_of(stores: "Sequence[Store]", contexts: "Sequence[StudyContext]", announce: bool = True) -> dict[str, Any]:
    """Return the data document of stores with their studies; `announce` names unreadable runs on standard error."""
    from icl_bench.reports.explorer.document import explorer_document
    from icl_bench.runs.record import command_line

    names = [store.root.resolve().name for store in stores]
    names = [name if names.count(name) == 1 else str(store.root) for name, store in zip(names, stores, strict=True)]
    studies = [context.name for context in contexts if context.name]
    names = studies if len(set(studies)) == len(stores) else names
    viewed = [
        viewed_store(store, name, context, announce)
        for store, name, context in zip(stores, names, contexts, strict=True)
    ]
    kind = "studies" if names is studies else "stores"
    shown = ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} {kind}"
    return explorer_document(viewed, f"icl-bench: {shown}", command_line())


def viewed_store(store: "Store", name: str, context: "StudyContext", announce: bool) -> "ViewedStore":
    """Read a store: its runs in sections, the errors of others, and some of the kept examples."""
    from icl_bench.reports.analysis import analyse
    from icl_bench.reports.explorer.document import ViewedStore
    from icl_bench.runs.store.index import Index, uncollected

    index = Index(store)
    runs, problems = index.runs()
    if announce:
        note_problems(index, problems)
    with uncollected():
        sections = analyse(runs, context)
        return ViewedStore(name, sections, problems, list(sampled(store, sections)))


def sampled(store: "Store", sections: "Sequence[Section]") -> "Iterable[Samples]":
    """Yield the kept examples of the first run of each architecture that kept some, of at most 60 runs."""
    from icl_bench.runs.kept import lacking
    from icl_bench.runs.store.kept_records import kept_samples

    left = MOST_SAMPLED
    for entry in (entry for section in sections for entry in section.entries):
        results = (run.result for run in entry.measured)
        found = next((one for one in results if not lacking(one.files, ("samples",))), None)
        if found is not None and left:
            left -= 1
            yield kept_samples(store, found)


def write_folder(document: dict[str, Any], folder: Path) -> Path:
    """Write the page on a document to a folder, which is made; return the path of the page."""
    from icl_bench.reports.explorer.page import render_page
    from icl_bench.runs.store.files import replace_file

    path = folder / PAGE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, render_page(document).encode())
    except OSError as error:
        raise StoreError(
            f"a page needs a folder with room and permission; {folder}: {error.strerror}; choose another with -o"
        ) from None
    return path


def serve(stores: "Sequence[Store]", contexts: "Sequence[StudyContext]", port: int) -> None:
    """Serve the page live until the process is interrupted, and make it anew whenever runs have finished."""
    with LivePage(port) as page:
        stamp = ""
        while True:
            if (found := stamp_of(stores)) != stamp:
                document = document_of(stores, contexts, announce=not stamp)
                page.publish({**document, "stamp": found})
                if not stamp:
                    say(page.address)
                    note("stop with Ctrl-C")
                stamp = found
            time.sleep(SECONDS_BETWEEN_LOOKS)


def stamp_of(stores: "Sequence[Store]") -> str:
    """Return a digest that changes whenever a run of one of the stores finishes, changes or goes."""
    stamps = [[str(store.root), *store.stamps()] for store in stores]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


class PublishedTexts(NamedTuple):
    """The texts of a live page at one time."""

    stamp: str
    page: bytes
    data: bytes


class LivePage:
    """A server of one page on the loopback interface, from `with` to its end."""

    def __init__(self, port: int) -> None:
        self.token = secrets.token_urlsafe(24)
        self.published = PublishedTexts("", b"", b"{}")
        try:
            self.server = ThreadingHTTPServer((HOST, port), handler_of(self))
        except OSError as error:
            raise StoreError(
                f"a live page needs a free port; {port}: {error.strerror}; choose another with --port"
            ) from None
        self.server.daemon_threads = True
        self.address = f"http://{HOST}:{self.server.server_port}/{self.token}/"

    def __enter__(self) -> "LivePage":
        self.thread = Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def publish(self, document: dict[str, Any]) -> None:
        """Hand out the page on this document, which has a stamp, from now on."""
        from icl_bench.reports.explorer.page import embedded, render_page

        self.published = PublishedTexts(document["stamp"], render_page(document).encode(), embedded(document).encode())

    def answer(self, path: str, host: str) -> tuple[HTTPStatus, str, bytes]:
        """Return status, type and body for a request; a wrong token or host gets nothing.

        A name that an attacker makes resolve to this machine would be another host.
        """
        parts = urlsplit(path)
        token, _, name = parts.path.removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode(), self.token.encode())
        now = self.published
        if not known or host not in (f"{one}:{self.server.server_port}" for one in (HOST, "localhost")):
            return HTTPStatus.NOT_FOUND, "text/plain", b""
        if name == "":
            return HTTPStatus.OK, "text/html; charset=utf-8", now.page
        if name != "data":
            return HTTPStatus.NOT_FOUND, "text/plain", b""
        if parse_qs(parts.query).get("after") == [now.stamp]:
            return HTTPStatus.NO_CONTENT, "application/json", b""
        return HTTPStatus.OK, "application/json", now.data


def handler_of(page: LivePage) -> type[BaseHTTPRequestHandler]:
    """Return a class that answers requests for a page."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            status, kind, body = page.answer(self.path, self.headers.get("Host", ""))
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
            headers |= {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
            headers["Referrer-Policy"] = "no-referrer"
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing: requests hold the token."""

    return Handler
