"""The contract of a task, tested for every task and each of its cells."""

import doctest
import hashlib
import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from icl_bench.architectures import ARCHITECTURES
from icl_bench.schema import build, parse_spec
from icl_bench.tasks import TASKS, Batch, Cell, ContinuousTask, Task
from icl_bench.tasks.base import measured_floors

GOLDEN = Path(__file__).with_name("golden.json")
MORE = (
    "assoc-recall:variant=zoology,length=64,pairs=8",
    "assoc-recall:filler=random",
    "copy:distinct_symbols=true,symbols=8,extrapolate=16",
    "k-hop:symbols=100,hops=3,alphabet=6,extrapolate=16",
    "variable-tracking:length=128,chains=4,hops=4,ask=last,variables=64",
    "joint-recall:contexts=3,pairs=[3|5],show_answers=true",
    "haystack-recall:pairs=4,queries=1,extrapolate=128",
    "ngram-lookup:side=prefix,extrapolate=64",
    "ngram-lookup:symbols=16,alphabet=4,ngram=2,answer=2",
    "overwrite-recall:pairs=[2|4],updates=20,values=2",
    "phonebook:entries=4,queries=4,digits=6,extrapolate=8",
    "two-pass-recall:passes=1",
    "set-disjointness:first=4,second=32,alphabet=600",
    "in-context-recall:length=96,keys=5,motif=2,noise=0.25",
    "state-tracking:group=parity,symbols=64,extrapolate=100",
    "flip-flop:length=64,ignore=0.5,extrapolate=[0.1|0.95]",
    "state-tracking:group=a5",
    "state-tracking:group=s5",
    "markov-icl:length=40,order=2,alphabet=5,queries=8",
    "selective-copy:variant=mad,length=[40|64],symbols=[8|12]",
    "regbench:states=6,strings=5,extrapolate=9,exits=2,queries=20",
    "linear-regression:variant=garg,dims=5,points=11",
    "linear-regression:dims=[2|3],points=8,noise=0.5,extrapolate=20",
    "vector-recall:length=40,pairs=[2|6],dims=5,extrapolate=12",
)
"""Specs, in addition to the defaults, whose parameters change the code path."""
SPECS = (*TASKS, *MORE)
HELD_OUT = 500


def task_of(text: str) -> Task:
    spec = parse_spec(text)
    return build(TASKS[spec.name], spec.params, spec.name)


def cells_of(task: Task) -> list[Cell]:
    return list({cell.label: cell for cell in (*task.train_cells, *task.eval_cells)}.values())


CELLS = [pytest.param(text, cell, id=f"{text}/{cell.label}") for text in SPECS for cell in cells_of(task_of(text))]


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def digest(task: Task, rows) -> str:
    """Return the SHA-256 of the first four rows of every cell, as little-endian int64 and float32."""
    content = hashlib.sha256()
    for cell in cells_of(task):
        for tensor in task.sample(rows(task, "train", 4), cell):
            content.update(tensor.numpy().astype("<f4" if tensor.is_floating_point() else "<i8").tobytes())
    return content.hexdigest()


def constant(task: Task, targets: Tensor) -> Tensor:
    """Return the best constant answer: the most frequent token, or the mean vector."""
    if isinstance(task, ContinuousTask):
        return targets.double().mean(dim=(0, 1)).expand_as(targets)
    return targets.flatten().mode().values.expand_as(targets)


def by_position(task: Task, seen: Batch, asked: Batch, cell: Cell) -> Tensor:
    """Return the best answer by position alone: the most frequent token, or the mean vector, at each position."""
    if isinstance(task, ContinuousTask):
        sums = torch.zeros(cell.length, task.width_out, dtype=torch.float64)
        sums.index_add_(0, seen.positions.flatten(), seen.targets.double().flatten(0, 1))
        counts = torch.bincount(seen.positions.flatten(), minlength=cell.length).clamp(min=1)
        return (sums / counts[:, None])[asked.positions]
    counts = torch.zeros(cell.length, task.vocabulary)
    ones = torch.ones(seen.targets.numel())
    counts.index_put_((seen.positions.flatten(), seen.targets.flatten()), ones, accumulate=True)
    return counts.argmax(dim=1)[asked.positions]


