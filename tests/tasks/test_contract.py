"""The contract of a task, tested for every task and each of its cells."""

import doctest
import hashlib
import importlib
import json
import math
import re
from pathlib import Path

import pytest
import torch

from icl_bench.architectures import ARCHITECTURES
from icl_bench.harness.task_conformance import (
    CELL_FAULTS,
    EXAMPLES,
    check_cells,
    check_description,
    check_repeats,
    equal_batches,
    fault_of_oracle,
    task_cells,
)
from icl_bench.schema import build, parse_spec
from icl_bench.tasks import TASKS, Batch, ContinuousTask, Task

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
    "copy:order=reverse",
    "cross-situational:lexicon=7,shown=3,scenes=[5|9]",
    "modular-arithmetic:operators=[1|5],modulus=7,extrapolate=9",
    "assoc-recall:readout=deferred,gap=2,pairs=[4|8]",
    "assoc-recall:dilute=3,pairs=4",
    "assoc-recall:length=24,pairs=4,extrapolate=8,lengthen=true,dilute=1",
    "joint-recall:contexts=2,pairs=3,dilute=1",
    "depo:nodes=12,hops=8,name_tokens=2,shown=true",
    "multi-stack:operations=24,stacks=3,shown=true",
    "bound-recall:objects=3,updates=1,agents=4",
    "text:length=[64|128],stretch=512,extrapolate=[]",
    "brevo:vertices=[5|20],vocab=20,extrapolate=9",
    "memorization:exposures=10,keys=[40|200],length=20,attributes=3",
    "grammar:grammar=fresh,depth=2,length=40,rules=3",
)
"""Specs, in addition to the defaults, whose parameters change the code path."""
RETIRED = tuple(f"{name}@{cls.data_version}" for name in TASKS for cls in TASKS.versions(name) if cls.retired)
"""Former versions of the data, which can be made for ever."""
SPECS = (*TASKS, *MORE, *RETIRED)


def task_of(text: str) -> Task:
    spec = parse_spec(text, versioned=True)
    return build(TASKS.version(spec.name, spec.version), spec.params, spec.name)


CELLS = [pytest.param(text, cell, id=f"{text}/{cell.label}") for text in SPECS for cell in task_cells(task_of(text))]


def digest(task: Task, rows) -> str:
    """Return the SHA-256 of the first four rows of every cell, as little-endian int64 and float32."""
    content = hashlib.sha256()
    for cell in task_cells(task):
        for tensor in task.sample(rows(task, "train", 4), cell):
            content.update(tensor.numpy().astype("<f4" if tensor.is_floating_point() else "<i8").tobytes())
    return content.hexdigest()


@pytest.mark.parametrize(("text", "cell"), CELLS)
@pytest.mark.parametrize("name", CELL_FAULTS)
def test_batches_keep_the_contract(name, text, cell):
    assert CELL_FAULTS[name](task_of(text), cell) is None


@pytest.mark.slow
@pytest.mark.parametrize(("text", "cell"), CELLS)
def test_the_oracle_is_right_on_ten_thousand_examples(text, cell):
    task = task_of(text)
    size = 10_000 if isinstance(task, ContinuousTask) else EXAMPLES  # a mean error is compared over all of them
    faults = {first: fault_of_oracle(task, cell, first, size) for first in range(0, 10_000, size)}
    assert {first: fault for first, fault in faults.items() if fault} == {}


@pytest.mark.parametrize("text", SPECS)
def test_state_is_positive(text):
    task = task_of(text)
    assert all((task.state_bits(cell) > 0) != text.startswith(("memorization", "text")) for cell in task_cells(task))


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("flip-flop", 1),
        ("in-context-recall:keys=5,motif=3,length=96", 5 * 3 * math.log2(8)),
        ("overwrite-recall:pairs=8,updates=4,values=32,keys=64", 8 * 5),
        ("phonebook:entries=5,digits=2", 5 * 2 * math.log2(10)),
        ("k-hop:symbols=20,hops=[2|3],alphabet=5", 2 * 5 * math.log2(5) + math.log2(4)),
        ("markov-icl:length=50,order=2,alphabet=3,queries=9", 9 * math.log2(3)),
        ("regbench:states=6,strings=5,exits=2,queries=20,alphabet=12", 6 * 1.5 * math.log2(12 * 6)),
        ("state-tracking:group=s5,symbols=8", math.log2(120)),
        ("variable-tracking:chains=3,hops=2,values=8", 3 * 3 * 3),
    ],
)
def test_state_bits_by_hand(text, bits):
    task = task_of(text)
    assert task.state_bits(task.eval_cells[0]) == pytest.approx(bits, rel=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("text", "cell"), CELLS)
class TestDevice:
    def test_bits_are_those_of_the_cpu(self, text, cell, rows):
        task = task_of(text)
        keys = rows(task, "test", 256)
        batch = Batch(*(tensor.cpu() for tensor in task.sample(keys.cuda(), cell)))
        assert equal_batches(batch, task.sample(keys, cell))

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
        with torch.cuda.graph(graph, stream=side):
            captured = task.sample(static, cell)
        static.copy_(keys[8:])
        graph.replay()
        assert equal_batches(Batch(*(tensor.cpu() for tensor in captured)), task.sample(keys[8:], cell))


@pytest.mark.parametrize("text", SPECS)
class TestTask:
    def test_golden_digest(self, text, rows):
        """If this fails, the data has changed: raise `data_version`, keep the former class and its digest, `name@1`."""
        task = task_of(text)
        assert json.loads(GOLDEN.read_text()).get(text) == digest(task, rows)

    def test_no_test_row_occurs_in_training(self, text):
        """If the docstring says "Repeats:", the largest cell is tested, since the smallest has few rows."""
        task = task_of(text)
        assert task.repeats == ("Repeats:" in str(task.__doc__))
        assert check_repeats(task)[0], check_repeats(task)

    def test_labels_differ_and_name_their_cells(self, text):
        assert check_cells(task_of(text))[0], check_cells(task_of(text))


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

    def test_docstring_and_declarations_are_whole(self, name):
        found = check_description(task_of(name))
        assert found[0], found
