"""Specifications of runs: ids that later fields leave alone, and what the JSON leaves out."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.study.file import load_study
from icl_bench.harness.study.protocol import runs_of, study_parts
from icl_bench.runs.spec import RunSpec, TrainSpec, label_of
from icl_bench.schema import Spec, content_hash
from tests.runs.records import spec

OLD = ("train.recipe=1",)
STUDIES = {
    "degree-fixed-width": "e9eb501d15b66964caa02afb33f6ee06b68f7508f43f4b1b80ed252c9633ed68",
    "degree-matched-state": "23c03677fcadd784b88b1ac2fd2c5e8d2ba68e196746fc9865f68a17a9e82876",
    "power-vs-window": "261689d4ed8ac60bff2cc810afe080dd72d4e2bba104e068047d26c3ef9d7692",
    "suite": "9f6c89bf03cdca1c3b2ba912f01cfe502e48da10c6091f9969fbf8990f957b7a",
    "zoology-figure": "97de6c514a2d6ee1c667d85f43fd617db208c029e2a4132ee39a038f8c7eea6e",
}
"""Hash of the sorted ids of all runs of the first packaged studies, as they were before there were recipes."""


@pytest.mark.parametrize("name", STUDIES)
def test_runs_of_the_first_studies_keep_their_ids(name: str) -> None:
    study = load_study(name)
    seeds = (study.tune_seeds, study.seeds)
    contenders = [one for part in study_parts(study)[0] for one in part.contenders]
    ids = [run.id for one in contenders for own in seeds for run in runs_of(study, one, study.lr, own)]
    assert content_hash(sorted(ids), "golden") == STUDIES[name]


def test_recipe_1_has_the_ids_and_the_fleets_from_before_there_were_recipes() -> None:
    archs = ["power:p=2", "linear", "window:w=8", "softmax"]
    runs = expand_request(Request("assoc-recall", archs, settings=OLD))
    assert [run.id for run in runs] == ["50d0e4a4479471e7", "b5b5f74cc0c285c0", "a9f822eab9fd1245", "5def4b2377ba17af"]
    published = expand_request(Request("assoc-recall:variant=zoology", ["gated-conv+softmax"], "zoology"))
    assert [run.id for run in published] == ["f8ecef3201864780"]
    key = expand_request(Request("copy", ["linear"], settings=OLD))[0].fleet_key()
    assert key == "04d9e4a090d51ff6022a411ea00b41511b63def409957ae372c9bdd59fc6c034"


def test_new_requests_take_the_newest_recipe_and_have_ids_of_their_own() -> None:
    new, old = (expand_request(Request("copy", ["linear"], settings=own))[0] for own in ((), OLD))
    assert (new.train.recipe, old.train.recipe) == (2, 1) and new.id != old.id and new.fleet_key() != old.fleet_key()
    assert "recipe" not in old.model_dump()["train"] and "optimiser" not in new.model_dump()["train"]


def test_a_label_has_what_is_always_shown_and_what_was_typed_and_differs() -> None:
    defaults = {"p": 2, "heads": 4, "conv": 4, "gate": False}
    typed = Spec("power", {"conv": 4, "heads": 2, "gate": True})
    assert label_of(typed, {**defaults, "heads": 2, "gate": True}, defaults, ("p",)) == "power:p=2,heads=2,gate=true"
    untyped = label_of(Spec("power", {}), {**defaults, "heads": 2}, defaults, ("p",))
    assert untyped == "power:p=2"  # what a match has chosen is not named


@given(
    st.sampled_from([1, 2]),
    st.sampled_from(["adamw", "muon"]),
    st.sampled_from(["fan-in", "gpt-2", "published"]),
    st.sampled_from(["none", "a", "acd"]),
    st.floats(0, 1),
)
def test_what_the_json_leaves_out_is_read_back(
    recipe: int, optimiser: str, init: str, canon: str, warmup: float
) -> None:
    settings = (
        f"train.recipe={recipe}",
        f"train.optimiser={optimiser}",
        f"model.init={init}",
        f"model.canon={canon}",
        f"train.warmup={warmup!r}",
    )
    run = expand_request(Request("copy", ["linear"], settings=settings))[0]
    assert RunSpec.model_validate(run.labelled()) == run
    model = run.model_dump(mode="json")["model"]
    assert ("init" in model, "canon" in model) == (init != "fan-in", canon != "none")
    plain = run.model_dump(mode="json")["train"]
    assert TrainSpec.model_validate(plain) == run.train
    assert ("recipe" in plain, "optimiser" in plain) == (recipe == 2, optimiser == "muon")


def test_a_copy_has_a_digest_of_its_own() -> None:
    """The digest is kept in a specification, and no copy takes it along."""
    run = spec(0)
    assert run.digest == spec(0).digest and run.digest != spec(1).digest
    for copied in (run.model_copy(), run.model_copy(deep=True), pickle.loads(pickle.dumps(run))):
        assert copied == run and copied.digest == run.digest
    longer = run.model_copy(update={"train": run.train.model_copy(update={"steps": 7})})
    assert longer.digest == RunSpec.model_validate(longer.labelled()).digest != run.digest
    assert run.model_dump() == spec(0).model_dump() and "digest" not in run.labelled()
