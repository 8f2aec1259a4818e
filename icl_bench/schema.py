"""Frozen records, the spec grammar, canonical JSON and its hash.

A spec is ``name`` or ``name:key=value,key=value``. A value is an integer, a float, ``true``, ``false``, ``none``,
a word, a double-quoted string, or a list of these, ``a/b/c`` or ``[a|b|c]``; the second form is the one
written. A task may be `name@1`, a version of its data. A layer from outside the package is written
``package.module:Class``, with its parameters after a second colon; in a module whose name is lower-case letters alone,
the class begins with a capital letter.

>>> parse_spec("power:p=2,gate=true")
Spec(name='power', params={'p': 2, 'gate': True}, version=None)
>>> str(parse_spec("assoc-recall:pairs=4/8,variant=zoology"))
'assoc-recall:pairs=[4|8],variant=zoology'
"""

import ast
import difflib
import functools
import hashlib
import inspect
import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from icl_bench.errors import SpecError

Scalar = bool | int | float | str | None
Value = Scalar | tuple[Scalar, ...]

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
DOTTED = re.compile(
    r"((?:(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*|[a-z]*[A-Z_]\w*):[A-Za-z_]\w*|[A-Za-z_]\w*:[A-Z]\w*)(?::(.*))?", re.DOTALL
)
VERSION = re.compile(r"[1-9][0-9]{0,3}")
KEY = re.compile(r"[a-z][a-z0-9_]*")
WORD = re.compile(r"[A-Za-z_][\w.\-]*")
ITEM = re.compile(r'(?:"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[^,])+')
LIST_ITEM = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^|])+')
SLASHED_ITEM = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^/])+')
INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
FLOAT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
CONSTANTS: Mapping[str, Scalar] = {"true": True, "false": False, "none": None}
LARGEST_PARAMETER = 1 << 24
"""Largest size that a task or an architecture can have in a parameter: positions, words, channels, heads."""
LARGEST_COUNT = 2**63
LARGEST_REAL = 1e100
"""Largest real number in a record: sums and squares of such numbers are finite."""
Count = Annotated[int, Field(ge=0, lt=LARGEST_COUNT)]
"""A whole number of things in a record, 64 bits wide."""
Real = Annotated[float, Field(ge=-LARGEST_REAL, le=LARGEST_REAL)]
"""A real number in a record."""
LONGEST_NUMBER = 40
"""Most characters of a number in a spec."""
LONGEST_VALUE = 60
"""Most characters of a value in a message."""
READS_NONE = BeforeValidator(lambda value: "none" if value is None else value)
"""Mark of a type with the word `none`, which the grammar reads as None."""


class Frozen(BaseModel):
    """The base of every configuration and record: immutable, without unknown keys, infinities or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


FrozenT = TypeVar("FrozenT", bound=Frozen)


def field_descriptions(model: type[Frozen]) -> dict[str, str]:
    """Return the docstrings of the fields of a model, by field; a field without one is left out.

    Models are made at every start and described now and then: pydantic would read all of their source at the start.
    """
    found: dict[str, str] = {}
    for base in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # a class that was typed into an interpreter
            continue
        for statement in ast.parse(source).body:
            for field, docstring in pairwise(getattr(statement, "body", ())):
                match field, docstring:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        found[name] = inspect.cleandoc(text)
    return {name: text for name, text in found.items() if name in model.model_fields}


@functools.cache
def unbounded_fields(model: type[Frozen]) -> tuple[str, ...]:
    """Return the names of the fields of a model without an upper bound of their own."""
    bounded = lambda field: any(hasattr(mark, "le") or hasattr(mark, "lt") for mark in field.metadata)  # noqa: E731
    return tuple(name for name, field in model.model_fields.items() if not bounded(field))


class Parameters(Frozen):
    """The base of tasks and architectures: no parameter is above 2^24 unless its field has a bound of its own."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for name in unbounded_fields(type(self)):
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, int | float) and abs(one) > LARGEST_PARAMETER:
                    raise ValueError(
                        f"{name} must be at most {LARGEST_PARAMETER}; got {max(-1e300, min(one, 1e300)):.15g}; "
                        f"lower {name}"
                    )
        return self


def later(default: Any, gt: float | None = None, ge: float | None = None, le: float | None = None) -> Any:
    """Return a field, within its bounds, that was added when records of its task or architecture existed already.

    A component leaves it out at its default, so that the ids of those runs stay.
    """
    return Field(default=default, gt=gt, ge=ge, le=le, exclude_if=lambda value: value == default)


