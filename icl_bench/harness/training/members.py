"""The tensors of a fleet by member: what those take along who stay, and where it lies in a checkpoint of all."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from icl_bench.kernels.fleet.layout import Layout

FLAT = {"parameters", "means", "squares", "working"}
BY_MEMBER = {"alive": 0, "died_at": 0, "sums": 1, "course": 1}
"""Axis of the members, of those that are not flat; what is named nowhere is one for all."""


class Part(NamedTuple):
    """Some members of a fleet, and the tensors of that fleet by name."""

    tensors: Mapping[str, Tensor]
    layout: Layout
    members: Sequence[int]


def rows(part: Part, name: str) -> list[Tensor]:
    """Views of a tensor with the members first; none where it has no members."""
    tensor = part.tensors[name]
    if name in FLAT:
        return part.layout.rows(tensor)
    return [tensor.movedim(BY_MEMBER[name], 0)] if name in BY_MEMBER else []


def copy_members(source: Part, into: Part) -> None:
    """Copy members to as many others, and what is one for all."""
    for name, tensor in into.tensors.items():
        pairs = list(zip(rows(source, name), rows(into, name), strict=True))
        for theirs, own in pairs:
            own[list(into.members)] = theirs[list(source.members)].to(own.device)
        if not pairs:
            tensor.copy_(source.tensors[name])
