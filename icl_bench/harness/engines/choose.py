"""From what was typed to an engine."""

import importlib.util
from collections.abc import Mapping, Sequence

import torch

from icl_bench.errors import SpecError, UnknownNameError
from icl_bench.harness.engines.base import Engine
from icl_bench.harness.engines.choice import Choice
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.engines.local import LocalEngine
from icl_bench.harness.engines.ray import RayEngine
from icl_bench.harness.engines.slurm import SlurmEngine
from icl_bench.harness.engines.supervisor import Limits
from icl_bench.harness.environment import pick_device
from icl_bench.harness.training.fleet import Machine
from icl_bench.schema import nearest

SUMMARIES: Mapping[str, str] = {
    "inline": "this process, one fleet after the other",
    "local": "worker processes of this machine",
    "ray": "Ray actors, on one machine or many",
    "slurm": "SLURM jobs that share a store",
}
EXTRAS: Mapping[str, str] = {"ray": "ray", "slurm": "submitit"}
"""Engines that need a package of their own; each is an extra of its engine's name."""


def check_choice(choice: Choice) -> None:
    """Refuse what does not go together.

    Raises:
        UnknownNameError: where there is no such engine.
        SpecError: where an option does not belong to it.
    """
    if choice.name not in SUMMARIES:
        hint = nearest(choice.name, SUMMARIES)
        raise UnknownNameError(f"no engine is named {choice.name!r}; {hint}known: {', '.join(SUMMARIES)}")
    if choice.name == "inline" and (choice.workers or choice.timeout):
        option = "--workers" if choice.workers else "--timeout"
        raise SpecError(f"{option} needs an engine that has workers; got --engine inline; add --engine local")
    if choice.ray_address is not None and choice.name != "ray":
        raise SpecError(f"--ray-address belongs to --engine ray; got --engine {choice.name}; add --engine ray")
    if choice.slurm and choice.name != "slurm":
        raise SpecError(f"--slurm belongs to --engine slurm; got --engine {choice.name}; add --engine slurm")
    if choice.name == "slurm" and choice.workers is None:
        raise SpecError("--engine slurm needs a number of jobs; got none; add --workers 8")


def choose_device(choice: Choice, name: str) -> torch.device:
    """The device of that name; that of other machines is not looked for on this one. Raises SpecError."""
    return torch.device("cuda") if name == "cuda" and choice.name in EXTRAS else pick_device(name)


def make_engine(choice: Choice, machine: Machine) -> Engine:
    """The engine that was asked for.

    Raises:
        EngineError: where what it needs is not there.
        SpecError: where its options are wrong.
    """
    check_choice(choice)
    limits = Limits(fleet=choice.timeout)
    if choice.name == "ray":
        return RayEngine(machine, choice.workers, limits, choice.ray_address)
    if choice.name == "slurm":
        return SlurmEngine(machine, choice.workers or 1, limits, slurm_settings(choice.slurm))
    return LocalEngine(machine, choice.workers, limits) if choice.name == "local" else InlineEngine(machine)


def slurm_settings(texts: Sequence[str]) -> dict[str, str | int]:
    """Parameters of submitit.

    >>> slurm_settings(["partition=gpu", "time=600"])
    {'partition': 'gpu', 'time': 600}

    Raises:
        SpecError: where a text is not `key=value`.
    """
    settings: dict[str, str | int] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise SpecError(f"--slurm takes key=value; got {text!r}; try --slurm partition=gpu")
        settings[key] = int(value) if value.isdecimal() else value
    return settings


def missing_package(engine: str) -> str | None:
    """The package that an engine needs and that is not installed, if any."""
    package = EXTRAS.get(engine)
    return package if package and importlib.util.find_spec(package) is None else None