class Spec(NamedTuple):
    """A name and its parameters; `str` writes them in the grammar of specs."""

    name: str
    params: Mapping[str, Value]
    version: int | None = None
    """Version of the data of a task; None for the present one."""

    def __str__(self) -> str:
        name = self.name if self.version is None else f"{self.name}@{self.version}"
        if not self.params:
            return name
        return name + ":" + ",".join(f"{key}={format_value(value)}" for key, value in self.params.items())


def parse_spec(text: str, versioned: bool = False) -> Spec:
    """Parse `name` or `package.module:Class`, with or without `:key=value,...`; raise SpecError for other text.

    The name of a task is `versioned`: it may be followed by `@` and a version of its data.
    """
    dotted = DOTTED.fullmatch(text)
    if dotted:
        return Spec(dotted[1], parse_params(dotted[2], text) if dotted[2] is not None else {})
    name, colon, rest = text.partition(":")
    version = None
    if versioned and "@" in name:
        name, _, number = name.partition("@")
        if not VERSION.fullmatch(number):
            raise SpecError(
                f"a version is a number from 1 up, name@1; got {quoted(number)} in {quoted(text)}; leave it out for "
                "the present version"
            )
        version = int(number)
    if not NAME.fullmatch(name):
        likely = name.lower().replace("_", "-")
        way_out = f"did you mean {likely!r}?" if NAME.fullmatch(likely) else "write name or name:key=value"
        raise SpecError(
            f"a name is lower-case letters, digits and hyphens; got {quoted(name)} in {quoted(text)}; {way_out}"
        )
    return Spec(name, parse_params(rest, text) if colon else {}, version)


def parse_params(text: str, whole: str) -> dict[str, Value]:
    """Parse `k=v,k=v`; raise SpecError, which quotes `whole`, for text outside the grammar or a key given twice."""
    params: dict[str, Value] = {}
    items = ITEM.findall(text)
    if ",".join(items) != text:
        raise SpecError(
            f"single commas separate parameters; got {quoted(text)} in {quoted(whole)}; write name:key=value,key=value"
        )
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not KEY.fullmatch(key):
            raise SpecError(
                f"a parameter is key=value; got {quoted(item)} in {quoted(whole)}; write name:key=value,key=value"
            )
        if key in params:
            raise SpecError(
                f"a parameter is given once; got {quoted(key)} twice in {quoted(whole)}; leave one of them out"
            )
        params[key] = parse_value(value, whole)
    if not params:
        raise SpecError(
            f"parameters follow the colon; got none in {quoted(whole)}; write name:key=value or drop the colon"
        )
    return params


def parse_value(text: str, whole: str) -> Value:
    """Parse one value: a scalar, or a list `a/b` or `[a|b]`."""
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1]
        return tuple(parse_scalar(item, whole) for item in LIST_ITEM.findall(inner)) if inner else ()
    items = SLASHED_ITEM.findall(text)
    if len(items) > 1 and "/".join(items) == text:
        return tuple(parse_scalar(item, whole) for item in items)
    return parse_scalar(text, whole)