@pytest.mark.parametrize(("text", "cell"), CELLS)
class TestBatch:
    def test_shapes_and_ranges(self, text, cell, rows):
        task = task_of(text)
        batch = task.sample(rows(task, "test", 32), cell)
        assert batch.inputs.shape[:2] == (32, cell.length)
        assert batch.positions.shape == batch.targets.shape[:2] == batch.groups.shape == (32, cell.scored)
        if isinstance(task, ContinuousTask):
            assert batch.inputs.shape[2:] == (task.width_in,) and batch.targets.shape[2:] == (task.width_out,)
            assert batch.inputs.dtype == batch.targets.dtype == torch.float32
            assert batch.inputs.isfinite().all() and batch.targets.isfinite().all()
            assert all(task.spell(vector) for vector in batch.inputs.flatten(0, 1).tolist())
        else:
            assert batch.inputs.dim() == batch.targets.dim() == 2
            assert batch.inputs.dtype == batch.targets.dtype == torch.int64
            for tokens in (batch.inputs, batch.targets):
                assert tokens.min() >= 0
                assert tokens.max() < task.vocabulary
            assert all(task.spell(token) for token in batch.inputs.unique().tolist())
        assert batch.positions.dtype == batch.groups.dtype == torch.int64
        assert batch.positions.min() >= 0
        assert batch.positions.max() < cell.length
        in_order = batch.positions.sort(dim=-1).values
        assert (in_order.diff(dim=-1) > 0).all()
        assert batch.groups.min() >= 0
        assert all(task.group_label(group) for group in batch.groups.unique().tolist())

    def test_oracle_is_right_everywhere(self, text, cell, rows):
        task = task_of(text)
        batch = task.sample(rows(task, "test", HELD_OUT), cell)
        answers = task.oracle(batch.inputs, batch.positions, cell)
        if not isinstance(task, ContinuousTask) or task.criterion == "nearest":
            assert (task.hits(answers, batch, cell) == 1).all()
            assert task.several_correct or torch.equal(answers, batch.targets)
            return
        # what is not known yet cannot be right, but no trivial solver errs less, by five sigma
        error = task.grade(answers, batch.targets.double()).errors.mean(dim=1)
        for solve in task.floors.values():
            other = task.grade(solve(batch.inputs, batch.positions, cell), batch.targets.double()).errors.mean(dim=1)
            assert float((other - error).mean()) > 5 * float((other - error).std()) / HELD_OUT**0.5

    def test_rows_depend_on_their_keys_alone(self, text, cell, rows):
        task = task_of(text)
        keys = rows(task, "test", 8)
        whole = task.sample(keys, cell)
        assert equal(whole, task.sample(keys, cell))
        assert equal(Batch(*(tensor[3:5] for tensor in whole)), task.sample(keys[3:5], cell))
        assert not torch.equal(whole.inputs[3], whole.inputs[4])

    def test_floors_lie_below_the_oracle_and_above_blind_guesses(self, text, cell, rows):
        """The best floor is at most five sigma below the best constant guess and the best guess by position."""
        task = task_of(text)
        seen = task.sample(rows(task, "train", HELD_OUT), cell)
        batch = task.sample(rows(task, "test", HELD_OUT), cell)
        measured = measured_floors(task, cell, batch)
        assert all(0 <= value < 1 for value in measured.values()), measured
        best = task.floors[max(measured, key=lambda name: measured[name])]
        by_floor = task.hits(best(batch.inputs, batch.positions, cell), batch, cell).mean(dim=1)
        for guess in (constant(task, seen.targets), by_position(task, seen, batch, cell)):
            surplus = task.hits(guess, batch, cell).mean(dim=1) - by_floor
            # the count of rows bounds the noise of a share from below, where all rows happen to be equal
            error = max(float(surplus.std()) / HELD_OUT**0.5, 0.5 / HELD_OUT)
            assert float(surplus.mean()) <= 5 * error, (measured, float(surplus.mean()))

    def test_state_is_positive(self, text, cell, rows):
        bits = task_of(text).state_bits(cell)
        assert bits == 0 if text.startswith("memorization") else bits > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("text", "cell"), CELLS)
