"""The spec grammar, canonical JSON, and the messages on wrong specs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from icl_bench.errors import IclBenchError, SpecError
from icl_bench.schema import Frozen, Spec, build, canonical_json, content_hash, field_descriptions, parse_spec

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_characters=',|[]"\\\\=', exclude_categories=["Cs", "Cc"]), max_size=8)
SCALARS = st.one_of(st.booleans(), st.none(), st.integers(-(10**9), 10**9), FLOATS, TEXTS)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=4).map(tuple))


class Knobs(Frozen):
    """A record of two fields."""

    pairs: int = Field(default=1, ge=1)
    """Pairs."""
    rate: float = 0.5
    """Rate."""


@given(NAMES, st.dictionaries(KEYS, VALUES, max_size=4))
def test_specs_are_read_back_as_written(name: str, params: dict) -> None:
    spec = parse_spec(str(Spec(name, params)))
    assert spec == Spec(name, params)
    assert [type(value) for value in spec.params.values()] == [type(value) for value in params.values()]


@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_a_one_line_error(text: str) -> None:
    try:
        parse_spec(text)
    except IclBenchError as error:
        assert "\n" not in str(error)


@given(st.dictionaries(KEYS, SCALARS, max_size=5))
def test_hash_does_not_depend_on_order(data: dict) -> None:
    assert content_hash(data, "x") == content_hash(dict(reversed(data.items())), "x") != content_hash(data, "y")


def test_infinities_are_not_json() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json({"loss": math.inf})


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("linear", "linear", {}),
        ("power:p=2,gate=true,lr=1e-3", "power", {"p": 2, "gate": True, "lr": 1e-3}),
        ("copy:lengths=[8|16],mark=none", "copy", {"lengths": (8, 16), "mark": None}),
        ('copy:text="a,b=c"', "copy", {"text": "a,b=c"}),
        ("copy:lengths=8/16,mark=2", "copy", {"lengths": (8, 16), "mark": 2}),
        ('copy:names="a/b"/c', "copy", {"names": ("a/b", "c")}),
        ("my.module:Layer", "my.module:Layer", {}),
        ("my_module:Layer:width=3", "my_module:Layer", {"width": 3}),
    ],
)
def test_grammar(text: str, name: str, params: dict) -> None:
    assert parse_spec(text) == Spec(name, params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Power", "a name is lower-case letters, digits and hyphens; got 'Power'"),
        ("", "a name is lower-case letters, digits and hyphens; got ''"),
        ("../etc", "a name is lower-case letters, digits and hyphens; got '../etc'"),
        ("power:p", "a parameter is key=value; got 'p' in 'power:p'; write name:key=value,key=value"),
        ("power:", "parameters follow the colon; got none|a parameter is key=value"),
        ("power:p=2,", "single commas separate parameters; got 'p=2,' in 'power:p=2,'"),
        ("power:p=2,p=3", "a parameter is given once; got 'p' twice"),
        ("power:p=", "a parameter is written|a value is a number"),
        ("power:p=" + "9" * 5000, r"got '9{59}\.\.\. in 'power:p=9{51}\.\.\.; put other text into double quotes"),
        ("power:p=2..3", "a value is a number, a word, true, false, none"),
        ("power:p=inf nan", "a value is a number"),
    ],
)
def test_wrong_specs(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(text)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pairs": 0}, "knobs: pairs: must be at least 1; got 0; change pairs and try again"),
        ({"pears": 3}, "knobs has no parameter 'pears'; did you mean 'pairs'\\? it has pairs, rate"),
        (
            {"pairs": 1, "rate": "x" * 90},
            "knobs: rate: must be a number; got 'x{59}\\.\\.\\.; change rate and try again",
        ),
        ({"rate": math.nan}, "knobs: rate: must be a finite number; got nan"),
        ({"pairs": "many"}, "knobs: pairs: must be a whole number; got 'many'"),
    ],
)
def test_wrong_parameters(params: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build(Knobs, params, "knobs")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("my_layers:make:scale=2", "my_layers:make"),
        ("__main__:make", "__main__:make"),
        ("Mine:make", "Mine:make"),
        ("mine:Make:scale=2", "mine:Make"),
        ("a.b:make", "a.b:make"),
    ],
)
def test_names_of_layers_from_outside(text: str, name: str) -> None:
    assert parse_spec(text).name == name


@pytest.mark.parametrize("text", ["power:p", "mine:make", "mine:make:scale=2"])
def test_lower_case_words_after_a_name_are_parameters(text: str) -> None:
    with pytest.raises(SpecError, match="a parameter is key=value"):
        parse_spec(text)


class MoreKnobs(Knobs):
    """A record with an inherited field that says more."""

    rate: float = 0.25
    """Rate,
    on two lines."""
    bare: int = 0


def test_descriptions_of_fields_are_the_docstrings_below_them() -> None:
    assert field_descriptions(MoreKnobs) == {"pairs": "Pairs.", "rate": "Rate,\non two lines."}
    namespace = {"Frozen": Frozen, "__name__": "typed"}
    exec("class Typed(Frozen):\n    pairs: int = 1\n    'Pairs.'\n", namespace)
    assert field_descriptions(namespace["Typed"]) == {}
