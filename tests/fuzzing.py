"""Commands given hostile inputs in this process, and what is wrong with their ends."""

import csv
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import typer

from icl_bench import cli
from icl_bench.runs.store import Store
from icl_bench.runs.store.attempt import attempts
from icl_bench.runs.store.faults import CRASH_VARIABLE
from tests import hostile
from tests.harness.scenes import TASK, TINY
from tests.runs.records import finished, kept_files, spec

LONGEST = 5.0
"""Seconds of processor time after which a command counts as a hang."""
LONGEST_WAIT = 60.0
"""Seconds on the clock after which a command counts as a hang, on a machine that is busy."""
Found = Iterator[tuple[str, list[str]]]
"""Inputs, each with what was wrong."""


made_once = cache(typer.main.get_command)
"""The tree of commands; half of the time of a short command goes into making it."""


class HangError(BaseException):
    """The end of a command that took too long."""


class Ended(NamedTuple):
    """The end of a command."""

    status: int
    out: str
    err: str


def call(*arguments: str) -> Ended:
    """Run a command in this process, in the current folder, with an end to its time."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    status, before = 0, [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    with redirect_stdout(out), redirect_stderr(err), ExitStack() as patches:
        patches.enter_context(mock.patch.object(sys, "argv", ["icl-bench", *arguments]))
        patches.enter_context(mock.patch.object(cli, "prepare_process", lambda: None))
        patches.enter_context(mock.patch.object(typer.main, "get_command", made_once))
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT)
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        except HangError:
            status = -1
        except BaseException:
            status = 1
            traceback.print_exc(file=err)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
        signal.signal(number, handler)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return Ended(status, *texts)


def stop(*_: object) -> None:
    """End the command that is running."""
    raise HangError


def wrong_end(ended: Ended, statuses: tuple[int, ...] = (0, 2, 3)) -> list[str]:
    """Return what is wrong with the end of a command."""
    if ended.status == -1:
        return ["hang"]
    if "Traceback" in ended.err + ended.out:
        return [f"traceback: {ended.err.strip().splitlines()[-1][:200]}"]
    wrong = [] if ended.status in statuses else [f"status {ended.status}: {ended.err[-200:]}"]
    if ended.status == 2 and ended.err.startswith("Error: ") and ended.err.count("\n") != 1:
        wrong.append(f"more than a line: {ended.err[:300]!r}")
    shown = {letter for letter in ended.out + ended.err if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp")}
    return wrong + [f"printed: {letter!r}" for letter in sorted(shown - {"\n"})]


def fuzz_specs(count: int, seed: int) -> Found:
    """Give architectures as text."""
    for text in hostile.bad_texts(hostile.ARCHS, count, seed):
        yield text, wrong_end(call("state", text, "--length", "16"))


@contextmanager
def untrained() -> Iterator[None]:
    """Leave out training, and the results that there are none of."""
    with ExitStack() as patches:
        patches.enter_context(
            mock.patch("icl_bench.harness.engines.executor.Executor.finish", lambda *arguments, **named: [])
        )
        patches.enter_context(mock.patch("icl_bench.commands.run.finish", lambda *arguments, **named: None))
        yield


def fuzz_requests(count: int, seed: int) -> Found:
    """Give tasks, settings, rates and seeds as text to `run`, which stops where training would begin."""
    drawn = random.Random(seed)
    choices: list[tuple[list[str], list[str]]] = [
        (["run", "{}", "--arch", "linear"], hostile.TASK_TEXTS),
        (["run", "assoc-recall", "--arch", "{}"], hostile.ARCHS),
        (["run", "assoc-recall", "--arch", "linear", "--set", "{}"],
         ["train.steps=20", "model.d_model=32", "train.clip=none", "evaluation.points=3", "model.mlp=2.0"]),
        (["run", "assoc-recall", "--arch", "linear", "--lr={}"], ["1e-4..1e-1/7", "1e-3,1e-2"]),
        (["run", "assoc-recall", "--arch", "linear", "--seeds={}"], ["0..4", "0,1"]),
        (["run", "assoc-recall", "--arch", "linear", "--engine={}"], ["inline", "local:workers=2"]),
    ]  # fmt: skip
    with untrained():
        for i in range(count):
            command, good = choices[i % len(choices)]
            text = drawn.choice(hostile.TEXTS) if drawn.random() < 0.2 else hostile.mangled(drawn.choice(good), drawn)
            text = text.replace("\x00", "\\0")
            if not text.startswith("-"):
                arguments = [part.replace("{}", text) for part in command]
                yield " ".join(arguments), wrong_end(call(*arguments))


def fuzz_studies(folder: Path, count: int, seed: int) -> Found:
    """Give study files to a dry run."""
    path = folder / "study.yaml"
    for data in hostile.bad_studies(count, seed):
        path.write_bytes(data)
        yield repr(data[:500]), wrong_end(call("sweep", str(path), "--dry-run"))
    path.unlink(missing_ok=True)
    for name in ("pipe", "link to zeros", "giant", "folder", "noise", "deep", "link to nothing"):
        hostile.THINGS[name](path, folder)
        yield f"a study that is a {name}", wrong_end(call("sweep", str(path), "--dry-run"))
        path.rmdir() if name == "folder" else path.unlink()


def reading(store: str, run: str, folder: Path) -> list[tuple[str, ...]]:
    """Return the commands that read a store, the cheap ones several times."""
    merged, table = str(folder / "merged"), str(folder / "runs.csv")
    return [
        *3 * [("runs", "list", "--store", store), ("runs", "list", "--json", "--store", store)],
        *2 * [("runs", "show", run, "--store", store), ("runs", "show", run, "--json", "--store", store)],
        *2 * [("runs", "verify", "--store", store), ("merge", store, "--store", merged)],
        ("runs", "export", table, "--store", store),
        ("report", store, "-o", str(folder / "report.md")), ("report", store, "-o", str(folder / "report.html")),
        ("view", store, "-o", str(folder / "page")),
    ]  # fmt: skip


def clear(folder: Path) -> None:
    """Delete what the commands that read a store have written beside it."""
    for name in ("merged", "report_files", "page"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("runs.csv", "report.md", "report.html"):
        (folder / name).unlink(missing_ok=True)


def wrong_files(folder: Path) -> Iterator[str]:
    """Yield what is live in the files that commands have written: markup, formulas, rows of unequal length."""
    page, table = folder / "report.md", folder / "runs.csv"
    if page.exists():
        text = re.sub(r"(`+)[^`].*?\1", "", page.read_text())  # nothing is live in a code span
        yield from (f"markup: {mark}" for mark in ("<script", "\n# Heading", "\n![x](") if mark in text)
    if table.exists():
        rows = list(csv.reader(io.StringIO(table.read_text(), newline="")))
        yield from (f"formula: {cell!r}" for row in rows for cell in row if is_formula(cell))
        if len({len(row) for row in rows}) > 1:
            yield "rows of unequal length"


def is_formula(cell: str) -> bool:
    """Return whether a spreadsheet would compute a cell."""
    seen = "".join(letter for letter in cell if not letter.isspace() and unicodedata.category(letter) != "Cf")
    try:
        float(cell)
    except ValueError:
        return seen.startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    return False


def fuzz_records(folder: Path, count: int, seed: int) -> Found:
    """Damage one of two runs of a store, with digests that fit, and give a command that reads the store."""
    store, drawn = folder / "store", random.Random(seed)
    whole = written(store, 0)
    good = hostile.read_parts(written(store, 1))
    shutil.rmtree(Store(store).path(spec(1).id))
    for _ in range(count):
        parts = hostile.poisoned(good, drawn)
        forged = hostile.forge(store, parts)
        clear(folder)
        command = drawn.choice(reading(str(store), drawn.choice([forged.name, whole.name]), folder))
        ended = call(*command)
        wrong = wrong_end(ended) + list(wrong_files(folder))
        if command[:2] in (("runs", "list"), ("runs", "export")) and ended.status != 0:
            wrong.append(f"one record stops all: {ended.err[:200]}")
        if command[:2] == ("runs", "list"):
            wrong += [] if whole.name in ended.out else ["the whole run is not listed"]
            wrong += [] if forged.name in ended.out + ended.err else ["neither listed nor named"]
        if "--json" in command and ended.status == 0:
            wrong += wrong_json(ended.out)
        yield f"{' '.join(command)} {[data for name, data in parts.items() if data != good[name]]!r:.600}", wrong
        shutil.rmtree(forged)
    shutil.rmtree(store)
    clear(folder)


def written(root: Path, seed: int) -> Path:
    """Put a finished run into a store, which is made if it is not there, and return the folder of the run."""
    Store(root).check_writable()
    return finished(Store(root), spec(seed))


def wrong_json(text: str) -> list[str]:
    """Return what is wrong with a JSON document."""
    try:
        json.loads(text, parse_constant=lambda name: float(f"no {name} in JSON"))
    except ValueError as error:
        return [f"JSON: {error}"]
    return []


def accepted_records(folder: Path) -> Iterator[str]:
    """Yield the changes of a record that `icl-bench runs verify` does not refuse although it must."""
    for name, change in hostile.REFUSED.items():
        store = folder / "store"
        good = hostile.read_parts(written(store, 1))
        shutil.rmtree(store)
        hostile.forge(store, change(good))
        if call("runs", "verify", "--store", str(store)).status != 3:
            yield name
        shutil.rmtree(store)


TRAIN = ("run", TASK, "--arch", "linear", *TINY, "--store")
"""A command that trains a run in the store that follows it."""


class Places(NamedTuple):
    """A folder with a store that holds a finished run and one to be continued, a second store, and things outside."""

    folder: Path
    run: str
    """The run to be continued."""

    @classmethod
    def build(cls, folder: Path) -> "Places":
        """Build the stores in an empty folder."""
        filled = Store(folder / "filled")
        child = os.fork()
        if not child:
            os.environ[CRASH_VARIABLE] = "trained"
            call(*TRAIN, str(filled.root))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        (cut,) = attempts(filled.root)
        finished(filled, spec(0), kept=kept_files(spec(0)))
        written(folder / "other", 1)
        places = cls(folder, cut.run_id)
        places.furnish()
        return places

    def furnish(self) -> None:
        """Put things outside that no command may touch."""
        shutil.rmtree(self.outside, ignore_errors=True)
        (self.outside / "home" / "photos").mkdir(parents=True)
        (self.outside / "home" / "photos" / "a").write_text("x")
        (self.outside / "home" / "letter").write_text("dear")

    @property
    def outside(self) -> Path:
        """Return the folder that no command may touch."""
        return self.folder / "outside"

    @property
    def store(self) -> Path:
        """Return the store that is attacked."""
        return self.folder / "store"

    def reset(self) -> None:
        """Make the store what it was."""
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.folder / "filled", self.store)
        clear(self.folder)

    def names(self) -> list[str]:
        """Return the places in the store at which something can be put."""
        filled = self.folder / "filled"
        there = [str(path.relative_to(filled)) for path in sorted(filled.rglob("*"))]
        dead = f"attempts/{self.run}-00000000-1-00000000"
        return [*there, f"runs/{self.run[:2]}", f"runs/{self.run[:2]}/{self.run}", "trash", "leases", "slurm", "logs",
                "index.sqlite", "attempts/fleet-a.json", dead, f"{dead}/spec.json", f"{dead}/result.json"]  # fmt: skip

    def commands(self) -> list[tuple[str, ...]]:
        """Return the commands on the store, those that write it several times."""
        store = str(self.store)
        whole = spec(0).id
        writing = [(*TRAIN, store), ("merge", str(self.folder / "other"), "--store", store),
                   ("runs", "rm", whole, "--store", store)]  # fmt: skip
        samples = ("samples", whole, "--store", store)
        backwards = ("merge", store, "--store", str(self.folder / "merged"))
        return [*reading(store, whole, self.folder), samples, backwards, *4 * writing, writing[0]]


def fuzz_places(folder: Path, count: int, seed: int) -> Found:
    """Put links, pipes, giants and nonsense into a store; nothing outside may change."""
    drawn = random.Random(seed)
    with mock.patch.dict("os.environ", {"ICL_BENCH_CHECKPOINT_EVERY": "0"}):
        places = Places.build(folder)
        before = content(places.outside)
        for _ in range(count):
            places.reset()
            what = hostile.place_thing(places.store / drawn.choice(places.names()), places.outside, drawn)
            command = drawn.choice(places.commands())
            wrong = wrong_end(call(*command))
            if content(places.outside) != before:
                wrong.append("outside was touched")
                places.furnish()
            yield f"{what}: {' '.join(command)}", wrong


def fuzz_samples(folder: Path, count: int, seed: int) -> Found:
    """Damage the kept examples of a run, digests fitting, and print them."""
    drawn, good = random.Random(seed), json.loads(kept_files(spec(0))["samples.json"])
    for _ in range(count):
        plain = json.loads(json.dumps(good))
        hostile.poison(plain, drawn)
        data = hostile.line_of(plain)
        finished(Store(folder), spec(0), kept={"samples.json": data})
        more = ["--json"] if drawn.random() < 0.5 else ["--wrong", "--examples", "5"]
        ended = call("samples", spec(0).id, "--store", str(folder), *more)
        yield repr(data[:500]), wrong_end(ended) + (wrong_json(ended.out) if ended.out and "--json" in more else [])
        shutil.rmtree(folder)


def fuzz_checkpoints(folder: Path, count: int, seed: int) -> Found:
    """Damage the newest checkpoint, digests fitting; the run must continue from the older one, or begin again."""
    drawn = random.Random(seed)
    with mock.patch.dict("os.environ", {"ICL_BENCH_CHECKPOINT_EVERY": "0"}):
        places = Places.build(folder)
        for _ in range(count):
            places.reset()
            newest = max((places.store / "checkpoints").glob("*/0*"))
            what = hostile.poison_checkpoint(newest, drawn)
            ended = call(*TRAIN, str(places.store))
            yield what, wrong_end(ended, (0,))


def content(folder: Path) -> list[tuple[str, Any]]:
    """Return all that lies below a folder: names, and the bytes of files."""
    return sorted((str(path), path.read_bytes() if path.is_file() else None) for path in folder.rglob("*"))
