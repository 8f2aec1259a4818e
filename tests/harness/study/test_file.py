"""Study files: parsed once, safely, into numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_bench.errors import IclBenchError, SpecError, UnknownNameError
from icl_bench.harness.study.file import Study, load_study, packaged_studies, parse_study

BASE = "name: x\nquestion: y\ntasks: [copy]\narchs: [linear]\n"


def test_text_is_parsed_into_numbers() -> None:
    study = parse_study(BASE + "lr: 1e-3..1e-1/3\ntune_seeds: 5,6\nseeds: 0..2\nsizes: [512, 16k, 64KiB]", "s.yaml")
    assert study.lr == (1e-3, 1e-2, 0.1) and study.tune_seeds == (5, 6) and study.seeds == (0, 1, 2)
    assert study.sizes == (512, 16_000, 16_384)


def test_numbers_are_taken_as_they_are() -> None:
    fields = {"lr": (1e-3, 3e-3), "seeds": (3,), "sizes": (512,)}
    study = Study(name="x", question="y", tasks=("copy",), archs=("linear",), **fields)
    assert (study.lr, study.seeds, study.sizes) == tuple(fields.values())
    assert study.tune_seeds == (1000, 1001, 1002) and Study.model_validate(study.model_dump()) == study


def test_axes_combine_in_order_and_seeds_for_bimodal_outcomes_follow_the_last() -> None:
    axes = "axes: {model.d_model: [16, 32], train.optimiser: [adamw, muon]}\n"
    study = parse_study(BASE + axes + "seeds: 0..2\ntune_seeds: 3,5,6\nbimodal_seeds: 5", "s.yaml")
    first = [("model.d_model=16", "train.optimiser=adamw"), ("model.d_model=16", "train.optimiser=muon")]
    assert study.combinations[:2] == first and len(study.combinations) == 4
    assert study.more_seeds == (4, 7) and parse_study(BASE + "protocol: 1", "s.yaml").more_seeds == ()


@pytest.mark.parametrize(
    ("natural", "typed"),
    [
        ("seeds: 0", 'seeds: "0"'),
        ("seeds: [0, 1]", "seeds: 0,1"),
        ("tune_seeds: [7, 9]", "tune_seeds: 7,9"),
        ("lr: 0.001", "lr: 1e-3"),
        ("lr: [1e-3, 0.01]", "lr: 1e-3,1e-2"),
        ("sizes: 16384", "sizes: [16384]"),
        ("sizes: 64KiB", "sizes: [64KiB]"),
        ("ladder: 2", "ladder: [2]"),
        ("hypotheses: It does.", "hypotheses: [It does.]"),
        ("axes: {model.d_model: 32}", "axes: {model.d_model: [32]}"),
        ("settings: train.steps=1", "settings: [train.steps=1]"),
        (
            "settings: {train: {steps: 1, clip: null}, data_seed: 3}",
            "settings: [train.steps=1, train.clip=none, data_seed=3]",
        ),
    ],
)
def test_natural_forms_are_read_as_the_typed_ones(natural: str, typed: str) -> None:
    assert parse_study(BASE + natural, "s.yaml") == parse_study(BASE + typed, "s.yaml")


@pytest.mark.parametrize(
    ("tasks", "typed"),
    [
        ("copy", ["copy"]),
        ("{copy: {symbols: [8, 16], distinct_symbols: true}}", ["copy:symbols=[8|16],distinct_symbols=true"]),
        ('[copy, k-hop: {hops: 2}, "copy:symbols=4/8"]', ["copy", "k-hop:hops=2", "copy:symbols=4/8"]),
        ("{copy: , k-hop: {}}", ["copy", "k-hop"]),
    ],
)
def test_tasks_are_specs_or_mappings(tasks: str, typed: list[str]) -> None:
    assert parse_study(BASE.replace("[copy]", tasks), "s.yaml").tasks == tuple(typed)


def test_every_packaged_study_can_be_read() -> None:
    assert all(load_study(name).name == name for name in packaged_studies())


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("lr: fast", "--lr takes positive rates .*; got 'fast'"),
        ("lr: 1e-2..1e-3", "a grid of learning rates rises"),
        ("seeds: 4..2", "--seeds takes 0, 0,1,5 or a range"),
        ("tune_seeds: x", "--seeds takes 0, 0,1,5 or a range"),
        ("sizes: [64KB]", "a state is elements, .*; got '64KB'"),
        ("seeds: true", "s.yaml, line 5: --seeds takes 0, 0,1,5 or a range 0..4, .*; got 'True'"),
        ("lr: [0.1, fast]", "s.yaml, line 5: --lr takes positive rates .*; got '0.1,fast'"),
        ("\nprotocol: 3", "s.yaml, line 6: protocol: must be 1 or 2; got 3; change protocol and try again"),
        (
            "published:\n- {label: a, source: b, bytes: 1, accuracy: 1}\n- {label: a, source: b,\n   bytes: 0}",
            "s.yaml, line 8: published.1.bytes: must be at least 1; got 0",
        ),
        ("published: [{label: a}]", "s.yaml, line 5 needs 'published.0.bytes', which is missing"),
        ("settings: [{train: 1}]", "s.yaml, line 5: settings: must be text; got {'train': 1}"),
        ("seeds: 999..1000", "seeds that measure have no part in choosing a rate; got 1000 in both; change seeds"),
        ("ladder: [4, 1]", r"a ladder rises; got \[4, 1\]; write it as"),
        ("axes: {model.d_modl: [16]}", "--set has no field 'model.d_modl'; did you mean 'model.d_model'"),
        (
            "axes: {train.lr: [1.0]}",
            "an axis is no field that the study varies itself; got train.lr; use lr: or ladder:",
        ),
        ("ladder: [1, 4]\naxes: {train.steps: [8]}", "got train.steps; use lr: or ladder:"),
        ("axes: {model.d_model: []}", "at least 1 value"),
    ],
)
def test_wrong_grids_seeds_and_sizes_are_named(field: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_study(BASE + field, "s.yaml")


def test_no_part_of_a_file_names_code() -> None:
    published = "published: [{label: a, bytes: 1, accuracy: 1, source: b, arch: 'os.path:Join'}]"
    for text in (BASE.replace("linear", "'linear+os.path:Join'"), BASE + published):
        with pytest.raises(SpecError, match=r"a study file runs no code of its own; s\.yaml names 'os.path:Join'"):
            parse_study(text, "s.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b", "'name' is given twice"),
        ("a: &x 1\nb: *x", "aliases are not allowed"),
        ("!!python/object/apply:os.system [ls]", "tags are not allowed"),
        ("[1, 2]", "a study is a YAML mapping; s.yaml is not"),
        ("1: x", "a study is a YAML mapping"),
        ("a: [", "a study is plain YAML without tags or aliases; s.yaml, line 1: expected the node content"),
        ("a: 1\n  b: [c", "s.yaml, line 2: mapping values are not allowed here; correct the file"),
        ("name: x\nquestion: y\ntasks: [copy]\narchs: []", "s.yaml, line 4: archs: must have at least 1 value"),
        (
            "name: x\nquestion: y\narchs: [linear]",
            "s.yaml, line 1 needs 'tasks', which is missing; it must have name, ",
        ),
        ("name: x\nquestion: y\ntasks:\n- copy\n- copi\narchs: linear", "s.yaml, line 5: no task is named 'copi'; did"),
        ("name: x\nquestion: y\ntasks: copy\narchs: [linear+powr]", "s.yaml, line 4: no architecture is named 'powr'"),
        (
            "name: x\nquestion: y\ntasks: [copy:alphabet=8,symbols=4]\narchs: linear",
            "s.yaml, line 3: a comma ends an item of a YAML list; got 'symbols=4' alone; put the whole spec into",
        ),
        (
            "name: x\nquestion: y\ntasks: copy\narchs: {power: 2}",
            "s.yaml, line 4: parameters are a mapping, power: {key: value}; got 2; write it so",
        ),
        (
            "name: x\nquestion: y\ntask: [copy]\narchs: [linear]",
            "s.yaml has no parameter 'task'; did you mean 'tasks'\\?|tasks",
        ),
        ("x: " + "y" * 70_000, "a study file has at most 65536 bytes"),
    ],
)
def test_wrong_study_files_are_one_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_study(text, "s.yaml")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_study_or_an_error(text: str) -> None:
    try:
        parse_study(text, "s.yaml")
    except IclBenchError as error:
        assert "\n" not in str(error)


def test_unknown_studies(tmp_path) -> None:
    with pytest.raises(UnknownNameError, match=r"no study is named 'power-vs-windw'; did you mean 'power-vs-window'"):
        load_study("power-vs-windw")
    with pytest.raises(SpecError, match=r"a study is a YAML file that can be read; .*none.yaml"):
        load_study(str(tmp_path / "none.yaml"))