def parse_scalar(text: str, whole: str) -> Scalar:
    """Parse one scalar; `1` is an integer and `1.0` a float until a field converts them."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text) and len(text) <= LONGEST_NUMBER:
        return int(text)
    if len(text) <= LONGEST_NUMBER and FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if WORD.fullmatch(text):
        return text
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            pass
    way_out = "write a list as 4/8/16" if "," in text else "put other text into double quotes"
    raise SpecError(
        f'a value is a number, a word, true, false, none, "text" or a list a/b; got {quoted(text)} in '
        f"{quoted(whole)}; {way_out}"
    )


def format_value(value: Value) -> str:
    """Write a value in the form that `parse_value` reads."""
    if isinstance(value, tuple | list):
        return "[" + "|".join(format_value(item) for item in value) + "]"
    for text, constant in CONSTANTS.items():
        if value is constant:
            return text
    if isinstance(value, str):
        return value if WORD.fullmatch(value) and value not in CONSTANTS else json.dumps(value)
    return repr(value)


def nearest(name: str, known: Iterable[str], other_names: Mapping[str, Iterable[str]] = {}) -> str:
    """Return `"did you mean 'x'? "` for a known name; an empty string if no name is similar.

    It is the first known one that `other_names` has for the name, else the last part of a dotted name, else the most
    similar name.
    """
    names, lower = list(known), name.lower()
    same = [own for key in (lower, lower.replace("_", "-")) for own in other_names.get(key, ()) if own in names]
    parts = [own for own in names if own.rpartition(".")[2] == lower]
    matches = same or parts or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {matches[0]!r}? " if matches else ""


def build(model: type[FrozenT], params: Mapping[str, Any], owner: str) -> FrozenT:
    """Build a record; raise SpecError with a message of one line if a parameter is wrong."""
    for name, value in params.items():
        field = model.model_fields.get(name)
        wrong = isinstance(value, bool) or (isinstance(value, tuple) and any(isinstance(one, bool) for one in value))
        if field is not None and wrong and "bool" not in str(field.annotation):  # which pydantic would read as 1 or 0
            shown = format_value(value)
            raise SpecError(f"{owner}: {name}: must not be true or false; got {shown}; change {name} and try again")
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        raise SpecError(describe_error(error, model, owner)) from None


PARAMETERS_ELSEWHERE: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("num_heads", "n_heads", "n_head", "nheads", "num_attention_heads"), ("heads",)),
    **dict.fromkeys(("num_kv_heads", "n_kv_heads", "num_key_value_heads"), ("kv_heads",)),
    **dict.fromkeys(("d_state", "state_size", "state_dim", "feature_dim", "expand_k"), ("d_state", "d_key")),
    **dict.fromkeys(("head_dim", "d_head", "headdim", "key_dim", "head_k_dim"), ("d_head", "d_key")),
    **dict.fromkeys(("value_dim", "head_v_dim", "expand_v"), ("d_value",)),
    **dict.fromkeys(("d_conv", "conv_size", "kernel_size", "short_conv"), ("conv",)),
    **dict.fromkeys(("window", "window_size", "block_size", "sliding_window"), ("w",)),
    **dict.fromkeys(("degree", "deg", "power", "order"), ("p",)),
    **dict.fromkeys(("num_slots", "n_slots", "m"), ("slots",)),
    **dict.fromkeys(("num_kv_pairs", "num_pairs", "n_pairs", "kv_pairs", "num_key_values"), ("pairs", "keys")),
    **dict.fromkeys(("vocab_size", "num_tokens"), ("vocab", "alphabet", "keys")),
    **dict.fromkeys(("seq_len", "seqlen", "input_seq_len", "sequence_length", "context", "t"), ("length", "symbols")),
}
"""Names that other packages give to parameters, each with ours in the order of likelihood."""
RULES: Mapping[str, str] = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} value",
    "mapping_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of names to values",
}
"""Rules in plain words, by the type of a validation error; braces name values of its context."""


def describe_error(error: ValidationError, model: type[Frozen], owner: str) -> str:
    """Return the first problem of a validation error on one line: rule, value, way out."""
    first = error.errors(include_url=False)[0]
    fields, where = list(model.model_fields), field_path(first["loc"])
    if first["type"] == "extra_forbidden":
        hint = nearest(where, fields, PARAMETERS_ELSEWHERE)
        return f"{owner} has no parameter {where!r}; {hint}it has {', '.join(fields)}"
    if first["type"] == "missing":
        needed = [name for name, field in model.model_fields.items() if field.is_required()]
        return f"{owner} needs {where!r}, which is missing; it must have {', '.join(needed)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{owner}: {message}"
    rule = RULES.get(first["type"], message[0].lower() + message[1:]).format(**first.get("ctx", {}))
    return f"{owner}: {where}: {rule}; got {quoted(first['input'])}; change {where} and try again"


def field_path(path: Iterable[int | str]) -> str:
    """Return the path of a field, `published.0.bytes`; the index of an item of a list that ends it is left out."""
    names = [key for key in path if not str(key).startswith(("function-", "tuple", "constrained"))]
    if len(names) > 1 and isinstance(names[-1], int):
        names.pop()
    return ".".join(map(str, names))


def quoted(value: object) -> str:
    """Return a value as Python writes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


def canonical_json(data: Any) -> str:
    """Return JSON with sorted keys and no white space, so that equal data give equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_hash(data: Any, domain: str) -> str:
    """Return the SHA-256 of the canonical JSON, 64 hexadecimal digits; `domain` separates kinds of content."""
    return hashlib.sha256(f"{domain}\0{canonical_json(data)}".encode()).hexdigest()