class TestDevice:
    def test_bits_are_those_of_the_cpu(self, text, cell, rows):
        task = task_of(text)
        keys = rows(task, "test", 256)
        batch = Batch(*(tensor.cpu() for tensor in task.sample(keys.cuda(), cell)))
        assert equal(batch, task.sample(keys, cell))

    def test_sampling_can_be_captured_in_a_graph(self, text, cell, rows):
        """A replayed graph gives the same examples for other keys as a direct call."""
        task = task_of(text)
        keys = rows(task, "test", 16)
        static = keys[:8].cuda()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            task.sample(static, cell)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = task.sample(static, cell)
        static.copy_(keys[8:])
        graph.replay()
        assert equal(Batch(*(tensor.cpu() for tensor in captured)), task.sample(keys[8:], cell))


@pytest.mark.parametrize("text", SPECS)
class TestTask:
    def test_golden_digest(self, text, rows):
        """If this fails, the data has changed: raise `data_version` of the task and write the new digest."""
        task = task_of(text)
        assert json.loads(GOLDEN.read_text()).get(text) == digest(task, rows)

    def test_no_test_row_occurs_in_training(self, text, rows):
        """The cell of the smallest load is tested, where rows would repeat first.

        If the docstring says "Repeats:", that cell has too few rows, and the cell of the largest load is tested.
        """
        task = task_of(text)
        assert task.repeats == ("Repeats:" in str(task.__doc__))
        pick = max if task.repeats else min
        cell = pick(cells_of(task), key=lambda cell: (cell.load, cell.length))
        trained, tested = (
            {row.tobytes() for row in task.sample(rows(task, split, count), cell).inputs.numpy()}
            for split, count in (("train", 20_000), ("test", 2_000))
        )
        assert not trained & tested

    def test_labels_differ_and_name_their_cells(self, text):
        task = task_of(text)
        for cells in (task.train_cells, task.eval_cells):
            assert len({cell.label for cell in cells}) == len(cells) > 0
        assert all(task.cell(cell.label).length == cell.length for cell in cells_of(task))
        assert sum(cell.weight for cell in task.train_cells) > 0


@pytest.mark.parametrize("name", list(TASKS))
class TestName:
    def test_module_and_test_file_are_named_alike(self, name):
        module = name.replace("-", "_")
        assert TASKS[name].__module__ == f"icl_bench.tasks.{module}"
        assert Path(__file__).with_name(f"test_{module}.py").exists()

    def test_docstring_has_an_example_that_holds(self, name):
        module = importlib.import_module(TASKS[name].__module__)
        examples = doctest.DocTestFinder(recurse=False).find(TASKS[name], name, module)
        assert examples[0].examples, f"the docstring of {name} shows no example"
        runner = doctest.DocTestRunner(verbose=False)
        assert runner.run(examples[0]).failed == 0

    def test_settings_named_in_the_docstring_exist(self, name):
        settings = re.findall(rf"`({name}:[^`]*)`", " ".join(str(TASKS[name].__doc__).split()))
        assert all(task_of(setting).eval_cells for setting in settings)
        assert settings or name == "assoc-recall"

    def test_budget_is_for_the_smallest_cell(self, name):
        cls = TASKS[name]
        small, whole = task_of(f"{name}:{cls.budget.params}"), cls()
        assert [(cell.load, cell.length) for cell in small.train_cells] == [
            (whole.train_cells[0].load, whole.train_cells[0].length)
        ]
        assert cls.budget.steps > 0 and cls.budget.lr > 0 and cls.budget.arch in ARCHITECTURES

    def test_example_of_the_picture_can_be_made(self, name):
        small = TASKS[name].picture
        assert task_of(f"{name}:{small}" if small else name).eval_cells

    def test_first_line_fits_a_listing(self, name):
        assert len(TASKS.summary(name)) < 110 and TASKS.summary(name).endswith(".")

    def test_docstring_names_source_and_chance(self, name):
        text = TASKS[name].__doc__ or ""
        assert "Source:" in text
        assert "Chance:" in text
