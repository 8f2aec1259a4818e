"""Names of entries: labels that tell entries apart, their families, and a natural order of names with numbers."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from icl_bench.runs.declarations import ArchitectureDeclaration
from icl_bench.runs.outline import Outline, Setting
from icl_bench.runs.spec import FORMER_VALUES
from icl_bench.schema import format_value

LABELLED_FIELDS = ("seed.", "data_seed.", "arch.", "train.lr.")
"""Fields of a specification that need no place in a label: runs of an entry differ in them, or the label begins with
them. Each ends with a dot, like a path that continues."""
WIDTH_FIELD = "model.d_model"
"""The field outside of architectures that sets the size of a model."""


@lru_cache(maxsize=4096)
def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key under which numbers in a name are ordered as numbers."""
    parts = re.split(r"(\d+)", text)
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)


def split_entries(settings: Sequence[Sequence[Outline]]) -> dict[tuple[str, str], list[Outline]]:
    """Group runs, given by setting, by the label and the family of their entry.

    Labels of runs that differ in anything but seed and rate name the fields that differ.
    """
    names = name_settings([runs[0].setting for runs in settings])
    entries: dict[tuple[str, str], list[Outline]] = defaultdict(list)
    for name, runs in zip(names, settings, strict=True):
        entries[name] += runs
    return entries


def name_settings(settings: Sequence[Setting]) -> list[tuple[str, str]]:
    """Return the label and the family of the entry of each setting."""
    flat = [{**FORMER_VALUES, **flatten(setting.spec)} for setting in settings]
    differing = [key for key in varying(flat) if not f"{key}.".startswith(LABELLED_FIELDS)]
    common = common_items(settings)
    archs = ["+".join(map(without, one.arch.split("+"), common)) if common else one.arch for one in settings]
    labels: dict[str, list[int]] = defaultdict(list)
    for i, arch in enumerate(archs):
        labels[suffixed(arch, flat[i], differing)].append(i)
    names = [("", "")] * len(settings)
    for label, members in labels.items():
        inside = varying([{key: flat[i][key] for key in flat[i] if key.startswith("arch.")} for i in members])
        for i in members:
            family = family_of(archs[i], settings[i].declarations)
            family = suffixed(family, flat[i], [key for key in differing if key != WIDTH_FIELD])
            names[i] = suffixed(label, flat[i], inside), family
    return names


def common_items(settings: Sequence[Setting]) -> list[set[str]]:
    """Return the labelled parameters that are equal in all architectures, typed or not, by place in the pattern.

    Parameters that an architecture always shows stay out. The list is empty where there is one architecture, or where
    patterns differ in length.
    """
    by_arch = {setting.arch: setting for setting in settings}
    places = {(len(label.split("+")), len(setting.spec["arch"])) for label, setting in by_arch.items()}
    if len(by_arch) < 2 or len(places) > 1 or any(parts != components for parts, components in places):
        return []
    patterns = [[set(split_label(part)[1]) for part in label.split("+")] for label in by_arch]
    params = [[part["params"].items() for part in one.spec["arch"]] for one in by_arch.values()]
    full = [[{f"{key}={format_value(value)}" for key, value in part} for part in parts] for parts in params]
    shown = [[set(part.shown) for part in one.declarations] for one in by_arch.values()]
    common = []
    for place in zip(*map(zip, patterns, full, shown), strict=True):
        named, given, always = zip(*place, strict=True)
        found = set.union(*named) & set.intersection(*given)
        common.append({item for item in found if item.partition("=")[0] not in set.union(*always)})
    return common


def without(part: str, items: Collection[str]) -> str:
    """Return the label of a component without these parameters."""
    name, params = split_label(part)
    kept = [item for item in params if item not in items]
    return name + (":" + ",".join(kept) if kept else "")


def split_label(part: str) -> tuple[str, list[str]]:
    """Split the label of a component into name and parameters; a label that is no spec is all name."""
    name, colon, params = part.rpartition(":") if "=" in part else (part, "", "")
    return (name, params.split(",")) if colon else (part, [])


def suffixed(label: str, flat: Mapping[str, str], keys: Sequence[str]) -> str:
    """Append the given fields to a label."""
    return ", ".join([label, *(f"{key.rpartition('.')[2]}={flat.get(key, 'none')}" for key in keys)])


def shared_settings(labels: Sequence[str]) -> tuple[str, ...]:
    """Return what all of several labels have behind the architecture.

    >>> shared_settings(["linear, layers=2, steps=500", "softmax, layers=4, steps=500"])
    ('steps=500',)
    """
    settings = [label.split(", ")[1:] for label in labels]
    return tuple(one for one in settings[0] if all(one in of for of in settings)) if len(settings) > 1 else ()


def without_settings(label: str, settings: Collection[str]) -> str:
    """Return a label without these settings."""
    return ", ".join(part for part in label.split(", ") if part not in settings)


def in_sentence(label: str) -> str:
    """Return a label with its settings in brackets, so that commas around it list labels.

    >>> in_sentence("linear, layers=2, steps=500")
    'linear (layers=2, steps=500)'
    """
    arch, _, settings = label.partition(", ")
    return f"{arch} ({settings})" if settings else arch


def family_of(arch: str, declarations: Sequence[ArchitectureDeclaration]) -> str:
    """Return the label of an architecture without the parameters that set its size.

    >>> declared = [ArchitectureDeclaration(name="power", size_parameters=("d_key",))]
    >>> family_of("power:p=2,d_key=8", declared)
    'power:p=2'
    """
    parts = arch.split("+")
    if len(parts) != len(declarations):
        return arch
    return "+".join(
        without(part, [one for one in split_label(part)[1] if one.partition("=")[0] in declared.size_parameters])
        for part, declared in zip(parts, declarations, strict=True)
    )


def flatten(plain: Any, prefix: str = "") -> dict[str, str]:
    """Return the leaves of nested data by dotted path, as JSON."""
    if isinstance(plain, Mapping):
        pairs = [(str(key), value) for key, value in plain.items()]
    elif prefix == "arch" and isinstance(plain, list | tuple):
        pairs = [(str(i), value) for i, value in enumerate(plain)]
    else:
        return {prefix: plain if isinstance(plain, str) else json.dumps(plain)}
    inside = [flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in pairs]
    return {path: leaf for part in inside for path, leaf in part.items()}


def varying(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys that do not have the same value in every row."""
    keys = sorted({key for row in rows for key in row})
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]
