"""Finished runs without training, for tests of the store and of all that reads it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.runs.kept import AnsweredExample, CellSamples, Samples
from icl_bench.runs.record import CellScore, Manifest, MetricPoint, RunRecord, RunResult, WorkReport
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

MANIFEST = Manifest(
    versions={"torch": "2"}, device="d", threads=1, host="h", revision=None, impl="auto", fleet_size=1, command="c",
    started="2026-01-01T00:00:00+00:00",
)  # fmt: skip
POINT = MetricPoint(step=5, train_loss=1.5, train_accuracy=0.25, accuracy=0.5, by_cell={"pairs=2": 0.5})
NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file without tensors."""
BASE = expand_request(Request("assoc-recall", ["linear"]))[0]


def spec(seed: int = 0) -> RunSpec:
    """Return a specification with this seed."""
    return BASE.model_copy(update={"seed": seed, "data_seed": seed})


def result(run: RunSpec, accuracy: float = 0.5) -> RunResult:
    """Return a result of the run with this accuracy."""
    cell = CellScore(
        label="pairs=2", load=2, length=16, accuracy=accuracy, exact_match=0.2, loss=1.0, floor=0.5,
        floor_solver="any-value", state_bits=12.0, scored=2, groups={},
    )  # fmt: skip
    return RunResult(
        id=run.id, digest=run.digest, task="assoc-recall", arch="linear", load_name="pairs", seed=run.seed,
        lr=run.train.lr, status="ok", params=10, state=None, work=WorkReport(weights=1.0, state=1.0), steps=5,
        seconds=1.0, examples_per_second=10.0, cells=(cell,), files={},
    )  # fmt: skip


def kept_files(run: RunSpec) -> dict[str, bytes]:
    """Return the files that a run keeps on request: weights, of which there are none, and one example."""
    example = AnsweredExample(
        inputs=("k1", "v1"), positions=(0,), targets=("v1",), answers=("v2",), hits=(0.0,), groups=("gap 1",),
        answer_probabilities=(0.9,), target_probabilities=(0.1,),
    )  # fmt: skip
    cells = (CellSamples(label="pairs=2", load=2, examples=(example,)),)
    samples = Samples(id=run.id, task="assoc-recall", arch="linear", cells=cells)
    return {"model.safetensors": NO_TENSORS, "samples.json": samples.model_dump_json().encode()}


def finished(
    store: Store, run: RunSpec, accuracy: float = 0.5, kept: Mapping[str, bytes] = MappingProxyType({})
) -> Path:
    """Put a finished run into a store, with the files that it kept, and return its folder."""
    writer = store.begin(run, MANIFEST)
    writer.log(POINT)
    for name, data in kept.items():
        writer.keep(name, data)
    writer.commit(result(run, accuracy))
    return store.path(run.id)


def filled(root: Path, *seeds: int, accuracy: float = 0.5) -> Store:
    """Return a store that holds a finished run of each seed."""
    store = Store(root)
    for seed in seeds:
        finished(store, spec(seed), accuracy)
    return store


def read_all(store: Store) -> list[RunRecord]:
    """Read every finished run of a store, in the order of ids; raise RecordError if one is damaged."""
    return [store.load(run_id) for run_id in store.ids()]
