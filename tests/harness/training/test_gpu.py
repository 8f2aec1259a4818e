"""Fleets and data on a CUDA device."""

import subprocess
import sys

import pytest
import torch

from icl_bench.architectures import backbone
from icl_bench.harness.resolve import Request, expand_request, make_task, task_component
from icl_bench.harness.training import batches
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.graphs import WARM_STEPS
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.memory import estimate_bytes, fit_memory, measure_bytes
from icl_bench.harness.training.probes import Probe
from icl_bench.harness.training.roster import Roster
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.tasks import TASKS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
ARCHS = [
    "power:p=2",
    "power:p=3,gate=true",
    "linear",
    "softmax:rope=true",
    "window:w=8,gate=true",
    "gated-conv+softmax",
]
CUDA = torch.device("cuda")
SETTINGS = ("train.steps=50", "train.batch=16", "model.d_model=32")
FAULTY = """
from pathlib import Path
import torch

class FaultyOnce(torch.nn.Linear):
    def __init__(self, d_model):
        super().__init__(d_model, d_model)

    def forward(self, x):
        if not Path("faulted").exists():
            Path("faulted").touch()
            beyond = torch.full((1,), 7, device=x.device)
            x = x + torch.zeros(1, device=x.device)[beyond]
        return super().forward(x)
"""
"""A layer that reads beyond a tensor once, after which no call of the process reaches the device any more."""


def stepped(runs: list[RunSpec], steps: int, graphs: bool) -> Trainer:
    """Return a trainer that has taken some steps, captured in graphs or not."""
    trainer = Trainer(runs, Machine(CUDA, graphs=graphs))
    for _ in range(steps):
        trainer.step()
    return trainer


@pytest.mark.parametrize("name", list(TASKS))
def test_the_same_key_gives_the_same_batch(name: str) -> None:
    task = make_task(task_component(name))
    for cell in (*task.train_cells, *task.eval_cells):
        index = torch.arange(256)
        here = ExampleStream(task, cell, "train", [0, 1], torch.device("cpu")).batch(index)
        there = ExampleStream(task, cell, "train", [0, 1], torch.device("cuda")).batch(index.cuda())
        for ours, theirs in zip(here, there, strict=True):
            assert torch.equal(ours, theirs.cpu()), cell.label


