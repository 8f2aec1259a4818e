"""A member of a fleet and the same run alone; members that diverge; data; cells."""

import math

import pytest
import torch

from icl_bench.harness.resolve import Request, expand
from icl_bench.harness.training.data import cell_order, slices, training_set_size
from icl_bench.harness.training.fleet import pack
from icl_bench.harness.training.train import FleetScores, train_fleet
from icl_bench.harness.training.trainer import Trainer
from icl_bench.runs.record import MetricPoint
from icl_bench.runs.spec import RunSpec
from icl_bench.tasks import AssocRecall

CPU = torch.device("cpu")
SMALL = (
    "model.d_model=16",
    "train.steps=12",
    "train.batch=8",
    "evaluation.examples=16",
    "evaluation.validation=8",
    "evaluation.points=2",
)
TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
ARCHS = [
    "power:p=2",
    "power:p=3,gate=true",
    "linear:feature_map=elu",
    "softmax:rope=true",
    "window:w=4",
    "gated-conv+softmax",
]


def specs(arch: str, seeds=(0,), lrs=(), extra=()) -> list[RunSpec]:
    return expand(Request(TASK, [arch], lrs=lrs, seeds=seeds, settings=(*SMALL, *extra)))


def trained(runs) -> tuple[Trainer, FleetScores, list[tuple[int, MetricPoint]]]:
    trainer, logged = Trainer(runs, CPU, "auto"), []
    scores = train_fleet(trainer, lambda progress: None, lambda member, point: logged.append((member, point)))
    return trainer, scores, logged


@pytest.mark.parametrize("arch", ARCHS)
def test_a_member_of_eight_equals_the_run_alone(arch: str) -> None:
    runs = [specs(arch, seeds=[seed], lrs=[1e-3 * (1 + seed)])[0] for seed in range(8)]
    fleet, alone = Trainer(runs, CPU, "auto"), Trainer([runs[5]], CPU, "auto")
    for both, own in zip(fleet.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(both[5:6], own)
    index = torch.arange(8)
    for both, own in zip(fleet.train_feeds[0].batch(index), alone.train_feeds[0].batch(index), strict=True):
        assert torch.equal(both[5:6], own)
    for _ in range(12):
        fleet.step()
        alone.step()
    loss_in_fleet, loss_alone = fleet.take_means(12)[0][5], alone.take_means(12)[0][0]
    assert loss_in_fleet == pytest.approx(loss_alone, rel=1e-4)


def test_a_member_that_diverges_leaves_the_others_alone() -> None:
    runs = [specs("power:p=2", seeds=[seed])[0] for seed in range(3)]
    clean, hit = Trainer(runs, CPU, "auto"), Trainer(runs, CPU, "auto")
    with torch.no_grad():
        hit.model.embedding.weight[1] = math.inf
    for _ in range(5):
        clean.step()
        hit.step()
    assert hit.optimiser.died_at.tolist() == [0, 1, 0]
    for broken, whole in zip(hit.model.parameters(), clean.model.parameters(), strict=True):
        assert torch.equal(broken[0], whole[0]) and torch.equal(broken[2], whole[2])


def test_one_of_28_that_diverges_leaves_27_exactly_as_they_were() -> None:
    runs = [specs("gated-conv+softmax", seeds=[seed])[0] for seed in range(28)]
    broken = [*runs[:9], with_rate(runs[9], 1e38), *runs[10:]]
    (_, clean, _), (_, hit, _) = trained(runs), trained(broken)
    assert [step > 0 for step in hit.died_at] == [member == 9 for member in range(28)]
    for label, outcome in hit.cells.items():
        for part, whole in zip(outcome[:5], clean.cells[label][:5], strict=True):
            assert [*part[:9], *part[10:]] == [*whole[:9], *whole[10:]]


def with_rate(run: RunSpec, lr: float) -> RunSpec:
    return run.model_copy(update={"train": run.train.model_copy(update={"lr": lr})})


@pytest.mark.parametrize("arch", ["power:p=2", "gated-conv+softmax"])
def test_the_dead_are_dropped_once_they_are_half(arch: str) -> None:
    runs = [specs(arch, seeds=[seed])[0] for seed in range(4)]
    broken = [with_rate(run, 1e38) if member in (0, 2) else run for member, run in enumerate(runs)]
    (_, clean, metrics), (trainer, hit, broken_metrics) = trained(runs), trained(broken)
    assert trainer.present == [1, 3] and len(trainer.model.embedding.weight) == 2
    assert [step > 0 for step in hit.died_at] == [True, False, True, False]
    alive = [member for member, _ in metrics if member in (1, 3)]
    assert [point for member, point in metrics if member in alive] == [p for m, p in broken_metrics if m in alive]
    for label, outcome in hit.cells.items():
        for member in (1, 3):
            assert [part[member] for part in outcome[:5]] == [part[member] for part in clean.cells[label][:5]]
    points = [point for member, point in broken_metrics if member == 0]
    assert points[0].accuracy == points[1].accuracy  # no longer updated, so that the last measured holds


def test_a_fleet_without_its_dead_is_saved_and_continued_whole() -> None:
    runs = [with_rate(run, 1e38 if run.seed < 2 else 1e-3) for run in specs("softmax", seeds=range(3))]
    first, second = Trainer(runs, CPU, "auto"), Trainer(runs, CPU, "auto")
    for _ in range(5):
        first.step()
    first.validate()
    assert first.present == [2]
    first.step()
    state = first.state()
    assert state["died_at"].tolist() == first.died_at and len(state["alive"]) == 3
    second.restore(6, state)
    assert second.present == [2] and second.died_at == first.died_at
    for trainer in (first, second):
        for _ in range(4):
            trainer.step()
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name]) or name == "sums", name


