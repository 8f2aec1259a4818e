"""Two processes train as one does; a lost one ends the command with a line, and the same command completes it."""

import random
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from icl_bench.errors import SpecError
from icl_bench.harness.training.ranks import Ranks, joined_ranks, rank_variable
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.store import Store
from icl_bench.runs.store.faults import CRASH_VARIABLE
from icl_bench.runs.store.merge import first_difference
from tests.harness.fork_server import Ended, ForkServer
from tests.harness.training.small_runs import CPU, specs

STORE = "icl-runs"
STEPS, BATCH, LENGTH = 8, 8, 32
TASK = f"text:corpus=example,length={LENGTH},extrapolate=[]"
SETTINGS = (
    *(f"train.steps={STEPS}", f"train.batch={BATCH}", "model.d_model=16", "train.warmup=0.5"),
    *("evaluation.examples=4", "evaluation.validation=4", "evaluation.points=2"),
)
COMMAND = ("run", TASK, "--arch", "power:p=2", "--device", "cpu", *(f"--set={one}" for one in SETTINGS))
EVERY_STEP = {"ICL_BENCH_CHECKPOINT_EVERY": "0"}
Faults = Mapping[int, Mapping[str, str]]
"""Variables of a rank besides those that every rank has."""
NO_FAULTS: Faults = {}
Pair = Callable[..., list[Ended]]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Give a command in two processes that train together, in folders of their own that share a store."""
    servers = [ForkServer(), ForkServer()]

    def give(
        folder: Path, command: Sequence[str] = COMMAND, faults: Faults = NO_FAULTS, killed: float | None = None
    ) -> list[Ended]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

        def run(rank: int) -> Ended:
            own = folder / f"rank{rank}"
            own.mkdir(parents=True, exist_ok=True)
            variables = {**EVERY_STEP, **common, "RANK": str(rank)}
            where = ("--store", str(folder / STORE))
            return servers[rank].run(own, (*command, *where), {**variables, **faults.get(rank, {})}, killed)

        with ThreadPoolExecutor() as pool:
            return list(pool.map(run, range(2)))

    yield give
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def whole(pair: Pair, tmp_path_factory) -> Path:
    """The folder of a command of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    for ended in pair(folder):
        assert ended.status == 0, ended.err
    return folder


def assert_equal(folder: Path, whole: Path) -> None:
    ours, theirs = Store(folder / STORE), Store(whole / STORE)
    assert list(ours.ids()) == list(theirs.ids())
    for run in theirs.ids():
        assert first_difference(ours.load(run), theirs.load(run)) is None
    assert not list((folder / STORE / "checkpoints").glob("*"))


def test_two_processes_learn_as_one(whole: Path) -> None:
    """The losses agree as those of a fleet's members do with their runs alone."""
    (run,) = specs("power:p=2", task=TASK, extra=SETTINGS)
    alone = Trainer([run], Machine(CPU))
    (record,) = (Store(whole / STORE).load(name) for name in Store(whole / STORE).ids())
    assert record.result.id == run.id
    for point in record.metrics:
        for _ in range(STEPS // 2):
            alone.step()
        assert point.train_loss == pytest.approx(alone.take_means(STEPS // 2)[0][0], rel=1e-4)


def test_the_gradient_is_that_of_one_process_to_rounding(pair: Pair, tmp_path) -> None:
    """After one step the mean of gradients is a tenth of the gradient, a sum over the tokens of all rows.

    Another order of a sum of n terms moves it by at most n eps of the sum of magnitudes; those of the rows are known.
    """
    rows, whole = (
        Trainer(specs("power:p=2", task=TASK, extra=(*SETTINGS, "train.clip=none")), Machine(CPU)) for _ in range(2)
    )
    command = (*COMMAND, "--set=train.clip=none")
    ended = pair(tmp_path, command, {0: {CRASH_VARIABLE: "checkpoint-pruned"}})
    assert ended[0].status == -signal.SIGKILL
    (saved,) = (tmp_path / STORE).glob("checkpoints/*/0*/tensors.safetensors")
    found = load_file(saved)["means"]
    whole.step()
    rows.run_refill(0)
    batch = rows.queues[0].take()
    magnitudes = torch.zeros_like(found)
    for row in range(BATCH):
        own = [part[:, row : row + 1] for part in batch[:3]]
        rows.optimiser.differentiate(rows.working_model.scores(*own).losses.mean((1, 2)) / BATCH)
        magnitudes += rows.optimiser.buffers.gradients.abs()
    error = (found - whole.optimiser.buffers.means).norm()
    assert whole.optimiser.buffers.means.norm() > 0
    assert error < 0.1 * BATCH * LENGTH * torch.finfo(torch.float32).eps * magnitudes.norm()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_command_and_the_same_command_completes_it(
    pair: Pair, whole: Path, tmp_path, lost: int
) -> None:
    step = random.Random(lost).randint(2, STEPS - 1)
    ended = pair(tmp_path, faults={lost: {CRASH_VARIABLE: f"step-done:{step}"}})
    assert ended[lost].status == -signal.SIGKILL
    other = ended[1 - lost]
    assert other.status == 2 and "all 2 ranks train together" in other.err and "Traceback" not in other.err, other.err
    again = pair(tmp_path)
    assert [one.status for one in again] == [0, 0], again
    assert_equal(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(4))
def test_processes_killed_at_a_random_moment_lose_nothing(pair: Pair, whole: Path, tmp_path, moment: int) -> None:
    """Once one has ended, torchrun kills the others."""
    pair(tmp_path, killed=random.Random(moment).uniform(0.1, 2.0))
    again = pair(tmp_path)
    assert [one.status for one in again] == [0, 0], again
    assert_equal(tmp_path, whole)


def test_a_batch_that_ranks_cannot_share_and_other_processes_are_refused(pair: Pair, tmp_path) -> None:
    for more, message in (("--set=train.batch=7", "as many rows"), ("--engine=local:workers=2", "leave one out")):
        for ended in pair(tmp_path, (*COMMAND, more)):
            assert ended.status == 2 and message in ended.err, ended.err


def test_ranks_divide_rows_evenly() -> None:
    ranks = [object.__new__(Ranks) for _ in range(3)]
    for i, one in enumerate(ranks):
        one.rank, one.size = i, 3
    rows = torch.arange(12)
    assert sorted(torch.cat([one.own(rows) for one in ranks]).tolist()) == rows.tolist()
    assert [one.own(rows).tolist() for one in ranks][1] == [1, 4, 7, 10] and ranks[0].part(12) == 4


def test_without_torchrun_there_are_no_ranks(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert joined_ranks(CPU) is None
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(SpecError, match="start the command by torchrun"):
        rank_variable("WORLD_SIZE", "1")
