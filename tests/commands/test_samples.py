"""The kept examples of a run as a terminal shows them."""

import json

import pytest

from icl_bench.commands.samples import RIGHT, WRONG, example_pieces, samples_text
from icl_bench.runs.kept import AnsweredExample, CellSamples, Samples
from icl_bench.runs.store import Store
from tests.runs.records import MANIFEST, result, spec


def example(answers: tuple[str, ...], hits: tuple[float, ...], inputs=("k1", "v1", "n0", "k1")) -> AnsweredExample:
    return AnsweredExample(
        inputs=inputs, positions=(2, 3), targets=("v1", "v2"), answers=answers, hits=hits, groups=("gap 1", "gap 2"),
        answer_probabilities=(0.9, 0.8), target_probabilities=(0.9, 0.0625),
    )  # fmt: skip


RIGHT_ONE, WRONG_ONE = example(("v1", "v2"), (1, 1)), example(("v1", "v9"), (1, 0))
KEPT = Samples(
    id=spec(0).id, task="assoc-recall", arch="linear",
    cells=(
        CellSamples(label="pairs=2", load=2, examples=(RIGHT_ONE, WRONG_ONE)),
        CellSamples(label="pairs=4", load=4, examples=(RIGHT_ONE,)),
    ),
)  # fmt: skip


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path / "icl-runs")
    for seed, kept in ((0, KEPT), (1, None)):
        writer = made.begin(spec(seed), MANIFEST)
        if kept is not None:
            writer.keep("samples.json", kept.model_dump_json().encode())
        writer.commit(result(spec(seed)))
    return made


def test_right_and_wrong_differ_in_text_and_in_colour() -> None:
    right, wrong = example_pieces(RIGHT_ONE), example_pieces(WRONG_ONE)
    assert right[2:] == [("n0→v1(0.90) ", RIGHT), ("k1→v2(0.06) ", RIGHT)]
    assert wrong[2:] == [("n0→v1(0.90) ", RIGHT), ("k1→v9≠v2(0.06) ", WRONG)]


def test_vectors_have_no_probability() -> None:
    plain = WRONG_ONE.model_copy(update={"answer_probabilities": None, "target_probabilities": None})
    assert example_pieces(plain)[3] == ("k1→v9≠v2 ", WRONG)


def test_names_from_outside_reach_no_terminal() -> None:
    hostile = example(("\x1b[2J", "[bold]"), (0, 0), inputs=("\x1b]0;t\x07", "v1", "n0", "k1"))
    cell = CellSamples(label="pairs=2", load=2, examples=(hostile,))
    shown = samples_text(KEPT.model_copy(update={"task": "\x1b[31m", "cells": (cell,)}), [cell]).plain
    assert "\x1b" not in shown and "\x07" not in shown and "[bold]" in shown


def test_examples_are_chosen_by_cell_number_and_error(command, store: Store) -> None:
    whole = command("samples", spec(0).id[:6])
    assert whole.status == 0 and "pairs=2: 3 of 4 answers right in 2 kept examples" in whole.out
    assert whole.out.count("n0→v1(0.90)") == 2 and "≠" not in whole.out
    wrong = command("samples", spec(0).id, "--wrong", "--examples", "2", "--cell", "pairs=2")
    assert wrong.out.count("≠v2") == 1 and "pairs=4" not in wrong.out
    document = json.loads(command("samples", spec(0).id, "--json").out)["samples"]
    assert [len(cell["examples"]) for cell in document["cells"]] == [1, 1]


def test_a_run_without_samples_says_how_to_get_them(command, store: Store) -> None:
    lacks = command("samples", spec(1).id)
    assert lacks.status == 2 and f"{spec(1).id} has no samples; remove it with" in lacks.err
    unknown = command("samples", spec(0).id, "--cell", "pairs=3")
    assert unknown.status == 2 and "no cell is labelled 'pairs=3'; cells: pairs=2, pairs=4" in unknown.err


def forged(**fields: object) -> bytes:
    """Return kept examples of which the first has other fields, as JSON."""
    plain = KEPT.model_dump(mode="json")
    plain["cells"][0]["examples"][0] |= fields
    return json.dumps(plain).encode()


@pytest.mark.parametrize(
    "data",
    [
        *(forged(**{name: []}) for name in AnsweredExample.model_fields),
        *(forged(positions=positions) for positions in ([2, 4], [2, -1], [2, 10**400], [2], None)),
        *(forged(hits=hits) for hits in ([1, 1e999], ["1", 1], [True, 1])),
        forged(inputs=["\ud800"] * 4),
        KEPT.model_copy(update={"id": "\x1b[2J"}).model_dump_json().encode(),
        KEPT.model_copy(update={"arch": "softmax"}).model_dump_json().encode(),
        b"[" * 100_000,
        b"null",
        b"\xff",
    ],
)
def test_forged_samples_are_refused_in_a_line(command, tmp_path, data: bytes) -> None:
    writer = Store(tmp_path / "icl-runs").begin(spec(2), MANIFEST)
    writer.keep("samples.json", data)
    writer.commit(result(spec(2)))
    for arguments in (("--wrong",), ("--json",)):
        refused = command("samples", spec(2).id, *arguments)
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1), refused
        assert "samples.json" in refused.err and "Traceback" not in refused.err


TINY = ("train.steps=2", "train.batch=2", "model.d_model=8", "evaluation.examples=4", "evaluation.validation=2")


def test_a_run_keeps_what_it_is_asked_for_and_one_that_is_there_is_named(command) -> None:
    settings = [word for setting in TINY for word in ("--set", setting)]
    train = ("run", "assoc-recall:length=16,pairs=2", "--arch", "linear", "--device", "cpu", *settings)
    first = json.loads(command(*train, "--json").out)["runs"][0]["id"]
    again = command(*train, "--keep", "samples")
    assert again.status == 0 and f"note: {first} was finished before without its samples" in again.err
    assert command("runs", "rm", first).status == 0
    kept = command(*train, "--keep", "model,samples")
    assert kept.status == 0 and "note:" not in kept.err
    assert "answers right in 4 kept examples" in command("samples", first).out
    assert command("runs", "verify").status == 0
    assert command("merge", "icl-runs", "--store", "merged").status == 0
    assert "answers right in 4 kept examples" in command("samples", first, "--store", "merged").out
    wrong = command(*train, "--keep", "weights")
    assert wrong.status == 2 and "--keep takes model, samples, probes; got 'weights'" in wrong.err
