"""The resolution of typed text into run specifications."""

import pytest

from icl_bench.errors import IclBenchError
from icl_bench.harness.resolve import (
    PRESETS,
    Request,
    expand_request,
    label_of_arch,
    model_of,
    parse_lrs,
    parse_seeds,
    split_pattern,
    task_component,
)


def test_runs_are_the_product_in_order() -> None:
    runs = expand_request(Request("copy", ["linear", "softmax"], lrs=[1e-3, 1e-2], seeds=[0, 1]))
    assert [(run.arch_label, run.train.lr, run.seed) for run in runs][:5] == [
        ("linear", 1e-3, 0),
        ("linear", 1e-3, 1),
        ("linear", 1e-2, 0),
        ("linear", 1e-2, 1),
        ("softmax", 1e-3, 0),
    ]
    assert all(run.data_seed == run.seed for run in runs)


def test_the_same_run_asked_for_twice_is_one() -> None:
    assert len(expand_request(Request("copy", ["power", "power:p=2", "power:heads=4"]))) == 1


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_resolves(preset: str) -> None:
    assert expand_request(Request("assoc-recall", ["softmax"], preset=preset))


def test_settings_reach_any_field_and_win_over_the_preset() -> None:
    wishes = ["train.steps=7", "model.layers=3", "evaluation.points=1", "data_seed=5", "train.clip=none"]
    run = expand_request(Request("copy", ["gated-conv+softmax"], preset="quick", settings=wishes))[0]
    assert (run.train.steps, run.model.layers, run.evaluation.points, run.data_seed) == (7, 3, 1, 5)
    assert run.train.clip is None
    assert [component.name for component in run.layer_components] == ["gated-conv", "softmax", "gated-conv"]


def test_a_curriculum_has_ids_of_its_own_and_needs_a_degree_that_can_rise() -> None:
    plain, rising = (
        expand_request(Request("copy", ["gated-conv+power:p=3"], settings=settings))[0]
        for settings in ((), ("train.curriculum=0.2",))
    )
    assert plain.id != rising.id and plain.fleet_key() != rising.fleet_key()
    assert "curriculum" not in plain.train.model_dump() and "clip_by" not in plain.train.model_dump()
    for arch in ("power:p=2", "power:p=4", "power:p=3,degrees=[2|3]", "softmax", "elastic"):
        with pytest.raises(IclBenchError, match="raises the degree of power attention with p >= 3"):
            expand_request(Request("copy", [arch], settings=["train.curriculum=0.2"]))
    assert expand_request(Request("copy", ["power:p=4,normalizer=rms"], settings=["train.curriculum=0.2"]))


def test_widths_follow_the_model() -> None:
    run = expand_request(Request("copy", ["power"], settings=["model.d_model=128"]))[0]
    assert run.arch[0].params["d_key"] == 32


def test_the_model_and_the_label_of_an_architecture_are_those_of_its_runs() -> None:
    settings = ["model.d_model=128"]
    run = expand_request(Request("copy", ["gated-conv+power:d_key=32"], "zoology", settings=settings))[0]
    assert model_of("zoology", settings) == run.model
    assert label_of_arch("gated-conv+power:d_key=32", 128) == run.arch_label == "gated-conv+power:p=2"


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a", ["a"]), ("a+b", ["a", "b"]), ("a:lr=1e+3+b", ["a:lr=1e+3", "b"]), ("a+", ["a+"]), ("x:y=+1", ["x:y=+1"])],
)
def test_patterns(text: str, parts: list[str]) -> None:
    assert split_pattern(text) == parts


def test_learning_rates() -> None:
    assert parse_lrs("1e-3") == (1e-3,) and parse_lrs("1e-3,3e-3") == (1e-3, 3e-3)
    grid = parse_lrs("1e-4..1e-1/7")
    assert len(grid) == 7 and grid[2] == pytest.approx(1e-3) and grid[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "text", ["", "fast", "-1", "nan", "inf", "1e-3..", "1e-4...1e-2", "1e-2..1e-3/3", "1e-3..1e-2/1", "1e-3..1e-2/x"]
)
def test_wrong_learning_rates(text: str) -> None:
    with pytest.raises(IclBenchError, match=r"got .*; try 1e-4\.\.3e-2/7"):
        parse_lrs(text)


