"""Names of entries: what tells runs apart, the family of an architecture, and the order of names with numbers."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from icl_bench.runs.outline import Outline, Setting
from icl_bench.schema import format_value

SIZE_KNOBS = frozenset({"w", "heads", "kv_heads", "d_key", "d_value", "d_model"})
"""Parameters that set how large an architecture is, not which it is: a family differs in these alone."""
KEPT = frozenset({"p", "w"})
"""Parameters that a label names even where all share them: they say which architecture it is."""
OWN_FIELDS = ("seed", "data_seed", "arch", "train.lr")
"""Fields of a specification by which the runs of one entry may differ, and its architecture, which its label names."""


@lru_cache(maxsize=4096)
def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorting key under which numbers in a name count as numbers."""
    parts = re.split(r"(\d+)", text)
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)


def split_entries(settings: Sequence[Sequence[Outline]]) -> dict[tuple[str, str], list[Outline]]:
    """Runs by the label and the family of their entry, from those of each setting.

    Runs of one label that differ in anything but seed and rate are told apart by what differs.
    """
    names = name_settings([runs[0].setting for runs in settings])
    entries: dict[tuple[str, str], list[Outline]] = defaultdict(list)
    for name, runs in zip(names, settings, strict=True):
        entries[name] += runs
    return entries


def name_settings(settings: Sequence[Setting]) -> list[tuple[str, str]]:
    """Label and family of the entry of each setting."""
    flat = [flatten(setting.spec) for setting in settings]
    shared = varying([{key: value for key, value in one.items() if not is_own(key)} for one in flat])
    archs = shortened(settings)
    labels: dict[str, list[int]] = defaultdict(list)
    for i, arch in enumerate(archs):
        labels[suffixed(arch, flat[i], shared)].append(i)
    names = [("", "")] * len(settings)
    for label, members in labels.items():
        inside = varying([{key: flat[i][key] for key in flat[i] if key.startswith("arch.")} for i in members])
        for i in members:
            family = suffixed(family_of(archs[i]), flat[i], [key for key in shared if not is_size(key)])
            names[i] = suffixed(label, flat[i], inside), family
    return names


def common_items(settings: Sequence[Setting]) -> list[set[str]]:
    """Parameters in labels that all architectures share, typed or not, by their place in a pattern.

    None where there is one architecture, or patterns differ in length.
    """
    archs = {setting.arch: setting.spec["arch"] for setting in settings}
    places = {(len(label.split("+")), len(components)) for label, components in archs.items()}
    if len(archs) < 2 or len(places) > 1 or any(parts != components for parts, components in places):
        return []
    patterns = [[set(split_label(part)[1]) for part in label.split("+")] for label in archs]
    full = [[items_of(component["params"]) for component in components] for components in archs.values()]
    named = (set.union(*column) for column in zip(*patterns, strict=True))
    shared = (set.intersection(*column) for column in zip(*full, strict=True))
    return [{item for item in both if item.partition("=")[0] not in KEPT} for both in map(set.__and__, named, shared)]


def items_of(params: Mapping[str, Any]) -> set[str]:
    """Parameters as labels write them."""
    return {f"{key}={format_value(value)}" for key, value in params.items()}


def shortened(settings: Sequence[Setting]) -> list[str]:
    """Labels without the parameters that all of them share."""
    common = common_items(settings)
    labels = [setting.arch for setting in settings]
    return ["+".join(map(without, label.split("+"), common)) if common else label for label in labels]


def without(part: str, items: Collection[str]) -> str:
    """A label without these parameters."""
    name, params = split_label(part)
    kept = [item for item in params if item not in items]
    return name + (":" + ",".join(kept) if kept else "")


def split_label(part: str) -> tuple[str, list[str]]:
    """Name and parameters of one architecture; a label that is no spec is all name."""
    name, colon, params = part.rpartition(":") if "=" in part else (part, "", "")
    return (name, params.split(",")) if colon else (part, [])


def suffixed(label: str, flat: Mapping[str, str], keys: Sequence[str]) -> str:
    """A label followed by the given fields."""
    return ", ".join([label, *(f"{key.rpartition('.')[2]}={flat.get(key, 'none')}" for key in keys)])


def family_of(arch: str) -> str:
    """A label without the parameters that set the size; a label that is no spec stays as it is.

    >>> family_of("power:p=2,d_key=8+window:w=16")
    'power:p=2+window'
    """
    sizes = [[item for item in split_label(part)[1] if is_size(item.partition("=")[0])] for part in arch.split("+")]
    return "+".join(map(without, arch.split("+"), sizes))


def is_own(key: str) -> bool:
    """Whether runs of one entry may differ by this field, or its label tells it."""
    return any(key == own or key.startswith(own + ".") for own in OWN_FIELDS)


def is_size(key: str) -> bool:
    """Whether a field sets the size of the model."""
    return key.rpartition(".")[2] in SIZE_KNOBS


def flatten(plain: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of nested data by dotted path, as JSON."""
    if isinstance(plain, Mapping):
        pairs = [(str(key), value) for key, value in plain.items()]
    elif prefix == "arch" and isinstance(plain, list | tuple):
        pairs = [(str(i), value) for i, value in enumerate(plain)]
    else:
        return {prefix: plain if isinstance(plain, str) else json.dumps(plain)}
    inside = [flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in pairs]
    return {path: leaf for part in inside for path, leaf in part.items()}


def varying(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys that do not have the same value in every row."""
    keys = sorted({key for row in rows for key in row})
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]
