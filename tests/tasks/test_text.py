"""Rows lie in one document of their split; floors are probabilities; the parts of a row are what the controls say."""

import math

import numpy as np
import pytest
import torch

from icl_bench.corpus.library import find_corpus
from icl_bench.corpus.tokens import write_corpus
from icl_bench.errors import CorpusError, SpecError
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.tasks.base import measured_floors


def rows_of(task, rows, cell, split, count=200):
    return task.sample_split(rows(task, split, count), cell, split).inputs.numpy()


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("spec", ["text:length=32,extrapolate=300", "text:length=[64|256],stretch=512,extrapolate=[]"])
def test_a_row_is_a_stretch_of_one_document_of_its_split(make, rows, spec, split):
    task, corpus = make(spec), find_corpus("installed")
    chosen = np.flatnonzero(corpus.in_split(split))
    texts = [corpus.tokens[corpus.offsets[i] : corpus.offsets[i + 1]].tobytes() for i in chosen]
    for cell in task.eval_cells:
        for row in rows_of(task, rows, cell, split):
            assert any(row.astype(np.uint8).tobytes() in text for text in texts)


def test_a_place_is_uniform_over_all_places(tmp_path, make, rows):
    """A long document has as many rows as it has places, and the last place is one of them."""
    tokens = np.arange(256, dtype=np.uint8)
    documents = [tokens[9 * i : 9 * i + (8, 11)[i % 2]] for i in range(27)]
    write_corpus(tmp_path / "own", documents, 256, "bytes", "")
    path = tmp_path / "own"
    task, corpus = make(f'text:corpus="{path}",length=8,extrapolate=[]'), find_corpus(str(path))
    train = corpus.in_split("train")
    places = int((corpus.lengths[train] - 7).sum())
    first = rows_of(task, rows, task.eval_cells[0], "train", 400 * places)[:, 0]
    counts = np.unique(first, return_counts=True)[1]
    # each count is 400 on average, within 5 standard deviations
    assert len(counts) == places and np.abs(counts - 400).max() < 5 * 400**0.5


def test_rows_do_not_depend_on_the_name_of_the_corpus(make, rows):
    by_name, by_id = make("text"), make_task(task_component("text"))
    assert by_id.corpus == find_corpus("installed").id
    cell = by_name.eval_cells[0]
    assert (rows_of(by_name, rows, cell, "val") == rows_of(by_id, rows, cell, "val")).all()


def test_longer_lengths_follow_the_trained_one(make):
    assert make("text:length=[16|64]").extrapolate == (128, 256)
    assert [cell.label for cell in make("text:length=64").eval_cells] == ["length=64", "length=128", "length=256"]
    assert [cell.weight for cell in make("text:length=64").eval_cells] == [1, 0, 0]


def test_a_specification_holds_the_content_and_no_path(tmp_path):
    path = tmp_path / "own.tokens"
    documents = [np.frombuffer(f"{i} ".encode() * 80, np.uint8) for i in range(60)]
    write_corpus(path, documents, 256, "bytes", "")
    component = task_component(f'text:corpus="{path}",length=16')
    assert component.params["corpus"] == find_corpus(str(path)).id
    assert str(tmp_path) not in component.model_dump_json() and component.label.startswith("text:corpus=sha-")
    moved = path.rename(tmp_path / "moved.tokens")
    assert task_component(f'text:corpus="{moved}",length=16') == component
    assert task_component("text").label == "text"


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("text:vocab=50257", CorpusError, r"got 50257, sha-\w+ has 256 token ids; write text:vocab=256"),
        ("text:length=8192", CorpusError, r"the longest one for (train|val|test) has 17,\d+ tokens, rows need 32,768"),
        ("text:stretch=18000", CorpusError, r"for train has 17,\d+ tokens, rows need 18,000; lower length"),
        ('text:corpus="nowhere"', CorpusError, "No such file or directory"),
        ("text:length=3", SpecError, "length and extrapolate must be at least 4; got 3"),
        ("text:length=8,extrapolate=8", SpecError, "length and extrapolate must differ"),
    ],
)
def test_what_does_not_fit_is_said_before_training(spec, error, message):
    with pytest.raises(error, match=message):
        task_component(spec)


def test_floors_are_probabilities_of_the_next_token(draw):
    """Summed over all continuations of a context, the probabilities that a floor gives are 1."""
    task, cell, batch = draw("text:length=16,extrapolate=[]", 3)
    place = 6
    for solve in task.floors.values():
        total = 0.0
        for token in range(256):
            inputs = batch.inputs.clone()
            inputs[:, place + 1] = token
            total = total + solve(inputs, batch.positions, cell)[:, place].exp()
        assert torch.allclose(total, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_counts_of_trigrams_by_hand(tmp_path, make):
    """Of a corpus of 'aab' repeated: after 'aa' comes 'b' always, after 'ab' comes 'a'."""
    documents = [np.frombuffer(b"aab" * 40 + bytes([100 + i]), np.uint8) for i in range(150)]
    write_corpus(tmp_path / "own", documents, 256, "bytes", "")
    path = tmp_path / "own"
    task = make(f'text:corpus="{path}",length=8,extrapolate=[]')
    inputs, positions = torch.tensor([[97, 97, 98, 97, 97, 98, 97, 97]]), torch.tensor([[1, 2]])
    trained = int(find_corpus(str(path)).in_split("train").sum())
    found = task.floor_trigram(inputs, positions, task.eval_cells[0]).exp()[0].tolist()
    unigrams = task.floor_unigram(inputs, positions, task.eval_cells[0]).exp()[0].tolist()
    kinds = 2 + trained  # a, b, and a byte of its own at the end of each document
    tokens = 121 * trained
    by_one = [(count * trained + kinds / 256) / (tokens + kinds) for count in (40, 80)]  # b, a
    assert unigrams == pytest.approx(by_one, rel=1e-12)
    after_a = (40 * trained + 2 * by_one[0]) / (80 * trained + 2)  # a and b follow a, 80 times a document
    assert found[0] == pytest.approx((40 * trained + 1 * after_a) / (40 * trained + 1), rel=1e-12)


def test_accuracy_is_the_share_of_bits_saved(draw):
    task, cell, batch = draw("text:length=16,extrapolate=[]", 4)
    logs = torch.full(batch.targets.shape, -math.log(16))
    assert torch.allclose(task.hits(logs, batch, cell), torch.tensor(0.5, dtype=torch.float64))
    assert (task.hits(batch.targets, batch, cell) == 1).all()
    floors = measured_floors(task, cell, batch)
    assert 0 < floors["unigram"] < floors["trigram"] < 1


def test_controls_score_the_second_half_after_either_prefix(draw):
    task, cell, batch = draw("text:length=16,extrapolate=[]", 5)
    own, swapped = (task.controls(batch, cell)[name] for name in ("second half", "prefix swap"))
    assert torch.equal(own.inputs, batch.inputs) and torch.equal(own.targets, swapped.targets)
    assert set(own.positions[0].tolist()) == set(range(8, 15))
    assert torch.equal(swapped.inputs[:, 8:], batch.inputs[:, 8:])
    assert torch.equal(swapped.inputs[:, :8], batch.inputs.roll(1, 0)[:, :8])
    assert torch.equal(own.targets, batch.inputs.gather(1, own.positions + 1))