def test_seeds() -> None:
    assert parse_seeds("3") == (3,) and parse_seeds("0,5") == (0, 5) and parse_seeds("2..4") == (2, 3, 4)


@pytest.mark.parametrize("text", ["", "-1", "a", "4..2", "1.5", "0..99999"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(IclBenchError, match="--seeds takes 0, 0,1,5 or a range"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("asoc-recall", ["linear"]), "no task is named 'asoc-recall'; did you mean 'assoc-recall'\\?"),
        (Request("copy", ["liner"]), "no architecture is named 'liner'; did you mean 'linear'\\?"),
        (Request("copy", ["power:p=0"]), "power: p: must be at least 1; got 0"),
        (
            Request("copy:symbols=true", ["linear"]),
            "copy: symbols: must not be true or false; got true; change symbols",
        ),
        (Request("copy", ["power:p=false"]), "power: p: must not be true or false; got false"),
        (Request("copy", ["power:p=7"]), "power: p: must be at most 6; got 7"),
        (
            Request("copy", ["power:p=3,normalizer=sum"]),
            "normalizer=sum needs an even p, .*; got p=3; use normalizer=rms",
        ),
        (Request("copy", ["linear:normalizer=sum"]), "normalizer=sum needs a non-negative feature map"),
        (Request("copy", ["power:q=1"]), "power has no parameter 'q'; .*it has heads"),
        (Request("copy", ["window:w=0"]), "window: w: must be at least 1; got 0"),
        (Request("copy", ["power:heads=4,kv_heads=3"]), "heads must be a multiple of kv_heads = 3; got 4"),
        (Request("copy", ["softmax:rope=true,d_key=3"]), "rope needs an even d_key; got 3"),
        (
            Request("copy", ["power:heads=100"]),
            "heads must be at most the model width 64; got 100; set d_key and d_value",
        ),
        (Request("copy", ["linear"], preset="fast"), "no preset is named 'fast'; .*known: default, quick, zoology"),
        (
            Request("copy", ["linear"], precision="int8"),
            "run: precision: must be 'float32', 'bfloat16' or 'float16'; got 'int8'",
        ),
        (
            Request("copy", ["linear"], settings=["train.stps=3"]),
            "--set has no field 'train.stps'; did you mean 'train.steps'",
        ),
        (
            Request("copy", ["linear"], settings=["steps"]),
            "--set takes field=value or section.field=value; got 'steps'",
        ),
        (
            Request("copy", ["linear"], settings=["train.steps=0"]),
            "run: train.steps: must be at least",
        ),
        (Request("copy", ["nowhere.mod:Layer"]), "module 'nowhere.mod' cannot be imported"),
    ],
)
def test_wrong_requests_are_one_line(request_: Request, message: str) -> None:
    with pytest.raises(IclBenchError, match=message) as caught:
        expand_request(request_)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "label"),
    [
        ("power", "power:p=2"),
        ("power:p=3", "power:p=3"),
        ("power:heads=2", "power:p=2,heads=2"),
        ("linear:heads=4", "linear"),
    ],
)
def test_labels_say_what_was_typed_beyond_the_defaults(arch: str, label: str) -> None:
    assert expand_request(Request("copy", [arch]))[0].arch_label == label


def test_a_pattern_longer_than_the_model_is_refused() -> None:
    with pytest.raises(
        IclBenchError, match=r"at most as many parts as there are layers, 2; got 3 in softmax\+linear\+window"
    ):
        expand_request(Request("copy", ["softmax+linear+window"]))


def test_a_task_that_asks_for_a_number_of_examples_decides_the_steps() -> None:
    """1,000 entities, 100 times each, 5 to an example and 64 examples to a step."""
    task = "memorization:exposures=100,keys=1000"
    assert [run.train.steps for run in expand_request(Request(task, ["linear"], preset="quick"))] == [313]
    with pytest.raises(IclBenchError, match=r"train\.steps follows from .*, 313 steps; got train\.steps=9; leave it"):
        expand_request(Request(task, ["linear"], settings=["train.steps=9"]))


def test_a_label_has_no_later_parameter_at_its_default() -> None:
    """Its component leaves the parameter out, and a record is refused whose label has what its specification lacks."""
    assert task_component("assoc-recall:dilute=0,pairs=4").label == "assoc-recall:pairs=4"
    assert task_component("assoc-recall:dilute=1,pairs=4").label == "assoc-recall:dilute=1,pairs=4"
