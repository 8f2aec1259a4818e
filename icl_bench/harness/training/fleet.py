"""Fleets: runs of the same shape that are trained together, in smaller fleets if they cannot be, or alone.

    python -m icl_bench.harness.training.fleet

trains one run alone in a process of its own, because after a fault of a kernel no call of the old process reaches the
device any more. The process reads from standard input, as JSON, which run to train and where, and commits the result
to the store.
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from icl_bench.harness.environment import make_manifest
from icl_bench.harness.interruption import Interrupted, deferred, is_interrupted, listen, raise_if_interrupted
from icl_bench.harness.training.ahead import compile_kernels, remember_kernels
from icl_bench.harness.training.attempt import FleetFailedError, finish_fleet
from icl_bench.harness.training.memory import fit_memory, release_memory
from icl_bench.harness.training.results import failed_result
from icl_bench.harness.training.trainer import Machine
from icl_bench.registry import load_plugins
from icl_bench.runs.events import Report
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

POLL_SECONDS = 0.2
"""Seconds between checks for a signal while a run is alone in a process."""
LOG = logging.getLogger("icl_bench")


def pack(specs: Iterable[RunSpec], size: int) -> list[list[RunSpec]]:
    """Group runs that can train together into fleets of at most `size` members, in their order."""
    groups: dict[str, list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(spec.fleet_key(), []).append(spec)
    return [members[i : i + size] for members in groups.values() for i in range(0, len(members), size)]


def run_fleet(specs: Sequence[RunSpec], store: Store, machine: Machine, report: Report) -> list[RunResult]:
    """Train, test and commit every member.

    A fleet that the device has too little memory for is cut into smaller ones: at the start by a measured step, later
    into halves. After a fault of a kernel each member runs in a process of its own. An error of a single member is its
    result.
    """
    with deferred():
        try:
            fleets = fit_memory(specs, machine)
        except Exception as error:
            # The error shows again in the fleet itself, where it is dealt with.
            LOG.warning("memory not measured: %s", error)
            fleets = [specs]
        return [result for fleet in fleets for result in run_part(fleet, store, machine, report)]


def run_part(specs: Sequence[RunSpec], store: Store, machine: Machine, report: Report) -> list[RunResult]:
    """Train and commit a fleet: whole, or else in halves, or else each member in a process of its own."""
    compile_kernels(specs, machine)
    try:
        results = finish_fleet(specs, store, machine, report, last=False)
        remember_kernels(specs, machine)
        return results
    except FleetFailedError as error:
        kind = error.kind  # the error itself holds on to the fleet's memory
        LOG.warning("a fleet of %d goes on in smaller ones: %s", len(specs), error)
    if kind == "fault":
        return [run_alone(spec, store, machine) for spec in specs]
    release_memory(machine.device)
    half = len(specs) // 2
    return [result for part in (specs[:half], specs[half:]) for result in run_part(part, store, machine, report)]


def run_alone(spec: RunSpec, store: Store, machine: Machine) -> RunResult:
    """Run in a fresh process, which commits the result; a process that ends without a result is a crash of the run."""
    place = {**machine._asdict(), "device": str(machine.device)}
    plain = {"spec": spec.labelled(), "store": str(store.root.resolve()), "machine": place}
    job: bytes | None = json.dumps(plain).encode()
    started, command = time.perf_counter(), [sys.executable, "-m", "icl_bench.harness.training.fleet"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        output = b""
        while process.returncode is None:
            try:
                _, output = process.communicate(job, timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                job = None  # sent already
                if is_interrupted():
                    process.terminate()
    raise_if_interrupted()
    if store.has(spec.id):
        return store.load(spec.id).result
    last_line = (output.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    detail = f"its process ended with status {process.returncode}: {last_line}"
    writer = store.begin(spec, make_manifest(machine.device, machine.impl, 1))
    return writer.commit(failed_result(spec, "crashed", detail, time.perf_counter() - started))


def finish_job(text: str) -> None:
    """Carry out a run that `run_alone` wrote as JSON."""
    job = json.loads(text)
    spec, store = RunSpec.model_validate(job["spec"]), Store(Path(job["store"]))
    place = job["machine"]
    machine = Machine(**{**place, "device": torch.device(place["device"]), "keep": tuple(place["keep"])})
    listen()
    load_plugins()
    with deferred():
        finish_fleet([spec], store, machine, lambda progress: None, last=True)


if __name__ == "__main__":
    try:
        finish_job(sys.stdin.read())
    except Interrupted as signal_received:
        sys.exit(signal_received.status)