def test_clipping_is_each_members_own() -> None:
    runs = specs("power:p=2", seeds=(0, 1))
    trainer = Trainer(runs, CPU, "auto")
    first = trainer.optimiser.gradients[0]
    first[0, 0, 0], first[1, 0, 0] = 1e6, 1e-3
    trainer.optimiser.step(torch.zeros(2))
    assert trainer.optimiser.means[0][:, 0, 0].tolist() == pytest.approx([0.1 * 1.0, 0.1 * 1e-3], rel=1e-4)


def test_adamw_follows_torch() -> None:
    run = specs("softmax", extra=("train.clip=none", "train.warmup=0.0", "train.final_lr=1.0"))[0]
    ours = Trainer([run], CPU, "auto")
    copies = [parameter.detach().clone().requires_grad_() for parameter in ours.model.parameters()]
    train = run.train
    theirs = torch.optim.AdamW(copies, lr=train.lr, betas=(train.beta1, train.beta2), weight_decay=train.weight_decay)
    for _ in range(4):
        ours.step()
        for copy, gradient in zip(copies, ours.optimiser.gradients, strict=True):
            copy.grad = gradient.clone()
        theirs.step()
    for copy, parameter in zip(copies, ours.optimiser.parameters, strict=True):
        torch.testing.assert_close(parameter.detach(), copy.detach(), rtol=1e-5, atol=1e-6)


def test_the_schedule_rises_and_falls_as_a_cosine() -> None:
    run = specs("softmax", extra=("train.steps=10", "train.warmup=0.2", "train.final_lr=0.1"))[0]
    rates = Trainer([run], CPU, "auto").optimiser.state.table[1:, 0].tolist()
    expected = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(1, 9)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_training_is_repeated_bit_for_bit() -> None:
    runs = specs("power:p=2", seeds=(0, 1))
    _, first, logged = trained(runs)
    _, second, again = trained(runs)
    assert first.cells == second.cells and logged == again


def test_validation_points_and_cells_are_all_there() -> None:
    _, scores, logged = trained(specs("power:p=2"))
    assert [point.step for _, point in logged] == [6, 12]
    assert list(scores.cells) == ["pairs=2", "pairs=4"] == list(logged[0][1].by_cell)
    assert scores.floors["pairs=2"][0][1] >= 0.25


def test_members_of_one_data_seed_share_their_batch() -> None:
    runs = specs("softmax", lrs=(1e-3, 1e-2))
    trainer = Trainer(runs, CPU, "auto")
    assert trainer.train_feeds[0].streams.shape == (1,)
    batch = trainer.train_feeds[0].batch(torch.arange(4))
    assert torch.equal(batch.inputs[0], batch.inputs[1])


def test_a_fixed_training_set_repeats() -> None:
    trainer = Trainer(specs("softmax", extra=("train.examples=16",)), CPU, "auto")
    cell = trainer.cells[0]
    assert training_set_size(trainer.cells, cell, 16) == 8
    seen = []
    original = trainer.train_feeds[0].batch
    trainer.train_feeds[0].batch = lambda index: (seen.append(index.tolist()), original(index))[1]
    batches = []
    for _ in range(4):
        trainer.step()
        batches.append(trainer.supplies[0].stock.clone())
    assert seen == [list(range(8)) * 6] and torch.equal(batches[0][0], batches[0][5])


@pytest.mark.parametrize("steps", [1, 7, 90])
def test_cells_get_their_shares_evenly(steps: int) -> None:
    cells = AssocRecall(variant="zoology").train_cells
    order = cell_order(cells, steps)
    for i, cell in enumerate(cells):
        for end in range(1, steps + 1):
            assert abs(order[:end].count(i) - end * cell.share / 180) < 1.5
    assert len(order) == steps


def test_slices_cover_every_example_once() -> None:
    parts = slices(100, 7, 64)
    assert [part.start for part in parts] == list(range(0, 100, 9)) and sum(part.size for part in parts) == 100


def test_packing_keeps_apart_what_differs_in_shape() -> None:
    runs = specs("softmax", seeds=(0, 1, 2), lrs=(1e-3, 1e-2)) + specs("window:w=4", seeds=(0, 1))
    fleets = pack(runs, 4)
    assert [len(fleet) for fleet in fleets] == [4, 2, 2]
    assert [run.id for fleet in fleets for run in fleet] == [run.id for run in runs]


def test_what_is_reported_adds_up_to_what_is_logged() -> None:
    trainer, told, logged = Trainer(specs("softmax"), CPU, "auto"), [], []
    train_fleet(trainer, told.append, lambda member, point: logged.append(point), report_every=0.0)
    assert [progress.step for progress in told] == list(range(1, 13))
    for point in logged:
        span = [progress.loss[0] for progress in told if point.step - 6 < progress.step <= point.step]
        assert sum(span) / 6 == pytest.approx(point.train_loss, rel=1e-9)
