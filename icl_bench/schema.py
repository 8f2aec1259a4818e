"""Frozen records, the spec grammar, canonical JSON and its hash.

A spec is ``name`` or ``name:key=value,key=value``. A value is an integer, a float, ``true``, ``false``, ``none``,
a word, a double-quoted string, or a list ``[a|b|c]`` of these. A layer from outside the package is written
``package.module:Class``, with its parameters after a second colon; the class of a module without a dot begins with a
capital letter.

>>> parse_spec("power:p=2,gate=true")
Spec(name='power', params={'p': 2, 'gate': True})
>>> str(Spec("assoc-recall", {"pairs": (4, 8), "variant": "zoology"}))
'assoc-recall:pairs=[4|8],variant=zoology'
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from icl_bench.errors import SpecError

Scalar = bool | int | float | str | None
Value = Scalar | tuple[Scalar, ...]

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
DOTTED = re.compile(r"((?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*:[A-Za-z_]\w*|[A-Za-z_]\w*:[A-Z]\w*)(?::(.*))?", re.DOTALL)
KEY = re.compile(r"[a-z][a-z0-9_]*")
WORD = re.compile(r"[A-Za-z_][\w.\-]*")
ITEM = re.compile(r'(?:"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[^,])+')
LIST_ITEM = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^|])+')
INTEGER = re.compile(r"[+-]?\d+")
FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
CONSTANTS: Mapping[str, Scalar] = {"true": True, "false": False, "none": None}
READS_NONE = BeforeValidator(lambda value: "none" if value is None else value)
"""Mark of a type with the word `none`, which the grammar reads as None."""


class Frozen(BaseModel):
    """The base of every configuration and record: immutable, without unknown keys, infinities or NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )


FrozenT = TypeVar("FrozenT", bound=Frozen)


class Spec(NamedTuple):
    """A name and its parameters; `str` writes them in the grammar of specs."""

    name: str
    params: Mapping[str, Value]

    def __str__(self) -> str:
        if not self.params:
            return self.name
        return self.name + ":" + ",".join(f"{key}={format_value(value)}" for key, value in self.params.items())


def parse_spec(text: str) -> Spec:
    """Parse `name` or `package.module:Class`, with or without `:key=value,...`; raise SpecError for other text."""
    dotted = DOTTED.fullmatch(text)
    if dotted:
        return Spec(dotted[1], parse_params(dotted[2], text) if dotted[2] is not None else {})
    name, colon, rest = text.partition(":")
    if not NAME.fullmatch(name):
        raise SpecError(
            f"a name is lower-case letters, digits and hyphens; got {name!r} in {text!r}; write name or name:key=value"
        )
    return Spec(name, parse_params(rest, text) if colon else {})


def parse_params(text: str, whole: str) -> dict[str, Value]:
    """Parse `k=v,k=v`; raise SpecError, which quotes `whole`, for text outside the grammar or a key given twice."""
    params: dict[str, Value] = {}
    items = ITEM.findall(text)
    if ",".join(items) != text:
        raise SpecError(f"single commas separate parameters; got {text!r} in {whole!r}; write name:key=value,key=value")
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not KEY.fullmatch(key):
            raise SpecError(f"a parameter is key=value; got {item!r} in {whole!r}; write name:key=value,key=value")
        if key in params:
            raise SpecError(f"a parameter is given once; got {key!r} twice in {whole!r}; leave one of them out")
        params[key] = parse_value(value, whole)
    if not params:
        raise SpecError(f"parameters follow the colon; got none in {whole!r}; write name:key=value or drop the colon")
    return params


def parse_value(text: str, whole: str) -> Value:
    """Parse one value: a scalar or a list `[a|b]`."""
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1]
        return tuple(parse_scalar(item, whole) for item in LIST_ITEM.findall(inner)) if inner else ()
    return parse_scalar(text, whole)


def parse_scalar(text: str, whole: str) -> Scalar:
    """Parse one scalar; `1` is an integer and `1.0` a float until a field converts them."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if WORD.fullmatch(text):
        return text
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            pass
    raise SpecError(
        f'a value is a number, a word, true, false, none, "text" or [a|b]; got {text!r} in {whole!r}; quote it'
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


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"did you mean 'x'? "` for the most similar known name; an empty string if no name is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {matches[0]!r}? " if matches else ""


def build(model: type[FrozenT], params: Mapping[str, Any], owner: str) -> FrozenT:
    """Build a record; raise SpecError with a message of one line if a parameter is wrong."""
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        raise SpecError(describe_error(error, model, owner)) from None


def describe_error(error: ValidationError, model: type[Frozen], owner: str) -> str:
    """Return the first problem of a validation error on one line: rule, value, way out."""
    first = error.errors(include_url=False)[0]
    fields = list(model.model_fields)
    where = ".".join(str(key) for key in first["loc"] if not str(key).startswith(("function-", "tuple", "constrained")))
    if first["type"] == "extra_forbidden":
        return f"{owner} has no parameter {where!r}; {nearest(where, fields)}it has {', '.join(fields)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{owner}: {message}"
    rule = message[0].lower() + message[1:]
    return f"{owner}: {where}: {rule}; got {first['input']!r}; change {where} and try again"


def canonical_json(data: Any) -> str:
    """Return JSON with sorted keys and no white space, so that equal data give equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_hash(data: Any, domain: str) -> str:
    """Return the SHA-256 of the canonical JSON, 64 hexadecimal digits; `domain` separates kinds of content."""
    return hashlib.sha256(f"{domain}\0{canonical_json(data)}".encode()).hexdigest()