@pytest.mark.parametrize("arch", ARCHS)
def test_captured_steps_equal_eager_steps(arch: str) -> None:
    runs = expand_request(Request("assoc-recall", [arch], settings=SETTINGS, seeds=(0, 1)))
    losses = [torch.tensor(stepped(runs, 20, graphs).take_means(20)[0]) for graphs in (True, False)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_batches_made_beside_steps_train_the_same_numbers(monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
    """Bit for bit, over several cells, and where a fleet goes on from a later step."""
    runs = expand_request(Request("assoc-recall", ["linear"], settings=SETTINGS, seeds=(0, 1)))
    found = []
    for tokens in (1, 1 << 40):
        monkeypatch.setattr(batches, "TOKENS_BESIDE", tokens)
        trainer = stepped(runs, 20, graphs)
        assert all(queue.beside == (tokens == 1) for queue in trainer.queues)
        first = trainer.take_means(20)
        trainer = Trainer(runs, Machine(CUDA, graphs=graphs))
        trainer.skip_to(13)
        for _ in range(7):
            trainer.step()
        found.append((first, trainer.take_means(7)))
    assert found[0] == found[1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_muon_in_captured_steps_equals_muon_in_eager_steps_and_learns(precision: str) -> None:
    settings = (*SETTINGS, "train.steps=100", "train.optimiser=muon", "train.lr=0.01")
    runs = expand_request(Request("assoc-recall", ["power"], settings=settings, seeds=(0, 1), precision=precision))
    captured, eager = (stepped(runs, 20, graphs) for graphs in (True, False))
    losses = [torch.tensor(trainer.take_means(20)[0]) for trainer in (captured, eager)]
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-3)
    for _ in range(60):
        eager.step()
    assert eager.diverged_at == [0, 0] and torch.tensor(eager.take_means(60)[0]).lt(losses[0]).all()


@pytest.mark.parametrize("arch", ["power:p=2", "power:p=4,gate=true,spectrum=learned", "softmax:rope=true"])
def test_float16_with_a_loss_scale_follows_float32(arch: str) -> None:
    losses = {}
    for precision, scale in (("float32", 1), ("float16", 1024)):
        settings = (*SETTINGS, f"train.loss_scale={scale}")
        runs = expand_request(Request("assoc-recall", [arch], settings=settings, seeds=(0, 1), precision=precision))
        for graphs in (True, False):
            trainer = stepped(runs, 40, graphs)
            assert trainer.diverged_at == [0, 0]
            losses[precision, graphs] = torch.tensor(trainer.take_means(40)[0])
    torch.testing.assert_close(losses["float16", True], losses["float16", False], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(losses["float16", True], losses["float32", True], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("arch", ["power:p=3,gate=true,spectrum=learned", "power:p=2"])
def test_captured_probes_equal_eager_probes(arch: str) -> None:
    runs = expand_request(Request("assoc-recall", [arch], settings=SETTINGS, seeds=(0, 1)))
    trainer = Trainer(runs, Machine(CUDA, keep=("probes",)))
    probe = Probe(trainer)
    for _ in range(3):
        trainer.step()
    for _ in range(2 * WARM_STEPS):  # the last ones by the graph
        probe.record()
    for _ in range(3):
        trainer.step()
    probe.record()
    eager = torch.stack(list(probe.measure().values()), dim=-1)
    torch.testing.assert_close(probe.row, eager, rtol=1e-4, atol=1e-5)
    for first, *others, last in probe.take():
        assert all(point.values == first.values for point in others) and last.values != first.values


@pytest.mark.parametrize("arch", ARCHS)
def test_a_member_of_a_fleet_equals_the_run_alone(arch: str) -> None:
    runs = [expand_request(Request("assoc-recall", [arch], settings=SETTINGS, seeds=[seed]))[0] for seed in range(8)]
    fleet = Trainer(runs, Machine(CUDA))
    alone = Trainer([runs[5]], Machine(CUDA))
    for both, own in zip(fleet.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(both[5:6], own)
    for _ in range(10):
        for _ in range(5):
            fleet.step()
            alone.step()
        assert fleet.take_means(5)[0][5] == pytest.approx(alone.take_means(5)[0][0], rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("arch", [*ARCHS, "gated-delta-net", "hyena", "kda", "mamba", "mamba-2", "rwkv-7"])
def test_a_fleet_trains_on_a_device_that_is_not_the_current_one(arch: str, graphs: bool) -> None:
    runs = expand_request(Request("assoc-recall", [arch], settings=SETTINGS, seeds=(0, 1)))
    first, second = (Trainer(runs, Machine(torch.device("cuda", index), graphs=graphs)) for index in range(2))
    with torch.cuda.device(0):
        for _ in range(10):
            first.step()
            second.step()
        assert torch.cuda.current_device() == 0
    for here, there in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert there.device == torch.device("cuda:1") and torch.equal(here.cpu(), there.cpu())


def test_one_of_28_that_diverges_leaves_27_exactly_as_they_were() -> None:
    runs = [
        expand_request(Request("assoc-recall", ["gated-conv+power"], settings=SETTINGS, seeds=[s]))[0]
        for s in range(28)
    ]
    clean, hit = (Trainer(runs, Machine(CUDA)) for _ in range(2))
    with torch.no_grad():
        hit.model.embedding.weight[9] = torch.inf
    for _ in range(20):
        clean.step()
        hit.step()
    assert [step > 0 for step in hit.diverged_at] == [member == 9 for member in range(28)]
    others = [member for member in range(28) if member != 9]
    for broken, whole in zip(hit.model.parameters(), clean.model.parameters(), strict=True):
        assert torch.equal(broken[others], whole[others])


def test_diverged_members_are_dropped_and_the_graphs_captured_again() -> None:
    runs = expand_request(Request("assoc-recall", ["gated-conv+softmax"], settings=SETTINGS, seeds=range(4)))
    clean, hit = (Trainer(runs, Machine(CUDA)) for _ in range(2))
    roster = Roster(4)
    with torch.no_grad():
        hit.model.embedding.weight[:3] = torch.inf
    for part in range(2):
        for _ in range(10):
            clean.step()
            hit.step()
        if not part:
            hit = roster.narrow(hit)
    assert roster.held == [3]
    assert hit.take_means(20)[0][0] == pytest.approx(clean.take_means(20)[0][3], rel=1e-4)


def test_all_precisions_reach_the_same_accuracy_on_the_default_task() -> None:
    reached = {}
    for precision, scale in (("float32", 1), ("bfloat16", 1), ("float16", 1024)):
        settings = [f"train.loss_scale={scale}"]
        runs = expand_request(
            Request("assoc-recall", ["power"], settings=settings, seeds=range(4), precision=precision)
        )
        scores = TrainingLoop(Trainer(runs, Machine(CUDA)), lambda progress: None, lambda *_: None).run()
        by_cell = zip(*(member.cells for member in scores.members), strict=True)
        reached[precision] = [sum(cell.accuracy for cell in cells) / len(runs) for cells in by_cell]
    assert min(reached["float32"]) > 0.9
    # The spread over seeds of the default run is below .01.
    assert reached["bfloat16"] == pytest.approx(reached["float32"], abs=0.02)
    assert reached["float16"] == pytest.approx(reached["float32"], abs=0.02)


@pytest.mark.memory(12)
@pytest.mark.parametrize("task", ["assoc-recall", "assoc-recall:variant=zoology,length=256,pairs=64"])
def test_the_estimate_of_memory_is_more_than_what_is_measured(task: str) -> None:
    run = expand_request(Request(task, ["gated-conv+softmax"], "zoology" if "zoology" in task else "default"))[0]
    assert measure_bytes(run, Machine(CUDA)) < estimate_bytes(run)
    assert len(fit_memory([run] * 2, Machine(CUDA))) == 1


@pytest.mark.parametrize("arch", ["softmax:heads=4,conv=0", "window:w=40,heads=4,conv=0,rope=true"])
def test_a_stream_in_place_is_as_exact_as_sums(arch: str, monkeypatch) -> None:
    """Gradients of one wide model in bfloat16, against those of float32; equal bits where activations are recomputed.

    With graphs, the losses of further steps are those without.
    """

    def differentiated(precision: str, recompute: bool = False) -> torch.Tensor:
        trainer = made(precision, Machine(CUDA, graphs=False, recompute=recompute))
        trainer.step()
        return trainer.optimiser.buffers.gradients.float()

    def made(precision: str, machine: Machine) -> Trainer:
        settings = ("train.steps=50", "train.batch=8", "model.d_model=256", "model.layers=3", "model.mlp=2.5")
        task = "text:corpus=example,length=256,extrapolate=[]"
        return Trainer(expand_request(Request(task, [arch], precision=precision, settings=settings)), machine)

    found = differentiated("bfloat16")
    assert torch.equal(found, differentiated("bfloat16", recompute=True))
    captured, eager = (made("bfloat16", Machine(CUDA, graphs=graphs)) for graphs in (True, False))
    for _ in range(WARM_STEPS + 3):
        captured.step()
        eager.step()
    # products of the library may differ by the memory that they get: half a unit of bfloat16 in a loss
    assert captured.take_means(5)[0] == pytest.approx(eager.take_means(5)[0], rel=2**-9)
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "stands_alone", lambda x: False)
        plain = differentiated("bfloat16")
    assert not torch.equal(found, plain)
    exact = differentiated("float32")
    assert (found - exact).norm() < 2 * (plain - exact).norm()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_fleet_reads_its_own_answers(arch: str, precision: str) -> None:
    settings = ("train.steps=5", "train.batch=4", "model.d_model=32", "evaluation.examples=16")
    specs = expand_request(Request("copy:symbols=6", [arch], seeds=(0, 1), precision=precision, settings=settings))
    trainer = Trainer(specs, Machine(CUDA))
    free = trainer.run_freely(trainer.make_stream("symbols=6", "test"), trainer.working_model)
    assert free is not None and all(0 <= share <= 1 for share in (*free.accuracy, *free.exact_match))


@pytest.mark.memory(8)
@pytest.mark.parametrize("engine", ["inline", "local"])
def test_after_a_fault_on_the_device_the_members_run_alone(engine: str, tmp_path) -> None:
    (tmp_path / "strange.py").write_text(FAULTY)
    task = "assoc-recall:length=16,pairs=[2|4],vocab=64"
    command = ["run", task, "--arch", "strange:FaultyOnce", "--seeds", "0..2", "--device", "cuda", "--store", "store"]
    small = ["train.steps=20", "train.batch=8", "model.d_model=16", "evaluation.examples=64"]
    settings = [word for text in small for word in ("--set", text)]
    ended = subprocess.run(
        [sys.executable, "-m", "icl_bench", *command, *settings, "--engine", engine],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 0 and (tmp_path / "faulted").exists(), ended.stderr
    store = Store(tmp_path / "store")
    records = [store.load(run_id) for run_id in store.ids()]
    assert [record.result.status for record in records] == ["ok"] * 3, ended.stderr
    assert [record.manifest.fleet_size for record in records] == [1] * 3
